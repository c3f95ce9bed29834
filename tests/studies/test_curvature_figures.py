import numpy as np
import pytest
from recording import made

from opposing_signals.models import resnet18, vgg11
from opposing_signals.signals import Trajectory
from opposing_signals.studies.curvature.figures import (
    curvature_share,
    mlp_phases,
    outlier_metrics,
    readable_tensors,
    sensitivity,
    shown_tensors,
)
from opposing_signals.studies.curvature.projection import projection

POINTS, STEPS, BREAK_EVEN = 120, 40, 12
TENSORS = ["stem.weight", "blocks.0.weight", "blocks.0.bias", "head.weight", "head.bias"]
CONFIGURATION = {
    "run": {"name": "made_up"},
    "optimizer": {"lr": 0.1},
    "data": {"_target_": "opposing_signals.data.planted", "images": POINTS},
}


@pytest.fixture
def run(tmp_path):
    """A run with every curvature quantity, in which ten points oppose the next ten, or nothing happens."""

    def make(name: str = "made_up", opposed: bool = True, edge: bool = True) -> dict[str, Trajectory]:
        generator = np.random.default_rng(0)
        steps, measured = np.arange(STEPS), np.arange(0, STEPS, 5)
        sign, n = np.where(steps % 2, -1.0, 1.0), len(measured)
        losses = np.ones((STEPS, POINTS), np.float32)
        if opposed:
            losses[::2, :10] += 1
            losses[1::2, 10:20] += 1
        run = made(
            tmp_path / name,
            CONFIGURATION,
            {"data": {"name": "drawn"}, "tensors": TENSORS},
            sample_loss=losses,
            sharpness=np.where(steps >= BREAK_EVEN, 30.0, 5.0 + abs(steps - 4)) if edge else np.ones(STEPS),
            projection=sign * (1 + steps / STEPS),
            floor_distance=np.where(steps % 3, sign * steps / STEPS, np.nan),
            effective_step_size=1.0 + steps,
            gradient_norm=(measured, generator.random((n, POINTS))),
            sample_curvature=(measured, generator.normal(size=(n, POINTS))),
            sample_sharpness=(measured, generator.random((n, 9))),
            eigenvector_share=(measured, generator.dirichlet([20, 20, 0.001, 5, 0.001], n)),
            jacobian_norm=(measured, 1.0 + measured),
            layer_norms=(measured, generator.random((n, 3))),
            layer_alignment=(measured, generator.random((n, 2))),
        )
        return {name: run}

    return make


def drawn(axes) -> dict[str, np.ndarray]:
    return {line.get_label(): np.asarray(line.get_ydata()) for line in axes.lines}


def test_four_metrics_of_pairs_and_random_points(run):
    trajectories = run()
    (pair,) = trajectories["made_up"].pairs
    change, gradient, curvature, own = outlier_metrics(trajectories).axes
    points = np.concatenate(pair.groups)
    np.testing.assert_allclose(drawn(change)["pair 1"], 1)
    np.testing.assert_allclose(drawn(change)["random points"], 0, atol=1e-6)
    record = trajectories["made_up"].record
    for axes, quantity in ((gradient, "gradient_norm"), (curvature, "sample_curvature")):
        np.testing.assert_allclose(drawn(axes)["pair 1"], np.median(record[quantity].values[:, points], axis=1))
    values = record["sample_sharpness"].values
    np.testing.assert_allclose(drawn(own)["risers of the step"], np.median(values[:, :3], axis=1))
    np.testing.assert_allclose(drawn(own)["random points"], np.median(values[:, 6:], axis=1))


def test_shares_are_drawn_for_the_tensors_that_matter(run):
    trajectories = run()
    figure = curvature_share(trajectories, "Shares")
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "stem, weight", "block 1, weight", "last linear layer, weight", "last linear layer, bias",
    ]  # fmt: skip
    shares = trajectories["made_up"].record["eigenvector_share"].values
    np.testing.assert_array_equal(axes.images[0].get_array(), shares[:, [0, 1, 3, 4]].T)
    assert "4 of 5 tensors" in figure.get_suptitle().replace("\u00a0", " ")


def test_a_tensor_is_shown_if_it_ever_holds_more_than_a_hundredth():
    shares = np.array([[0.9, 0.01, 0.0, 0.0, 0.0], [0.9, 0.0, 0.011, 0.0, 0.0]])
    assert shown_tensors(TENSORS, shares) == [0, 2, 3, 4]


@pytest.mark.parametrize(("opposed", "edge"), [(True, True), (False, False)])
def test_the_phases_of_a_network(run, opposed, edge):
    loss, sharpness, groups, along = mlp_phases(run(opposed=opposed, edge=edge)).axes
    assert len(loss.lines) == (2 if edge else 1)
    assert ("1a" in drawn(groups)) == opposed
    assert [20, 20] in [list(line.get_ydata()) for line in sharpness.lines]  # 2/η
    np.testing.assert_allclose(along.lines[0].get_ydata(), 1 + np.arange(STEPS) / STEPS)


def test_iterates_of_several_rules_and_the_floor_of_the_last(run):
    trajectories = {**run("mlp5k_gd"), **run("mlp5k_adam")}
    descent, adam, zoomed, sizes, steps, floor = projection(trajectories).axes
    for axes, trajectory in zip((descent, adam), trajectories.values(), strict=True):
        np.testing.assert_array_equal(axes.lines[0].get_ydata(), trajectory.record["projection"].values)
    assert {"mlp5k_gd", "mlp5k_adam"} <= set(drawn(zoomed))
    counted = [step for step in range(BREAK_EVEN, STEPS) if step % 3]
    (points, _) = sizes.lines
    np.testing.assert_allclose(points.get_xdata(), [step / STEPS for step in counted])
    np.testing.assert_allclose(points.get_ydata(), [1.0 + step for step in counted])
    moves = [2 + (2 * step + 1) / STEPS for step in counted if step < STEPS - 1]
    np.testing.assert_allclose(steps.lines[0].get_ydata(), moves)
    expected = [(-1) ** step if step % 3 else np.nan for step in range(STEPS)]
    np.testing.assert_allclose(drawn(floor)["floor"], expected)


def test_rules_are_drawn_without_the_one_that_failed(run):
    assert len(projection(run("mlp5k_sgd")).axes) == 2


def test_sensitivity_has_a_column_a_run(run):
    trajectories = {**run("one"), **run("other", edge=False)}
    figure = sensitivity(trajectories)
    assert len(figure.axes) == 6
    np.testing.assert_array_equal(figure.axes[0].lines[0].get_ydata(), 1.0 + np.arange(0, STEPS, 5))
    assert len(figure.axes[2].lines) == 4  # three layers and break-even
    assert len(figure.axes[5].lines) == 2


def named(model):
    return readable_tensors([name for name, _ in model.named_parameters()])


@pytest.mark.parametrize("batch_norm", [True, False])
def test_tensors_of_vgg_are_named_by_what_they_are(batch_norm):
    names = named(vgg11((3, 32, 32), 10, width=8, batch_norm=batch_norm))
    assert names[0] == "convolution 1, weight"
    assert [name for name in names if name.startswith("convolution")][-1] == "convolution 8, bias"
    assert [name for name in names if name.startswith("batch norm")][-1:] == ["batch norm 8, bias"] * batch_norm
    assert names[-2:] == ["linear layer 3, weight", "linear layer 3, bias"]
    assert len(set(names)) == len(names)


def test_tensors_of_resnet_are_named_by_block():
    names = named(resnet18((3, 32, 32), 10, width=8))
    assert names[0] == "stem, convolution, weight"
    assert "block 3, shortcut, batch norm, bias" in names
    assert names[-1] == "last linear layer, bias"
    assert len(set(names)) == len(names) == 62
