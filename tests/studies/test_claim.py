import io
import json

import numpy as np
import pytest
from rich.console import Console

from opposing_signals.errors import InputError, MissingQuantityError
from opposing_signals.signals import Runs
from opposing_signals.studies.claim import CannotTellError, Claim, Estimate, Threshold, Verdict, verdict_table


@pytest.mark.parametrize(
    ("text", "holds", "fails"),
    [
        ("< -0.8", [-0.81, -1], [-0.8, 0.5]),
        ("<= 2", [2, -1], [2.01]),
        ("> 5", [5.1], [5, 0]),
        (">= 0.5", [0.5, 1], [0.49]),
        ("> 1e-3", [0.01], [1e-4]),
        ("in [0.8, 2.0]", [0.8, 1.4, 2.0], [0.79, 2.01]),
    ],
)
def test_thresholds(text, holds, fails):
    threshold = Threshold(text)
    assert all(threshold.holds(value) for value in holds)
    assert not any(threshold.holds(value) for value in fails)
    assert not threshold.holds(float("nan"))


@pytest.mark.parametrize("text", ["", "about 3", "< x", "in (0, 1)", "== 2"])
def test_a_text_that_is_no_threshold_is_refused(text):
    with pytest.raises(InputError, match="threshold"):
        Threshold(text)


class Recorded:
    class record:  # noqa: N801
        provenance = {"data": {"name": "made up"}}  # noqa: RUF012

    def __init__(self, seed: int = 1, name: str = "") -> None:
        self.configuration = {"seed": seed, "run": {"name": name}}


def claim_with(estimate: Estimate | None) -> Claim:
    def statistic(trajectories):
        """What is measured.

        And more about it.
        """
        if estimate is None:
            raise CannotTellError("too short")
        return estimate

    return Claim("fig99a", "It is so", "Figure 99", statistic, {"cpu": "> 1", "paper": "> 3"})


@pytest.mark.parametrize(
    ("interval", "scale", "verdict"),
    [
        ((1.5, 2.5), "cpu", "PASS"),
        ((1.5, 2.5), "paper", "FAIL"),
        ((0.5, 4), "cpu", "INCONCLUSIVE"),
        ((1.5, 4), "paper", "INCONCLUSIVE"),
        (None, "cpu", "PASS"),
        (None, "paper", "FAIL"),
    ],
)
def test_the_whole_interval_decides_at_the_threshold_of_its_scale(interval, scale, verdict):
    checked = claim_with(Estimate(2, interval)).check({"run": Recorded(3)}, scale, 3)
    assert checked.verdict == verdict
    assert (checked.statistic, checked.data, checked.seed) == ("What is measured", "made up", 3)
    assert checked.as_json()["interval"] == (None if interval is None else list(interval))
    assert bool(checked.reason) == (verdict == "INCONCLUSIVE")


@pytest.mark.parametrize("text", ["< 1", "<= 1", "> 1", ">= 1", "in [1, 2]"])
def test_a_verdict_is_that_of_every_value_of_the_interval(text):
    threshold = Threshold(text)
    for low in np.arange(0, 3, 0.25):
        for high in np.arange(low, 3, 0.25):
            within = {threshold.holds(value) for value in np.arange(low, high + 0.1, 0.25)}
            expected = {frozenset({True}): "PASS", frozenset({False}): "FAIL"}.get(frozenset(within), "INCONCLUSIVE")
            assert threshold.verdict(Estimate(float(low), (low, high))) == expected


def test_a_value_that_is_too_uncertain_decides_nothing():
    checked = claim_with(Estimate(2, None, "3 values", decides=False)).check({"run": Recorded()}, "cpu", 1)
    assert (checked.verdict, checked.value, checked.reason) == ("INCONCLUSIVE", 2, "3 values")


@pytest.mark.parametrize("value", [np.nan, np.inf, 2.0])
@pytest.mark.parametrize("interval", [None, (np.nan, np.nan), (1.5, np.inf)])
def test_what_is_not_finite_decides_nothing(value, interval):
    checked = claim_with(Estimate(value, interval)).check({"run": Recorded()}, "cpu", 1)
    if (value, interval) == (2.0, None):
        assert checked.verdict == "PASS"
    else:
        assert (checked.verdict, checked.interval) == ("INCONCLUSIVE", None)
        assert checked.reason == "the value or its interval is not finite"
    assert json.loads(json.dumps(checked.as_json(), allow_nan=False)) == checked.as_json()


def test_a_quantity_that_was_not_recorded_decides_nothing_and_what_is_no_estimate_is_refused():
    def missing(trajectories):
        raise MissingQuantityError("run holds no 'jacobian_norm'")

    checked = Claim("a", "", "", missing, "> 1").check({"run": Recorded()}, "cpu", 1)
    assert (checked.verdict, checked.reason) == ("INCONCLUSIVE", "run holds no 'jacobian_norm'")
    checked = Claim("a", "", "", lambda _: Estimate(1 / 0.0), "> 1").check({"run": Recorded()}, "cpu", 1)
    assert (checked.verdict, checked.value) == ("INCONCLUSIVE", None)
    with pytest.raises(InputError, match=r"claims.a.statistic gave 3.0: expected an Estimate"):
        Claim("a", "", "", lambda _: 3.0, "> 1").check({"run": Recorded()}, "cpu", 1)


def test_without_runs_nothing_is_claimed():
    checked = claim_with(Estimate(2)).check({}, "cpu", 1)
    assert checked.verdict == "NOT RUN"
    assert checked.value is None
    assert checked.reason


@pytest.mark.parametrize(
    ("values", "verdict", "passed"),
    [((2, 3, 4), "PASS", 3), ((2, 3, 0.5), "FAIL", 2), ((2, float("nan"), 4), "INCONCLUSIVE", 2)],
)
def test_seeds_are_counted(values, verdict, passed):
    def statistic(trajectories):
        """The value of the run's seed."""
        (run,) = trajectories.values()
        return Estimate(values[run.configuration["seed"]], reason="told" if run.configuration["seed"] == 1 else "")

    runs = {f"seed={seed}": Recorded(seed) for seed in range(3)}
    checked = Claim("fig99a", "It is so", "Figure 99", statistic, "> 1").check(runs, "cpu", 0)
    assert checked.verdict == verdict
    assert checked.reason.startswith(f"passes in {passed} of 3 seeds")
    assert "seed 1: told" in checked.reason
    assert checked.value == np.nanmedian(values)
    assert checked.seed == [one["seed"] for one in checked.by_seed] == [0, 1, 2]
    assert json.loads(json.dumps(checked.as_json()))["by_seed"][0]["verdict"] == "PASS"


def test_a_grid_over_seeds_has_its_runs_by_name_for_each_seed():
    def value(runs):
        """What the run a has."""
        return Estimate(runs["a"].configuration["seed"] + len(runs))

    runs = {f"run={name},seed={seed}": Recorded(seed) for name in "ab" for seed in (1, 2)}
    claim = Claim("id", "statement", "source", value, "> 0")
    checked = claim.check(runs, "cpu", 1)
    assert [one["value"] for one in checked.by_seed] == [3, 4]
    thinned = {f"run=a_thinned,seed={seed}": Recorded(seed, "a") for seed in (1, 2)}  # a choice that trains the run a
    assert [one["value"] for one in claim.check(thinned, "cpu", 1).by_seed] == [2, 3]
    both = {f"run={choice},seed={seed}": Recorded(seed, "a") for choice in ("a", "a_small") for seed in (1, 2)}
    assert [one["value"] for one in claim.check(both, "cpu", 1).by_seed] == [3, 4]
    steps = {f"optimizer.lr={lr},seed={seed}": Recorded(seed) for lr in (0.1, 0.2) for seed in (1, 2)}

    def widest(runs):
        """What the run with a step size of 0.2 has."""
        return Estimate(runs["optimizer.lr=0.2"].configuration["seed"])

    assert Claim("id", "statement", "source", widest, "> 0").check(steps, "cpu", 1).verdict == "PASS"


def test_a_seed_whose_run_failed_is_counted():
    claim = claim_with(Estimate(2))
    complete = {f"seed={seed}": Recorded(seed) for seed in (1, 2)}
    runs = Runs(complete, {"seed=3": Recorded(3)}, {"seed=3": "the loss is not finite"})
    checked = claim.check(runs, "cpu", 1)
    assert (checked.verdict, checked.seed) == ("INCONCLUSIVE", [1, 2, 3])
    assert checked.reason == "passes in 2 of 3 seeds; seed 3: the loss is not finite"
    checked = claim.check(Runs(complete, {}, {"seed=3": "no memory"}), "cpu", 1)
    assert (checked.verdict, checked.reason) == ("INCONCLUSIVE", "passes in 2 of 2 seeds; failed: seed=3")


def test_a_claim_about_seeds_sees_them_together():
    def statistic(trajectories):
        """How many there are."""
        return Estimate(len(trajectories))

    runs = {f"seed={seed}": Recorded(seed) for seed in range(3)}
    checked = Claim("fig99a", "It is so", "Figure 99", statistic, ">= 3", "together").check(runs, "cpu", 0)
    assert (checked.verdict, checked.value) == ("PASS", 3)


def test_the_table_shows_value_verdict_and_reason():
    rows = [
        claim_with(Estimate(2.5, (2, 3))).check({"run": Recorded()}, "cpu", 1),
        claim_with(None).check({"run": Recorded()}, "cpu", 1),
    ]
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(verdict_table(rows, "claims", console))
    text = console.export_text()
    for part in ("fig99a", "It is so", "2.5", "2 to 3", "PASS", "INCONCLUSIVE", "too short"):
        assert part in text


@pytest.mark.parametrize("width", [60, 80, 140])
@pytest.mark.parametrize("interval", [None, [-1.2345e-5, 1.2345e-5]])
def test_nothing_of_a_verdict_is_cut_on_a_narrow_terminal(width, interval):
    fields = {"source": "", "statistic": "", "scale": "cpu", "data": "", "seed": 1, "interval": interval}
    fields["reason"] = "the run [stopped]"
    statement = "The two groups of each dominant pair change in opposite directions, step after step"
    verdicts = [
        Verdict(id="a", statement=statement, threshold="< 5", value=1.0, verdict="PASS", **fields),
        Verdict(
            id="talk_losses_label_smoothing_opposition",
            statement=statement,
            threshold="in [0.125, 0.875]",
            value=-1.2345e-7,
            verdict="INCONCLUSIVE",
            **fields,
        ),
    ]
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(verdict_table(verdicts, "claims", console))
    lines = console.export_text().splitlines()
    text = "\n".join(lines)
    assert max(map(len, lines)) <= width
    for verdict in verdicts:
        for whole in (verdict.id, verdict.verdict, verdict.threshold, f"{verdict.value:.3g}"):
            assert any(whole in line for line in lines), whole
    for word in [*statement.split(), "[stopped])"]:
        assert text.count(word) >= 2
    assert "…" not in text
