"""A run that leaves another just before a loss spike, with the training loss of a few points changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from opposing_signals.errors import InputError
from opposing_signals.record import Record
from opposing_signals.record.quantities import PARAMETERS
from opposing_signals.signals import OpposingPair, Trajectory, find_pairs, find_spikes
from opposing_signals.training.module import TrainingModule

KINDS = ("control", "remove_pair", "downweight_pair", "relabel_pair", "remove_random")
DOWNWEIGHTED = 0.5
"""What a point of the pair counts under ``downweight_pair``."""

_CANDIDATES = 50  # spikes that are looked at, the largest first


def branch(module: TrainingModule, reference: Record, intervention: Mapping[str, Any]) -> dict[str, Any]:
    """Put ``module`` where the reference was before its spike, and change what it trains on.

    The pair is the dominant one of the ``window`` changes before the branch: the spike has no part in its choice.

    Args:
        module: At its initialization.
        reference: A complete run with per-sample losses at every step and snapshots.
        intervention: ``kind``, one of `KINDS`; ``spike``, 1 for the largest; ``lead``, steps between the branch and
            the spike at the least; ``window``; and ``draw`` of the random points.

    Returns:
        Where the branch comes from, for its record: ``kind``, ``spike`` (its rank), ``step`` of the reference at which
        it begins, ``spike_step`` at which the reference spikes, and the indices that are ``touched``.

    Raises:
        InputError: The kind is unknown, or the reference has no such spike.
    """
    kind = intervention["kind"]
    if kind not in KINDS:
        raise InputError(f"intervention.kind={kind}: expected one of {', '.join(KINDS)}")
    start, spike_step, pair = _point(reference, intervention["spike"], intervention["lead"], intervention["window"])
    touched = np.concatenate(pair.groups) if kind != "control" else np.empty(0, np.int64)
    if kind == "remove_random":
        others = np.setdiff1d(np.arange(len(module.risk)), touched)
        touched = np.random.default_rng(intervention["draw"]).choice(others, len(touched), replace=False)
    _place(module, np.array(reference[PARAMETERS].at(start)))
    points = torch.from_numpy(np.sort(touched))
    if kind == "relabel_pair":
        _relabel(module, points)
    elif kind != "control":
        weights = torch.ones(len(module.risk), dtype=module.risk.parameters[0].dtype)
        weights[points] = DOWNWEIGHTED if kind == "downweight_pair" else 0.0
        module.risk.weights = weights
    return {
        "kind": kind,
        "spike": intervention["spike"],
        "step": start,
        "spike_step": spike_step,
        "touched": points.tolist(),
    }


def _point(reference: Record, rank: int, lead: int, window: int) -> tuple[int, int, OpposingPair]:
    """The snapshot to begin at, the spike behind it, and the pair that dominates before."""
    trajectory = Trajectory(reference)
    snapshots = np.asarray(reference[PARAMETERS].steps)
    found = 0
    for spike in find_spikes(trajectory, _CANDIDATES):
        starts = snapshots[(snapshots <= spike.step - lead) & (snapshots >= window)]
        if not len(starts):
            continue
        start = int(starts[-1])
        pairs = find_pairs(trajectory.changes.values[start - window : start], phases=1, pairs=1)
        found += bool(pairs)
        if pairs and found == rank:
            return start, spike.step, pairs[0]
    raise InputError(
        f"intervention.spike={rank}: {reference.folder.name}, the reference, has {found} spikes with an opposing pair "
        "before them; expected at least as many: set more steps or a larger optimizer.lr"
    )


def _place(module: TrainingModule, theta: np.ndarray) -> None:
    with torch.no_grad():
        for parameter, piece in zip(
            module.risk.parameters, module.risk.unflatten(torch.from_numpy(theta)), strict=True
        ):
            parameter.copy_(piece)


def _relabel(module: TrainingModule, points: torch.Tensor) -> None:
    targets = module.risk.targets.clone()
    if targets.is_floating_point() or targets.ndim > 1:
        raise InputError("intervention.kind=relabel_pair: the targets are no classes; expected classification")
    targets[points] = targets[points].mode().values
    module.risk.targets = targets
