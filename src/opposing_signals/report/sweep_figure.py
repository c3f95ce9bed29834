"""The jobs of a sweep in one figure: their losses, their sharpness, and each claim's values beside its threshold."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle, pairwise
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from opposing_signals.record import Record, Series
from opposing_signals.record.quantities import SAMPLE_LOSS, SHARPNESS, TRAIN_LOSS
from opposing_signals.report.page import spread, threshold
from opposing_signals.signals import Trajectory
from opposing_signals.studies import style
from opposing_signals.studies.claim import Threshold

if TYPE_CHECKING:
    from opposing_signals.report.sweep import Across

CLAIM_HEIGHT = 0.8
"""Height of a claim's row in inches."""
SHADE = "#d5e8d8"
"""Colour of the claimed range."""


def seeds_over_each_other(title: str, records: Mapping[str, Record], claims: Sequence[Across]) -> Figure:
    """Losses and sharpness of every job in the same axes, and below them a row for each claim.

    Args:
        title: Title of the figure.
        records: Job ↦ its run.
        claims: The claims over the jobs.
    """
    runs = {job: Trajectory(record) for job, record in records.items()}
    colours = dict(zip({**runs, **{job: None for claim in claims for job in claim.values}}, cycle(style.RUNS)))
    curves = {name: found for name, found in _curves(runs) if found}
    heights = [2.4] * len(curves) + [CLAIM_HEIGHT] * len(claims)
    figure = style.figure(10, 1 + sum(heights), title)
    panels = figure.subplots(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    above, below = panels[: len(curves)], panels[len(curves) :]
    for axes, (name, lines) in zip(above, curves.items(), strict=True):
        for job, line in lines.items():
            axes.plot(line.steps, line.values, color=colours[job], label=job)
        axes.set(ylabel=name, xlabel="step")
    if SHARPNESS in curves:
        for edge in {run.edge for run in runs.values()}:
            style.mark_edge(above[-1], edge)
    if len(above):
        above[0].legend(ncols=4, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0)
    for axes, claim in zip(below, claims, strict=True):
        _draw_claim(axes, claim, colours)
    said = "Shaded: claimed. A job passes where the whole interval of its value lies in it."
    figure.supxlabel(said, x=0.01, ha="left", fontsize=8, color=style.MUTED)
    return figure


def _curves(runs: Mapping[str, Trajectory]) -> Iterator[tuple[str, dict[str, Series]]]:
    """Train loss and sharpness of the jobs that recorded them."""
    losses = {}
    for job, run in runs.items():
        if SAMPLE_LOSS in run.record:
            losses[job] = run.mean_loss
        elif TRAIN_LOSS in run.record:
            losses[job] = run.record[TRAIN_LOSS]
    yield "train loss", losses
    yield SHARPNESS, {job: run.sharpness for job, run in runs.items() if SHARPNESS in run.record}


def _draw_claim(axes: Axes, claim: Across, colours: Mapping[str, str]) -> None:
    """A dot for each job on an axis of the claim's values; the claimed range is shaded, with lines at its ends."""
    bounds = [float(number) for number in re.findall(r"[-+]?\d[\d.eE+-]*", claim.threshold)]
    known = {job: value for job, value in claim.values.items() if value is not None and np.isfinite(value)}
    low, high = min([*known.values(), *bounds]), max([*known.values(), *bounds])
    room = 0.08 * ((high - low) or 1.0)
    ends = [low - room, *sorted(bounds), high + room]
    claimed = Threshold(claim.threshold)
    for first, last in pairwise(ends):
        if claimed.holds((first + last) / 2):
            axes.axvspan(first, last, color=SHADE, linewidth=0, zorder=0)
    for bound in bounds:
        axes.axvline(bound, color=style.INK, linewidth=1.2)
    for job, value in known.items():
        axes.plot(value, 0, "o", color=colours[job], alpha=0.8)
    said = f"{claim.id}: {claim.passed} of {claim.jobs} pass, claimed {threshold(claim.threshold)}"
    if claim.mean is not None and claim.deviation is not None:
        said += f", {spread(claim.mean, claim.deviation)}"
    axes.set_title("\n".join([style.wrapped(claim.statement, 110), said]), fontsize=8)
    axes.set(xlim=(ends[0], ends[-1]), ylim=(-1, 1), yticks=[])
    axes.spines["left"].set_visible(False)
