"""What a record says: opposing groups, loss spikes, divergence, in words and as JSON."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from opposing_signals.data.tracked import positions
from opposing_signals.errors import InputError
from opposing_signals.files import write_json
from opposing_signals.follow import page, words
from opposing_signals.follow.evidence import Batches
from opposing_signals.record import Record, quantities
from opposing_signals.report.result import entry
from opposing_signals.signals import Spike, Trajectory, find_spikes

PAIRS = 3
"""Number of opposing pairs that are reported."""

_BATCHES = (quantities.TRAIN_LOSS, quantities.BATCH_LOSS)


@dataclass(frozen=True)
class Explanation:
    """What a record shows.

    Attributes:
        lines: Text lines; leading spaces indent what belongs to the line above.
        findings: The same as JSON values: ``measured``, ``divergence``, ``pairs``, ``spikes``, ``batch_spikes``,
            ``groups``, ``sharpness``.
    """

    lines: tuple[str, ...]
    findings: dict[str, Any]

    def __str__(self) -> str:
        return "\n".join(self.lines)

    def as_json(self) -> dict[str, Any]:
        """A JSON object."""
        return {"lines": list(self.lines), **self.findings}


def explain(folder: str | Path, spikes: int = 3, named_data: bool = False) -> Explanation:
    """Explain a run's record: what was measured, where training diverged, which groups of examples oppose each other,
    and which ones carried its loss spikes. Draw it, and check figure 1's claims.

    The folder gets ``figure.png``, ``explanation.json``, ``claims.json`` and ``experiment.json``, which the report
    shows.

    Args:
        folder: The record's folder.
        spikes: How many spikes are explained.
        named_data: Also read text from the place that the record names; for trusted records only.

    Raises:
        InputError: There is no record, or it has neither per-sample losses of two successive steps nor the losses of
            training batches.
    """
    record = Record(folder)
    trajectory = Trajectory(record, named_data=named_data)
    has_changes = _check(trajectory)
    batches = Batches(record)
    lines, findings = words.measured(trajectory)
    divergence = batches.divergence()
    lines += words.told_divergence(divergence)
    findings["divergence"] = None if divergence is None else divergence.as_json()
    last = math.inf if divergence is None else divergence.step  # later spikes are caused by the divergence
    found: list[Spike] = []
    if has_changes:
        pairs = trajectory.all_pairs[:PAIRS]
        lines += [line for number, pair in enumerate(pairs, 1) for line in words.told_pair(number, pair, trajectory)]
        if not pairs:
            lines.append("no opposing pair was found that chance would not show too")
        found = [spike for spike in find_spikes(trajectory, spikes) if spike.step <= last]
        lines += words.told_spikes(found, trajectory, batches)
        findings["pairs"] = [words.pair_as_json(pair, trajectory) for pair in pairs]
        findings["spikes"] = [
            words.spike_as_json(spike, trajectory, batches) for spike in found if words.is_spike(spike)
        ]
        told, findings["groups"] = words.told_groups(trajectory)
        lines += told
    jumped = batches.spikes(spikes, last)
    lines += [line for spike in jumped for line in words.told_batch(spike)]
    findings["batch_spikes"] = [spike.as_json() for spike in jumped]
    told, findings[str(quantities.SHARPNESS)] = words.told_sharpness(record)
    lines += told
    explanation = Explanation(tuple(lines), findings)
    write_json(record.folder / "explanation.json", explanation.as_json())
    page.write(trajectory, lines, found, has_changes, folder)
    return explanation


def _check(trajectory: Trajectory) -> bool:
    """Whether changes of per-sample losses were recorded; refuse a damaged record, or one with nothing to explain."""
    record = trajectory.record
    record.verify(
        (quantities.SAMPLE_LOSS, quantities.SHARPNESS, quantities.LEARNING_RATE, quantities.BATCH_INDEX, *_BATCHES)
    )
    has_batches = any(quantity in record and len(record[quantity]) for quantity in _BATCHES)
    measured = len(record[quantities.SAMPLE_LOSS]) if quantities.SAMPLE_LOSS in record else 0
    if not measured and not has_batches:
        raise InputError(
            f"{record.folder} holds no per-sample losses (it holds {', '.join(record) or 'nothing'}): expected the "
            "record of a run with a Follower, the callback OpposingSignals or the instrument sample_losses"
        )
    has_changes = False
    if measured:
        values = trajectory.losses.values
        if values.ndim != 2 or values.dtype.kind != "f":
            raise InputError(
                f"{record.folder / quantities.SAMPLE_LOSS}.npy: expected one number an example, not {values.dtype}"
            )
        has_changes = bool((np.diff(np.asarray(trajectory.losses.steps)) == 1).any())
    if not has_changes and not has_batches:
        raise InputError(
            f"{record.folder} holds losses of {measured} steps, no two of them successive: expected "
            "consecutive=2 or more, and enough training for the second measurement"
        )
    for file, content, path in (
        ("configuration.json", record.configuration, ("run", "name")),
        ("configuration.json", record.configuration, ("model", "_target_")),
        ("configuration.json", record.configuration, ("optimizer", "_target_")),
        ("configuration.json", record.configuration, ("data", "_target_")),
        ("provenance.json", record.provenance, ("data", "name")),
    ):
        if not isinstance(entry(content, *path), str):
            raise InputError(f"{record.folder / file} has no {'.'.join(path)}: expected the record of a training")
    if has_changes:
        points = trajectory.losses.values.shape[1]
        positions(record.folder, points)
        if len(trajectory.dataset) != points:
            raise InputError(
                f"{record.folder} holds losses of {points} examples, and its data set {trajectory.dataset.name} has "
                f"{len(trajectory.dataset)}: expected as many"
            )
    return has_changes
