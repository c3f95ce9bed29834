"""The causal test: a run branched just before its spikes, with and without the pair that dominates there."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from opposing_signals.signals import Trajectory
from opposing_signals.studies import style
from opposing_signals.studies.intervention.branches import Branches, branches_by_spike

LOOKS = {
    "control": ("nothing changed", style.INK, "-"),
    "remove_pair": ("pair removed", style.RUNS[1], (0, (5, 1))),
    "downweight_pair": ("pair counts half", style.RUNS[4], "--"),
    "relabel_pair": ("pair gets one label", style.RUNS[3], ":"),
    "remove_random": ("as many random\npoints removed", style.RUNS[0], (0, (5, 1, 1, 1))),
}
"""Kind of intervention ↦ name, colour and line style."""


def intervention(trajectories: Mapping[str, Trajectory]) -> Figure:
    """One row per spike, in the order of their steps: loss of the untouched points, sharpness, and the spike's size."""
    spikes = sorted(branches_by_spike(trajectories).values(), key=lambda branches: branches.step)
    title = style.about("A run branched just before its spikes, with and without the dominant pair", trajectories)
    figure = style.figure(12, 2.7 * len(spikes) + 1.6, title)
    grid = figure.subplots(len(spikes), 3, squeeze=False, width_ratios=[1.3, 1.3, 1])
    for (loss, sharpness, sizes), branches in zip(grid, spikes, strict=True):
        for name, run in branches.runs.items():
            _, colour, line = LOOKS[name.split()[0]]
            look = {"linestyle": line, "color": colour, "linewidth": 2.0 if name == "control" else 1.2}
            style.draw(loss, branches.loss(name), **look)
            sharpness.plot(np.asarray(run.sharpness.steps) + branches.step, run.sharpness.values, **look)
        style.mark_edge(sharpness, next(iter(branches.runs.values())).edge)
        for axes in (loss, sharpness):
            axes.axvspan(branches.spike_step, branches.spike_step + 1, color="#dcdfe4", zorder=0)
            axes.set_xlabel("step (grey: the spike of the unbranched run)")
            style.whole_steps(axes)
        loss.set_ylabel("loss of untouched points")
        sharpness.set(ylabel="sharpness λ", ylim=(0, None))
        touched = len(branches.untouched) - int(branches.untouched.sum())
        loss.set_title(f"branched at step {branches.step}, {touched} points touched in any branch", fontsize=9)
        _draw_sizes(sizes, branches)
    grid[0, 2].set_title("bars: means; dots: single draws\ndark: up to a step behind the spike; light: all", fontsize=8)
    return figure


def _draw_sizes(axes: Axes, branches: Branches) -> None:
    """A bar for each kind of branch, named in the colour of its lines."""
    kinds = [kind for kind in LOOKS if branches.names(kind)]
    for row, kind in enumerate(kinds):
        values = [branches.spike_size(name) for name in branches.names(kind)]
        first = [branches.spike_size(name, behind=1) for name in branches.names(kind)]
        axes.barh(row, np.mean(values), color=LOOKS[kind][1], alpha=0.2)
        axes.barh(row, np.mean(first), color=LOOKS[kind][1], alpha=0.5)
        if len(values) > 1:
            axes.plot(values, [row] * len(values), "o", color=LOOKS[kind][1], markersize=4)
    axes.set_yticks(range(len(kinds)), [LOOKS[kind][0] for kind in kinds])
    axes.invert_yaxis()
    axes.set_xlabel("largest rise in one step")
