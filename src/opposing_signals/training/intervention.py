"""A run that branches off another just before a loss spike, with the training loss of a few points changed."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch

from opposing_signals.errors import InputError
from opposing_signals.record import Record
from opposing_signals.record.quantities import PARAMETERS
from opposing_signals.signals import OpposingPair, Trajectory, find_pairs, find_spikes, outliers_of
from opposing_signals.signals.pairs import described_pair
from opposing_signals.signals.steps import between
from opposing_signals.training.module import TrainingModule
from opposing_signals.values import Count, Natural, Seed

Kind = Literal["control", "remove_pair", "downweight_pair", "relabel_pair", "remove_random"]
DOWNWEIGHTED = 0.5
"""Weight of a point of the pair under ``downweight_pair``."""

_CANDIDATES = 50  # spikes to consider, the largest first


def branch(
    module: TrainingModule,
    reference: Record,
    kind: Kind,
    spike: Count,
    lead: Natural,
    window: Count,
    draw: Seed = 0,
) -> dict[str, Any]:
    """Set ``module`` to the reference's weights before a spike, and change its training data or weights.

    The pair is found in the steps before the branch, as the one that swings most in the last ``window`` of them. The
    spike itself plays no part in the choice.

    Args:
        module: At its initialization.
        reference: A complete run with per-sample losses at every step and snapshots.
        kind: The intervention.
        spike: Its rank; 1 is the largest.
        lead: Least number of steps between the branch and the spike.
        window: Steps before the branch.
        draw: Seed of the random points.

    Returns:
        Where the branch comes from, for its record: ``kind``, ``spike`` (its rank), ``step`` of the reference at which
        it begins, ``spike_step`` at which the reference spikes, and the indices that are ``touched``.

    Raises:
        InputError: The reference has no such spike.
    """
    start, spike_step, pair = _point(reference, spike, lead, window)
    touched = np.concatenate(pair.groups) if kind != "control" else np.empty(0, np.int64)
    if kind == "remove_random":
        others = np.setdiff1d(np.arange(len(module.risk)), touched)
        touched = np.random.default_rng(draw).choice(others, len(touched), replace=False)
    place(module, reference[PARAMETERS].at(start))
    points = torch.from_numpy(np.sort(touched))
    if kind == "relabel_pair":
        _relabel(module, points)
    elif kind != "control":
        weights = torch.ones(len(module.risk), dtype=module.risk.parameters[0].dtype)
        weights[points] = DOWNWEIGHTED if kind == "downweight_pair" else 0.0
        module.risk.weights = weights
    return {
        "kind": kind,
        "spike": spike,
        "step": start,
        "spike_step": spike_step,
        "touched": points.tolist(),
    }


def _point(reference: Record, rank: int, lead: int, window: int) -> tuple[int, int, OpposingPair]:
    """The step of the snapshot to begin at, that of the spike after it, and the dominant pair before it."""
    trajectory = Trajectory(reference)
    snapshots = np.asarray(reference[PARAMETERS].steps)
    found = 0
    for spike in find_spikes(trajectory, _CANDIDATES):
        starts = snapshots[(snapshots <= spike.step - lead) & (snapshots >= window)]
        if not len(starts):
            continue
        start = int(starts[-1])
        pair = _dominant(trajectory, start, window)
        found += pair is not None
        if pair is not None and found == rank:
            return start, spike.step, pair
    raise InputError(
        f"intervention.spike={rank}: {reference.folder.name}, the reference, has {found} spikes with an opposing pair "
        "before them; expected at least as many: set more steps or a larger optimizer.lr"
    )


def _dominant(trajectory: Trajectory, start: int, window: int) -> OpposingPair | None:
    """The pair of the steps before ``start`` whose outliers swing most in the last ``window`` of them."""
    before = between(trajectory.changes, 0, start - 1)
    pairs = [outliers_of(pair, before) for pair in find_pairs(before) if pair.window[1] >= start - window]
    seen = [described_pair(before, *pair.groups, (start - window, start - 1)) for pair in pairs]
    return max((pair for pair in seen if pair is not None), key=lambda pair: pair.amplitude, default=None)


def place(module: TrainingModule, theta: np.ndarray) -> None:
    """Give ``module`` the weights of a snapshot.

    Args:
        module: Of the same network.
        theta: ``[P]``.
    """
    with torch.no_grad():
        pieces = module.risk.unflatten(torch.from_numpy(np.array(theta)))
        for parameter, piece in zip(module.risk.parameters, pieces, strict=True):
            parameter.copy_(piece)


def _relabel(module: TrainingModule, points: torch.Tensor) -> None:
    targets = module.risk.targets.clone()
    if targets.is_floating_point() or targets.ndim > 1:
        raise InputError("intervention.kind=relabel_pair: the targets are no classes; expected classification")
    targets[points] = targets[points].mode().values
    module.risk.targets = targets
