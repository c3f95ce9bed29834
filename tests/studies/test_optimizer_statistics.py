"""Statistics of stochastic training on records with known answers."""

import numpy as np
import pytest
import recording
from recording import why

from opposing_signals.signals import Runs, Trajectory
from opposing_signals.studies.optimizers import claims as optimizers

STEPS, POINTS = 160, 300
EPOCH = 12


@pytest.fixture
def grouped(tmp_path):
    """A run whose first ten points oppose the next ten, reversing every ``period`` steps, with common noise."""

    def make(amplitude: float, period: int, noise: float = 0.1) -> dict[str, Trajectory]:
        generator = np.random.default_rng(0)
        losses = 5 + noise * generator.normal(size=(STEPS, POINTS)) - 0.01 * np.arange(STEPS)[:, None]
        swing = amplitude * np.where(np.arange(STEPS) // period % 2, 1.0, -1.0)[:, None]
        losses[:, :10] += swing
        losses[:, 10:20] -= swing
        return {
            "run": recording.made(tmp_path / f"{amplitude}-{period}", {"optimizer": {"lr": 0.1}}, sample_loss=losses)
        }

    return make


def test_the_variance_of_opposing_groups_over_that_of_random_ones(grouped):
    """A group swings by ±1, and its points' noise averages to a variance of 0.1²/10; a random group has only the noise.

    A random group of ten holds 0.67 points of the two groups; they add 0.67/100 to its variance.
    """
    made = grouped(1.0, 1)
    assert len(made["run"].pairs) == 1
    estimate = optimizers.group_variance_ratio(made)
    expected = (1 + 0.001) / (0.001 + 0.0067)
    assert estimate.value == pytest.approx(expected, rel=0.2)
    assert estimate.interval[0] <= estimate.value <= estimate.interval[1]


def test_the_share_of_steps_at_which_a_gap_turns(grouped):
    """Groups that reverse at every second step leave every second change to noise, so half of the steps reverse."""
    assert optimizers.sign_change_share(grouped(1.0, 1, noise=0.001)).value == 1
    assert optimizers.sign_change_share(grouped(1.0, 2, noise=0.001)).value == pytest.approx(0.5, abs=0.1)


def test_a_run_without_pairs_says_so(grouped):
    made = grouped(0.0, 1, noise=0.0)
    assert why(optimizers.group_variance_ratio, made) == "no opposing pair was found"
    assert why(optimizers.sign_change_share, made) == "no opposing pair was found"


@pytest.fixture
def grid(tmp_path):
    """Runs under several rules with the given final losses, common noise, and a constant signed fraction."""
    targets = {
        "SGD": "torch.optim.SGD", "Adam": "torch.optim.Adam", "SplitSGD": "opposing_signals.optim.SplitSGD",
    }  # fmt: skip

    def make(*ends: tuple[str, dict, float], share: float = 0.25) -> Runs:
        noise = 0.1 * np.random.default_rng(0).normal(size=EPOCH)
        noise -= noise.mean()
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        complete, stopped = {}, {}
        for number, (rule, settings, end) in enumerate(ends):
            name = f"job{number}"
            configuration = {
                "optimizer": {"_target_": targets[rule], **settings},
                "batch": 10,
                "data": {"_target_": "opposing_signals.data.planted", "images": 10 * EPOCH},
            }
            (complete if np.isfinite(end) else stopped)[name] = recording.made(
                folder / name,
                configuration,
                {"data": {"name": "drawn", "examples": 10 * EPOCH}},
                state="complete" if np.isfinite(end) else "stopped: the training loss is nan",
                train_loss=[9.0, 9.0, *(end + noise)],
                signed_share=np.where(np.arange(EPOCH + 2) < 10, 0.9, share),
                test_accuracy=([0, EPOCH + 1], [0.1, end / 10]),
            )
        return Runs(complete, stopped, dict.fromkeys(stopped, "the training loss is nan"))

    return make


def sgd(lr: float, end: float) -> tuple[str, dict, float]:
    return "SGD", {"lr": lr, "momentum": 0.9, "dampening": 0.0}, end


def adam(lr: float, end: float) -> tuple[str, dict, float]:
    return "Adam", {"lr": lr}, end


def split(sgd_lr: float, end: float, dampening: float = 0.9, lr: float = 0.001) -> tuple[str, dict, float]:
    return "SplitSGD", {"lr": lr, "sgd_lr": sgd_lr, "momentum": 0.9, "dampening": dampening}, end


def test_final_losses_over_a_grid(grid):
    runs = grid(sgd(1, 2.0), sgd(0.1, 1.25), split(0.1, 1.0), split(0.0, 1.1), adam(0.005, 0.8))
    below = optimizers.loss_over_best(runs, "SplitSGD", "SGD")
    assert below.value == pytest.approx(1.1 / 1.25)
    assert below.interval[0] < below.value < below.interval[1]
    assert optimizers.loss_variation(runs, "SplitSGD").value == pytest.approx(0.1)
    assert optimizers.largest_difference(runs, "SplitSGD", "Adam").value == pytest.approx(1.1 / 0.8 - 1)
    assert "no run under SAM" in why(optimizers.loss_variation, runs, "SAM")


def test_ranges_over_a_grid(grid):
    runs = grid(sgd(1, 2.0), sgd(0.1, 1.0), sgd(0.01, 2.5), adam(0.01, 1.2), adam(0.001, 0.9))
    for quantity in ("train_loss", "test_accuracy"):
        assert optimizers.range_ratio(runs, "SGD", "Adam", quantity).value == pytest.approx(1.5 / 0.3)
    assert optimizers.range_ratio(runs, "SGD", "Adam", "train_loss").interval is not None
    assert optimizers.range_ratio(runs, "SGD", "Adam", "test_accuracy").interval is None


def test_one_run_has_no_range(grid):
    runs = grid(sgd(1, 2.0), adam(0.01, 1.2), adam(0.001, 0.9))
    expected = "one run under SGD: expected at least 2"
    for rules in (("Adam", "SGD"), ("SGD", "Adam")):
        assert why(optimizers.range_ratio, runs, *rules, "train_loss") == expected
    assert why(optimizers.loss_variation, runs, "SGD") == expected


def test_dampening_is_compared_at_equal_plain_steps(grid):
    runs = grid(split(0.1, 1.0), split(10, 0.8), split(0.1, 1.3, 0.0), split(10, 0.9, 0.0))
    assert optimizers.dampening_difference(runs).value == pytest.approx(-0.1)
    lonely = grid(split(0.1, 1.0), split(10, 0.8), split(0.1, 1.3, 0.0))
    assert why(optimizers.dampening_difference, lonely) == "the runs with τ = 0.9 and τ = 0 have different step sizes"


def test_a_stopped_run_counts_as_an_infinite_loss(grid):
    runs = grid(sgd(1, np.inf), sgd(0.1, 1.25), split(0.1, 1.0), adam(0.001, 1.0), adam(0.01, 1.1))
    assert optimizers.loss_over_best(runs, "SplitSGD", "SGD").value == pytest.approx(1 / 1.25)
    assert why(optimizers.range_ratio, runs, "SGD", "Adam", "train_loss") == "it is not finite; stopped: job0"


def test_nothing_is_said_of_a_grid_with_a_hole(grid):
    runs = grid(sgd(0.1, 1.25), split(0.1, 1.0))
    runs.failures["job7"] = "optimizer.lr=-1: expected a step size larger than 0"
    assert why(optimizers.loss_over_best, runs, "SplitSGD", "SGD") == "failed: job7"


def test_shares_of_signed_steps_after_the_first_few(grid):
    one = grid(split(0.1, 1.0), sgd(0.1, 1.0))
    assert optimizers.plain_share(one).value == pytest.approx(0.75)
    several = grid(split(0.1, 1.0), split(10, 1.0), share=0.2)
    assert "2 runs under SplitSGD" in why(optimizers.plain_share, several)
    for which in ("smallest", "largest"):
        assert optimizers.signed_share(several, which, dampening=0.9).value == pytest.approx(0.2)
    assert "τ = 0" in why(optimizers.signed_share, several, "smallest", dampening=0.0)
