"""Opposing pairs by the alignment of per-sample gradients: a method independent of the loss series.

The gradients of a group's members, in random projection (`GradientSketch`), point in one direction, and those of the
other group's members in the opposite one: a step that helps one group hurts the other. Gradient lengths are ignored,
because a group that is already fitted still opposes the other.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from opposing_signals.record import Series
from opposing_signals.signals.alignment import ALIKE, TINY, clusters, lengths_of, unit
from opposing_signals.signals.pairs import OpposingPair, described_pair
from opposing_signals.signals.search import active_rows

SEEDS = 400
"""Points compared with each other in a phase: those with the largest gradients."""


def find_pairs_by_gradients(
    sketches: Series, changes: Series | None = None, *, phases: int = 8, smallest_group: int = 4
) -> list[OpposingPair]:
    """The opposing pairs of a run by the alignment of per-sample gradients, the most outstanding first.

    Without losses, a pair's window is the phase in which it was found, and which of its groups rises is unknown.

    Args:
        sketches: ``values`` ``[S, N, d]`` random projections of ∇ℓ_i(θ_t), each at its step t.
        changes: ``values`` ``[T, N]`` one-step changes; without them a pair's amplitude is not given.
        phases: Number of parts of the run that are searched; at most one per measured step.
        smallest_group: Minimum number of points in a group.
    """
    found: list[OpposingPair] = []
    steps = np.asarray(sketches.steps)
    for rows in np.array_split(np.arange(len(steps)), max(1, min(phases, len(steps)))):
        if len(rows):
            part = np.asarray(sketches.values[rows], dtype=np.float32)
            vectors = part.transpose(0, 2, 1).reshape(-1, part.shape[1])
            found += _aligned(vectors, (int(steps[rows[0]]), int(steps[rows[-1]])), smallest_group)
    kept = _distinct(found)
    return kept if changes is None else [_with_losses(pair, changes) for pair in kept]


def _with_losses(pair: OpposingPair, changes: Series) -> OpposingPair:
    """The pair with step, window, amplitude and spike share from its members' losses, where active around its phase."""
    steps, (first, last) = np.asarray(changes.steps), pair.window
    rows = int(np.searchsorted(steps, first)), int(np.searchsorted(steps, last, "right"))
    if rows[0] >= rows[1]:  # no change was recorded in the phase
        return pair
    means = [np.array([row[group].mean(dtype=np.float64) for row in changes.values]) for group in pair.groups]
    start, stop = active_rows(means[0] - means[1], rows)
    seen = described_pair(changes, *pair.groups, (int(steps[start]), int(steps[stop - 1])))
    if seen is None:
        return pair
    if not np.isin(seen.rising, pair.rising).all():
        pair = replace(
            pair,
            rising=pair.falling,
            falling=pair.rising,
            rising_scores=pair.falling_scores,
            falling_scores=pair.rising_scores,
        )
    return replace(pair, step=seen.step, window=seen.window, amplitude=seen.amplitude, spike_share=seen.spike_share)


def _aligned(vectors: np.ndarray, phase: tuple[int, int], smallest: int) -> list[OpposingPair]:
    """Pairs of groups among the columns of ``vectors`` ``[m, N]`` that point in opposite directions."""
    lengths = lengths_of(vectors)
    units = vectors / np.maximum(lengths, TINY)
    typical = max(float(np.median(lengths)), TINY)
    seeds = np.argsort(-lengths, kind="stable")[:SEEDS]
    pairs = []
    for cluster in clusters(units[:, seeds], smallest):
        direction = unit(units[:, seeds[cluster]].sum(1))
        along = direction @ units
        opposite = unit(units[:, along < -ALIKE].sum(1))
        against = opposite @ units
        first, second = np.flatnonzero(along > ALIKE), np.flatnonzero(against > ALIKE)
        if direction @ opposite > -ALIKE or min(len(first), len(second)) < smallest:
            continue
        first, second = first[np.argsort(-along[first])], second[np.argsort(-against[second])]
        cosine = float(unit(vectors[:, first].mean(1)) @ unit(vectors[:, second].mean(1)))
        contrast = max(float(np.median(lengths[group])) for group in (first, second)) / typical
        pairs.append(
            OpposingPair(first, second, along[first], against[second], phase[0], phase, cosine, contrast=contrast)
        )
    return pairs


def _distinct(found: list[OpposingPair]) -> list[OpposingPair]:
    """Each pair once, where contrast times opposition is largest; in descending order of that product."""
    kept: list[OpposingPair] = []
    for pair in sorted(found, key=lambda pair: pair.contrast * pair.correlation):
        if all(len(np.intersect1d(pair.members, other.members)) < min(pair.size, other.size) / 2 for other in kept):
            kept.append(pair)
    return kept
