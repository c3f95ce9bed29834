"""Loss changes of one step for more points than memory holds, such as all tokens of a text: the largest, a sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import ArrayLike

from opposing_signals.errors import InputError


@dataclass(frozen=True)
class StreamedLosses:
    """Losses of some points before and after a step.

    Attributes:
        ids: ``[m]`` int64, which points.
        before: ``[m]`` ℓ_i(θ_t).
        after: ``[m]`` ℓ_i(θ_{t+1}).
    """

    ids: np.ndarray
    before: np.ndarray
    after: np.ndarray

    @property
    def changes(self) -> np.ndarray:
        """``[m]`` Δ_i(t) = ℓ_i(θ_{t+1}) − ℓ_i(θ_t)."""
        return self.after - self.before

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: np.ndarray) -> StreamedLosses:
        return StreamedLosses(self.ids[rows], self.before[rows], self.after[rows])

    def joined(self, others: StreamedLosses) -> StreamedLosses:
        """These points and then ``others``."""
        pairs = zip((self.ids, self.before, self.after), (others.ids, others.before, others.after), strict=True)
        return StreamedLosses(*(np.concatenate(pair) for pair in pairs))


class LossChangeStream:
    """The selection of §2 over a stream: the k largest rises and falls of a step and a uniform sample of all points.

    Memory holds 2k + ``sample`` points and the current chunk, however long the stream. The result depends neither on
    the order of the stream nor on its chunks: ties go to the smaller id, and a point is in the sample if its id has one
    of the smallest hashes (a bottom-k sample, Cohen and Kaplan 2007). So every step of a run has the *same* sample,
    whose losses can be followed, and streams over disjoint parts of the data can be merged.

    Args:
        k: Size of the groups of rises and of falls.
        sample: Size of the sample; 0 for none.
        seed: Seed of the hash, 0 or more; another seed draws another sample.

    Attributes:
        count: Points seen.
        rising: Number of points with Δ_i > 0.

    Raises:
        InputError: ``k`` < 1 or ``sample`` < 0.
    """

    def __init__(self, k: int, sample: int = 0, seed: int = 0) -> None:
        if k < 1:
            raise InputError(f"k={k}: expected at least 1 point in a group")
        if sample < 0:
            raise InputError(f"sample={sample}: expected at least 0 points")
        self.count = 0
        self.rising = 0
        self._rises = _Smallest(k, _falls_of)  # keys by named functions, so that a stream can be pickled
        self._falls = _Smallest(k, _rises_of)
        self._sample = _Smallest(sample, partial(_hashes_of, seed=seed))

    def update(self, ids: ArrayLike, before: ArrayLike, after: ArrayLike) -> None:
        """Add a chunk of the stream; no id may occur twice in the whole stream.

        Args:
            ids: ``[n]`` int64, not negative.
            before: ``[n]`` ℓ_i(θ_t), float32 or float64; a tensor must be on the CPU.
            after: ``[n]`` ℓ_i(θ_{t+1}).

        Raises:
            InputError: The three differ in length, or a loss is not finite.
        """
        points = StreamedLosses(np.asarray(ids, dtype=np.int64), np.asarray(before), np.asarray(after))
        if points.ids.ndim != 1 or not points.ids.shape == points.before.shape == points.after.shape:
            shapes = ", ".join(str(list(part.shape)) for part in (points.ids, points.before, points.after))
            raise InputError(f"ids, losses before and losses after of shapes {shapes}: expected one length")
        changes = points.changes
        if not np.isfinite(changes.sum(dtype=np.float64)):  # any non-finite value makes the sum non-finite
            first = points[np.flatnonzero(~np.isfinite(changes))[:1]]
            raise InputError(
                f"the loss of point {first.ids[0]} goes from {first.before[0]} to {first.after[0]}: expected finite "
                "losses; try a smaller step size"
            )
        self._rises.update(points, -changes)
        self._falls.update(points, changes)
        if self._sample.size:
            self._sample.update(points, self._sample.keys(points))
        self.count += len(points)
        self.rising += int(np.count_nonzero(changes > 0))

    def merge(self, other: LossChangeStream) -> None:
        """Merge in a stream over other points with the same k, sample and seed."""
        for ours, theirs in (
            (self._rises, other._rises),
            (self._falls, other._falls),
            (self._sample, other._sample),
        ):
            ours.update(theirs.points, theirs.keys(theirs.points))
        self.count += other.count
        self.rising += other.rising

    @property
    def risers(self) -> StreamedLosses:
        """The k most positive changes, the largest first; fewer if fewer were seen."""
        return self._rises.points

    @property
    def fallers(self) -> StreamedLosses:
        """The k most negative changes, the most negative first."""
        return self._falls.points

    @property
    def sample(self) -> StreamedLosses:
        """Points drawn uniformly without replacement, by ascending id."""
        return self._sample.points[np.argsort(self._sample.points.ids)]


class _Smallest:
    """The points with the smallest keys, in ascending order, ties by id."""

    def __init__(self, size: int, keys: Callable[[StreamedLosses], np.ndarray]) -> None:
        self.size = size
        self.keys = keys
        nothing = np.empty(0, dtype=np.float32)
        self.points = StreamedLosses(np.empty(0, dtype=np.int64), nothing, nothing)

    def update(self, points: StreamedLosses, keys: np.ndarray) -> None:
        """Add ``points`` with their ``keys`` ``[n]``, which the caller may have computed already."""
        if len(self.points) == self.size > 0:
            # Once the group is full, few points can still enter it, and one comparison rejects all others.
            last = self.points[np.array([-1])]
            rows = np.flatnonzero(keys <= self.keys(last)[0])
            points, keys = points[rows], keys[rows]
        if len(points) > self.size > 0:
            rows = np.flatnonzero(keys <= np.partition(keys, self.size - 1)[self.size - 1])
            points = points[rows]
        together = self.points.joined(points)
        order = np.lexsort((together.ids, self.keys(together)))
        self.points = together[order[: self.size]]


def _rises_of(points: StreamedLosses) -> np.ndarray:
    return points.changes


def _falls_of(points: StreamedLosses) -> np.ndarray:
    return -points.changes


def _hashes_of(points: StreamedLosses, seed: int) -> np.ndarray:
    return _hashes(points.ids, seed)


def _hashes(ids: np.ndarray, seed: int) -> np.ndarray:
    """``[n]`` uint64, a bijection of 64-bit numbers that looks random (SplitMix64: Steele, Lea and Flood 2014)."""
    start = _mixed(np.array([seed], dtype=np.uint64) + _GAMMA)  # far from that of any other seed
    return _mixed(ids.astype(np.uint64) * _GAMMA + start)


_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def _mixed(state: np.ndarray) -> np.ndarray:
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
