"""Statistics of stochastic training: opposing groups under SGD, and update rules over a grid of settings.

The final train loss of a run is the mean over the steps of its last epoch. Intervals resample those steps, the same
ones for every run, as all use the same batches. A run that was stopped because its loss is not finite counts, with an
infinite loss; a job that failed for another reason leaves a hole in the grid, of which nothing is then said.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from opposing_signals.record.quantities import SIGNED_SHARE, TEST_ACCURACY, TRAIN_LOSS
from opposing_signals.signals import OpposingPair, Runs, Trajectory
from opposing_signals.signals.alignment import TINY
from opposing_signals.signals.steps import reversals, stretches
from opposing_signals.studies.claim import CannotTellError, Estimate
from opposing_signals.studies.curvature.metrics import detrended, gap_changes
from opposing_signals.studies.estimates import (
    FRACTION,
    RATIO,
    mean_over_steps,
    median_over_steps,
    over_steps,
    random_groups,
)
from opposing_signals.studies.optimizers.rules import Quantity, final, under
from opposing_signals.studies.runs import FEWEST_STEPS, Trajectories, dominant_pairs, need, only_run

SPAN = 21
"""Steps of the moving average that is taken from a loss."""

EARLY = 10
"""Steps at the start that do not count: "after the first few training steps" (Appendix F.1)."""


# -- figures 6a and 37 ------------------------------------------------------------------------------------------------


def group_variance_ratio(trajectories: Trajectories) -> Estimate:
    """Smallest ratio, over the dominant groups, of the variance of detrended loss to that of a random group's.

    Over the steps in which the pair is active, without the two losses between which it was selected; a random group
    has as many points, and its variance is the mean over many draws. The dominant groups were chosen for swinging, so
    the ratio is above 1 by selection alone: ``benchmarks/chance.py`` measures it where nothing opposes.
    """
    trajectory = only_run(trajectories)
    groups = [(pair, group) for pair in dominant_pairs(trajectory) for group in pair.groups]
    known = [ratio for one in groups if (ratio := _variance_ratio(trajectory, *one)) is not None]
    _need_successive(known, SPAN)
    return min(known, key=lambda estimate: estimate.value)


def _variance_ratio(trajectory: Trajectory, pair: OpposingPair, group: np.ndarray) -> Estimate | None:
    """None if the losses were not recorded at every step for long enough: a trend cannot be taken out across a gap."""
    draws = random_groups(trajectory.losses.values.shape[1], len(group))
    squares, random = [], []
    for part in stretches(trajectory.losses, SPAN):
        inside = (part.steps >= pair.window[0]) & (part.steps <= pair.window[1] + 1)
        inside &= (part.steps != pair.step) & (part.steps != pair.step + 1)
        ours, *theirs = (detrended(part.values[:, chosen].mean(1), SPAN)[inside] for chosen in (group, *draws))
        squares.append(np.square(ours))
        random.append(np.square(theirs).mean(0))
    if sum(map(len, squares)) < FEWEST_STEPS:
        return None
    above, below = np.concatenate(squares), np.concatenate(random)
    return over_steps(lambda rows: float(above[rows].mean() / max(below[rows].mean(), TINY)), len(above), RATIO)


def sign_change_share(trajectories: Trajectories, middle: float = 0.55) -> Estimate:
    """Share of the steps at which a pair's gap turns (white noise: 0.67, a random walk: 0.5), farthest from the middle.

    The gap between the groups turns where its one-step change has another sign than the one a step before; ``middle``
    is that of the claimed interval, and the pair is the one farthest from it. Noise meets the claim, too: it only says
    that the groups do not alternate at every step.
    """
    trajectory = only_run(trajectories)
    turns = [reversals(gap_changes(trajectory, pair)).values for pair in dominant_pairs(trajectory)]
    turns = [turn for turn in turns if len(turn) >= FEWEST_STEPS]
    _need_successive(turns, 3)
    return mean_over_steps(max(turns, key=lambda turn: abs(float(turn.mean()) - middle)).astype(float), FRACTION)


def _need_successive(found: Sequence[Any], successive: int) -> None:
    if not found:
        raise CannotTellError(
            f"no opposing pair is active in {FEWEST_STEPS} steps that are among {successive} or more successive ones "
            "at which losses were recorded"
        )


# -- figures 39 to 44: final values over a grid -----------------------------------------------------------------------


def loss_over_best(trajectories: Trajectories, rule: str, others: str) -> Estimate:
    """Largest final train loss under a rule over the smallest under the others."""
    groups = {"ours": (rule, None), "theirs": (others, None)}
    return _of_grid(trajectories, groups, lambda means: float(means["ours"].max() / means["theirs"].min()))


def loss_variation(trajectories: Trajectories, rule: str) -> Estimate:
    """Largest final train loss under a rule over the smallest, less 1."""
    groups = {"ours": (rule, None)}
    return _of_grid(trajectories, groups, lambda means: float(means["ours"].max() / means["ours"].min() - 1), least=2)


def largest_difference(trajectories: Trajectories, rule: str, other: str) -> Estimate:
    """Largest relative difference of a final train loss under a rule from that of the other's run."""
    groups = {"ours": (rule, None), "theirs": (other, None)}
    return _of_grid(trajectories, groups, lambda means: float(np.abs(means["ours"] / means["theirs"] - 1).max()))


def range_ratio(trajectories: Trajectories, rule: str, other: str, quantity: Quantity) -> Estimate:
    """Largest less smallest final value under a rule, over the same under the other."""
    return _of_grid(
        trajectories,
        {"ours": (rule, None), "theirs": (other, None)},
        lambda means: _range(means["ours"]) / max(_range(means["theirs"]), TINY),
        quantity,
        least=2,
    )


def dampening_difference(trajectories: Trajectories, strong: float = 0.9, weak: float = 0.0) -> Estimate:
    """Largest difference, over η1, of SplitSGD's final train loss with dampening ``strong`` less that with ``weak``."""
    runs = Runs.of(trajectories).with_stopped
    grids = [[(rule.sgd_lr, rule.lr) for rule in under(runs, "SplitSGD", t)] for t in (strong, weak)]
    if grids[0] != grids[1]:
        raise CannotTellError(f"the runs with τ = {strong:g} and τ = {weak:g} have different step sizes")
    return _of_grid(
        trajectories,
        {"strong": ("SplitSGD", strong), "weak": ("SplitSGD", weak)},
        lambda means: float((means["strong"] - means["weak"]).max()),
    )


def _range(values: np.ndarray) -> float:
    """Infinite if one of the values is."""
    return float(np.max(values) - np.min(values)) if np.isfinite(values).all() else float("inf")


def _of_grid(
    trajectories: Trajectories,
    groups: Mapping[str, tuple[str, float | None]],
    statistic: Callable[[dict[str, np.ndarray]], float],
    quantity: Quantity = TRAIN_LOSS,
    least: int = 1,
) -> Estimate:
    """``statistic`` of the runs' final values, given by group of runs, in the order of η1 and learning rate.

    Args:
        trajectories: The runs of a sweep.
        groups: What each group is called, and its rule and dampening.
        statistic: Of the means ``[runs]`` over the last epoch.
        quantity: Of which the final values are.
        least: How many runs a group needs.
    """
    runs = Runs.of(trajectories)
    if runs.failures.keys() - runs.stopped.keys():
        raise CannotTellError("failed: " + ", ".join(runs.failures.keys() - runs.stopped.keys()))
    chosen = {group: under(runs.with_stopped, *rule) for group, rule in groups.items()}
    for group, (name, dampening) in groups.items():
        if len(chosen[group]) < least:
            found = "one run" if chosen[group] else "no run"
            rule = name if dampening is None else f"{name} with τ = {dampening:g}"
            raise CannotTellError(f"{found} under {rule}: expected at least {least}")
    values = {group: np.stack([final(run, quantity) for run in rules.values()]) for group, rules in chosen.items()}

    def of_steps(rows: np.ndarray | slice) -> float:
        return statistic({group: rows_of[:, rows].mean(1) for group, rows_of in values.items()})

    with np.errstate(invalid="ignore"):
        value = of_steps(slice(None))
    if not np.isfinite(value):
        raise CannotTellError("it is not finite; stopped: " + (", ".join(runs.stopped) or "none"))
    steps = next(iter(values.values())).shape[1]
    return Estimate(value) if quantity == TEST_ACCURACY else over_steps(of_steps, steps)


# -- figures 39, 40 and 44b: signed steps -----------------------------------------------------------------------------


def plain_share(trajectories: Trajectories) -> Estimate:
    """Median over the steps, the first few left out, of the share of parameters with a plain step."""
    runs = under(trajectories, "SplitSGD")
    if len(runs) != 1:
        raise CannotTellError(f"{len(runs)} runs under SplitSGD: expected one")
    (run,) = runs.values()
    shares = 1 - _late_shares(run)
    need(len(shares), f"steps from step {EARLY} on", least=1)
    return median_over_steps(shares, FRACTION)


def signed_share(trajectories: Trajectories, which: Literal["smallest", "largest"], dampening: float) -> Estimate:
    """Smallest or largest, over SplitSGD's runs, median over the steps of the share of signed steps.

    The first few steps are left out.
    """
    shares = [_late_shares(run) for run in under(trajectories, "SplitSGD", dampening).values()]
    shares = [share for share in shares if len(share)]
    if not shares:
        raise CannotTellError(f"no run under SplitSGD with τ = {dampening:g}")
    extreme = min if which == "smallest" else max
    return median_over_steps(extreme(shares, key=lambda share: float(np.median(share))), FRACTION)


def _late_shares(run: Trajectory) -> np.ndarray:
    series = run.record[SIGNED_SHARE]
    return np.asarray(series.values)[np.asarray(series.steps) >= EARLY]
