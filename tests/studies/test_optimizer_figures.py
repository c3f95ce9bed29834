import numpy as np
import pytest
import recording

from opposing_signals.signals import Runs
from opposing_signals.studies.optimizers.figures import (
    learning_rates,
    learning_rates_of_both,
    plain_step_sizes,
    rules,
    sgd_groups,
    signed_shares,
)

STEPS, EXAMPLES = 24, 60
DATA = {"_target_": "opposing_signals.data.planted", "images": EXAMPLES}
DRAWN = {"data": {"name": "drawn", "examples": EXAMPLES}}
SPLIT = {"_target_": "opposing_signals.optim.SplitSGD", "momentum": 0.9}
SGD = {"_target_": "torch.optim.SGD", "momentum": 0.9, "dampening": 0.0}
MODEL = {"_target_": "opposing_signals.models.cifar_resnet", "depth": 8, "width": 4}
ADAM = {"_target_": "torch.optim.Adam"}


@pytest.fixture
def runs(tmp_path):
    """Runs under the given optimizers; the n-th has the constant loss 2 + n, and is stopped half-way if asked."""

    def make(*optimizers: dict, stopped: int | None = None) -> Runs:
        made = {}
        for number, optimizer in enumerate(optimizers):
            last = STEPS // 2 if number == stopped else STEPS
            losses, tested = np.full(last, 2.0 + number), range(0, last, 5)
            if number == stopped:
                losses[-1] = np.nan
            signed = {"signed_share": np.full(last, 0.1 * (1 + number))} if "SplitSGD" in optimizer["_target_"] else {}
            made[f"job{number}"] = recording.made(
                tmp_path / f"job{number}",
                {"run": {"name": "job"}, "optimizer": optimizer, "batch": 20, "model": MODEL, "data": DATA},
                DRAWN,
                state="stopped: the training loss is nan" if number == stopped else "complete",
                train_loss=losses,
                test_accuracy=(tested, np.full(len(tested), 0.05 * (1 + number))),
                **signed,
            )
        lost = {name: run for name, run in made.items() if name == f"job{stopped}"}
        whole = {name: run for name, run in made.items() if name not in lost}
        return Runs(whole, lost, dict.fromkeys(lost, "the training loss is nan"))

    return make


def drawn(axes) -> list[list[float]]:
    return [list(line.get_ydata()) for line in axes.lines]


def test_every_rule_has_a_line_in_each_panel_that_it_was_recorded_for(runs):
    made = runs(SGD | {"lr": 1.0}, SGD | {"lr": 0.1}, SPLIT | {"lr": 0.001, "sgd_lr": 0.1, "dampening": 0.9}, stopped=0)
    figure = rules(made)
    loss, accuracy, share = figure.axes
    assert sorted(map(len, drawn(loss))) == [STEPS // 2 - 1, STEPS, STEPS]
    np.testing.assert_allclose(sorted(line[0] for line in drawn(loss)), [2, 3, 4])
    assert len(accuracy.lines) == 3
    assert drawn(share) == [pytest.approx([0.3] * STEPS)]
    assert [text.get_text() for text in figure.legends[0].texts] == [
        "SGD η = 0.1, β = 0.9, τ = 0", "SplitSGD η₁ = 0.1, η₂ = 0.001, τ = 0.9", "SGD η = 1, β = 0.9, τ = 0",
    ]  # fmt: skip


def test_plain_step_sizes_show_the_runs_of_one_dampening(runs):
    grid = [SPLIT | {"lr": 0.001, "sgd_lr": s, "dampening": d} for d in (0.0, 0.9) for s in (0.0, 0.1, 10.0)]
    made = runs(*grid, ADAM | {"lr": 0.005})
    loss, accuracy, share, ends, *_ = plain_step_sizes(made, dampening=0.9).axes
    assert sorted(line[0] for line in drawn(loss)) == pytest.approx([5, 6, 7, 8])
    assert len(accuracy.lines) == 4
    assert sorted(line[0] for line in drawn(share)) == pytest.approx([0.4, 0.5, 0.6])
    assert drawn(ends) == [pytest.approx([6, 7]), pytest.approx([5, 5]), pytest.approx([8, 8])]
    undampened, dampened, *_ = signed_shares(made).axes
    assert sorted(line[0] for line in drawn(undampened)) == pytest.approx([0.1, 0.2, 0.3])
    assert sorted(line[0] for line in drawn(dampened)) == pytest.approx([0.4, 0.5, 0.6])


@pytest.mark.parametrize("stopped", [0, 1, 2])
def test_a_run_that_was_stopped_has_no_final_loss(runs, stopped):
    grid = [SPLIT | {"lr": 0.001, "sgd_lr": size, "dampening": 0.9} for size in (0.0, 0.1)]
    figure = plain_step_sizes(runs(*grid, ADAM | {"lr": 0.005}, stopped=stopped))
    figure.canvas.draw()
    levels = [level for line in drawn(figure.axes[3]) for level in set(line)]
    assert sorted(levels) == pytest.approx([2.0 + number for number in range(3) if number != stopped])


def test_learning_rates_have_a_panel_a_rule_and_one_of_what_they_end_with(runs):
    adam = [ADAM | {"lr": lr} for lr in (0.01, 0.001)]
    split = [SPLIT | {"lr": lr, "sgd_lr": 0.1, "dampening": 0.9} for lr in (0.01, 0.001)]
    left, right, ends = learning_rates(runs(*adam, *split), "test_accuracy").axes
    assert [line[0] for line in drawn(left)] == pytest.approx([0.1, 0.05])
    assert [line[0] for line in drawn(right)] == pytest.approx([0.2, 0.15])
    assert left.get_ylim() == right.get_ylim()
    assert drawn(ends) == [pytest.approx([0.1, 0.05]), pytest.approx([0.2, 0.15])]


def test_both_rules_share_the_panels_of_figure_43a(runs):
    grid = [rule | {"lr": lr} for rule in (SGD, ADAM) for lr in (0.01, 0.001)]
    loss, accuracy, ends = learning_rates_of_both(runs(*grid)).axes
    assert len(loss.lines) == len(accuracy.lines) == 4
    assert drawn(ends) == [pytest.approx([3, 2]), pytest.approx([5, 4])]


@pytest.mark.parametrize("opposed", [True, False])
def test_groups_under_sgd_beside_random_points_and_all(tmp_path, opposed):
    losses = 3 + 0.1 * np.random.default_rng(0).normal(size=(60, EXAMPLES)) * opposed
    if opposed:
        losses[::2, :10] += 1
        losses[1::2, 10:20] += 1
    configuration = {"run": {"name": "made_up"}, "optimizer": {"lr": 0.1}, "batch": 20, "data": DATA}
    trajectory = recording.made(tmp_path, configuration, DRAWN, sample_loss=losses)
    overview, *shown = sgd_groups({"made_up": trajectory}, zoom=20).axes
    assert len(shown) == 3 * len(trajectory.pairs) == 3 * opposed
    np.testing.assert_allclose(overview.lines[0].get_ydata(), losses.mean(1))
    if opposed:
        losses_of_pair, *sheets = shown
        group, _, random, mean = losses_of_pair.lines
        assert len(group.get_ydata()) == len(mean.get_ydata()) == 21
        assert np.ptp(group.get_ydata()) > 3 * np.ptp(random.get_ydata())
        for sheet, members in zip(sheets, trajectory.pairs[0].groups, strict=True):
            first = trajectory.dataset.images[members[0]]
            np.testing.assert_array_equal(sheet.images[0].get_array()[:32, :32], first)
