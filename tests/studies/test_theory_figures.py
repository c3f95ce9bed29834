"""Figures of §3.3 show what their records hold."""

import numpy as np
import pytest
from composing import composed
from hydra.utils import get_method
from PIL import Image

from opposing_signals.configuration import decisive
from opposing_signals.record import Record
from opposing_signals.signals import Trajectory
from opposing_signals.studies.theory import figures, theorem_figures

SMALL = {
    "fig04_toy_valley": (),
    "fig38b_linear_model": ("steps=300",),
    "theorem31": (
        "theory.grid.alpha.points=5", "theory.grid.k.points=4", "theory.grid.samples=120",
        "theory.descent.ratios.points=12", "theory.descent.steps=300",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def trajectory(tmp_path_factory):
    made = {}

    def get(experiment):
        if experiment not in made:
            config = composed(experiment, *SMALL[experiment])
            folder = tmp_path_factory.mktemp(experiment)
            with Record.writing(folder, decisive(config)) as record:
                get_method(config.job)(config, record, None)
            made[experiment] = Trajectory(Record(folder))
        return made[experiment]

    return get


def lines(axes):
    return [line.get_ydata() for line in axes.get_lines()]


def test_the_iterates_lie_on_the_curves(trajectory):
    figure = figures.toy_valley({"run": trajectory("fig04_toy_valley")})
    for axes in figure.axes[:2]:
        curves = axes.get_lines()[:3]
        for dots, curve in zip(axes.collections[:3], curves, strict=True):
            x, y = np.asarray(dots.get_offsets()).T
            np.testing.assert_allclose(y, np.interp(x, curve.get_xdata(), curve.get_ydata()), atol=2e-3)


def test_the_animation_has_a_frame_for_each_step_and_is_small(tmp_path):
    config = composed("fig04_toy_valley", "theory.settle=4", "theory.sharpen=2", "theory.stay=4")
    with Record.writing(tmp_path / "run", decisive(config)) as record:
        get_method(config.job)(config, record, None)
    figures.toy_valley_animation({"run": Trajectory(Record(tmp_path / "run"))}, tmp_path / "animation.gif")
    with Image.open(tmp_path / "animation.gif") as animation:
        assert animation.n_frames == 10
    assert (tmp_path / "animation.gif").stat().st_size < 10 * 20_000


@pytest.mark.parametrize("runs", [1, 2])
def test_three_phases_draw_every_quantity_of_every_run(trajectory, runs):
    run = trajectory("fig38b_linear_model")
    figure = figures.three_phases({str(number): run for number in range(runs)}, title="phases")
    drawn = [values for axes in figure.axes for values in lines(axes)]
    for quantity in (run.record["train_loss"], run.sharpness):
        assert sum(np.array_equal(values, quantity.values) for values in drawn) == runs


def test_the_map_colours_hold_what_the_statements_say(trajectory):
    run = trajectory("theorem31")
    figure = theorem_figures.theorem_map({"run": run})
    holds = run.record["holds"].at(0)
    for column in range(4):
        drawn = np.asarray(figure.axes[column].collections[0].get_array()).reshape(holds.shape[1:])
        np.testing.assert_array_equal(drawn == 0, (holds["initial_upper"] & holds["minimum_in_time"])[column])


@pytest.mark.parametrize("name", ["theorem31", "theorem32"])
def test_the_theorems_are_drawn_from_finite_numbers(trajectory, name, tmp_path):
    figure = getattr(theorem_figures, name)({"run": trajectory("theorem31")})
    figure.savefig(tmp_path / "figure.png", dpi=50)
    assert len(figure.axes) == 4
    for axes in figure.axes:
        assert lines(axes)
        assert all(np.isfinite(axes.get_xlim() + axes.get_ylim()))
