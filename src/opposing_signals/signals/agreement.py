"""Comparison of found pairs with those of another method or of other runs, or with the ground truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from opposing_signals.data.dataset import Dataset
from opposing_signals.signals.pairs import OpposingPair

Groups = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Match:
    """Precision and recall of found points.

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
    """Compare two sets of points."""
    hits = len(np.intersect1d(found, wanted))
    return Match(hits / max(1, len(found)), hits / max(1, len(wanted)))


def match_pair(found: Groups, wanted: Groups) -> Match:
    """Compare two pairs: a hit is a point in the right group; the pair may be flipped as a whole."""

    def aligned(one: np.ndarray, other: np.ndarray) -> int:
        return len(np.intersect1d(one, wanted[0])) + len(np.intersect1d(other, wanted[1]))

    hits = max(aligned(*found), aligned(*found[::-1]))
    return Match(hits / max(1, sum(map(len, found))), hits / max(1, sum(map(len, wanted))))


def agreement(found: Sequence[OpposingPair], others: Sequence[OpposingPair]) -> list[float]:
    """F1 of each found pair with its best match among ``others``; 0 if ``others`` is empty."""
    return [max((match_pair(pair.groups, other.groups).f1 for other in others), default=0.0) for pair in found]


def stability(runs: Sequence[Sequence[OpposingPair]]) -> list[float]:
    """How well each run's dominant pair is found again in the other runs on the same data, such as other seeds.

    Returns:
        One number per run: the mean of `agreement` over the other runs; 0 for a run without a pair.
    """
    return [
        float(np.mean([agreement(run[:1], other)[0] if run else 0.0 for j, other in enumerate(runs) if j != i]))
        for i, run in enumerate(runs)
    ]


def planted_groups(dataset: Dataset, feature: str) -> Groups | None:
    """Indices ``[k]`` and ``[k']`` of the points with a planted feature, by class; None unless of two classes."""
    bearers = np.flatnonzero(dataset.truth[feature])
    targets = dataset.targets.numpy()[bearers]
    groups = [bearers[targets == label] for label in np.unique(targets)]
    return (groups[0], groups[1]) if len(groups) == 2 else None


def nearest_planted(pair: OpposingPair, dataset: Dataset, features: Sequence[str]) -> tuple[str, Groups] | None:
    """The planted pair most like a found pair, with its feature; None if no pair was planted."""
    planted = {feature: groups for feature in features if (groups := planted_groups(dataset, feature)) is not None}
    return max(planted.items(), key=lambda item: match_pair(pair.groups, item[1]).f1, default=None)
