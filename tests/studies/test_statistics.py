import numpy as np
import pytest
from recording import made, why

from opposing_signals.data import planted
from opposing_signals.signals import class_r2
from opposing_signals.studies.groups import claims as statistics


@pytest.fixture
def trajectories(tmp_path):
    """Make a run from its one-step changes and sharpness."""

    def make(changes, sharpness=None, lr=1.0):
        losses = np.concatenate([np.zeros((1, changes.shape[1])), np.cumsum(changes, 0)]) + 10
        sharpness = np.full(len(losses), 2.0 / lr) if sharpness is None else sharpness
        return {"run": made(tmp_path, {"optimizer": {"lr": lr}}, sample_loss=losses, sharpness=sharpness)}

    return make


def test_spike_concentration_of_known_changes(trajectories):
    changes = np.full((40, 200), -0.001)
    changes[20] = 0.5 / 198  # 198 points share one half of the rise, two points the other
    changes[20, :2] = 0.25
    estimate = statistics.spike_concentration(trajectories(changes), steps=1 / 40)
    assert estimate.value == pytest.approx(0.5)
    assert not estimate.decides
    assert estimate.reason.endswith("a verdict needs 8, so a run of 320 steps")


def test_gaussian_changes_give_the_shares_of_a_gaussian(trajectories):
    """The top 1% of a Gaussian hold 3.6% of Σ abs Δ and 6.7% of the rise; its excess kurtosis is 0."""
    run = trajectories(np.random.default_rng(0).normal(size=(60, 20_000)))
    assert statistics.change_concentration(run).value == pytest.approx(0.036, abs=0.001)
    assert statistics.change_kurtosis(run).value == pytest.approx(0, abs=0.05)
    assert statistics.spike_concentration(run).value == pytest.approx(0.067, abs=0.003)
    share = statistics.share_increasing(run, "run", after_break_even=True)
    assert share.value == pytest.approx(0.5, abs=0.01)
    low, high = share.interval
    assert low <= share.value <= high


def test_only_steps_after_break_even_count(trajectories):
    changes = np.ones((40, 10))
    changes[20:] = -1
    sharpness = np.where(np.arange(41) < 20, 1.0, 2.0)
    run = trajectories(changes, sharpness)
    assert statistics.share_increasing(run, "run", after_break_even=True).value == 0
    assert statistics.share_increasing(run, "run", after_break_even=False).value == 0.5
    assert statistics.sharpness_over_threshold(run).value == 1
    assert statistics.peak_sharpness_over_threshold(run).value == 1


def test_a_run_that_cannot_tell_says_why(trajectories):
    run = trajectories(np.zeros((40, 10)), np.ones(41))
    for statistic in (statistics.sharpness_over_threshold, statistics.change_kurtosis, statistics.change_concentration):
        assert why(statistic, run) == "λ did not reach 2/η"
    assert "missing" in why(statistics.share_increasing, run, "other", after_break_even=False)
    assert why(statistics.pair_correlation, run) == "no opposing pair was found"
    assert why(statistics.group_amplitude_ratio, run) == "no opposing pair was found"


def test_pair_statistics_on_a_planted_pair(trajectories):
    generator = np.random.default_rng(0)
    changes = 0.01 * generator.normal(size=(60, 400))
    sign = np.where(np.arange(60) % 2 == 0, 1.0, -1.0)
    changes[:, :20] += sign[:, None]
    changes[:, 20:40] -= sign[:, None]
    run = trajectories(changes)
    assert statistics.pair_correlation(run).value < -0.99
    random_group = np.abs(changes[:, 40:60].mean(1))
    ratio = statistics.group_amplitude_ratio(run)
    assert ratio.value > 5
    assert ratio.value < 1 / np.median(random_group)
    assert ratio.interval[0] <= ratio.value <= ratio.interval[1]


def test_coherence_is_that_of_the_less_coherent_pair_by_its_purer_group(tmp_path):
    data = planted(120)
    classes = data.targets.numpy()
    of = {name: np.flatnonzero(classes == name) for name in range(3)}
    one, other = of[0][:10], np.concatenate([of[1][:5], of[2][:5]])
    mixed = [np.concatenate([of[name][start : start + 4] for name in range(3)]) for start in (10, 15)]
    generator = np.random.default_rng(0)
    changes = 0.01 * generator.normal(size=(80, 120))
    sign = np.where(np.arange(80) % 2, 1.0, -1.0)[:, None]
    changes[:40, one], changes[:40, other] = 2 * sign[:40], -2 * sign[:40]
    changes[40:, mixed[0]], changes[40:, mixed[1]] = sign[40:], -sign[40:]
    configuration = {"optimizer": {"lr": 0.1}, "data": {"_target_": "opposing_signals.data.planted", "images": 120}}
    losses = 10 + np.concatenate([np.zeros((1, 120)), np.cumsum(changes, 0)])
    run = made(tmp_path, configuration, sample_loss=losses, sharpness=np.where(np.arange(81) >= 20, 20.0, 1.0))
    assert len(run.pairs) == 2
    assert statistics.coherence({"run": run}).value == pytest.approx(1 / 3)
    explained = statistics.classes_explain({"run": run})
    assert explained.value == pytest.approx(class_r2(np.diff(losses, axis=0)[20:], classes))
    assert explained.interval[0] < explained.value < explained.interval[1]


def test_the_pair_nearest_to_an_interval_is_named_with_the_largest_beside_it(tmp_path):
    """The largest pair takes points from both ends; a weaker, later one is an interval and its neighbours."""
    x = np.linspace(-1, 1, 20)
    changes = np.zeros((80, 20))
    sign = np.where(np.arange(40) % 2 == 0, 1.0, -1.0)[:, None]
    changes[:40, [0, 19]], changes[:40, [9, 10]] = 3 * sign, -3 * sign
    changes[40:, [4, 5]], changes[40:, [3, 6]] = sign, -sign
    losses = 10 + np.concatenate([np.zeros((1, 20)), np.cumsum(changes, 0)])
    configuration = {"run": {"name": "curve"}, "data": {"_target_": "opposing_signals.data.chebyshev", "points": 20}}
    run = made(tmp_path, configuration, pairing={"smallest_group": 1}, sample_loss=losses)
    np.testing.assert_allclose(run.curve[0], x, rtol=1e-6)
    estimate = statistics.interval_coverage({"run": run})
    assert estimate.value == 1
    assert estimate.reason == "pair 2 of 2 by amplitude; the largest pair's is 0.2"
