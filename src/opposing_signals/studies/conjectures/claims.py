"""Statistics of the conjectures of §3.4 and §5 and of the talk: one job of a grid compared with another.

Most are a single ratio or difference of two runs and have no interval: their uncertainty is that of other seeds, which
resampling of steps cannot estimate (sweep over ``seed`` for that). Correlation and amplitude of one run's pairs are
averages over steps and have an interval; so have ratios at equal loss, whose measurements leap.

A FAIL concerns these runs at their scale, not the conjecture in general:

* batch norm (`group_variance_ratio`): the dominant groups vary as much with batch norm as without, or more. Under
  ghost batch norm a chunk's statistics vary with its own outliers, which adds variance: the smaller the chunk, the
  less the ratio says about normalization by the full batch.
* SAM and 1-SAM (`peak_step_difference`, `decline_difference`): the feature of a block peaks no earlier, or declines no
  further, under 1-SAM than under the other rule. A run that is too short for a decline under any rule cannot show it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from opposing_signals.record import Series
from opposing_signals.signals import OpposingPair, Trajectory
from opposing_signals.signals.steps import between
from opposing_signals.studies.claim import CannotTellError, Estimate
from opposing_signals.studies.curvature.metrics import SMOOTH, relative_feature_norms
from opposing_signals.studies.estimates import median_over_steps
from opposing_signals.studies.groups import claims as statistics
from opposing_signals.studies.runs import Trajectories, break_even, dominant_pairs, named_runs, need

NEIGHBOURS = 5
"""A quantity at a step is the median of this many measurements around it, which an oscillation does not move."""


def pair_correlation(trajectories: Trajectories, run: str) -> Estimate:
    """Largest correlation, over the run's dominant pairs, of the groups' one-step changes, selecting step left out."""
    named_runs(trajectories, run)
    return statistics.pair_correlation({run: trajectories[run]})


def group_amplitude_ratio(trajectories: Trajectories, run: str) -> Estimate:
    """Smallest ratio, over the run's dominant groups, of median abs one-step change to that of random groups."""
    named_runs(trajectories, run)
    return statistics.group_amplitude_ratio({run: trajectories[run]})


# -- sharpening -------------------------------------------------------------------------------------------------------


def peak_sharpness_ratio(trajectories: Trajectories, run: str, other: str) -> Estimate:
    """Largest λ of one run over that of another, each a median of five successive measurements.

    One leap does not decide it. Undecided if the first run's lies in the last tenth of its measurements: there λ may
    still grow. The medians from break-even on stand beside the ratio.
    """
    courses, levels = [], []
    for one in named_runs(trajectories, run, other):
        values = np.asarray(one.sharpness.values, np.float64)
        need(len(values), "measurements of λ", least=NEIGHBOURS)
        courses.append(np.median(np.lib.stride_tricks.sliding_window_view(values, NEIGHBOURS), axis=1))
        late = one.after_break_even(one.sharpness)
        levels.append(_with_interval(median_over_steps(np.asarray(late.values))) if len(late) else "never reached")
    ours, theirs = courses
    is_late = bool(np.argmax(ours) >= 0.9 * len(ours))
    reason = f"medians from break-even on: {run} {levels[0]}, {other} {levels[1]}"
    if is_late:
        reason = f"λ of {run} is largest at the end of the run, where it may still grow; {reason}"
    return Estimate(float(ours.max() / theirs.max()), reason=reason, decides=not is_late)


def _with_interval(estimate: Estimate) -> str:
    return f"{estimate.value:.3g}" + (" ({:.3g} to {:.3g})".format(*estimate.interval) if estimate.interval else "")


def break_even_delay(trajectories: Trajectories, run: str, other: str) -> Estimate:
    """Step at which λ first reaches 2/η in one run over that in another; a run that never does counts its length."""
    ours, theirs = named_runs(trajectories, run, other)
    first = break_even(theirs, other)
    if not first:
        raise CannotTellError(f"{other}: λ had reached 2/η at its start")
    late = break_even(ours, run) if ours.edge is None else ours.break_even
    last = int(ours.sharpness.steps[-1])
    return Estimate((last if late is None else late) / first)


# -- step size --------------------------------------------------------------------------------------------------------


def pair_amplitude_ratio(trajectories: Trajectories, run: str, other: str) -> Estimate:
    """Amplitude of the dominant opposing pair of one run over that of another."""
    both = zip(named_runs(trajectories, run, other), (run, other), strict=True)
    ours, theirs = (dominant_pairs(*one)[0].amplitude for one in both)
    return Estimate(ours / theirs)


def ratio_at_equal_loss(trajectories: Trajectories, quantity: str, run: str, other: str) -> Estimate:
    """A quantity of one run over that of another, each where it first reaches the lowest train loss that both reach.

    The interval is what the five measurements there allow: from the smallest of one over the largest of the other to
    the reverse. So it excludes 1 only where all five of one run lie on one side of all five of the other, which for
    independent measurements of equal runs happens in less than 1 case of 100.
    """
    both = named_runs(trajectories, run, other)
    level = max(float(one.mean_loss.values.min()) for one in both)
    ours, theirs = (_at_loss(one, quantity, level) for one in both)
    interval = float(ours.min() / theirs.max()), float(ours.max() / theirs.min())
    return Estimate(float(np.median(ours) / np.median(theirs)), interval)


def _at_loss(trajectory: Trajectory, quantity: str, level: float) -> np.ndarray:
    """``[5]`` measurements nearest to the step at which the train loss is first at most ``level``."""
    loss, measured = trajectory.mean_loss, trajectory.record[quantity]
    step = int(loss.steps[np.flatnonzero(loss.values <= level)[0]])
    nearest = np.argsort(np.abs(np.asarray(measured.steps) - step), kind="stable")[:NEIGHBOURS]
    return np.asarray(measured.values, np.float64)[nearest]


# -- batch norm -------------------------------------------------------------------------------------------------------


def group_variance_ratio(trajectories: Trajectories, run: str, other: str, relative: bool = False) -> Estimate:
    """Variance of the dominant groups' one-step loss changes in one run over that in another.

    A run's variance is the median over the groups of its pairs, each over the steps in which its pair is active.
    ``relative`` divides it by that of random groups of equal size over the same steps, to tell
    smaller variation of the outliers from smaller variation of all losses.
    """
    both = zip(named_runs(trajectories, run, other), (run, other), strict=True)
    ours, theirs = (_group_variance(one, dominant_pairs(one, name), relative) for one, name in both)
    return Estimate(ours / theirs)


def _group_variance(trajectory: Trajectory, pairs: list[OpposingPair], relative: bool) -> float:
    variances = []
    generator = np.random.default_rng(0)
    for pair in pairs:
        changes = np.asarray(between(trajectory.changes, *pair.window).values, np.float64)
        for group in pair.groups:
            variance = float(changes[:, group].mean(1).var())
            if relative:
                random = [generator.choice(changes.shape[1], len(group), replace=False) for _ in range(200)]
                variance /= float(np.mean([changes[:, draw].mean(1).var() for draw in random]))
            variances.append(variance)
    return float(np.median(variances))


# -- SAM and 1-SAM ----------------------------------------------------------------------------------------------------


def peak_step_difference(trajectories: Trajectories, run: str, other: str) -> Estimate:
    """Step at which a probe's relative feature norm peaks in one run minus that in another, median over the probes.

    The norm is relative to the mean over the step's batch, and smoothed by a running median.
    """
    return _over_probes(trajectories, run, other, lambda norms: norms.steps[np.argmax(norms.values, axis=0)])


def decline_difference(trajectories: Trajectories, run: str, other: str) -> Estimate:
    """Last over largest relative feature norm of a probe in one run minus that in another, median over the probes.

    The norm is relative to the mean over the step's batch, and smoothed by a running median.
    """
    return _over_probes(trajectories, run, other, lambda norms: norms.values[-1] / norms.values.max(0))


def _over_probes(
    trajectories: Trajectories, run: str, other: str, statistic: Callable[[Series], np.ndarray]
) -> Estimate:
    """Median over the probes of a statistic ``[P]`` of the relative feature norms, one run minus another."""
    norms = [relative_feature_norms(one, SMOOTH) for one in named_runs(trajectories, run, other)]
    need(min(map(len, norms)), "steps with feature norms")
    ours, theirs = (statistic(series) for series in norms)
    return Estimate(float(np.median(ours - theirs)))
