"""What a record says about its loss spikes, in words."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from opposing_signals.data.tokenizers import decode
from opposing_signals.data.tracked import positions
from opposing_signals.errors import InputError
from opposing_signals.files import replacing, write_json
from opposing_signals.record import Record
from opposing_signals.report.result import entry
from opposing_signals.signals import Spike, Trajectory, find_spikes, name_group
from opposing_signals.studies.claim import Claim
from opposing_signals.studies.groups.claims import (
    group_amplitude_ratio,
    pair_correlation,
    sharpness_over_threshold,
    spike_concentration,
)

SCALE = "own"
"""What stands in the place of a scale where a record is of one's own model."""

_NAMED = 20  # examples of a group that are named
_QUOTED = 4  # texts of a group that are quoted
_WIDTH = 70  # characters of a quotation

CLAIMS = (
    Claim(
        "own_opposition",
        "The two groups of each dominant pair change in opposite directions, step after step",
        "Figure 1, §2",
        pair_correlation,
        "< -0.8",
    ),
    Claim(
        "own_amplitude",
        "A dominant group's loss changes far more in a step than a random group's",
        "Figure 1, §1",
        group_amplitude_ratio,
        "> 5",
    ),
    Claim(
        "own_concentration",
        "A few points carry much of the rise when the loss spikes",
        "Figure 1, §1",
        partial(spike_concentration, points=0.01),
        "> 0.20",
    ),
)
"""Figure 1's claims and thresholds, where they need no more than losses."""

EDGE = Claim(
    "own_edge",
    "From break-even on, the sharpness stays near 2/η",
    "Figure 1, §1",
    sharpness_over_threshold,
    "in [0.8, 2.0]",
)
"""For gradient steps of one size without momentum, whose threshold is 2/η, and only if λ was measured."""


def explain(folder: str | Path, spikes: int = 3, named_data: bool = False) -> str:
    """Name the examples that carried the largest loss spikes of a run; draw them, and check figure 1's claims.

    The folder gets ``figure.png``, ``claims.json`` and ``experiment.json``, which the report shows.

    Args:
        folder: Of the record.
        spikes: How many spikes are explained.
        named_data: Read also text that lies where the record says it does, for a record that is trusted.

    Returns:
        The explanation, a few lines a spike.

    Raises:
        InputError: There is no record, or it has no per-sample losses of two successive steps.
    """
    import matplotlib.pyplot as plt

    from opposing_signals.studies.groups.figures import group_losses
    from opposing_signals.studies.groups.spikes import loss_spikes

    record = Record(folder)
    trajectory = Trajectory(record, named_data=named_data)
    _check(trajectory)
    lines = [_header(trajectory)]
    found = find_spikes(trajectory, spikes)
    for spike in found:
        lines += _told(spike, trajectory)
    if not found:
        lines.append("the mean loss never rose in a measured step: there is no spike to explain")
    has_edge = trajectory.edge is not None and "sharpness" in record
    claims = (*CLAIMS, EDGE) if has_edge else CLAIMS
    run = trajectory.configuration["run"]["name"]
    seed: Any = trajectory.configuration.get("seed")  # null where the user set none
    checked = [claim.check({run: trajectory}, SCALE, seed) for claim in claims]
    paired = [spike for spike in found if spike.correlation is not None]
    figure = loss_spikes(trajectory, paired or found) if found else group_losses({run: trajectory})
    with replacing(record.folder / "figure.png") as unfinished:
        figure.savefig(unfinished, dpi=150)
    plt.close(figure)
    write_json(record.folder / "claims.json", [verdict.as_json() for verdict in checked])
    write_json(
        record.folder / "experiment.json",
        {
            "name": run,
            "title": f"Opposing signals in {trajectory.configuration['model']['_target_'].rpartition('.')[2]}",
            "command": f"opposing-signals explain {Path(folder).as_posix()}",
            "scale": SCALE,
            "seed": "unknown" if seed is None else seed,
            "drawn": datetime.now(UTC).isoformat(timespec="seconds"),
            "notes": lines,
            "runs": {
                run: {
                    "folder": record.folder.name,
                    "configuration": record.configuration,
                    "provenance": record.provenance,
                }
            },
        },
    )
    return "\n".join(lines)


def _check(trajectory: Trajectory) -> None:
    """Refuse what is damaged, or not the record of a run with losses."""
    record = trajectory.record
    record.verify(("sample_loss", "sharpness", "learning_rate"))
    if "sample_loss" not in record or not len(record["sample_loss"]):
        raise InputError(
            f"{record.folder} holds no per-sample losses (it holds {', '.join(record) or 'nothing'}): expected the "
            "record of a run with the callback OpposingSignals or the instrument sample_losses"
        )
    values = trajectory.losses.values
    if values.ndim != 2 or values.dtype.kind != "f":
        raise InputError(f"{record.folder / 'sample_loss.npy'}: expected one number an example, not {values.dtype}")
    if not len(trajectory.changes):
        raise InputError(
            f"{record.folder} holds losses of {len(record['sample_loss'])} steps, no two of them successive: expected "
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
    points = values.shape[1]
    positions(record.folder, points)
    if len(trajectory.dataset) != points:
        raise InputError(
            f"{record.folder} holds losses of {points} examples, and its data set {trajectory.dataset.name} has "
            f"{len(trajectory.dataset)}: expected as many"
        )


def _header(trajectory: Trajectory) -> str:
    steps, origin = np.asarray(trajectory.losses.steps), trajectory.record.provenance
    line = (
        f"{trajectory.configuration['run']['name']}: {origin['data']['name']}, losses at {len(steps)} of steps "
        f"{steps[0]} to {steps[-1]}"
    )
    measuring, training = origin.get("measuring_seconds"), origin.get("training_seconds")
    if isinstance(measuring, float) and isinstance(training, float) and training > measuring:
        rest = training - measuring
        line += f"; measuring took {measuring / rest:.1%} of the {rest:.1f} s of training"
    return line


def _told(spike: Spike, trajectory: Trajectory) -> list[str]:
    size = f"{spike.rise / spike.typical:.1f} times the typical change" if spike.typical > 0 else "the only change"
    losses = f"from {spike.before:.4g} to {spike.after:.4g}"
    first = f"step {spike.step}: the mean loss rose {losses} (+{spike.rise:.3g}, {size})"
    carried = (
        f"{len(spike.rising)} examples, {spike.expected:.1%} of those followed, carried {spike.share:.0%} of the rise"
    )
    if spike.correlation is None:
        return [
            first,
            f"  no opposing pair was found around it; the {carried}",
            f"  rising: {_named(spike.rising, spike.change[0], trajectory)}",
        ]
    return [
        first,
        f"  {carried}, against {len(spike.falling)} that fell (correlation of the two groups {spike.correlation:.2f})",
        f"  rising: {_named(spike.rising, spike.change[0], trajectory)}",
        f"  falling: {_named(spike.falling, spike.change[1], trajectory)}",
        f"  in short: {name_group(trajectory.dataset, spike.rising)} against "
        f"{name_group(trajectory.dataset, spike.falling)}",
    ]


def _named(group: np.ndarray, change: float, trajectory: Trajectory) -> str:
    """For instance "+1.2 each on average; 12 "4", 8 "9"; examples 17, 240, …"."""
    dataset = trajectory.dataset
    indices = positions(trajectory.record.folder, len(dataset))[group[:_NAMED]]
    parts = [f"{change:+.3g} on average"]
    if dataset.targets.ndim == 1 and dataset.is_classification and len(dataset.class_names) > 1:
        counts = Counter(dataset.class_names[int(dataset.targets[int(i)])] for i in group)
        parts.append(", ".join(f"{number} {name}" for name, number in counts.most_common()))
    parts.append(f"examples {', '.join(map(str, indices))}{', …' if len(group) > _NAMED else ''}")
    if dataset.targets.ndim == 2 and dataset.is_classification:
        texts = [decode(dataset.inputs[int(i)].tolist(), dataset.class_names) for i in group[:_QUOTED]]
        parts.append(f"such as {', '.join(repr(_shorten(text)) for text in texts)}")
    return "; ".join(parts)


def _shorten(text: str) -> str:
    return text if len(text) <= _WIDTH else text[:_WIDTH] + "…"
