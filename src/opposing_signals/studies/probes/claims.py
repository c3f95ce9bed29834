"""Statistics of probes: how the feature of a pure signal grows, oscillates and declines (figures 5 and 10 to 31).

The norm of a probe is that of its penultimate feature, see `opposing_signals.instruments.block_probe.BlockProbe`. Where
its first or last value or its peak counts, it is averaged over two successive steps, because it oscillates with a
period of two.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from opposing_signals.record import Series
from opposing_signals.studies.claim import Estimate, Threshold
from opposing_signals.studies.estimates import FEWEST_STEPS, over_steps
from opposing_signals.studies.groups.claims import (
    Trajectories,
    missing_run,
    only_run,
    too_few_steps,
)
from opposing_signals.studies.probes.paths import common_loss, lag_one_autocorrelation, norm_at_loss, probe_path, times

# -- rise, oscillation, decline: figures 5 and 10 to 21 ---------------------------------------------------------------


def growth_over_mean(trajectories: Trajectories, probe: str) -> Estimate:
    """Growth of the probe's norm from the start to its peak, over the growth of the data's mean norm meanwhile."""
    return Estimate(probe_path(only_run(trajectories), probe).growth_over_mean)


def change_autocorrelation(trajectories: Trajectories, probe: str) -> Estimate:
    """Lag-1 autocorrelation of the one-step change in the dominant class's probability, from break-even on.

    The dominant class is that of the largest mean probability over these steps.
    """
    trajectory = only_run(trajectories)
    if trajectory.break_even is None:
        return Estimate.unknown(trajectory.no_break_even)
    changes = probe_path(trajectory, probe).successive_changes(trajectory.break_even)
    if len(changes) < FEWEST_STEPS:
        return Estimate.unknown(too_few_steps(trajectory, len(changes)))
    if math.isnan(lag_one_autocorrelation(changes)):
        return Estimate.unknown("the dominant class's probability does not change")
    return over_steps(lambda rows: lag_one_autocorrelation(changes[rows]), len(changes))


def final_over_peak(trajectories: Trajectories, probe: str) -> Estimate:
    """The probe's last norm over its largest."""
    return Estimate(probe_path(only_run(trajectories), probe).remainder)


def rise_and_decline(trajectories: Trajectories, probe: str) -> Estimate:
    """The smaller of two ratios: the probe's largest norm over its first, and over its last."""
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

    ``pattern`` maps functions of this module to thresholds.
    """
    if run not in trajectories:
        return Estimate.unknown(f"the run {run} is missing")
    alone = {run: trajectories[run]}
    holding = []
    for probe in probes:
        estimates = {statistic: PATTERN[statistic](alone, probe) for statistic in pattern}
        for estimate in estimates.values():
            if math.isnan(estimate.value):
                return Estimate.unknown(f"{probe}: {estimate.reason}")
        holding.append(all(Threshold(pattern[name]).holds(estimate.value) for name, estimate in estimates.items()))
    return Estimate(float(np.mean(holding)))


# -- gradient flow: figures 22 to 27 ----------------------------------------------------------------------------------


def flow_difference(trajectories: Trajectories, probe: str, flow: str, descent: str) -> Estimate:
    """Largest abs difference between the norms under descent and under flow up to break-even, over that under flow."""
    found = _beside_flow(trajectories, probe, flow, descent)
    if isinstance(found, str):
        return Estimate.unknown(found)
    flowing, descending, edge = found
    until = descending.steps <= min(edge, flowing.steps[-1])
    reference = np.interp(descending.steps[until], flowing.steps, flowing.values)
    return Estimate(float(np.max(np.abs(descending.values[until] - reference) / reference)))


def flow_growth(trajectories: Trajectories, probe: str, flow: str, descent: str) -> Estimate:
    """Share of the flow's steps from descent's break-even time on in which the norm grows.

    It has no interval: the claim is that each of these steps does.
    """
    found = _beside_flow(trajectories, probe, flow, descent)
    if isinstance(found, str):
        return Estimate.unknown(found)
    flowing, _, edge = found
    growth = np.diff(flowing.values[flowing.steps >= edge]) > 0
    if len(growth) < FEWEST_STEPS:
        return Estimate.unknown(f"{len(growth)} steps of the flow after break-even; {FEWEST_STEPS} are needed")
    return Estimate(float(growth.mean()))


def flow_end(trajectories: Trajectories, probe: str, flow: str, descent: str) -> Estimate:
    """Norm under flow over that under descent, at the last time that both reach."""
    found = _beside_flow(trajectories, probe, flow, descent)
    if isinstance(found, str):
        return Estimate.unknown(found)
    flowing, descending, _ = found
    last = min(flowing.steps[-1], descending.steps[-1])
    return Estimate(float(np.interp(last, *_axes(flowing)) / np.interp(last, *_axes(descending))))


def _beside_flow(trajectories: Trajectories, probe: str, flow: str, descent: str) -> tuple[Series, Series, float] | str:
    """Norms over time Σ η under flow and under descent, and descent's break-even time; or why there is no answer."""
    problem = missing_run(trajectories, flow, descent)
    if problem:
        return problem
    break_even = trajectories[descent].break_even
    if break_even is None:
        return f"{descent}: {trajectories[descent].no_break_even}"
    norms = []
    for run in (flow, descent):
        path = probe_path(trajectories[run], probe)
        norms.append(Series(times(trajectories[run], path.steps), path.norm))
    return norms[0], norms[1], break_even * trajectories[descent].step_size


def _axes(series: Series) -> tuple[np.ndarray, np.ndarray]:
    return series.steps, series.values


# -- Adam: figures 28 to 31 -------------------------------------------------------------------------------------------


def decline_ratio(trajectories: Trajectories, probe: str, run: str, other: str) -> Estimate:
    """Norm over its peak so far of one run over that of another, where each first has the same train loss.

    That loss is the smallest that both runs reach.
    """
    problem = missing_run(trajectories, run, other)
    if problem:
        return Estimate.unknown(problem)
    loss = common_loss(trajectories[run], trajectories[other])
    ours, theirs = (
        norm_at_loss(trajectories[name], probe_path(trajectories[name], probe), loss) for name in (run, other)
    )
    return Estimate(ours / theirs)


def remaining_alternation(trajectories: Trajectories, probe: str, run: str) -> Estimate:
    """Largest alternating change of the class probabilities in the last quarter of the steps, over that of the run."""
    problem = missing_run(trajectories, run)
    if problem:
        return Estimate.unknown(problem)
    alternation = probe_path(trajectories[run], probe).alternation
    late = alternation.values[alternation.steps >= alternation.steps[0] + 0.75 * np.ptp(alternation.steps)]
    if len(late) < FEWEST_STEPS:
        return Estimate.unknown(f"the last quarter has {len(late)} steps; {FEWEST_STEPS} are needed")
    return Estimate(float(late.max() / alternation.values.max()))
