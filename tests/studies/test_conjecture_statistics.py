import numpy as np
import pytest
import recording
from recording import why

from opposing_signals.signals import Trajectory
from opposing_signals.studies.conjectures import claims as conjectures
from opposing_signals.studies.conjectures.figures import _job, descents, group_variance

STEPS, EXAMPLES = 60, 200


@pytest.fixture
def made(tmp_path):
    """Make a run from its losses and other quantities."""

    def make(name: str, losses: np.ndarray | None = None, lr: float = 0.1, **quantities: np.ndarray) -> Trajectory:
        losses = np.ones((STEPS, EXAMPLES)) if losses is None else losses
        data = {"_target_": "opposing_signals.data.planted", "images": EXAMPLES}
        configuration = {"run": {"name": name}, "optimizer": {"lr": lr}, "data": data}
        return recording.made(tmp_path / name, configuration, sample_loss=losses, **quantities)

    return make


def opposed(amplitude: float, noise: float = 0.01) -> np.ndarray:
    """Losses in which ten points oppose ten others at every step."""
    losses = 3 + noise * np.random.default_rng(0).normal(size=(STEPS, EXAMPLES))
    losses[::2, :10] += amplitude
    losses[1::2, 10:20] += amplitude
    return losses


def test_sharpening_of_one_run_beside_another(made):
    ramp = np.linspace(1, 40, STEPS)  # reaches 2/η = 20 at step 29, at half the slope never
    runs = {"plain": made("plain", sharpness=ramp), "smoothed": made("smoothed", sharpness=ramp / 2)}
    assert conjectures.peak_sharpness_ratio(runs, "smoothed", "plain").value == pytest.approx(0.5)
    assert not conjectures.peak_sharpness_ratio(runs, "smoothed", "plain").decides  # it still grows
    hump = np.concatenate([np.linspace(1, 30, 30), np.full(30, 30.0)])
    leaping = np.where(np.arange(STEPS) == 40, 900.0, hump)
    flat = {"hump": made("hump", sharpness=hump / 2), "leaping": made("leaping", sharpness=leaping)}
    peaks = conjectures.peak_sharpness_ratio(flat, "hump", "leaping")
    assert (peaks.value, peaks.decides) == (pytest.approx(0.5), True)
    first = int(np.flatnonzero(ramp >= 20)[0])
    steep = {**runs, "smoothed": made("other", sharpness=ramp * 0.75)}
    later = int(np.flatnonzero(ramp * 0.75 >= 20)[0])
    assert conjectures.break_even_delay(steep, "smoothed", "plain").value == pytest.approx(later / first)
    runs["smoothed"] = made("third", sharpness=ramp / 4)
    assert conjectures.break_even_delay(runs, "smoothed", "plain").value == pytest.approx((STEPS - 1) / first)
    assert "2/η" in why(conjectures.break_even_delay, runs, "plain", "smoothed")


def test_a_quantity_is_compared_where_both_runs_first_have_the_same_loss(made):
    fall = np.linspace(2, 1, STEPS)[:, None] * np.ones((STEPS, EXAMPLES))
    time = np.arange(STEPS, dtype=float)
    runs = {
        "fast": made("fast", fall, jacobian_norm=time),
        "slow": made("slow", 1 + fall / 2, jacobian_norm=time),  # ends at 1.5, where the fast one is half-way
    }
    found = conjectures.ratio_at_equal_loss(runs, "jacobian_norm", "fast", "slow")
    half_way = int(np.flatnonzero(fall[:, 0] <= 1.5)[0])
    assert found.value == pytest.approx(half_way / (STEPS - 3))  # the median of the slow run's last five
    assert found.interval == pytest.approx(((half_way - 2) / (STEPS - 1), (half_way + 2) / (STEPS - 5)))


def test_amplitude_and_variance_of_the_dominant_groups(made):
    runs = {"wide": made("wide", opposed(1.0)), "narrow": made("narrow", opposed(0.5))}
    assert conjectures.pair_amplitude_ratio(runs, "wide", "narrow").value == pytest.approx(2, rel=0.02)
    assert conjectures.group_variance_ratio(runs, "wide", "narrow").value == pytest.approx(4, rel=0.05)
    quiet = {"wide": runs["wide"], "same": made("same", opposed(0.5, noise=0.005))}
    relative = conjectures.group_variance_ratio(quiet, "wide", "same", relative=True).value
    assert relative == pytest.approx(1, rel=0.05)  # half the amplitude among losses that vary by half
    assert conjectures.pair_correlation(runs, "wide").value < -0.9
    assert conjectures.group_amplitude_ratio(runs, "wide").value > 5
    still = {"wide": runs["wide"], "still": made("still")}
    assert "no opposing pair" in why(conjectures.group_variance_ratio, still, "wide", "still")


def test_the_figure_draws_the_variances_that_are_claimed(made):
    runs = {"wide": made("wide", opposed(1.0)), "narrow": made("narrow", opposed(0.5)), "still": made("still")}
    variances, *panels = group_variance(runs).axes
    assert [len(axes.lines) for axes in panels] == [4, 4, 0]  # two groups, random points and all
    ours, wide_random, narrow, narrow_random = (line.get_ydata() for line in variances.lines)
    expected = conjectures.group_variance_ratio(runs, "wide", "narrow").value
    assert np.median(ours) / np.median(narrow) == pytest.approx(expected)
    relative = conjectures.group_variance_ratio(runs, "wide", "narrow", relative=True).value
    found = np.median(np.divide(ours, wide_random)) / np.median(np.divide(narrow, narrow_random))
    assert found == pytest.approx(relative, rel=0.01)  # other random groups


def test_jobs_side_by_side_are_named_in_words_and_say_how_often_a_pair_turns(made, tmp_path):
    drifting = 3 + np.outer(np.linspace(0, 1, STEPS) ** 2, np.repeat([1.0, -1.0, 0.0], [10, 10, EXAMPLES - 20]))
    steps = np.arange(STEPS)
    more = {"sharpness": 1.0 + steps, "jacobian_norm": 1.0 + steps}
    runs = {
        "optimizer.lr=0.2": made("fast", opposed(1.0), lr=0.2, **more),
        "optimizer.lr=0.025": made("slow", drifting, lr=0.025, **more),
    }
    figure = descents(runs, "Step sizes")
    assert "η\u00a0=\u00a00.2 and 0.025" in figure.get_suptitle()
    *_, fast, slow = figure.axes
    assert fast.get_title(loc="left").startswith("η = 0.2: dominant pair")
    assert fast.get_title(loc="left").endswith("turns at 100% of the steps")
    assert "no pair" in slow.get_title(loc="left") or slow.get_title(loc="left").endswith("turns at 0% of the steps")
    run = recording.made(tmp_path / "one", {"optimizer": {"_target_": "opposing_signals.optim.OneSAM"}})
    assert _job("loss=label_smoothing", run) == "label smoothing"
    assert _job("loss.label_smoothing=0.4", run) == "label smoothing = 0.4"
    assert _job("optimizer=one_sam", run) == "1-SAM"
    assert _job("run=a,seed=1", run) == "run=a,seed=1"


def test_peak_and_decline_of_feature_norms(made):
    def rise_and_fall(peak: int, last: float) -> np.ndarray:
        rising, falling = np.linspace(1, 4, peak + 1), np.linspace(4, last, STEPS - peak)[1:]
        return np.repeat(np.concatenate([rising, falling])[:, None], 3, axis=1)

    mean = np.full(STEPS, 2.0)
    runs = {
        "sooner": made("sooner", probe_feature_norm=rise_and_fall(15, 1.0), mean_feature_norm=mean),
        "later": made("later", probe_feature_norm=rise_and_fall(35, 2.0), mean_feature_norm=mean),
    }
    assert conjectures.peak_step_difference(runs, "sooner", "later").value == pytest.approx(-20, abs=2)
    assert conjectures.decline_difference(runs, "sooner", "later").value == pytest.approx(-0.25, abs=0.08)


def test_a_missing_job_is_named():
    for statistic in (conjectures.peak_sharpness_ratio, conjectures.group_variance_ratio):
        assert why(statistic, {}, "optimizer=sam", "optimizer=sgd") == "the run optimizer=sam is missing"
    assert "missing" in why(conjectures.pair_correlation, {}, "loss=square")
