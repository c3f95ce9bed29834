"""Statistics of text runs on handmade series with known verdicts."""

import numpy as np
import pytest
from recording import made, why

from opposing_signals.data import text_demo
from opposing_signals.data.token_patterns import pattern_points
from opposing_signals.signals import Trajectory
from opposing_signals.studies.curvature.metrics import detrended
from opposing_signals.studies.text.claims import (
    detrended_correlation,
    final_loss_ratio,
    named_pair_correlation,
    pattern_share,
    shown_pairs_correlation,
    signed_share,
    signed_share_decay,
)

STEPS = 60


@pytest.fixture
def run(tmp_path):
    def make(name: str, **series: np.ndarray) -> Trajectory:
        return made(tmp_path / name, {"data": {"_target_": "opposing_signals.data.text_demo"}}, **series)

    return make


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(STEPS)


def test_a_trend_is_taken_away():
    steps = np.arange(40.0)
    np.testing.assert_allclose(detrended(3 * steps, 10)[5:-5], 0, atol=1e-12)
    expected = [value - np.mean(noise(1)[max(0, t - 4) : t + 5]) for t, value in enumerate(noise(1))]
    np.testing.assert_allclose(detrended(noise(1), 8), expected, atol=1e-12)


def test_two_runs_are_compared_without_their_trends(run):
    trend = np.linspace(2, 1.7, STEPS)
    losses = {"same": noise(1), "noisy": noise(1) + 3 * noise(2), "other": noise(3)}
    runs = {"base": run("base", train_loss=2 * trend + noise(1) / 10)}
    runs |= {name: run(name, train_loss=trend + values / 10) for name, values in losses.items()}
    values = {name: detrended_correlation(runs, name, "base", window=8).value for name in losses}
    assert values["same"] > 0.98
    assert 0.1 < values["noisy"] < 0.6
    assert abs(values["other"]) < 0.4
    still = {name: run(f"still {name}", train_loss=np.ones(STEPS)) for name in ("one", "two")}
    assert "never changes" in why(detrended_correlation, still, "one", "two", 8)
    assert "the run gone is missing" in why(detrended_correlation, runs, "gone", "base", 8)
    assert "60 of the 61 needed steps in common" in why(detrended_correlation, runs, "same", "base", 61)


def test_final_losses_of_two_runs(run):
    steps = 400
    late = np.r_[np.full(380, 9.0), np.tile([1.0, 3.0], 10)]  # the mean of the last 5% is 2
    runs = {"one": run("one", train_loss=late), "two": run("two", train_loss=late * 1.25)}
    ratio = final_loss_ratio(runs, "two", "one")
    assert ratio.value == pytest.approx(1.25)
    assert ratio.interval == pytest.approx((1.25, 1.25))
    assert len(late) == steps
    short = {name: run(f"{name}, short", train_loss=late[:60]) for name in ("one", "two")}
    assert "3 of the 10 needed steps in the last 5%" in why(final_loss_ratio, short, "one", "two")


def test_the_share_of_signed_steps(run):
    runs = {"split": run("split", signed_share=np.linspace(0.5, 0.1, STEPS))}
    assert signed_share(runs, "split", "first").value == pytest.approx(np.linspace(0.5, 0.1, STEPS)[4:6].mean())
    assert signed_share_decay(runs, "split").value < 0.3
    short = {"split": run("short", signed_share=np.ones(15))}
    assert "15 of the 20 needed steps" in why(signed_share_decay, short, "split")
    assert "missing" in why(signed_share, {}, "split", "last")


@pytest.fixture
def tracked(run):
    """A run on the drawn text in which newline and " the" oppose each other, and quotation marks move together."""
    data = text_demo()
    names = ("newline_after_colon", "the_after_colon", "quote_after_period", "quote_before_period")
    groups = [pattern_points(data, name)[:30] for name in names]
    points = np.unique(np.concatenate([*groups, np.arange(2000)]))
    values = np.ones((STEPS, len(points)), np.float32) + 1e-3 * noise(5)[:, None].astype(np.float32)
    sign = np.where(np.arange(STEPS) % 2, 1.0, -1.0)[:, None]
    for group, size in zip(groups, (0.5, -0.5, 0.2, 0.1), strict=True):
        values[:, np.isin(points, group)] += size * sign
    return {"gpt2": run("gpt2", token_points=[points], token_loss=values)}


def test_pairs_of_tokens(tracked):
    assert named_pair_correlation(tracked, "colon").value < -0.99
    assert named_pair_correlation(tracked, "quotes").value > 0.99
    assert shown_pairs_correlation(tracked, ["colon", "quotes"]).value > 0.99
    assert shown_pairs_correlation(tracked, ["colon"]).value < -0.9
    for pair in ("colon", "quotes"):
        assert pattern_share(tracked, pair).value == 1


def test_a_text_that_was_not_followed_has_no_pair(run):
    nothing = {"gpt2": run("nothing", token_points=[np.arange(3)], token_loss=np.ones((STEPS, 3), np.float32))}
    for statistic in (named_pair_correlation, pattern_share):
        assert "lacks one of the two patterns" in why(statistic, nothing, "colon")
    assert "no opposing pair" in why(shown_pairs_correlation, nothing, ["colon", "quotes"])
