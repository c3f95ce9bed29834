"""The jobs of a sweep over each other: their losses, their sharpness, and each claim's values beside its threshold."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from opposing_signals.record import Record, Series
from opposing_signals.record.quantities import SAMPLE_LOSS, SHARPNESS, TRAIN_LOSS
from opposing_signals.report.page import number, spread, threshold
from opposing_signals.signals import Trajectory
from opposing_signals.studies import style

if TYPE_CHECKING:
    from opposing_signals.report.sweep import Across

CLAIM_HEIGHT = 0.85
"""Inches of a claim's row."""
LEFT, RIGHT = -0.05, 1.05
"""Ends of a claim's row; its values and thresholds are between 0 and 1."""


def seeds_over_each_other(title: str, records: Mapping[str, Record], claims: Sequence[Across]) -> Figure:
    """Losses and sharpness of every job in the same axes, and below them a row for each claim.

    Args:
        title: Of the figure.
        records: Job ↦ its run.
        claims: Over the jobs.
    """
    runs = {job: Trajectory(record) for job, record in records.items()}
    colours = dict(zip({**runs, **{job: None for claim in claims for job in claim.values}}, cycle(style.RUNS)))
    curves = {name: found for name, found in _curves(runs) if found}
    heights = [2.4] * len(curves) + [CLAIM_HEIGHT * len(claims) + 0.4]
    figure = style.figure(9, 1 + sum(heights), title)
    *above, below = figure.subplots(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    for axes, (name, lines) in zip(above, curves.items(), strict=True):
        for job, line in lines.items():
            axes.plot(line.steps, line.values, color=colours[job], label=job)
        axes.set_ylabel(name)
        axes.set_xlabel("step")
    if SHARPNESS in curves:
        for edge in {run.edge for run in runs.values()}:
            style.mark_edge(above[-1], edge)
    if len(above):
        above[0].legend(ncols=4, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0)
    _draw_claims(below, claims, colours)
    return figure


def _curves(runs: Mapping[str, Trajectory]) -> Iterator[tuple[str, dict[str, Series]]]:
    """Train loss and sharpness of the jobs that have recorded them."""
    losses = {}
    for job, run in runs.items():
        if SAMPLE_LOSS in run.record:
            losses[job] = run.mean_loss
        elif TRAIN_LOSS in run.record:
            losses[job] = run.record[TRAIN_LOSS]
    yield "train loss", losses
    yield SHARPNESS, {job: run.sharpness for job, run in runs.items() if SHARPNESS in run.record}


def _draw_claims(axes: Axes, claims: Sequence[Across], colours: Mapping[str, str]) -> None:
    """A row for each claim, scaled to its own values: a dot for each job, and what is claimed as a band."""
    for row, claim in enumerate(claims):
        bounds = [float(number) for number in re.findall(r"[-+]?\d[\d.eE+-]*", claim.threshold)]
        known = [value for value in claim.values.values() if value is not None and np.isfinite(value)]
        low, high = min([*known, *bounds]), max([*known, *bounds])
        width = (high - low) or 1.0
        ends = [(bound - low) / width for bound in bounds]
        claimed = ends if len(ends) == 2 else [*ends, RIGHT if ">" in claim.threshold else LEFT]
        axes.fill_betweenx(
            [row - 0.18, row + 0.18], min(claimed), max(claimed), color=style.MUTED, alpha=0.2, linewidth=0
        )
        axes.plot(ends, [row] * len(ends), "|", color=style.INK, markersize=16)
        for job, value in claim.values.items():
            if value is not None and np.isfinite(value):
                axes.plot((value - low) / width, row, "o", color=colours[job], alpha=0.8)
        said = (
            f"{claim.statement}\n{claim.id}: {claim.passed} of {claim.jobs} pass, claimed {threshold(claim.threshold)}"
        )
        if claim.mean is not None and claim.deviation is not None:
            said += f", {spread(claim.mean, claim.deviation)}"
        axes.annotate(said, (LEFT, row), (0, 13), textcoords="offset points", fontsize=8)
        for value in dict.fromkeys((*bounds, *((min(known), max(known)) if known else ()))):
            place = ((value - low) / width, row)
            axes.annotate(
                number(float(f"{value:.3g}")), place, (0, -17), textcoords="offset points", fontsize=7, ha="center"
            )
    axes.set_title("Grey: claimed. A job passes where the whole interval of its value lies in it.", fontsize=8)
    axes.set_xlim(LEFT, RIGHT)
    axes.set_ylim(len(claims) - 0.5, -0.8)
    axes.set_axis_off()
