"""Opposing pairs of a run, and what the losses of their members say about them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from threadpoolctl import threadpool_limits

from opposing_signals.record import Series
from opposing_signals.signals.alignment import TINY, correlation, lengths_of, unit
from opposing_signals.signals.search import FEWEST, SHORTEST, Search
from opposing_signals.signals.steps import between, while_finite
from opposing_signals.values import Count, Fraction


@dataclass(frozen=True)
class OpposingPair:
    """Two groups of training points whose losses move in opposite directions, step after step.

    Step t is the change from θ_t to θ_{t+1}.

    Attributes:
        rising: ``[k]`` indices of the group whose loss rises at `step`, the largest swings first.
        falling: ``[k']`` indices of the group whose loss falls.
        rising_scores: ``[k]`` cosine of each member's changes with the pair's course, the groups' mean difference.
        falling_scores: ``[k']`` the same for the other group.
        step: Step at which the groups' changes are furthest apart.
        window: First and last step in which the pair is active.
        correlation: Pearson's correlation of the groups' mean one-step changes over the window, without `step`; for
            pairs found by gradients, the cosine of the groups' mean gradients.
        amplitude: Median over the window of half the gap between the groups' mean one-step changes.
        contrast: Median length of the members' vectors over that of all points' vectors: for loss series of the weaker
            group, for gradients of the stronger one.
        p_value: Under the null hypothesis of no pair, corrected for all candidates; NaN for pairs found by gradients,
            which have no such test, and for groups that were not searched for.
        spike_share: Fraction of the rise of all rising points that the members carry, mean over the steps in which the
            train loss rises most.
    """

    rising: np.ndarray
    falling: np.ndarray
    rising_scores: np.ndarray
    falling_scores: np.ndarray
    step: int
    window: tuple[int, int]
    correlation: float
    amplitude: float = float("nan")
    contrast: float = float("nan")
    p_value: float = float("nan")
    spike_share: float = float("nan")

    @property
    def groups(self) -> tuple[np.ndarray, np.ndarray]:
        """The rising and the falling group."""
        return self.rising, self.falling

    @property
    def members(self) -> np.ndarray:
        """Indices of the members of both groups."""
        return np.concatenate(self.groups)

    @property
    def size(self) -> int:
        """Number of members."""
        return len(self.members)


def find_pairs(changes: Series, *, level: Fraction = 0.05, smallest_group: Count = 4) -> list[OpposingPair]:
    """The opposing pairs of a run with all their members, the one of largest amplitude first.

    Args:
        changes: ``values`` ``[T, N]`` one-step changes Δ_i(t), each at its step t; ignored from the first non-finite
            one on.
        level: Probability of finding any pair in a run in which the signs of every point's changes are independent.
        smallest_group: Minimum number of points in a group.
    """
    changes = while_finite(changes)
    values = changes.values
    if len(values) < SHORTEST or values.shape[1] < 2 * smallest_group or not np.any(values):
        return []
    # Small matrices: threads gain nothing, and they wait for each other where another process uses a core.
    with threadpool_limits(1, user_api="blas"):
        found = Search(values, level, smallest_group).pairs()
    steps = changes.steps
    pairs = []
    for pair in found:
        window = int(steps[pair.rows[0]]), int(steps[pair.rows[1] - 1])
        described = described_pair(changes, *pair.groups, window)
        if described is not None:
            pairs.append(replace(described, p_value=pair.p_value))
    return sorted(pairs, key=lambda pair: -pair.amplitude)


def outliers_of(pair: OpposingPair, changes: Series, size: int = 20) -> OpposingPair:
    """The pair of the ``size`` members of each group that swing most (the outliers of §2), with new statistics."""
    cut = described_pair(changes, pair.rising[:size], pair.falling[:size], pair.window)
    return pair if cut is None else replace(cut, p_value=pair.p_value)


def described_pair(changes: Series, one: np.ndarray, other: np.ndarray, window: tuple[int, int]) -> OpposingPair | None:
    """Two given groups as a pair, whether they oppose each other or not.

    Args:
        changes: ``values`` ``[T, N]`` one-step changes.
        one: Points of the first group.
        other: Points of the second group.
        window: First and last step that are considered.

    Returns:
        None if the changes of fewer than four steps of the window are known.
    """
    inside = between(changes, *window)
    if len(inside) < FEWEST:
        return None
    means = [np.array([row[group].mean(dtype=np.float64) for row in inside.values]) for group in (one, other)]
    gap = means[0] - means[1]
    at = int(np.abs(gap).argmax())
    if gap[at] < 0:
        one, other, means, gap = other, one, means[::-1], -gap
    part = inside.values - inside.values.mean(0, dtype=np.float64).astype(inside.values.dtype)
    lengths = lengths_of(part)
    along = unit(gap - gap.mean()) @ part
    cosines = along / np.maximum(lengths, TINY)
    one, other = (group[np.argsort(-sign * along[group], kind="stable")] for group, sign in ((one, 1), (other, -1)))
    weaker = min(float(np.median(lengths[group])) for group in (one, other))
    return OpposingPair(
        rising=one,
        falling=other,
        rising_scores=cosines[one],
        falling_scores=-cosines[other],
        step=int(inside.steps[at]),
        window=window,
        correlation=correlation(*(np.delete(mean, at) for mean in means)),
        amplitude=float(np.median(np.abs(gap)) / 2),
        contrast=weaker / max(float(np.median(lengths)), TINY),
        spike_share=_spike_share(changes.values, np.concatenate([one, other])),
    )


def _spike_share(changes: np.ndarray, members: np.ndarray, share: float = 0.05) -> float:
    """Fraction of the rise that ``members`` carry, mean over the steps of largest rise; NaN if the mean never rises."""
    rises = np.array([row.mean(dtype=np.float64) for row in changes])
    rows = np.argsort(-rises, kind="stable")[: max(1, round(share * len(rises)))]
    shares = [
        np.maximum(changes[row][members], 0).sum(dtype=np.float64) / np.maximum(changes[row], 0).sum(dtype=np.float64)
        for row in rows[rises[rows] > 0]
    ]
    return float(np.mean(shares)) if shares else float("nan")
