"""The search for opposing pairs in the changes of a run, and its test against chance.

An opposing pair is two groups of points whose losses move against each other, step after step (§2). Among many points
some such groups arise by chance. The null hypothesis is that *the signs of every point's changes are independent*,
whatever their sizes. To test it, the steps are split in two: groups are searched for in one half, and whether their
members move together is tested in the other, held-out half (sample splitting, Cox 1975):

1. Windows of many lengths are searched. In each, the points that stand out are clustered by the cosine of their changes
   (average linkage), and clusters that oppose each other are candidates.
2. A candidate's p-value is the largest of three. Two use the held-out steps, one per group: the probability that the
   group's members, with random signs, oppose the other group's mean this much (Chernoff's bound). So a group that moves
   alone has no opponent, however strongly it moves. The third is the probability that two unrelated groups correlate
   this negatively (Student's t). It may use all steps of the window, because clusters are not formed by their
   opposition, and it must: held-out steps alone are too few in a window of 14 steps, and the pairs of a ResNet-18 at a
   step size of 0.1 live no longer. It is multiplied by the number of windows and of possible opponents. The k-th
   candidate in order of energy gets a part of the level in proportion to 1/k (weighted Bonferroni correction, Holm
   1979), so the probability of any false pair in a run is at most about the level.
3. A point is a member of a confirmed pair if it follows the pair's course significantly (Benjamini and Hochberg 1995),
   if its size on a logarithmic scale is nearer to the group's than to a typical point's, and if it follows no other
   pair's course better while this pair is active. Members with different courses are split into separate pairs.
4. The search is repeated without the members while their pair is active: at the edge of stability all pairs alternate
   in phase, so that a strong pair hides a weak one.

Cost and memory grow linearly with the number of points: only `SEEDS` per criterion are compared with each other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import scipy

from opposing_signals.signals.alignment import ALIKE, TINY, clusters, correlation, lengths_of, unit

SEEDS = 250
"""Points of a window that are compared with each other, for each of three criteria: largest size, largest size relative
to the usual one, and closest to what most points have in common."""

ONE_COURSE = 0.9
"""Pairs whose courses have a cosine above this are merged."""

SHORTEST = 12
"""Minimum number of steps in a window: half of them find a pair, the others test it."""

CANDIDATES = 40
"""Maximum number of candidates tested in a round."""

ROUNDS = 3
"""Maximum number of rounds of the search."""

DEPENDENT = 0.1
"""Successive changes of the typical point count as dependent if their correlation exceeds this in absolute value.
Differences of noisy losses have −0.5; then no step next to a searched one serves as a test."""

FADE = 0.1
"""A pair is active while its amplitude is above this fraction of its peak."""

LULL = 4
"""Steps for which the amplitude may stay below `FADE`: an oscillation passes through zero and varies in size."""

FEWEST = 4
"""Minimum number of steps over which two groups are compared."""

_SLOPES = np.geomspace(0.05, 500, 80)
"""Where Chernoff's bound is evaluated; entries have size at most 1."""


@dataclass(eq=False)
class Candidate:
    """Two groups of columns, and the rows over which they are compared.

    Attributes:
        groups: ``[k]`` and ``[k']`` columns.
        rows: First row and one past the last.
        energy: Size of the searched changes along the groups' directions, in units of each member's noise.
        weights: ``[k]`` and ``[k']``, how much each member counts in its group's mean when the pair is tested.
        tried: Number of clusters that could have been the second group, times the number of windows searched.
        p_value: See `pairs.OpposingPair`.
    """

    groups: tuple[np.ndarray, np.ndarray]
    rows: tuple[int, int]
    energy: float = 0.0
    weights: tuple[np.ndarray, ...] = field(default=())
    tried: int = 1
    p_value: float = 1.0

    @property
    def members(self) -> np.ndarray:
        """``[k + k']`` columns of both groups."""
        return np.concatenate(self.groups)


class Search:
    """The search of one run.

    Each row is divided by its median absolute change, so that phases in which everything moves more do not outweigh
    the others.
    """

    def __init__(self, changes: np.ndarray, level: float, smallest: int) -> None:
        typical = np.array([np.median(np.abs(row)) for row in changes], np.float64)
        scale = np.maximum(typical, 0.01 * typical.max())
        if not typical.any():  # more than half of all points never change
            scale = np.full(len(changes), float(np.abs(changes).max()))
        self.scale = scale
        self.changes: np.ndarray = np.empty(changes.shape, np.float32)
        np.divide(changes, scale[:, None], out=self.changes, casting="unsafe")
        self.searched, self.held_out = self._halves()
        sizes = np.median(np.abs(self.changes[self.searched]), axis=0)
        self.typical = max(float(np.median(sizes)), TINY)
        self.usual = np.hypot(sizes, 0.1 * self.typical)
        self.level = level
        self.smallest = smallest

    def _halves(self) -> tuple[np.ndarray, np.ndarray]:
        """The rows that are searched, and the held-out rows.

        Rows come in blocks of two or more: in every other row, an alternation at every step has constant sign.
        """
        row = np.arange(len(self.changes))
        if abs(self._dependence()) > DEPENDENT:
            return row % 8 < 3, (row % 8 > 3) & (row % 8 < 7)
        return row % 4 < 2, row % 4 >= 2

    def _dependence(self) -> float:
        """Median over the points of the uncentred correlation of successive changes."""
        here, there = self.changes[:-1], self.changes[1:]
        products = np.einsum("tn,tn->n", here, there)
        sizes = np.sqrt(np.einsum("tn,tn->n", here, here) * np.einsum("tn,tn->n", there, there))
        return float(np.median(products / np.maximum(sizes, TINY)))

    def pairs(self) -> list[Candidate]:
        """Every confirmed pair."""
        kept: list[Candidate] = []
        for _ in range(ROUNDS):
            windows = list(self._windows())
            candidates = [one for rows in windows for one in self._candidates(rows, self._free(rows, kept))]
            for candidate in candidates:
                candidate.tried *= len(windows)
            confirmed = self._confirmed(_distinct(candidates))
            if not confirmed:
                break
            kept = self._settled(kept + [part for pair in confirmed for part in self._parted(pair)])
        return [pair for pair in kept if self._opposes(pair)]

    def _opposes(self, pair: Candidate) -> bool:
        """Whether the groups, with their final members, move against each other.

        As in the test against chance each step counts alike: where the train loss leaps, all groups rise together, and
        a few such steps would outweigh all others. The step of the largest gap is left out, since it selected the pair.
        """
        one, other = (self.changes[slice(*pair.rows), group].mean(1, dtype=np.float64) for group in pair.groups)
        at = int(np.abs(one - other).argmax())
        return correlation(np.delete(one, at), np.delete(other, at)) < -ALIKE

    def _free(self, rows: tuple[int, int], kept: list[Candidate]) -> np.ndarray:
        """Columns that belong to no pair that is active in the window."""
        is_free = np.full(self.changes.shape[1], True)
        for pair in kept:
            if pair.rows[0] < rows[1] and rows[0] < pair.rows[1]:
                is_free[pair.members] = False
        return np.flatnonzero(is_free)

    def _windows(self) -> Iterator[tuple[int, int]]:
        """The whole run, and windows of half, a quarter, … of it that overlap by half: a pair can be short-lived."""
        length = len(self.changes)
        while length >= SHORTEST:
            hop = max(1, length // 2)
            starts = range(0, len(self.changes) - length + hop, hop) if length < len(self.changes) else [0]
            for start in starts:
                stop = min(start + length, len(self.changes))
                if stop - start >= SHORTEST:
                    yield start, stop
            length //= 2

    # -- searching ------------------------------------------------------------------------------------------------

    def _candidates(self, rows: tuple[int, int], points: np.ndarray) -> list[Candidate]:
        """Clusters of ``points`` that oppose each other in the searched rows of a window."""
        part = self._part(rows, self.searched, points)
        lengths = lengths_of(part)
        seeds = self._seeds(part, lengths, self.usual[points])
        cores = [seeds[cluster] for cluster in clusters(part[:, seeds] / lengths[seeds], self.smallest)]
        if len(cores) < 2:
            return []
        directions = np.array([unit(part[:, core].sum(1)) for core in cores])
        along = [direction @ part[:, core] for direction, core in zip(directions, cores, strict=True)]
        noise = [  # per member: the part of its changes that does not follow the group, at least that of a quiet point
            np.sqrt(
                np.maximum(np.square(lengths[core]) - np.square(one), 0) / (len(part) - 1)
                + np.square(0.3 * self.typical)
                + np.square(1e-3 * lengths[core].max())  # most points may not move at all
            )
            for core, one in zip(cores, along, strict=True)
        ]
        energies = [float(np.square(one / size).sum()) for one, size in zip(along, noise, strict=True)]
        cosines = directions @ directions.T
        found, free = [], set(range(len(cores)))
        for i in np.argsort(energies)[::-1].tolist():
            if i not in free or len(free) < 2:
                continue
            others = sorted(free - {i})
            j = others[int(cosines[i, others].argmin())]
            if cosines[i, j] > -ALIKE:
                continue
            free -= {i, j}
            groups = points[cores[i]], points[cores[j]]
            weights = tuple(np.maximum(along[k], 0) / noise[k] ** 2 for k in (i, j))
            energy = float(np.sqrt(energies[i] * energies[j]) * -cosines[i, j])
            found.append(Candidate(groups, rows, energy, weights, len(others)))
        return found

    def _part(self, rows: tuple[int, int], half: np.ndarray, points: np.ndarray | slice) -> np.ndarray:
        """``[m, n]`` changes of some points in one half of a window, each point's mean removed."""
        chosen = np.flatnonzero(half[rows[0] : rows[1]]) + rows[0]
        part = self.changes[chosen][:, points]
        return part - part.mean(0)

    def _seeds(self, part: np.ndarray, lengths: np.ndarray, usual: np.ndarray) -> np.ndarray:
        """Candidate columns: the largest, the unusually large, and those that follow the common directions."""
        count = min(SEEDS, len(lengths))
        scores = [lengths, lengths.astype(np.float64) / usual]  # most points may not move at all
        if len(part) >= 2 * SHORTEST:  # in fewer rows chance directions are as common as any other
            units = part / np.maximum(lengths, TINY)
            _, vectors = np.linalg.eigh(units @ units.T)
            scores.append(np.square(vectors[:, -3:].T @ units).sum(0))
        chosen = [np.argpartition(-score, count - 1)[:count] for score in scores]
        seeds = np.unique(np.concatenate(chosen))
        return seeds[lengths[seeds] > TINY]

    # -- testing --------------------------------------------------------------------------------------------------

    def _confirmed(self, candidates: list[Candidate]) -> list[Candidate]:
        """The candidates whose p-value, corrected for all that are tested, is below the level."""
        total = ROUNDS * float(np.sum(1 / np.arange(1, CANDIDATES + 1)))
        for number, pair in enumerate(candidates, 1):
            pair.p_value = min(1.0, self._p_value(pair) * total * number)
        return [pair for pair in candidates if pair.p_value <= self.level]

    def _p_value(self, pair: Candidate) -> float:
        one, other = (part.sum(1) for part in self._weighted(pair, np.full(len(self.changes), True)))
        freedom = len(one) - 2
        length = np.linalg.norm(one) * np.linalg.norm(other)
        if freedom < 1 or not length > 0:
            return 1.0
        correlation = np.clip(one @ other / length, -1 + 1e-12, 1)
        by_chance = scipy.stats.t.cdf(correlation * np.sqrt(freedom / (1 - correlation**2)), freedom)
        parts = self._weighted(pair, self.held_out)
        one, other = (part.sum(1) for part in parts)
        alone = max(_sign_bound(parts[0] * other[:, None]), _sign_bound(parts[1] * one[:, None]))
        return max(float(by_chance) * pair.tried, alone)

    def _weighted(self, pair: Candidate, rows: np.ndarray) -> list[np.ndarray]:
        """Weighted changes of each group's members in some rows of the pair's window, ``[m, k]`` per group."""
        return [
            self._part(pair.rows, rows, group).astype(np.float64) * weight
            for group, weight in zip(pair.groups, pair.weights, strict=True)
        ]

    # -- members --------------------------------------------------------------------------------------------------

    def _settled(self, pairs: list[Candidate]) -> list[Candidate]:
        """The pairs with members from all points; each point joins the pair whose course it follows best."""
        for _ in range(3):
            pairs, courses = self._merged(pairs)
            if not pairs:
                break
            settled = [self._with_members(pair, courses[:, slice(*pair.rows)], i) for i, pair in enumerate(pairs)]
            pairs = [pair for pair in settled if pair is not None]
        return pairs

    def _merged(self, pairs: list[Candidate]) -> tuple[list[Candidate], np.ndarray]:
        """The pairs and their courses ``[k, T]``; pairs of one course are merged, since nothing tells them apart."""
        kept: list[Candidate] = []
        courses = np.zeros((0, len(self.changes)), np.float32)
        for pair in pairs:
            course = self._course(pair)
            cosines = courses @ course
            same = int(np.abs(cosines).argmax()) if len(kept) else -1
            if same < 0 or abs(cosines[same]) < ONE_COURSE:
                kept.append(pair)
                courses = np.vstack([courses, course])
                continue
            ours, theirs = kept[same].groups, pair.groups if cosines[same] > 0 else pair.groups[::-1]
            first, second = (np.union1d(one, other) for one, other in zip(ours, theirs, strict=True))
            kept[same] = replace(kept[same], groups=(np.setdiff1d(first, second), np.setdiff1d(second, first)))
            courses[same] = self._course(kept[same])
        return kept, courses

    def _course(self, pair: Candidate) -> np.ndarray:
        """``[T]`` difference of the groups' mean changes where the pair is active, zero elsewhere, of length 1."""
        gap = self._gap(pair)
        pair.rows = active_rows(gap * self.scale, pair.rows)
        course = np.zeros(len(self.changes), np.float32)
        inside = slice(*pair.rows)
        course[inside] = unit(gap[inside] - gap[inside].mean())
        return course

    def _gap(self, pair: Candidate) -> np.ndarray:
        one, other = (self.changes[:, group].mean(1, dtype=np.float64) for group in pair.groups)
        return one - other

    def _with_members(self, pair: Candidate, courses: np.ndarray, number: int) -> Candidate | None:
        """The pair with all points that follow its course best among the ``courses`` ``[k, m]`` of all pairs.

        None if a group is too small.
        """
        course = courses[number]
        if len(course) < FEWEST:
            return None
        part = self.changes[slice(*pair.rows)]
        part = part - part.mean(0)
        along = course @ part
        allowed = np.full(part.shape[1], True)
        for rival in np.delete(courses, number, 0):
            allowed &= np.abs(along) >= np.abs(unit(rival - rival.mean()) @ part)
        cosines = np.clip(along / np.maximum(lengths_of(part), TINY), -1 + 1e-7, 1 - 1e-7)
        freedom = len(course) - 2
        chances = 2 * scipy.stats.t.sf(np.abs(cosines) * np.sqrt(freedom / (1 - cosines**2)), freedom)
        follows = allowed & (scipy.stats.false_discovery_control(chances) < 0.05)
        typical = max(float(np.median(np.abs(along))), TINY)
        groups = []
        for group, sign in zip(pair.groups, (1, -1), strict=True):
            sizes = np.maximum(sign * along[group], TINY)
            cut = np.sqrt(typical * np.average(sizes, weights=sizes))
            groups.append(np.flatnonzero(follows & (sign * cosines > ALIKE) & (sign * along > cut)))
        if min(map(len, groups)) < self.smallest:
            return None
        return replace(pair, groups=(groups[0], groups[1]))

    def _parted(self, pair: Candidate) -> list[Candidate]:
        """The pairs that a confirmed pair mixes, if its members are active at different times."""
        settled = self._settled([pair])
        if not settled:
            return []
        part = self.changes[slice(*settled[0].rows)]
        part = part - part.mean(0)
        strongest = [group[np.argsort(-lengths_of(part[:, group]))[:SEEDS]] for group in settled[0].groups]
        points = np.concatenate(strongest)
        signs = np.repeat([1.0, -1.0], [len(group) for group in strongest])
        units = part[:, points] * signs / np.maximum(lengths_of(part[:, points]), TINY)
        for alike in (ONE_COURSE, ALIKE):
            parts = []
            for cluster in clusters(units, 2 * self.smallest, alike):
                members, side = points[cluster], signs[cluster] > 0
                if min(side.sum(), (~side).sum()) >= self.smallest:
                    parts.append(replace(settled[0], groups=(members[side], members[~side])))
            parts = self._merged(parts)[0]
            if len(parts) > 1:
                return parts
        return settled


def _sign_bound(entries: np.ndarray) -> float:
    """Chernoff's bound on the probability that entries of these sizes, with random signs, have a sum this low."""
    total, largest = float(entries.sum()), float(np.abs(entries).max(initial=0))
    if total >= 0:
        return 1.0
    sizes = np.abs(entries).ravel() / largest
    exponents = [
        slope * total / largest + np.logaddexp(slope * sizes, -slope * sizes).sum() - len(sizes) * np.log(2)
        for slope in _SLOPES
    ]
    return float(np.exp(min(0.0, *exponents)))


def _distinct(candidates: list[Candidate]) -> list[Candidate]:
    """Each pair once, where its energy is highest; by descending energy, at most `CANDIDATES`."""
    kept: list[Candidate] = []
    for pair in sorted(candidates, key=lambda pair: -pair.energy):
        if all(_shared(pair, other) < 0.5 for other in kept):
            kept.append(pair)
        if len(kept) == CANDIDATES:
            break
    return kept


def _shared(one: Candidate, other: Candidate) -> float:
    """Share of the smaller pair's members that the other holds too."""
    both = len(np.intersect1d(one.members, other.members))
    return both / min(len(one.members), len(other.members))


def active_rows(gap: np.ndarray, rows: tuple[int, int]) -> tuple[int, int]:
    """First row and one past the last row, around the largest gap in ``rows``, in which a pair is active.

    Args:
        gap: ``[T]`` difference of the groups' mean one-step changes.
        rows: Range in which the largest gap is sought.
    """
    gap = np.abs(gap)
    envelope = scipy.ndimage.maximum_filter1d(gap, 2 * LULL + 1, mode="nearest")
    peak = rows[0] + int(np.argmax(gap[rows[0] : rows[1]]))
    faded = np.flatnonzero(envelope < FADE * gap[peak])
    return int(faded[faded < peak].max(initial=-1)) + 1, int(faded[faded > peak].min(initial=len(gap)))
