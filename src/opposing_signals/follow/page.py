"""What the report needs beside a record of one's own training: a figure, claims, and a description."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from opposing_signals.files import replacing, write_json
from opposing_signals.record import quantities
from opposing_signals.signals import Spike, Trajectory
from opposing_signals.studies.claim import Claim
from opposing_signals.studies.groups.claims import (
    group_amplitude_ratio,
    pair_correlation,
    sharpness_over_threshold,
    spike_concentration,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCALE = "own"
"""Takes the place of the scale for a record of one's own model."""

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
"""Figure 1's claims and thresholds, as far as they need losses only."""

EDGE = Claim(
    "own_edge",
    "From break-even on, the sharpness stays near 2/η",
    "Figure 1, §1",
    sharpness_over_threshold,
    "in [0.8, 2.0]",
)
"""For gradient descent with a constant step size and no momentum, whose threshold is 2/η, if λ was measured."""


def write(
    trajectory: Trajectory, lines: Sequence[str], found: list[Spike], has_changes: bool, folder: str | Path
) -> None:
    """Write ``figure.png``, ``claims.json`` and ``experiment.json`` into the record's folder.

    Args:
        trajectory: The run of the record.
        lines: Lines of the explanation.
        found: Spikes of the measured losses, the largest first.
        has_changes: Whether losses of successive steps were measured.
        folder: As the user named it.
    """
    from opposing_signals.studies import style
    from opposing_signals.studies.groups.figures import group_losses
    from opposing_signals.studies.groups.spikes import loss_spikes

    record = trajectory.record
    run = trajectory.configuration["run"]["name"]
    seed: Any = trajectory.configuration.get("seed")  # null where the user set none
    has_edge = trajectory.edge is not None and quantities.SHARPNESS in record
    claims = ((*CLAIMS, EDGE) if has_edge else CLAIMS) if has_changes else ()
    checked = [claim.check({run: trajectory}, SCALE, seed) for claim in claims]
    paired = [spike for spike in found if spike.correlation is not None]
    with style.look(), replacing(record.folder / "figure.png") as unfinished:
        if not has_changes:
            figure = _batches(trajectory)
        elif found:
            figure = loss_spikes(trajectory, paired or found)
        else:
            figure = group_losses({run: trajectory})
        style.save(figure, unfinished)
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
            "notes": list(lines),
            "runs": {
                run: {
                    "folder": record.folder.name,
                    "configuration": record.configuration,
                    "provenance": record.provenance,
                }
            },
        },
    )


def _batches(trajectory: Trajectory) -> Figure:
    """The train loss and the largest loss of a row, where nothing else was measured."""
    from opposing_signals.studies import style

    record = trajectory.record
    figure = style.figure(8, 4, trajectory.title)
    axes = figure.add_subplot()
    if quantities.BATCH_LOSS in record:
        rows = record[quantities.BATCH_LOSS]
        axes.plot(rows.steps, np.nanmax(rows.values, 1), color=style.MUTED, label="largest row of the batch")
    if quantities.TRAIN_LOSS in record:
        train = record[quantities.TRAIN_LOSS]
        axes.plot(train.steps, train.values, color=style.INK, label="train loss")
    axes.set(xlabel="step", ylabel="loss")
    style.legend_above(axes, 2)
    return figure
