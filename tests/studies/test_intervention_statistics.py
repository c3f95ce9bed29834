"""The claim's statistic on handmade branches."""

import numpy as np
import pytest
import scipy
from recording import made, why

from opposing_signals.studies.intervention.claims import sharpness_advantage, spike_advantage

HEIGHTS = {"control": 0.4, "remove_pair": 0.1, "random 1": 0.3, "random 2": 0.4}


def drawn(folder, heights, spike=1, late=None):
    """Branches of one spike: points 0 and 1 are the pair, 2 to 5 are removed at random, 6 and 7 are untouched."""
    found = {}
    for name, height in heights.items():
        kind, _, draw = name.partition(" ")
        origin = {
            "kind": {"random": "remove_random"}.get(kind, kind),
            "spike": spike,
            "step": 30,
            "spike_step": 31,
            "touched": {"control": [], "remove_pair": [0, 1], "random": [2 * int(draw or 0), 2 * int(draw or 0) + 1]}[
                kind
            ],
        }
        configuration = {"intervention": {"kind": origin["kind"], **({"draw": int(draw)} if draw else {})}}
        losses = np.ones((5, 8))
        losses[3, 6:] += height
        losses[4, 6:] += 9 * height * (kind == late)
        losses[2, :6] += 5  # the touched points do not count
        sharpness = 10 * height + (np.arange(5) == 0)
        path = folder / f"{spike} {name}"
        found[path.name] = made(path, configuration, {"branch": origin}, sample_loss=losses, sharpness=sharpness)
    return found


def test_the_advantage_is_relative_to_the_control_and_to_random_points(tmp_path):
    runs = drawn(tmp_path, HEIGHTS)
    assert spike_advantage(runs, kind="remove_pair").value == pytest.approx(((0.3 - 0.1) + (0.4 - 0.1)) / 2 / 0.4)
    assert sharpness_advantage(runs, kind="remove_pair").value == pytest.approx(((3 - 1) + (4 - 1)) / 2 / 4)
    alone = spike_advantage(runs, kind="remove_pair")
    assert (alone.interval, alone.decides) == (None, False)
    assert alone.reason == "1 of the 2 needed spikes"


def test_a_pair_that_does_no_better_than_random_points_has_no_advantage(tmp_path):
    assert spike_advantage(
        drawn(tmp_path, {**HEIGHTS, "remove_pair": 0.35}), kind="remove_pair"
    ).value == pytest.approx(0)
    assert spike_advantage(drawn(tmp_path / "up", {**HEIGHTS, "remove_pair": 0.5}), kind="remove_pair").value < 0


def test_spikes_are_averaged_and_incomplete_ones_left_out(tmp_path):
    lone = {name: height for name, height in HEIGHTS.items() if "random" not in name}
    runs = {
        **drawn(tmp_path, HEIGHTS),
        **drawn(tmp_path, {**HEIGHTS, "remove_pair": 0.4}, 2),
        **drawn(tmp_path, lone, 3),
    }
    estimate = spike_advantage(runs, kind="remove_pair")
    assert estimate.value == pytest.approx((0.625 - 0.125) / 2)
    expected = scipy.stats.ttest_1samp([0.625, -0.125], 0).confidence_interval(0.95)
    assert estimate.interval == pytest.approx((expected.low, expected.high))
    only = drawn(tmp_path / "lone", lone)
    assert "no spike has" in why(spike_advantage, only, kind="remove_pair")
    flat = drawn(tmp_path / "flat", {**HEIGHTS, "control": 0.0})
    assert "no spike has" in why(spike_advantage, flat, kind="remove_pair")


def test_a_later_spike_is_left_out_where_the_claim_is_about_the_next(tmp_path):
    runs = drawn(tmp_path, HEIGHTS, late="remove_pair")
    assert spike_advantage(runs, kind="remove_pair").value < 0  # its rise from step 3 to 4 is 0.8
    assert spike_advantage(runs, kind="remove_pair", behind=1).value == pytest.approx(0.625)
    assert spike_advantage(runs, kind="remove_pair", behind=2).value < 0
