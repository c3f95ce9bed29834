"""Statistics of curvature: outliers by other metrics, shares of the top eigenvector, iterates along it, sensitivity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from opposing_signals.record import Series
from opposing_signals.record.quantities import (
    EIGENVECTOR_SHARE,
    JACOBIAN_NORM,
    PROJECTION,
    SAMPLE_CURVATURE,
    SAMPLE_SHARPNESS,
)
from opposing_signals.signals import OpposingPair, Trajectory
from opposing_signals.signals.alignment import TINY
from opposing_signals.signals.steps import NOT_SUCCESSIVE, between, one_step_changes, reversals
from opposing_signals.studies.claim import CannotTellError, Estimate
from opposing_signals.studies.curvature.metrics import Metric, SizeAlongV, metric_of_points, sizes_by_floor_distance
from opposing_signals.studies.estimates import (
    ANY,
    FRACTION,
    RATIO,
    mean_over_steps,
    median_over_steps,
    over_steps,
    random_groups,
)
from opposing_signals.studies.runs import (
    FEWEST_STEPS,
    Trajectories,
    break_even,
    from_break_even,
    named_runs,
    need,
    only_run,
)

FEWEST_STEPS_OF_A_PAIR = 3
"""A pair that is active in fewer measured steps than this after break-even does not count."""

FEWEST_MEASUREMENTS = 3
"""From fewer measurements than this nothing is said of a growth."""


# -- figure 2 ---------------------------------------------------------------------------------------------------------


def outlier_ratio(trajectories: Trajectories, metric: Metric) -> Estimate:
    """Smallest ratio, over the dominant pairs, of the pair's median of a metric to that of as many random points.

    A pair's points are those of both groups. The ratio is the median over the measured steps from
    break-even on in which the pair is active, without the selecting step. The median of a random group is
    averaged over many draws; if it is negative, its absolute value counts, which is the stricter comparison.
    """
    trajectory = only_run(trajectories)
    break_even(trajectory)
    measured = metric_of_points(trajectory, metric)
    ratios = [_pair_ratios(trajectory, pair, measured) for pair in trajectory.pairs]
    ratios = [ratio for ratio in ratios if len(ratio) >= FEWEST_STEPS_OF_A_PAIR]
    if not ratios:
        raise CannotTellError("no opposing pair is active in enough measured steps after break-even")
    within = ANY if metric == SAMPLE_CURVATURE else RATIO  # only curvature has a sign
    return median_over_steps(min(ratios, key=lambda ratio: float(np.median(ratio))), within)


def _pair_ratios(trajectory: Trajectory, pair: OpposingPair, measured: Series) -> np.ndarray:
    steps = np.asarray(measured.steps)
    chosen = (steps >= max(trajectory.break_even or 0, pair.window[0])) & (steps <= pair.window[1])
    chosen &= steps != pair.step
    values = np.asarray(measured.values)[chosen]
    points = np.concatenate(pair.groups)
    draws = random_groups(values.shape[1], len(points))
    random = np.mean([np.median(values[:, draw], axis=1) for draw in draws], axis=0)
    return np.median(values[:, points], axis=1) / np.maximum(np.abs(random), TINY)


def outlier_sharpness_ratio(trajectories: Trajectories) -> Estimate:
    """Median over the steps from break-even on of the ratio of medians of the points' own top eigenvalues.

    Numerator: the points whose loss rose and fell most in the step before, whatever their pair. Denominator: random
    points.
    """
    trajectory = only_run(trajectories)
    measured = from_break_even(trajectory, trajectory.record[SAMPLE_SHARPNESS])
    count = measured.values.shape[1] // 3
    outliers = np.median(measured.values[:, : 2 * count], axis=1)
    random = np.median(measured.values[:, 2 * count :], axis=1)
    return median_over_steps(outliers / np.maximum(np.abs(random), TINY))


# -- figures 32 to 35 -------------------------------------------------------------------------------------------------


def share_sum_error(trajectories: Trajectories) -> Estimate:
    """Largest abs difference, over the measured steps, between the sum of the shares and 1."""
    shares = only_run(trajectories).record[EIGENVECTOR_SHARE].values
    return Estimate(float(np.abs(np.sum(shares, axis=1, dtype=np.float64) - 1).max()))


def tensor_share(trajectories: Trajectories, tensor: str, first_step: int) -> Estimate:
    """Median over the measured steps from ``first_step`` on of the share of v's squared entries in one tensor."""
    trajectory = only_run(trajectories)
    names = trajectory.record.provenance["tensors"]
    if tensor not in names:
        raise CannotTellError(f"the model has no tensor {tensor}")
    shares = _shares(trajectory, first_step)
    return median_over_steps(shares[:, names.index(tensor)], FRACTION)


def module_over_others(trajectories: Trajectories, module: str, first_step: int) -> Estimate:
    """Median over the measured steps of a module's largest tensor share over the largest of all other tensors.

    "The embedding is the largest" asks for a ratio above 1 without a margin, so the interval has to lie above 1: a
    ratio of 1.09 whose interval reaches below 1 is INCONCLUSIVE. FAIL means that another tensor holds more of v.
    """
    trajectory = only_run(trajectories)
    inside = np.array([name.startswith(f"{module}.") for name in trajectory.record.provenance["tensors"]])
    if not inside.any():
        raise CannotTellError(f"the model has no module {module}")
    shares = _shares(trajectory, first_step)
    return median_over_steps(shares[:, inside].max(1) / shares[:, ~inside].max(1), RATIO)


def _shares(trajectory: Trajectory, first_step: int) -> np.ndarray:
    shares = between(trajectory.record[EIGENVECTOR_SHARE], first_step, np.inf)
    need(len(shares), f"steps from {first_step} on at which v was measured", least=1)
    return shares.values


# -- figure 6b --------------------------------------------------------------------------------------------------------


def reversal_rate(trajectories: Trajectories, run: str, descent: str) -> Estimate:
    """Share of the steps along v that reverse the step before, from break-even of gradient descent on."""
    (ours,) = _reversals(trajectories, [run], descent)
    return mean_over_steps(ours.astype(float), FRACTION)


def reversal_difference(trajectories: Trajectories, run: str, other: str, descent: str) -> Estimate:
    """Reversal rate (share of the steps along v that reverse the step before) of one run minus that of another."""
    ours, theirs = _reversals(trajectories, [run, other], descent)
    return mean_over_steps(ours.astype(float) - theirs)


def reversal_ratio(trajectories: Trajectories, run: str, other: str, descent: str) -> Estimate:
    """Reversal rate (share of the steps along v that reverse the step before) of one run over that of another."""
    ours, theirs = _reversals(trajectories, [run, other], descent)
    if not theirs.any():
        raise CannotTellError(f"no step of {other} reverses the one before")

    def ratio(rows: np.ndarray) -> float:
        return float(ours[rows].mean() / max(theirs[rows].mean(), 1 / len(theirs)))

    return over_steps(ratio, len(ours), RATIO)


def _reversals(trajectories: Trajectories, runs: Sequence[str], descent: str) -> list[np.ndarray]:
    """For each run, whether each step along v from break-even on reverses the one before."""
    first = _comparable_from(trajectories, [*runs, descent])
    projections = [trajectories[run].record[PROJECTION] for run in runs]
    found = [reversals(between(one_step_changes(along), first, np.inf)) for along in projections]
    common = found[0].steps
    for one in found[1:]:
        common = np.intersect1d(common, one.steps)
    if len(common) < FEWEST_STEPS:
        said = f"{len(common)} successive steps along v after break-even at step {first}"
        raise CannotTellError(f"{said}; {NOT_SUCCESSIVE}")
    return [one.values[np.isin(one.steps, common)] for one in found]


def _comparable_from(trajectories: Trajectories, runs: Sequence[str]) -> int:
    """Break-even of the last run, if all of them can be compared along v."""
    compared = named_runs(trajectories, *runs)
    first = break_even(compared[-1], runs[-1])
    references = [run.configuration["reference"] for run in compared]
    if any(reference != references[0] for reference in references):
        raise CannotTellError("the runs have different references, and so different directions v")
    return first


def size_by_floor_distance(
    trajectories: Trajectories,
    quantity: SizeAlongV,
    run: str,
    descent: str,
    steps: Literal["nearest", "farthest"],
    share: float = 0.1,
) -> Estimate:
    """Median size along v at the steps nearest to (farthest from) the valley's floor, over the median at all steps.

    Steps count from break-even of gradient descent on, where the valley has a floor; ``share`` of them are the
    nearest or the farthest.
    """
    first = _comparable_from(trajectories, [run, descent])
    distance, size = sizes_by_floor_distance(trajectories[run], quantity, first)
    need(len(size), "measured steps at which the valley has a floor")

    def ratio(rows: np.ndarray) -> float:
        order = np.argsort(distance[rows] if steps == "nearest" else -distance[rows], kind="stable")
        chosen = order[: max(1, round(share * len(rows)))]
        return float(np.median(size[rows][chosen]) / np.median(size[rows]))

    return over_steps(ratio, len(size), RATIO)


# -- growth of sensitivity --------------------------------------------------------------------------------------------


def jacobian_growth(trajectories: Trajectories, run: str) -> Estimate:
    """Norm of the input-output Jacobian at the last measured step up to break-even, over that at the start.

    Where break-even comes within the first few measurements there was no time to grow.
    """
    (trajectory,) = named_runs(trajectories, run)
    last = break_even(trajectory)
    until = between(trajectory.record[JACOBIAN_NORM], 0, last).values
    need(len(until), f"measurements of the norm up to break-even at step {last}", least=FEWEST_MEASUREMENTS)
    return Estimate(float(until[-1] / until[0]))
