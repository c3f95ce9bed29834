"""Opposing pairs with all their members, found in two independent ways and held against each other or the truth.

`find_pairs` names the few points that change most, as the paper's §2 does by eye. Here every training point is judged,
in each phase of the run. The two ways look at different measurements:

- by loss series: a member's one-step changes are large, nearer to those of its group's strongest points than to those
  of a typical point, and go with its group's, step after step, while those of the other group go against them;
- by gradients: a member's own gradient, in random projection (`GradientSketch`), points where its group's points, and
  that of the other group's members points the other way: a step that helps one hurts the other. Its length does not
  matter, because a group that is fitted already still opposes the other.

Both work with the cosines of vectors: one-step changes over the steps of a phase, or sketches at them. Cost and memory
grow linearly with the number of points: only the strongest `SEEDS` are compared with each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy

from opposing_signals.data.dataset import Dataset

SEEDS = 400
"""Points that are compared with each other in a phase: those with the longest vectors."""

OUTSTANDING = 3.0
"""A point stands out by its loss series if its vector is this many times as long as the median point's; so does a
group by its median member."""

ALIKE = 0.5
"""Least cosine of a member with its group; a group's opponent has one below its negative."""

SHORTEST = 8
"""Steps in a phase at the least."""

TINY = float(np.finfo(np.float32).tiny)
"""No vector counts as shorter: an interpolated point's loss does not change at all."""

ROUNDS = 3
"""How many times the search is repeated."""

FADE = 0.1
"""A pair is active while its amplitude is above this fraction of its peak."""


@dataclass(frozen=True)
class Discovery:
    """An opposing pair with all its members.

    Attributes:
        first: ``[k]`` indices of the members of one group, the best score first.
        second: ``[k']`` those of the group that it opposes.
        first_scores: ``[k]`` cosine of each member with its group, over the phase that shows the pair best.
        second_scores: ``[k']`` the same for the other group.
        phase: First and last step of that phase.
        opposition: Cosine of the two groups' mean vectors over the phase; in an oscillation around zero, Pearson's
            correlation of their mean one-step changes.
        contrast: How far the pair stands out: median length of its members' vectors over that of all points'; by loss
            series of the weaker group, by gradients of the stronger one.
        appears: First step at which the pair is active; −1 where there are no losses to tell.
        fades: Last such step.
        amplitude: Median over these steps of half the gap between the groups' mean one-step changes.
        spike_share: Share of the rise of all rising points that the members carry, mean over the steps in which the
            train loss rises most.
    """

    first: np.ndarray
    second: np.ndarray
    first_scores: np.ndarray
    second_scores: np.ndarray
    phase: tuple[int, int]
    opposition: float
    contrast: float
    appears: int = -1
    fades: int = -1
    amplitude: float = float("nan")
    spike_share: float = float("nan")

    @property
    def groups(self) -> tuple[np.ndarray, np.ndarray]:
        """Both groups."""
        return self.first, self.second

    @property
    def members(self) -> np.ndarray:
        """Indices of the members of both groups."""
        return np.concatenate(self.groups)

    @property
    def rank(self) -> float:
        """By which pairs are ordered: how far it stands out, and how purely its groups oppose each other."""
        return -self.contrast * self.opposition

    @property
    def size(self) -> int:
        """Number of members."""
        return len(self.members)


def discover(steps: np.ndarray, changes: np.ndarray, *, phases: int = 8, smallest_group: int = 4) -> list[Discovery]:
    """The opposing pairs of a run by its loss series, the one of highest rank first.

    At the edge of stability all pairs alternate at every step, so a weaker pair hides behind a stronger one that is in
    time with it. Hence the search is repeated without the points that are members already.

    Args:
        steps: ``[T]`` the iteration t of each row.
        changes: ``[T, N]`` one-step changes Δ_i(t).
        phases: How many parts of the run are searched, each for itself; a pair found in several is kept where its
            rank is highest.
        smallest_group: Points in a group at the least.
    """
    kept: list[Discovery] = []
    rest = np.arange(changes.shape[1])
    for _ in range(ROUNDS):
        found = []
        for first, last in _phases(len(changes), phases):
            part = np.asarray(changes[first:last], dtype=np.float32)[:, rest]
            found += _opposed(part, (int(steps[first]), int(steps[last - 1])), smallest_group)
        new = [replace(pair, first=rest[pair.first], second=rest[pair.second]) for pair in _distinct(found)]
        if not new:
            break
        kept += new
        rest = np.setdiff1d(rest, np.concatenate([pair.members for pair in new]))
    kept.sort(key=lambda pair: -pair.rank)
    spikes = _spikes(changes)
    return [_along_run(pair, steps, changes, spikes) for pair in kept]


def discover_by_gradients(
    steps: np.ndarray,
    sketches: np.ndarray,
    changes: tuple[np.ndarray, np.ndarray] | None = None,
    *,
    phases: int = 8,
    smallest_group: int = 4,
) -> list[Discovery]:
    """The opposing pairs of a run by the alignment of per-sample gradients; see `discover`.

    Args:
        steps: ``[S]`` the iterations at which gradients were sketched.
        sketches: ``[S, N, d]`` random projections of ∇ℓ_i(θ_t).
        changes: Steps ``[T]`` and ``[T, N]`` one-step changes; without them a pair's course along the run is not given.
        phases: How many parts of the run are searched, at the most one a measured step.
        smallest_group: Points in a group at the least.
    """
    found = []
    for rows in np.array_split(np.arange(len(steps)), max(1, min(phases, len(steps)))):
        if not len(rows):
            continue
        part = np.asarray(sketches[rows], dtype=np.float32)
        vectors = part.transpose(0, 2, 1).reshape(-1, part.shape[1])
        found += _aligned(vectors, (int(steps[rows[0]]), int(steps[rows[-1]])), smallest_group)
    kept = _distinct(found)
    if changes is None:
        return kept
    spikes = _spikes(changes[1])
    return [_along_run(pair, *changes, spikes) for pair in kept]


def _phases(rows: int, phases: int) -> list[tuple[int, int]]:
    """Rows cut into ``phases`` parts, and into halves and quarters of these: a pair can be short-lived.

    Neighbouring parts overlap by half, so that no border hides one.
    """
    parts: list[tuple[int, int]] = []
    for count in (phases, 2 * phases, 4 * phases):
        borders = np.linspace(0, rows, 2 * max(1, min(count, rows // SHORTEST)) + 1).round().astype(int)
        parts += zip(borders[:-2].tolist(), borders[2:].tolist(), strict=True)
    return [(first, last) for first, last in dict.fromkeys(parts) if last - first >= 3]


# -- one phase ------------------------------------------------------------------------------------------------------


def _opposed(vectors: np.ndarray, phase: tuple[int, int], smallest: int) -> list[Discovery]:
    """Opposing pairs among the columns of ``vectors`` ``[m, N]``."""
    lengths = np.sqrt(np.einsum("mn,mn->n", vectors, vectors))
    typical = max(float(np.median(lengths)), TINY)
    outliers = np.flatnonzero(lengths > OUTSTANDING * typical)
    seeds = outliers[np.argsort(-lengths[outliers], kind="stable")[:SEEDS]]
    clusters = _clusters(vectors[:, seeds] / lengths[seeds], smallest)
    cores = [seeds[cluster] for cluster in clusters]
    directions = [_unit(vectors[:, core].sum(1)) for core in cores]
    pairs = []
    while len(cores) > 1:
        core, direction = cores.pop(0), directions.pop(0)
        cosines = [float(direction @ other) for other in directions]
        nearest = int(np.argmin(cosines))
        if cosines[nearest] > -ALIKE:
            continue
        opponent, opposite = cores.pop(nearest), directions.pop(nearest)
        first, first_scores = _members(vectors, lengths, core, direction, typical)
        second, second_scores = _members(vectors, lengths, opponent, opposite, typical)
        if min(len(first), len(second)) < smallest:
            continue
        contrast = min(float(np.median(lengths[group])) for group in (first, second)) / typical
        if contrast < OUTSTANDING:
            continue
        opposition = float(_unit(vectors[:, first].mean(1)) @ _unit(vectors[:, second].mean(1)))
        pairs.append(Discovery(first, second, first_scores, second_scores, phase, opposition, contrast))
    return pairs


def _aligned(vectors: np.ndarray, phase: tuple[int, int], smallest: int) -> list[Discovery]:
    """Pairs of groups among the columns of ``vectors`` ``[m, N]`` that point in opposite directions."""
    lengths = np.sqrt(np.einsum("mn,mn->n", vectors, vectors))
    units = vectors / np.maximum(lengths, TINY)
    typical = max(float(np.median(lengths)), TINY)
    seeds = np.argsort(-lengths, kind="stable")[:SEEDS]
    pairs = []
    for cluster in _clusters(units[:, seeds], smallest):
        direction = _unit(units[:, seeds[cluster]].sum(1))
        along = direction @ units
        opposite = _unit(units[:, along < -ALIKE].sum(1))
        against = opposite @ units
        first, second = np.flatnonzero(along > ALIKE), np.flatnonzero(against > ALIKE)
        if direction @ opposite > -ALIKE or min(len(first), len(second)) < smallest:
            continue
        first, second = first[np.argsort(-along[first])], second[np.argsort(-against[second])]
        opposition = float(_unit(vectors[:, first].mean(1)) @ _unit(vectors[:, second].mean(1)))
        contrast = max(float(np.median(lengths[group])) for group in (first, second)) / typical
        pairs.append(Discovery(first, second, along[first], against[second], phase, opposition, contrast))
    return pairs


def _clusters(units: np.ndarray, smallest: int) -> list[np.ndarray]:
    """Positions of the columns that belong together, average linkage of cosines, the largest cluster first."""
    if units.shape[1] < 2 * smallest:
        return []
    distance = np.clip(1 - units.T @ units, 0, 2)
    np.fill_diagonal(distance, 0)
    tree = scipy.cluster.hierarchy.linkage(scipy.spatial.distance.squareform(distance, checks=False), "average")
    labels = scipy.cluster.hierarchy.fcluster(tree, 1 - ALIKE, "distance")
    clusters = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    return sorted((cluster for cluster in clusters if len(cluster) >= smallest), key=lambda cluster: -len(cluster))


def _members(
    vectors: np.ndarray, lengths: np.ndarray, core: np.ndarray, direction: np.ndarray, typical: float
) -> tuple[np.ndarray, np.ndarray]:
    """All points that move with ``core`` and are, on a logarithmic scale, nearer to it in size than to a typical point.

    Returns:
        Indices and cosines with the core's direction, the best first.
    """
    along = direction @ vectors
    cosines = along / np.maximum(lengths, TINY)
    cut = np.sqrt(typical * np.average(lengths[core], weights=lengths[core]))
    chosen = np.flatnonzero((cosines > ALIKE) & (along > cut))
    chosen = chosen[np.argsort(-cosines[chosen], kind="stable")]
    return chosen, cosines[chosen]


def _unit(vector: np.ndarray) -> np.ndarray:
    length = float(np.linalg.norm(vector))
    return vector / length if length > 0 else vector


# -- the whole run --------------------------------------------------------------------------------------------------


def _distinct(found: list[Discovery]) -> list[Discovery]:
    """Each pair once, where its rank is highest; by falling rank."""
    kept: list[Discovery] = []
    for pair in sorted(found, key=lambda pair: -pair.rank):
        if all(_shared(pair, other) < 0.5 for other in kept):
            kept.append(pair)
    return kept


def _shared(one: Discovery, other: Discovery) -> float:
    """Share of the smaller pair's members that the other holds too."""
    return len(np.intersect1d(one.members, other.members)) / min(one.size, other.size)


def _spikes(changes: np.ndarray, share: float = 0.05) -> np.ndarray:
    """Rows of the ``share`` of steps in which the train loss rises most."""
    rises = np.array([row.mean(dtype=np.float64) for row in changes])
    rows = np.argsort(-rises)[: max(1, round(share * len(rises)))]
    return rows[rises[rows] > 0]


def _along_run(pair: Discovery, steps: np.ndarray, changes: np.ndarray, spikes: np.ndarray) -> Discovery:
    """The pair with what the losses of its members say about its course."""
    upper, lower = (np.array([row[group].mean(dtype=np.float64) for row in changes]) for group in pair.groups)
    gap = np.abs(upper - lower) / 2
    envelope = np.maximum(gap, np.maximum(np.roll(gap, 1), np.roll(gap, -1)))  # an oscillation passes through zero
    in_phase = np.flatnonzero((steps >= pair.phase[0]) & (steps <= pair.phase[1]))
    peak = int(in_phase[np.argmax(gap[in_phase])])
    faded = np.flatnonzero(envelope < FADE * gap[peak])
    start = int(faded[faded < peak].max(initial=-1)) + 1
    stop = int(faded[faded > peak].min(initial=len(gap)))
    shares = [
        np.maximum(changes[row][pair.members], 0).sum(dtype=np.float64)
        / np.maximum(changes[row], 0).sum(dtype=np.float64)
        for row in spikes
    ]
    return replace(
        pair,
        appears=int(steps[start]),
        fades=int(steps[stop - 1]),
        amplitude=float(np.median(gap[start:stop])),
        spike_share=float(np.mean(shares)) if len(shares) else float("nan"),
    )


# -- against each other and against the truth -----------------------------------------------------------------------


Groups = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Match:
    """How well found points are the wanted ones.

    Attributes:
        precision: Share of the found points that are wanted.
        recall: Share of the wanted points that are found.
    """

    precision: float
    recall: float

    @property
    def f1(self) -> float:
        """Harmonic mean of both; 0 if nothing wanted was found."""
        total = self.precision + self.recall
        return 2 * self.precision * self.recall / total if total > 0 else 0.0


def match(found: np.ndarray, wanted: np.ndarray) -> Match:
    """Members against members."""
    hits = len(np.intersect1d(found, wanted))
    return Match(hits / max(1, len(found)), hits / max(1, len(wanted)))


def match_pair(found: Groups, wanted: Groups) -> Match:
    """Pair against pair: a hit is a point in the right group, whichever way round the pair is."""

    def aligned(one: np.ndarray, other: np.ndarray) -> int:
        return len(np.intersect1d(one, wanted[0])) + len(np.intersect1d(other, wanted[1]))

    hits = max(aligned(*found), aligned(*found[::-1]))
    return Match(hits / max(1, sum(map(len, found))), hits / max(1, sum(map(len, wanted))))


def agreement(found: Sequence[Discovery], others: Sequence[Discovery]) -> list[float]:
    """F1 of each found pair with the pair of ``others`` that is most like it; 0 if there are none."""
    return [max((match_pair(pair.groups, other.groups).f1 for other in others), default=0.0) for pair in found]


def stability(runs: Sequence[Sequence[Discovery]]) -> list[float]:
    """How well each run's dominant pair is found again in the other runs on the same data, such as other seeds.

    Returns:
        One number a run: the mean over the other runs of `agreement`; 0 for a run without a pair.
    """
    return [
        float(np.mean([agreement(run[:1], other)[0] if run else 0.0 for j, other in enumerate(runs) if j != i]))
        for i, run in enumerate(runs)
    ]


def planted_groups(dataset: Dataset, feature: str) -> Groups | None:
    """The bearers of a planted feature, by class: ``[k]`` and ``[k']`` indices; None if they are not of two classes."""
    bearers = np.flatnonzero(dataset.truth[feature])
    targets = dataset.targets.numpy()[bearers]
    groups = [bearers[targets == label] for label in np.unique(targets)]
    return (groups[0], groups[1]) if len(groups) == 2 else None


def nearest_planted(pair: Discovery, dataset: Dataset, features: Sequence[str]) -> tuple[str, Groups] | None:
    """Of the planted pairs the one that a found pair is most like, with its feature; None if there is none."""
    planted = {feature: groups for feature in features if (groups := planted_groups(dataset, feature)) is not None}
    return max(planted.items(), key=lambda item: match_pair(pair.groups, item[1]).f1, default=None)
