"""Opposing pairs by the alignment of per-sample gradients: an independent way beside the loss series.

A member's own gradient, in random projection (`GradientSketch`), points where its group's points, and that of the
other group's members points the other way: a step that helps one hurts the other. Its length does not matter, because
a group that is fitted already still opposes the other.
"""

from __future__ import annotations

import numpy as np

from opposing_signals.signals.discovery import ALIKE, TINY, Discovery, along_run, clusters, lengths_of, spike_rows, unit

SEEDS = 400
"""Points that are compared with each other in a phase: those with the longest gradients."""


def discover_by_gradients(
    steps: np.ndarray,
    sketches: np.ndarray,
    changes: tuple[np.ndarray, np.ndarray] | None = None,
    *,
    phases: int = 8,
    smallest_group: int = 4,
) -> list[Discovery]:
    """The opposing pairs of a run by the alignment of per-sample gradients, the one that stands out most first.

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
    spikes = spike_rows(changes[1])
    return [along_run(pair, *changes, spikes) for pair in kept]


def _aligned(vectors: np.ndarray, phase: tuple[int, int], smallest: int) -> list[Discovery]:
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
        opposition = float(unit(vectors[:, first].mean(1)) @ unit(vectors[:, second].mean(1)))
        contrast = max(float(np.median(lengths[group])) for group in (first, second)) / typical
        pairs.append(Discovery(first, second, along[first], against[second], phase, opposition, contrast))
    return pairs


def _distinct(found: list[Discovery]) -> list[Discovery]:
    """Each pair once, where it stands out most and its groups oppose each other most purely; by that, falling."""
    kept: list[Discovery] = []
    for pair in sorted(found, key=lambda pair: pair.contrast * pair.opposition):
        if all(len(np.intersect1d(pair.members, other.members)) < min(pair.size, other.size) / 2 for other in kept):
            kept.append(pair)
    return kept
