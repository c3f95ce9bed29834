import numpy as np
import pytest
from probing import ADAM, SGD, probed, two_class_logits

from opposing_signals.errors import InputError
from opposing_signals.studies.probes.paths import (
    common_loss,
    lag_one_autocorrelation,
    norm_at_loss,
    probe_path,
    times,
)


def with_probability(folder, probability):
    run = probed(folder, {"sky": np.ones(len(probability))}, {"sky": two_class_logits(np.asarray(probability, float))})
    return probe_path(run, "sky")


def test_a_path_is_the_probes_own_column(tmp_path):
    norms = {"sky": np.array([1.0, 2.0, 3.0]), "red": np.array([4.0, 5.0, 6.0])}
    run = probed(tmp_path, norms, {"red": two_class_logits(np.array([0.2, 0.3, 0.9]))}, mean=np.array([7.0, 8.0, 9.0]))
    path = probe_path(run, "red")
    assert path.norm.tolist() == [4, 5, 6]
    assert path.mean_norm.tolist() == [7, 8, 9]
    np.testing.assert_allclose(path.probabilities, [[0.2, 0.8], [0.3, 0.7], [0.9, 0.1]])
    assert path.picture.shape == (4, 4, 3)


def test_rise_and_decline_average_over_both_phases(tmp_path):
    """Neither the oscillation nor a leap of one step, nor one at the end, changes a rise from 2 to 8 or a fall to 4."""
    steady = np.concatenate([np.full(5, 2.0), np.linspace(2, 8, 20), np.full(10, 8.0), np.linspace(8, 4, 20)])
    steady = np.concatenate([steady, np.full(6, 4.0)])
    alternating = steady + np.where(np.arange(len(steady)) % 2, 0.5, -0.5)
    alternating[[27, -1]] += 30, 3
    mean = np.where(np.arange(len(steady)) < 20, 1.0, 1.5)
    path = probe_path(probed(tmp_path, {"sky": alternating}, mean=mean), "sky")
    np.testing.assert_allclose(path.level[5:24], (steady[6:25] + steady[5:24]) / 2)
    assert (path.rise, path.remainder) == (pytest.approx(4), pytest.approx(0.5))
    assert path.growth_over_mean == pytest.approx(4 / 1.5)


def test_a_norm_that_only_falls_has_its_peak_at_the_start(tmp_path):
    path = probe_path(probed(tmp_path, {"sky": np.linspace(8, 2, 30)}), "sky")
    assert (path.peak, path.rise) == (0, 1)


def test_an_alternating_change_counts_in_full_a_single_one_by_half_and_a_drift_not(tmp_path):
    alternating = with_probability(tmp_path / "alternating", [0.5, 0.8, 0.5, 0.8, 0.5]).alternation
    assert alternating.steps.tolist() == [1, 2]
    np.testing.assert_allclose(alternating.values, 0.3)
    single = with_probability(tmp_path / "single", [0.5, 0.5, 0.8, 0.8]).alternation
    np.testing.assert_allclose(single.values, 0.15)
    drift = with_probability(tmp_path / "drift", [0.1, 0.3, 0.5, 0.7]).alternation
    np.testing.assert_allclose(drift.values, 0, atol=1e-12)


def test_the_step_shown_is_one_at_which_the_dominant_class_changes(tmp_path):
    path = with_probability(tmp_path, [0.1, 0.9, 0.1, 0.9, 0.5, 0.5, 0.5, 0.6, 0.4, 0.6, 0.5])
    assert path.shown_step(0) == 1
    assert path.shown_step(4) == 7  # from 0.6 to 0.4, between two rises
    assert path.shown_step(10) is None
    larger = with_probability(tmp_path / "larger", [0.99, 0.6, 0.99, 0.6, 0.6, 0.55, 0.45, 0.55, 0.55])
    assert larger.shown_step(0) in (5, 6)  # a smaller change, but another class


def test_the_step_shown_alternates_most_where_one_class_stays_dominant(tmp_path):
    path = with_probability(tmp_path, [0.8, 0.8, 0.8, 0.7, 0.9, 0.7, 0.8, 0.8])
    assert path.shown_step(0) in (3, 4)


def test_the_dominant_class_and_its_successive_changes_begin_at_a_step(tmp_path):
    path = with_probability(tmp_path, [0.9, 0.9, 0.9, 0.9, 0.1, 0.3, 0.2, 0.4])
    assert (path.dominant_class(0), path.dominant_class(4)) == (0, 1)
    np.testing.assert_allclose(path.successive_changes(4), [[-0.2, 0.1], [0.1, -0.2]])
    assert path.successive_changes(7).shape == (0, 2)


def test_correlation_of_a_change_with_its_successor():
    assert lag_one_autocorrelation(np.array([[1.0, -1.0], [-1.0, 1.0], [1.0, -1.0]])) == pytest.approx(-1)
    assert np.isnan(lag_one_autocorrelation(np.zeros((3, 2))))


def test_norms_where_runs_have_the_same_loss(tmp_path):
    fast = probed(tmp_path / "fast", {"sky": np.array([2.0, 4.0, 4.0, 2.0, 2.0])}, train_loss=[3.0, 2.0, 1.0, 0.5, 0.1])
    slow = probed(tmp_path / "slow", {"sky": np.array([2.0, 2.0, 4.0, 4.0, 4.0])}, train_loss=[3.0, 2.5, 0.6, 2.0, 1.5])
    assert common_loss(fast, slow) == 0.6
    assert norm_at_loss(fast, probe_path(fast, "sky"), 0.6) == 0.5  # level 3, 4, 3, 2: the loss is reached at step 3
    assert norm_at_loss(slow, probe_path(slow, "sky"), 0.6) == 1
    assert np.isnan(norm_at_loss(slow, probe_path(slow, "sky"), 0.2))


def test_time_and_the_rule_with_an_edge(tmp_path):
    descent = probed(tmp_path / "descent", {"sky": np.ones(3)}, optimizer=SGD)
    assert descent.edge is not None
    np.testing.assert_allclose(times(descent, np.arange(3)), [0, 0.1, 0.2])
    assert probed(tmp_path / "momentum", {"sky": np.ones(3)}, optimizer={**SGD, "momentum": 0.9}).edge is None
    assert probed(tmp_path / "adam", {"sky": np.ones(3)}, optimizer=ADAM).edge is None


@pytest.mark.parametrize(
    ("settings", "name", "message"),
    [
        ({}, "red", r"experiment.probe=red: the run mine passes sky through its network; set instruments.block_probe"),
        ({"loss": "opposing_signals.losses.square_loss"}, "sky", "need a run with loss=cross_entropy"),
        ({"norms": {"sky": np.ones(1)}}, "sky", "at one step; expected at least 2: set more steps"),
    ],
)
def test_runs_without_such_a_path_are_refused(settings, name, message, tmp_path):
    with pytest.raises(InputError, match=message):
        probe_path(probed(tmp_path / "mine", **{"norms": {"sky": np.ones(3)}, **settings}), name)
