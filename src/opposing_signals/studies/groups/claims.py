"""Statistics of runs that claims compare with a threshold.

Each takes the trajectories of an experiment by run name and returns an `Estimate`; where the runs cannot tell, it
raises CannotTellError with the reason. Intervals over steps are those of `opposing_signals.studies.estimates`.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import scipy

from opposing_signals.record import Series
from opposing_signals.signals import OpposingPair, Trajectory, modal_share
from opposing_signals.signals.alignment import TINY
from opposing_signals.signals.coherence import class_variances
from opposing_signals.signals.steps import between, rising_share
from opposing_signals.studies.claim import CannotTellError, Estimate
from opposing_signals.studies.estimates import (
    FEWEST,
    FRACTION,
    RATIO,
    correlation_over_steps,
    mean_over_steps,
    median_over_steps,
    over_steps,
    random_groups,
)
from opposing_signals.studies.runs import (
    FEWEST_STEPS,
    Trajectories,
    dominant_pairs,
    from_break_even,
    named_runs,
    need,
    only_run,
)


def pair_correlation(trajectories: Trajectories) -> Estimate:
    """Largest correlation, over the dominant pairs, of the two groups' one-step changes, selecting step left out.

    Only pairs below −0.5 are called pairs at all (`Trajectory.pairs`), so the value is selected in part;
    ``benchmarks/chance.py`` measures it on steps that did not choose the groups.
    """
    trajectory = only_run(trajectories)
    weakest = max(dominant_pairs(trajectory), key=lambda pair: pair.correlation)
    return group_correlation(trajectory.changes, weakest)


def group_correlation(changes: Series, pair: OpposingPair) -> Estimate:
    """Correlation of the mean one-step ``changes`` of a pair's groups in its window, selecting step left out."""
    changes = between(changes, *pair.window)
    others = changes.values[changes.steps != pair.step]
    upper, lower = (others[:, group].mean(1, dtype=np.float64) for group in pair.groups)
    return correlation_over_steps(upper, lower)


def group_amplitude_ratio(trajectories: Trajectories) -> Estimate:
    """Smallest ratio, over the dominant groups, of median abs one-step change to that of a random group of equal size.

    The random group's is the mean over many draws at each step, over the same window.
    """
    trajectory = only_run(trajectories)
    groups = [(pair, group) for pair in dominant_pairs(trajectory) for group in pair.groups]
    ratios = [_amplitude_ratio(trajectory, group, pair) for pair, group in groups]
    return min(ratios, key=lambda estimate: estimate.value)


def _amplitude_ratio(trajectory: Trajectory, group: np.ndarray, pair: OpposingPair) -> Estimate:
    changes = between(trajectory.changes, *pair.window).values
    draws = random_groups(changes.shape[1], len(group))
    random = np.mean([np.abs(changes[:, draw].mean(1)) for draw in draws], axis=0)
    dominant = np.abs(changes[:, group].mean(1))
    return over_steps(
        lambda rows: float(np.median(dominant[rows]) / max(np.median(random[rows]), TINY)), len(random), RATIO
    )


def coherence(trajectories: Trajectories) -> Estimate:
    """Smallest share, over the dominant pairs, of the modal true class in the purer of the pair's groups."""
    return Estimate(min(max(shares) for shares in modal_shares(only_run(trajectories))))


def modal_shares(trajectory: Trajectory) -> list[list[float]]:
    """Of each dominant pair's groups the share of the modal true class."""
    classes = np.asarray(trajectory.dataset.targets)
    return [[modal_share(classes[group]) for group in pair.groups] for pair in dominant_pairs(trajectory)]


def classes_explain(trajectories: Trajectories) -> Estimate:
    """Share of the variance of the one-step changes from break-even on that the class means explain (class R²)."""
    trajectory = only_run(trajectories)
    changes = from_break_even(trajectory, trajectory.changes)
    explained, total = class_variances(changes.values, np.asarray(trajectory.dataset.targets))
    return over_steps(lambda rows: float(explained[rows].sum() / total[rows].sum()), len(total), FRACTION)


def spike_concentration(trajectories: Trajectories, steps: float = 0.05, points: float = 0.01) -> Estimate:
    """Share of the summed positive change carried by the top points by Δ_i, mean over the steps of most rise in L."""
    trajectory = only_run(trajectories)
    changes = trajectory.changes.values
    rises = changes.mean(1, dtype=np.float64)
    count = max(1, round(steps * len(rises)))
    spikes = np.argsort(-rises)[:count]
    spikes = np.sort(spikes[rises[spikes] > 0])
    if len(rises) < FEWEST_STEPS or not len(spikes):
        raise CannotTellError(f"the loss rises in {len(spikes)} of {len(rises)} steps")
    top = max(1, round(points * changes.shape[1]))
    positive = np.sort(np.maximum(changes[spikes], 0).astype(np.float64), axis=1)
    shares = positive[:, -top:].sum(1) / positive.sum(1)
    estimate = mean_over_steps(shares, FRACTION)
    if not estimate.decides:
        why = f"{steps:.0%} of the {len(rises)} steps: {estimate.reason}, so a run of {round(FEWEST / steps)} steps"
        return replace(estimate, reason=why)
    return estimate


def sharpness_over_threshold(trajectories: Trajectories) -> Estimate:
    """Median of λ/(2/η) over the measured steps from break-even on."""
    trajectory = only_run(trajectories)
    late = from_break_even(trajectory, trajectory.sharpness)
    return median_over_steps(late.values / trajectory.edge)


def peak_sharpness_over_threshold(trajectories: Trajectories) -> Estimate:
    """Largest measured λ/(2/η)."""
    trajectory = only_run(trajectories)
    if trajectory.edge is None:
        raise CannotTellError(trajectory.no_break_even)
    return Estimate(float(np.max(trajectory.sharpness.values)) / trajectory.edge)


def interval_coverage(trajectories: Trajectories) -> Estimate:
    """Largest share, over the dominant pairs, of a span of x that is one group as an interval and the other around it.

    See `opposing_signals.signals.interval_coverage`. The pair is named by its rank in amplitude, and the coverage of
    the largest pair stands beside it.
    """
    trajectory = only_run(trajectories)
    coverages = trajectory.interval_coverages
    dominant_pairs(trajectory)
    best = int(np.argmax(coverages))
    beside = "" if best == 0 else f"; the largest pair's is {coverages[0]:.3g}"
    return Estimate(coverages[best], reason=f"pair {best + 1} of {len(coverages)} by amplitude{beside}")


def share_increasing(trajectories: Trajectories, run: str, after_break_even: bool) -> Estimate:
    """Median over steps of the share of training points with Δ_i > 0; see `rising_share`."""
    (trajectory,) = named_runs(trajectories, run)
    changes = from_break_even(trajectory, trajectory.changes) if after_break_even else trajectory.changes
    shares = rising_share(changes)
    need(len(shares), "one-step changes")
    return median_over_steps(shares.values, FRACTION)


def change_kurtosis(trajectories: Trajectories) -> Estimate:
    """Median over the steps from break-even on of the excess kurtosis of Δ_i over the training points."""
    trajectory = only_run(trajectories)
    changes = from_break_even(trajectory, trajectory.changes)
    return median_over_steps(np.array([scipy.stats.kurtosis(row.astype(np.float64)) for row in changes.values]))


def change_concentration(trajectories: Trajectories, points: float = 0.01) -> Estimate:
    """Median over the steps from break-even on of the share of Σ abs Δ_i that the top points hold."""
    trajectory = only_run(trajectories)
    changes = from_break_even(trajectory, trajectory.changes)
    top = max(1, round(points * changes.values.shape[1]))
    sizes = np.sort(np.abs(changes.values).astype(np.float64), axis=1)
    return median_over_steps(sizes[:, -top:].sum(1) / sizes.sum(1), FRACTION)
