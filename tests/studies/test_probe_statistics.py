import numpy as np
import pytest
from probing import ADAM, probed, two_class_logits
from recording import why

from opposing_signals.studies.claim import Claim
from opposing_signals.studies.probes import claims as probes

STEPS, BREAK_EVEN = 60, 20
SHARPNESS = np.where(np.arange(STEPS) < BREAK_EVEN, 1.0, 20.0)  # 2/η is 20
HUMP = np.concatenate([np.linspace(2, 8, 30), np.linspace(8, 4, 30)])
SWING = np.where(np.arange(STEPS) % 2, 0.9, 0.6)
PATTERN = {"growth_over_mean": "> 1", "change_autocorrelation": "< -0.5", "rise_and_decline": "> 1.1"}


@pytest.fixture
def made(tmp_path):
    def make(name="run", norm=HUMP, probability=SWING, **settings):
        logits = {"sky": two_class_logits(probability)}
        return {name: probed(tmp_path / name, {"sky": norm}, logits, **{"sharpness": SHARPNESS, **settings})}

    return make


def verdict(statistic, runs, threshold, **keywords):
    def bound(trajectories):
        return statistic(trajectories, **keywords)

    return Claim("id", "statement", "source", bound, threshold).check(runs, "cpu", 1).verdict


def test_a_feature_that_rises_oscillates_and_declines(made):
    run = made(mean=np.linspace(1, 2, STEPS))
    start, peak, end = HUMP[:2].mean(), 8.0, np.median((HUMP[1:] + HUMP[:-1])[-5:] / 2)
    growth = probes.growth_over_mean(run, "sky").value
    assert growth == pytest.approx(peak / start / np.interp(29.5, np.arange(STEPS), np.linspace(1, 2, STEPS)), rel=0.02)
    assert probes.final_over_peak(run, "sky").value == pytest.approx(end / peak, rel=0.02)
    assert probes.rise_and_decline(run, "sky").value == pytest.approx(peak / end, rel=0.02)
    oscillation = probes.change_autocorrelation(run, "sky")
    assert oscillation.value == pytest.approx(-1)
    assert oscillation.interval == pytest.approx((-1, -1))


def test_a_feature_that_only_grows_neither_declines_nor_outgrows_the_data(made):
    run = made(norm=np.linspace(1, 2, STEPS), mean=np.linspace(1, 4, STEPS))
    assert verdict(probes.growth_over_mean, run, "> 1", probe="sky") == "FAIL"
    assert verdict(probes.final_over_peak, run, "< 0.8", probe="sky") == "FAIL"
    assert probes.rise_and_decline(run, "sky").value == 1


def test_only_the_steps_from_break_even_on_oscillate(made):
    drift = np.linspace(0.6, 0.9, STEPS) + 0.02 * np.sin(np.arange(STEPS) / 3)
    late = np.where(np.arange(STEPS) < BREAK_EVEN, drift, SWING)
    early = np.where(np.arange(STEPS) < BREAK_EVEN, SWING, drift)
    for name, probability, expected in (("late", late, "PASS"), ("early", early, "FAIL")):
        run = made(name, probability=probability)
        assert verdict(probes.change_autocorrelation, run, "< -0.5", probe="sky") == expected


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"sharpness": np.ones(STEPS)}, "λ did not reach 2/η"),
        (
            {"sharpness": np.where(np.arange(STEPS) < 55, 1.0, 20.0)},
            "3 of the 10 needed steps after break-even at step 55",
        ),
        ({"probability": np.full(STEPS, 0.7)}, "the dominant class's probability does not change"),
    ],
)
def test_a_run_that_cannot_tell_of_an_oscillation(settings, reason, made):
    run = made(**settings)
    assert reason in why(probes.change_autocorrelation, run, "sky")
    assert verdict(probes.change_autocorrelation, run, "< -0.5", probe="sky") == "INCONCLUSIVE"


def test_the_share_of_probes_with_the_whole_pattern(tmp_path):
    norms = {"sky": HUMP, "red": HUMP[::-1], "green": np.linspace(1, 2, STEPS), "white": HUMP}
    logits = {name: two_class_logits(SWING) for name in ("sky", "red", "green")}
    logits["white"] = two_class_logits(0.5 + 0.4 * np.sin(np.arange(STEPS) / 9))
    run = {"run": probed(tmp_path / "run", norms, logits, sharpness=SHARPNESS)}
    share = probes.pattern_share(run, "run", list(norms), PATTERN)
    assert (share.value, share.interval) == (0.5, (0.5, 0.5))  # sky and, reversed, red
    assert probes.pattern_share(run, "run", list(norms), {**PATTERN, "final_over_peak": "< 0.4"}).value == 0.25
    assert why(probes.pattern_share, run, "other", ["sky"], PATTERN) == "the run other is missing"
    stable = {"run": probed(tmp_path / "stable", norms, logits, sharpness=np.ones(STEPS))}
    assert why(probes.pattern_share, stable, "run", ["red"], PATTERN) == "red: λ did not reach 2/η"


def flows(made, flow, descent, **settings):
    return made("flow", norm=flow) | made("descent", norm=descent, **settings)


def test_an_undecided_probe_counts_as_either(tmp_path):
    """The oscillation of the second probe fades into noise, so that its autocorrelation has a wide interval."""
    noise = np.random.default_rng(0).uniform(0.3, 0.7, STEPS)
    logits = {"sky": two_class_logits(SWING), "red": two_class_logits(noise)}
    run = {"run": probed(tmp_path / "run", {"sky": HUMP, "red": HUMP}, logits, sharpness=SHARPNESS)}
    alone = probes.change_autocorrelation(run, "red")
    assert alone.interval[0] < -0.5 < alone.interval[1]
    share = probes.pattern_share(run, "run", ["sky", "red"], PATTERN)
    assert share.interval == (0.5, 1)
    assert share.value == (1 if alone.value < -0.5 else 0.5)


NAMES = {"flow": "flow", "descent": "descent"}


def test_flow_and_descent_agree_up_to_break_even_and_part_after_it(made):
    flow = np.linspace(1, 7, STEPS)
    descent = np.where(np.arange(STEPS) <= BREAK_EVEN, 0.95 * flow, flow[BREAK_EVEN] / 2)
    runs = flows(made, flow, descent)
    assert probes.flow_difference(runs, "sky", **NAMES).value == pytest.approx(0.05)
    growth = probes.flow_growth(runs, "sky", **NAMES)
    assert (growth.value, growth.interval) == (1, None)
    assert probes.flow_end(runs, "sky", **NAMES).value == pytest.approx(flow[-2:].mean() / (flow[BREAK_EVEN] / 2))


def test_the_end_of_descent_does_not_depend_on_the_phase_of_its_oscillation(made):
    descent = 4 + np.where(np.arange(STEPS) % 2, 1.0, -1.0)
    runs = made("flow", norm=np.full(STEPS, 3.0)) | made("odd", norm=descent) | made("even", norm=8 - descent)
    for name in ("odd", "even"):
        assert probes.flow_end(runs, "sky", flow="flow", descent=name).value == pytest.approx(3 / 4)


def test_one_step_back_is_no_steady_growth_and_one_step_apart_no_agreement(made):
    flow = np.linspace(1, 7, STEPS)
    flow[40] = 0.5
    descent = np.linspace(1, 8, STEPS)
    descent[10] *= 1.5
    runs = flows(made, flow, descent)
    assert verdict(probes.flow_growth, runs, ">= 1", probe="sky", **NAMES) == "FAIL"
    assert probes.flow_growth(runs, "sky", **NAMES).value == pytest.approx(38 / 39)
    assert verdict(probes.flow_difference, runs, "<= 0.1", probe="sky", **NAMES) == "FAIL"
    assert verdict(probes.flow_end, runs, "> 1", probe="sky", **NAMES) == "FAIL"


def test_runs_are_compared_at_equal_time(tmp_path):
    """The flow is recorded at half the interval for half the time."""
    norm = np.linspace(1, 7, STEPS)
    half = {"_target_": "opposing_signals.optim.GradientFlow", "lr": 0.05}
    fine = np.interp(np.arange(STEPS) / 2, np.arange(STEPS), norm)
    runs = {
        "flow": probed(tmp_path / "flow", {"sky": fine}, optimizer=half),
        "descent": probed(tmp_path / "descent", {"sky": norm}, sharpness=SHARPNESS),
    }
    assert probes.flow_difference(runs, "sky", **NAMES).value == pytest.approx(0, abs=1e-12)
    assert probes.flow_end(runs, "sky", **NAMES).value == pytest.approx(1)


def test_flow_and_descent_that_cannot_be_compared(made):
    alone = made("alone")
    for statistic in (probes.flow_difference, probes.flow_growth, probes.flow_end):
        assert why(statistic, alone, "sky", flow="flow", descent="alone") == "the run flow is missing"
    runs = flows(made, HUMP, HUMP, sharpness=np.where(np.arange(STEPS) < 55, 1.0, 20.0))
    assert "4 of the 10 needed steps of the flow after break-even" in why(probes.flow_growth, runs, "sky", **NAMES)


def test_flow_beside_a_descent_that_stays_stable(made):
    runs = flows(made, HUMP, HUMP, sharpness=np.ones(STEPS))
    assert verdict(probes.flow_difference, runs, "<= 0.1", probe="sky", **NAMES) == "INCONCLUSIVE"
    assert why(probes.flow_end, runs, "sky", **NAMES) == "descent: λ did not reach 2/η"


def test_declines_are_compared_at_equal_loss(made):
    falling = np.linspace(3, 0.1, STEPS)
    descent = made("descent", norm=np.full(STEPS, 4.0), train_loss=np.linspace(3, 1, STEPS))
    adam = made("adam", norm=np.concatenate([[2, 2], np.full(18, 8.0), np.full(40, 2.0)]), train_loss=falling)
    found = probes.decline_ratio(adam | descent, "sky", run="adam", other="descent")
    assert found.value == 0.25  # Adam's loss falls below 1 at step 41, when its norm is down from 8 to 2
    early = made("early", norm=np.full(STEPS, 4.0), train_loss=np.linspace(3, 2.5, STEPS))
    assert probes.decline_ratio(adam | early, "sky", run="adam", other="early").value == 1
    assert why(probes.decline_ratio, adam, "sky", run="adam", other="descent") == "the run descent is missing"


def test_an_oscillation_that_ends_and_one_that_stays(made):
    ending = 0.5 + np.where(np.arange(STEPS) % 2, 0.2, -0.2) * np.where(np.arange(STEPS) < 40, 1, 0.1)
    fast, slow = np.linspace(3, 0, STEPS), np.linspace(3, 1.5, STEPS)
    descent = made("descent", train_loss=slow)
    run = made("ending", probability=ending, optimizer=ADAM, train_loss=fast) | descent
    names = {"probe": "sky", "other": "descent"}
    ends = probes.remaining_alternation(run, run="ending", **names)
    assert ends.value == pytest.approx(0.1)
    assert ends.reason.endswith("from step 30 on, where it is first 1.5 as in descent, 1")
    assert verdict(probes.remaining_alternation, run, "< 0.25", run="ending", **names) == "PASS"
    staying = made("staying", train_loss=fast) | descent
    assert verdict(probes.remaining_alternation, staying, "< 0.25", run="staying", **names) == "FAIL"
    short = made("short", norm=HUMP[:20], probability=SWING[:20], sharpness=SHARPNESS[:20], train_loss=fast[:20])
    assert verdict(probes.remaining_alternation, short | descent, "< 0.25", run="short", **names) == "INCONCLUSIVE"
    assert why(probes.remaining_alternation, run, run="adam", **names) == "the run adam is missing"
