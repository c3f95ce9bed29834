"""Automatic pairing: groups of outliers whose losses move against each other.

The paper sorts the selected points by eye and names the correlation of their loss series as a way to do it by
machine (§2). That is what is done here: select at a step, cluster the risers among themselves and the fallers among
themselves by the correlation of their one-step changes, and pair the clusters that oppose each other most.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy

from opposing_signals.signals.selection import risers

Clustering = Callable[[np.ndarray, np.ndarray], list[np.ndarray]]
"""(changes ``[T, N]`` without those of the selecting step, points) ↦ groups of points, the largest first."""

SMALL = 0.25
"""A point whose change is below this fraction of the largest few is no outlier of that step."""


@dataclass(frozen=True)
class OpposingPair:
    """Two groups of training points whose losses move in opposite directions.

    Attributes:
        rising: ``[k]`` indices of the points whose loss rises at the selecting step, the strongest first.
        falling: ``[k']`` indices of those whose loss falls.
        change: Row of the changes at which the points were selected.
        window: First and one past the last row of changes in which the pair is active.
        correlation: Pearson's correlation of the groups' mean one-step changes over the window, the selecting step
            left out.
        amplitude: Median over the window of half the gap between the groups' mean one-step changes.
    """

    rising: np.ndarray
    falling: np.ndarray
    change: int
    window: tuple[int, int]
    correlation: float
    amplitude: float

    @property
    def groups(self) -> tuple[np.ndarray, np.ndarray]:
        """The rising and the falling group."""
        return self.rising, self.falling


def find_pairs(
    changes: np.ndarray,
    *,
    pairs: int = 4,
    group: int = 20,
    smallest_group: int = 5,
    phases: int = 8,
    linkage_correlation: float = 0.5,
    fade: float = 0.1,
    clustering: Clustering | None = None,
) -> list[OpposingPair]:
    """The dominant opposing pairs of a run, the one with the largest amplitude first.

    The steps are cut into phases; each is searched at the step where its risers and fallers are furthest apart. So
    every part of the run can name the signals that dominate it, as in figure 1. A pair found in several phases is
    kept once, where its amplitude is largest.

    Args:
        changes: ``[T, N]`` one-step changes Δ_i(t).
        pairs: How many to return at the most.
        group: Points in a group at the most.
        smallest_group: Points in a group at the least.
        phases: How many parts of the run are searched.
        linkage_correlation: Points join a cluster while the average correlation of their changes is above this.
        fade: A pair is active while its amplitude is above this fraction of its peak.
        clustering: Another way to group the risers and the fallers of a step; None: by correlation.
    """

    def by_correlation(part: np.ndarray, points: np.ndarray) -> list[np.ndarray]:
        return _clusters(part, points, group, smallest_group, linkage_correlation)

    found: list[OpposingPair] = []
    for rows in np.array_split(np.arange(len(changes)), min(phases, max(1, len(changes) // 16))):
        if len(rows) >= 3:
            found += _pairs_of_phase(changes, rows, group, smallest_group, clustering or by_correlation, fade)
    found.sort(key=lambda pair: -pair.amplitude)
    kept: list[OpposingPair] = []
    for pair in found:
        if all(_overlap(pair, other) < 0.5 for other in kept):
            kept.append(pair)
    return kept[:pairs]


def _pairs_of_phase(
    changes: np.ndarray, rows: np.ndarray, group: int, smallest: int, clusters: Clustering, fade: float
) -> list[OpposingPair]:
    extremes = min(3 * group, changes.shape[1] // 2)
    part = np.asarray(changes[rows])
    ordered = np.partition(part, (extremes - 1, part.shape[1] - extremes), axis=1)
    selecting = int(np.argmax(ordered[:, -extremes:].mean(1) - ordered[:, :extremes].mean(1)))
    rising = _outliers(part[selecting], extremes, smallest)
    falling = _outliers(-part[selecting], extremes, smallest)
    others = np.delete(part, selecting, axis=0)
    pairs = []
    lower_clusters = clusters(others, falling)
    for upper in clusters(others, rising):
        if not lower_clusters:
            break
        opposition = [_correlation(others[:, upper].mean(1), others[:, lower].mean(1)) for lower in lower_clusters]
        lower = lower_clusters.pop(int(np.argmin(opposition)))
        pair = _measured(changes, upper, lower, int(rows[selecting]), fade)
        if pair is not None:
            pairs.append(pair)
    return pairs


def _outliers(changes: np.ndarray, count: int, smallest: int) -> np.ndarray:
    """The ``count`` most positive changes, the largest first, without those that are small beside the largest few."""
    chosen = risers(changes, count)
    return chosen[changes[chosen] > SMALL * changes[chosen[:smallest]].mean().clip(min=0)]


def _clusters(part: np.ndarray, points: np.ndarray, group: int, smallest: int, threshold: float) -> list[np.ndarray]:
    """Clusters of ``points`` by correlation of their changes, the largest first; members keep their order."""
    if len(points) < smallest or len(part) < 2:
        return []
    series = part[:, points] - part[:, points].mean(0)
    norms = np.linalg.norm(series, axis=0)
    points, series = points[norms > 0], series[:, norms > 0] / norms[norms > 0]
    if len(points) < smallest:
        return []
    if len(points) == 1:
        return [points]  # nothing to compare it with
    distance = np.clip(1 - series.T @ series, 0, 2)
    np.fill_diagonal(distance, 0)
    tree = scipy.cluster.hierarchy.linkage(scipy.spatial.distance.squareform(distance, checks=False), "average")
    labels = scipy.cluster.hierarchy.fcluster(tree, 1 - threshold, "distance")
    clusters = [points[labels == label][:group] for label in np.unique(labels)]
    return sorted((c for c in clusters if len(c) >= smallest), key=lambda c: -len(c))


def _measured(
    changes: np.ndarray, rising: np.ndarray, falling: np.ndarray, selecting: int, fade: float
) -> OpposingPair | None:
    """The pair with its window, correlation and amplitude; None if its groups do not oppose each other."""
    pair = measured_pair(changes, rising, falling, selecting, fade)
    return pair if pair is not None and pair.correlation < 0 else None


def measured_pair(
    changes: np.ndarray, rising: np.ndarray, falling: np.ndarray, selecting: int, fade: float = 0.1
) -> OpposingPair | None:
    """Two groups as a pair with its window, correlation and amplitude, whether they oppose each other or not.

    Args:
        changes: ``[T, N]`` one-step changes Δ_i(t).
        rising: Points of one group.
        falling: Points of the other.
        selecting: Row of ``changes`` at which they were selected.
        fade: See `find_pairs`.

    Returns:
        None if the groups are active in fewer than three rows beside the selecting one.
    """
    upper, lower = changes[:, rising].mean(1), changes[:, falling].mean(1)
    gap = np.abs(upper - lower) / 2
    envelope = np.maximum(gap, np.maximum(np.roll(gap, 1), np.roll(gap, -1)))  # an oscillation passes through zero
    faded = np.flatnonzero(envelope < fade * gap[selecting])
    start = int(faded[faded < selecting].max(initial=-1)) + 1
    stop = int(faded[faded > selecting].min(initial=len(gap)))
    window = np.delete(np.arange(start, stop), selecting - start)
    if len(window) < 3:
        return None
    correlation = _correlation(upper[window], lower[window])
    return OpposingPair(rising, falling, selecting, (start, stop), correlation, float(np.median(gap[start:stop])))


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale > 0 else 0.0


def _overlap(one: OpposingPair, other: OpposingPair) -> float:
    """Share of the smaller pair's points that the other holds too, whichever way round."""
    ours = {*one.rising.tolist(), *one.falling.tolist()}
    theirs = {*other.rising.tolist(), *other.falling.tolist()}
    return len(ours & theirs) / min(len(ours), len(theirs))
