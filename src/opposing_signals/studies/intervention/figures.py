"""The causal check: a run branched just before its spikes, with and without the pair that dominates there."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from opposing_signals.signals import Trajectory
from opposing_signals.studies import style
from opposing_signals.studies.intervention.branches import branches_by_spike

LOOKS = {
    "control": ("nothing changed", style.INK, "-"),
    "remove_pair": ("pair removed", style.RUNS[1], (0, (5, 1))),
    "downweight_pair": ("pair counts half", style.RUNS[4], "--"),
    "relabel_pair": ("pair relabelled", style.RUNS[3], ":"),
    "remove_random": ("random points removed", style.RUNS[0], (0, (5, 1, 1, 1))),
}
"""Kind of intervention ↦ name, colour and line style."""


def intervention(trajectories: Mapping[str, Trajectory]) -> Figure:
    """One row a spike: loss of the untouched points, sharpness, and the size of the spike in each branch."""
    spikes = branches_by_spike(trajectories)
    title = style.about("A run branched just before its spikes, with and without the dominant pair", trajectories)
    figure = style.figure(12, 2.7 * len(spikes) + 1.2, title)
    grid = figure.subplots(len(spikes), 3, squeeze=False, width_ratios=[1.3, 1.3, 1])
    for (loss, sharpness, sizes), branches in zip(grid, spikes.values(), strict=True):
        shown: set[str] = set()
        for name, run in branches.runs.items():
            label, colour, line = LOOKS[name.split()[0]]
            label = "_" if label in shown else label
            shown.add(label)
            width = 2.0 if name == "control" else 1.2
            series = branches.loss(name)
            look = {"linestyle": line, "color": colour, "linewidth": width}
            style.draw(loss, series, **look, label=label)
            sharpness.plot(np.asarray(run.sharpness.steps) + branches.step, run.sharpness.values, **look)
        style.mark_edge(sharpness, next(iter(branches.runs.values())).edge)
        for axes in (loss, sharpness):
            axes.axvline(branches.spike_step, color=style.MUTED, linewidth=0.8, linestyle=":")
            axes.set_xlabel("step (dotted: the spike)")
            style.whole_steps(axes)
        loss.set_ylabel("loss of untouched points")
        sharpness.set(ylabel="sharpness λ", ylim=(0, None))
        kinds = [kind for kind in LOOKS if branches.names(kind)]
        for row, kind in enumerate(kinds):
            values = [branches.spike_size(name) for name in branches.names(kind)]
            first = [branches.spike_size(name, behind=1) for name in branches.names(kind)]
            sizes.barh(row, np.mean(values), color=LOOKS[kind][1], alpha=0.2)
            sizes.barh(row, np.mean(first), color=LOOKS[kind][1], alpha=0.5)
            sizes.plot(values, [row] * len(values), "o", color=LOOKS[kind][1], markersize=4)
        sizes.set_yticks(range(len(kinds)), [LOOKS[kind][0] for kind in kinds])
        sizes.invert_yaxis()
        sizes.set_xlabel("largest rise (dark: by the spike)")
        touched = len(branches.untouched) - int(branches.untouched.sum())
        loss.set_title(f"branched at step {branches.step}, {touched} points touched in any branch")
    style.legend_beside(figure, grid[0, 0])
    return figure
