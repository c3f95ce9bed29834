"""Statistics of curvature: outliers by other metrics, shares of the top eigenvector, iterates along it, sensitivity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from opposing_signals.record import Series
from opposing_signals.record.quantities import EIGENVECTOR_SHARE, JACOBIAN_NORM, PROJECTION, SAMPLE_SHARPNESS
from opposing_signals.signals import OpposingPair, Trajectory
from opposing_signals.signals.steps import NOT_SUCCESSIVE, between, one_step_changes, reversals
from opposing_signals.studies.claim import Estimate
from opposing_signals.studies.curvature.metrics import Metric, SizeAlongV, metric_of_points, sizes_by_floor_distance
from opposing_signals.studies.estimates import FEWEST_STEPS, mean_over_steps, median_over_steps, over_steps
from opposing_signals.studies.groups.claims import Trajectories, only_run, too_few_steps

FEWEST_STEPS_OF_A_PAIR = 3
"""A pair that is active in fewer measured steps than this after break-even does not count."""

DRAWS = 200
"""Random groups over which a random group's median is averaged."""

SMALLEST = float(np.finfo(np.float32).tiny)
"""A random group's median counts as no smaller: an interpolated point's loss does not change at all."""


# -- figure 2 ---------------------------------------------------------------------------------------------------------


def outlier_ratio(trajectories: Trajectories, metric: Metric) -> Estimate:
    """Smallest ratio, over the dominant pairs, of the pair's median of a metric to that of as many random points.

    A pair's points are those of both groups. The ratio is that of the median step: of the measured steps from
    break-even on in which the pair is active, the selecting step left out. A random group's median is the mean over
    many draws; where it is negative, its size counts, which asks for more.
    """
    trajectory = only_run(trajectories)
    if trajectory.break_even is None:
        return Estimate.unknown(trajectory.no_break_even)
    measured = metric_of_points(trajectory, metric)
    ratios = [_pair_ratios(trajectory, pair, measured) for pair in trajectory.pairs]
    ratios = [ratio for ratio in ratios if len(ratio) >= FEWEST_STEPS_OF_A_PAIR]
    if not ratios:
        return Estimate.unknown("no opposing pair is active in enough measured steps after break-even")
    return median_over_steps(min(ratios, key=lambda ratio: float(np.median(ratio))))


def _pair_ratios(trajectory: Trajectory, pair: OpposingPair, measured: Series) -> np.ndarray:
    steps = np.asarray(measured.steps)
    chosen = (steps >= max(trajectory.break_even or 0, pair.window[0])) & (steps <= pair.window[1])
    chosen &= steps != pair.step
    values = np.asarray(measured.values)[chosen]
    points = np.concatenate(pair.groups)
    generator = np.random.default_rng(0)
    draws = [generator.choice(values.shape[1], len(points), replace=False) for _ in range(DRAWS)]
    random = np.mean([np.median(values[:, draw], axis=1) for draw in draws], axis=0)
    return np.median(values[:, points], axis=1) / np.maximum(np.abs(random), SMALLEST)


def outlier_sharpness_ratio(trajectories: Trajectories) -> Estimate:
    """Median over the steps from break-even on of the ratio of medians of the points' own top eigenvalues.

    Over it stand the risers and fallers of the last step, under it random points.
    """
    trajectory = only_run(trajectories)
    measured = trajectory.after_break_even(trajectory.record[SAMPLE_SHARPNESS])
    if len(measured) < FEWEST_STEPS:
        return Estimate.unknown(too_few_steps(trajectory, len(measured)))
    count = measured.values.shape[1] // 3
    outliers = np.median(measured.values[:, : 2 * count], axis=1)
    random = np.median(measured.values[:, 2 * count :], axis=1)
    return median_over_steps(outliers / np.maximum(np.abs(random), SMALLEST))


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
        return Estimate.unknown(f"the model has no tensor {tensor}")
    steps, shares = _shares(trajectory, first_step)
    if not len(steps):
        return Estimate.unknown(f"v was measured at no step from {first_step} on")
    return median_over_steps(shares[:, names.index(tensor)])


def module_over_others(trajectories: Trajectories, module: str, first_step: int) -> Estimate:
    """Median over the measured steps of a module's largest tensor share over the largest of all other tensors.

    "The embedding is the largest" asks for a ratio above 1 and for no margin, so its interval has to lie above 1: a
    ratio of 1.09 whose interval reaches below 1 is INCONCLUSIVE. FAIL means that another tensor holds more of v.
    """
    trajectory = only_run(trajectories)
    inside = np.array([name.startswith(f"{module}.") for name in trajectory.record.provenance["tensors"]])
    if not inside.any():
        return Estimate.unknown(f"the model has no module {module}")
    steps, shares = _shares(trajectory, first_step)
    if not len(steps):
        return Estimate.unknown(f"v was measured at no step from {first_step} on")
    return median_over_steps(shares[:, inside].max(1) / shares[:, ~inside].max(1))


def _shares(trajectory: Trajectory, first_step: int) -> tuple[np.ndarray, np.ndarray]:
    measured = trajectory.record[EIGENVECTOR_SHARE]
    late = np.asarray(measured.steps) >= first_step
    return np.asarray(measured.steps)[late], np.asarray(measured.values)[late]


# -- figure 6b --------------------------------------------------------------------------------------------------------


def reversal_rate(trajectories: Trajectories, run: str, descent: str) -> Estimate:
    """Share of the steps along v that reverse the step before, from break-even of gradient descent on."""
    found = _reversals(trajectories, [run], descent)
    if isinstance(found, str):
        return Estimate.unknown(found)
    return mean_over_steps(found[0].astype(float))


def reversal_difference(trajectories: Trajectories, run: str, other: str, descent: str) -> Estimate:
    """Reversal rate (share of the steps along v that reverse the step before) of one run minus that of another."""
    found = _reversals(trajectories, [run, other], descent)
    if isinstance(found, str):
        return Estimate.unknown(found)
    return mean_over_steps(found[0].astype(float) - found[1])


def reversal_ratio(trajectories: Trajectories, run: str, other: str, descent: str) -> Estimate:
    """Reversal rate (share of the steps along v that reverse the step before) of one run over that of another."""
    found = _reversals(trajectories, [run, other], descent)
    if isinstance(found, str):
        return Estimate.unknown(found)
    ours, theirs = found
    if not theirs.any():
        return Estimate.unknown(f"no step of {other} reverses the one before")

    def ratio(rows: np.ndarray) -> float:
        return float(ours[rows].mean() / max(theirs[rows].mean(), 1 / len(theirs)))

    return over_steps(ratio, len(ours))


def _reversals(trajectories: Trajectories, runs: Sequence[str], descent: str) -> list[np.ndarray] | str:
    """For each run, whether each step along v from break-even on reverses the one before; or why there is no answer."""
    problem = _incomparable(trajectories, [*runs, descent])
    if problem:
        return problem
    first = trajectories[descent].break_even or 0
    found = []
    for run in runs:
        moves = between(one_step_changes(trajectories[run].record[PROJECTION]), first, np.inf)
        found.append(reversals(moves))
    common = found[0].steps
    for one in found[1:]:
        common = np.intersect1d(common, one.steps)
    if len(common) < FEWEST_STEPS:
        return f"{len(common)} steps along v behind one another after break-even at step {first}; {NOT_SUCCESSIVE}"
    return [one.values[np.isin(one.steps, common)] for one in found]


def _incomparable(trajectories: Trajectories, runs: Sequence[str]) -> str:
    """Why the runs cannot be compared along v; empty if they can."""
    for run in runs:
        if run not in trajectories:
            return f"the run {run} is missing"
    if trajectories[runs[-1]].break_even is None:
        return f"{runs[-1]}: {trajectories[runs[-1]].no_break_even}"
    references = [trajectories[run].configuration["reference"] for run in runs]
    if any(reference != references[0] for reference in references):
        return "the runs have different references, and so different directions v"
    return ""


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
    problem = _incomparable(trajectories, [run, descent])
    if problem:
        return Estimate.unknown(problem)
    distance, size = sizes_by_floor_distance(trajectories[run], quantity, trajectories[descent].break_even or 0)
    if len(size) < FEWEST_STEPS:
        return Estimate.unknown(f"the valley has a floor at {len(size)} measured steps; {FEWEST_STEPS} are needed")

    def ratio(rows: np.ndarray) -> float:
        order = np.argsort(distance[rows] if steps == "nearest" else -distance[rows], kind="stable")
        chosen = order[: max(1, round(share * len(rows)))]
        return float(np.median(size[rows][chosen]) / np.median(size[rows]))

    return over_steps(ratio, len(size))


# -- growth of sensitivity --------------------------------------------------------------------------------------------


def jacobian_growth(trajectories: Trajectories, run: str) -> Estimate:
    """Norm of the input-output Jacobian at the last measured step up to break-even, over that at the start."""
    if run not in trajectories:
        return Estimate.unknown(f"the run {run} is missing")
    trajectory = trajectories[run]
    if trajectory.break_even is None:
        return Estimate.unknown(trajectory.no_break_even)
    norms = trajectory.record[JACOBIAN_NORM]
    until = np.asarray(norms.values)[np.asarray(norms.steps) <= trajectory.break_even]
    if len(until) < 2:
        return Estimate.unknown(f"the norm was measured once up to break-even at step {trajectory.break_even}")
    return Estimate(float(until[-1] / until[0]))
