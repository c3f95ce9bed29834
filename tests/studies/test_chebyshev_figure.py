import numpy as np
import pytest
from recording import made

from opposing_signals.signals import Trajectory
from opposing_signals.studies.chebyshev.figures import chebyshev


@pytest.fixture
def trajectory(tmp_path):
    """A run on 20 points of a curve whose ends oppose its middle, and later an interval its neighbours."""

    def make(opposed: bool, first: int = 0) -> Trajectory:
        changes = np.zeros((80, 20))
        sign = np.where(np.arange(40) % 2 == 0, 1.0, -1.0)[:, None]
        if opposed:
            changes[:40, [0, 19]], changes[:40, [9, 10]] = 3 * sign, -3 * sign
            changes[40:, [4, 5]], changes[40:, [3, 6]] = sign, -sign
        losses = 10 + np.concatenate([np.zeros((1, 20)), np.cumsum(changes, 0)])
        configuration = {
            "run": {"name": "curve"},
            "model": {"_target_": "opposing_signals.models.mlp"},
            "optimizer": {"lr": 0.5},
            "data": {"_target_": "opposing_signals.data.chebyshev", "points": 20},
        }
        steps = np.arange(first, first + len(losses))
        outputs = np.tile(steps[:, None, None], (1, 20, 1)).astype(np.float32)
        rows = {"sample_loss": losses, "outputs": outputs, "sharpness": np.full(len(steps), 4.0)}
        measured = {quantity: (steps, values) for quantity, values in rows.items()}
        return made(tmp_path, configuration, {"data": {"name": "a curve"}}, {"smallest_group": 1}, **measured)

    return make


@pytest.mark.parametrize("first", [0, 100])
def test_the_pair_nearest_to_an_interval_stands_above_the_largest(trajectory, first):
    run = trajectory(opposed=True, first=first)
    figure = chebyshev({"curve": run}, zoom=10)
    assert figure.get_suptitle() == "Opposing groups in a regression in one variable: MLP, a curve, η\u00a0=\u00a00.5"
    _, _, fit, losses, largest, _ = figure.axes
    assert "pair 2" in fit.get_title(loc="left")
    assert "coverage 1.00" in fit.get_title(loc="left")
    assert "pair 1 by amplitude (the largest)" in largest.get_title(loc="left")
    interval = run.pairs[1]
    step = interval.step
    for group, line in zip(interval.groups, losses.lines, strict=True):
        for shown, value in zip(line.get_xdata(), line.get_ydata(), strict=True):
            assert abs(shown - step) <= 5
            assert value == run.losses.at(int(shown))[group].mean()
    x, _ = run.curve
    members = [set(line.get_xdata()) for line in fit.lines[-2:]]
    assert members == [set(x[group]) for group in interval.groups]
    drawn = [line.get_ydata() for line in fit.lines if line.get_label().startswith("network")]
    assert [float(values[0]) for values in drawn] == [step, step + 1]


def test_a_run_without_pairs_shows_its_loss_and_sharpness(trajectory):
    assert len(chebyshev({"curve": trajectory(opposed=False)}).axes) == 2
