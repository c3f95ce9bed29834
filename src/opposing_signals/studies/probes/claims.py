"""Statistics of probes: how the feature of a pure signal grows, oscillates and declines (figures 5 and 10 to 31).

The norm of a probe is that of its penultimate feature, see `opposing_signals.instruments.block_probe.BlockProbe`. It is
averaged over two successive steps, because it oscillates with a period of two; its peak and its last value are medians
of five such averages, because a loss spike makes it leap.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from opposing_signals.record import Series
from opposing_signals.record.quantities import TRAIN_LOSS
from opposing_signals.studies.claim import FAIL, PASS, CannotTellError, Estimate, Threshold
from opposing_signals.studies.estimates import CORRELATION, over_steps
from opposing_signals.studies.probes.paths import common_loss, lag_one_autocorrelation, norm_at_loss, probe_path, times
from opposing_signals.studies.runs import Trajectories, break_even, named_runs, need, only_run

# -- rise, oscillation, decline: figures 5 and 10 to 21 ---------------------------------------------------------------


def growth_over_mean(trajectories: Trajectories, probe: str) -> Estimate:
    """Growth of the probe's norm (running median of 5 two-step means) to its peak, over that of the data meanwhile."""
    return Estimate(probe_path(only_run(trajectories), probe).growth_over_mean)


def change_autocorrelation(trajectories: Trajectories, probe: str) -> Estimate:
    """Lag-1 autocorrelation of the one-step change in the dominant class's probability, from break-even on.

    The dominant class is that of the largest mean probability over these steps.
    """
    trajectory = only_run(trajectories)
    first = break_even(trajectory)
    changes = probe_path(trajectory, probe).successive_changes(first)
    need(len(changes), f"steps after break-even at step {first}")
    if math.isnan(lag_one_autocorrelation(changes)):
        raise CannotTellError("the dominant class's probability does not change")
    return over_steps(lambda rows: lag_one_autocorrelation(changes[rows]), len(changes), CORRELATION)


def final_over_peak(trajectories: Trajectories, probe: str) -> Estimate:
    """The probe's last norm over its largest, each a running median of 5 two-step means."""
    return Estimate(probe_path(only_run(trajectories), probe).remainder)


def rise_and_decline(trajectories: Trajectories, probe: str) -> Estimate:
    """The smaller of a probe's largest norm over its first and over its last (running medians of 5 two-step means)."""
    path = probe_path(only_run(trajectories), probe)
    return Estimate(min(path.rise, 1 / path.remainder))


PATTERN: Mapping[str, Callable[[Trajectories, str], Estimate]] = {
    "growth_over_mean": growth_over_mean,
    "change_autocorrelation": change_autocorrelation,
    "final_over_peak": final_over_peak,
    "rise_and_decline": rise_and_decline,
}


def pattern_share(trajectories: Trajectories, run: str, probes: Sequence[str], pattern: Mapping[str, str]) -> Estimate:
    """Share of the probes for which every statistic of the pattern meets its threshold.

    ``pattern`` maps functions of this module to thresholds. The interval counts a probe that is undecided, because a
    threshold lies in the interval of its statistic, once as a failure and once as a success.
    """
    (trajectory,) = named_runs(trajectories, run)
    met, passed, possible = [], [], []
    for probe in probes:
        try:
            found = [(Threshold(pattern[name]), PATTERN[name]({run: trajectory}, probe)) for name in pattern]
        except CannotTellError as error:
            raise CannotTellError(f"{probe}: {error}") from None
        verdicts = [threshold.verdict(estimate) for threshold, estimate in found]
        met.append(all(threshold.holds(estimate.value) for threshold, estimate in found))
        passed.append(all(verdict == PASS for verdict in verdicts))
        possible.append(FAIL not in verdicts)
    return Estimate(float(np.mean(met)), (float(np.mean(passed)), float(np.mean(possible))))


# -- gradient flow: figures 22 to 27 ----------------------------------------------------------------------------------


def flow_difference(trajectories: Trajectories, probe: str, flow: str, descent: str) -> Estimate:
    """Largest abs difference between the norms under descent and under flow up to break-even, over that under flow."""
    flowing, descending, edge = _beside_flow(trajectories, probe, flow, descent)
    until = descending.steps <= min(edge, flowing.steps[-1])
    reference = np.interp(descending.steps[until], flowing.steps, flowing.values)
    return Estimate(float(np.max(np.abs(descending.values[until] - reference) / reference)))


def flow_growth(trajectories: Trajectories, probe: str, flow: str, descent: str) -> Estimate:
    """Share of the flow's steps from descent's break-even time on in which the norm grows.

    It has no interval: the claim is that each of these steps does.
    """
    flowing, _, edge = _beside_flow(trajectories, probe, flow, descent)
    growth = np.diff(flowing.values[flowing.steps >= edge]) > 0
    need(len(growth), "steps of the flow after break-even")
    return Estimate(float(growth.mean()))


def flow_end(trajectories: Trajectories, probe: str, flow: str, descent: str) -> Estimate:
    """Norm under flow over that under descent, at the last time that both reach, as averages over a cycle of two steps.

    They are steps of descent, which oscillates with a period of two.
    """
    flowing, descending, _ = _beside_flow(trajectories, probe, flow, descent)
    last = min(flowing.steps[-1], descending.steps[-1])
    cycle = last - np.diff(descending.steps)[-1], last
    ours, theirs = (np.interp(cycle, norm.steps, norm.values).mean() for norm in (flowing, descending))
    return Estimate(float(ours / theirs))


def _beside_flow(trajectories: Trajectories, probe: str, flow: str, descent: str) -> tuple[Series, Series, float]:
    """Norms over time Σ η under flow and under descent, and descent's break-even time."""
    both = named_runs(trajectories, flow, descent)
    edge = break_even(both[1], descent) * both[1].step_size
    flowing, descending = (
        Series(times(run, path.steps), path.norm) for run in both for path in [probe_path(run, probe)]
    )
    return flowing, descending, edge


# -- Adam: figures 28 to 31 -------------------------------------------------------------------------------------------


def decline_ratio(trajectories: Trajectories, probe: str, run: str, other: str) -> Estimate:
    """Norm over its peak so far of one run over that of another, where each first has the same train loss.

    That loss is the smallest that both runs reach.
    """
    both = named_runs(trajectories, run, other)
    loss = common_loss(*both)
    ours, theirs = (norm_at_loss(one, probe_path(one, probe), loss) for one in both)
    return Estimate(ours / theirs)


def remaining_alternation(trajectories: Trajectories, probe: str, run: str, other: str) -> Estimate:
    """Largest alternating change of the class probabilities in the last quarter of the steps, over that of the run.

    A network that has fitted its data does not alternate under any rule. So the largest change from the step on at
    which the train loss is first as low as the other run's stands beside it.
    """
    both = named_runs(trajectories, run, other)
    alternation = probe_path(both[0], probe).alternation
    largest = alternation.values.max()
    late = alternation.values[alternation.steps >= alternation.steps[0] + 0.75 * np.ptp(alternation.steps)]
    need(len(late), "steps in the last quarter")
    losses, level = both[0].record[TRAIN_LOSS], common_loss(*both)
    reached = losses.steps[np.argmax(np.asarray(losses.values) <= level)]
    since = alternation.values[alternation.steps >= reached]
    reason = f"at the end the train loss is {losses.values[-1]:.2g}"
    if len(since):
        reason += f"; from step {reached} on, where it is first {level:.2g} as in {other}, {since.max() / largest:.2g}"
    return Estimate(float(late.max() / largest), reason=reason)
