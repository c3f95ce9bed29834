"""Figure 36 and the talk's histograms: how the losses of all points change in one step."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle

import numpy as np
import scipy
from matplotlib.figure import Figure

from opposing_signals.signals import Runs, Trajectory
from opposing_signals.signals.steps import rising_share
from opposing_signals.studies import style


def share_increasing(trajectories: Mapping[str, Trajectory]) -> Figure:
    """Share of training points whose loss rises, at each step of each run; a run's seeds share a panel."""
    runs: dict[str, list[Trajectory]] = {}
    for of_seed in Runs.of(trajectories).by_seed().values():
        for name, trajectory in of_seed.items():
            runs.setdefault(name, []).append(trajectory)
    title = style.about("Share of the training points whose loss rises at each step", trajectories)
    figure = style.figure(3.9 * max(2, len(runs)), 3.8, title)
    panels = np.atleast_1d(figure.subplots(1, len(runs), sharey=True))
    for axes, (name, seeds) in zip(panels, runs.items(), strict=True):
        axes.axhspan(0.4, 0.6, color=style.GREY, zorder=0)
        medians, over = [], "all steps"
        for trajectory, colour, marker in zip(seeds, cycle(style.RUNS), cycle(".x+1"), strict=False):
            shares = rising_share(trajectory.changes)
            label = f"seed {trajectory.configuration.get('seed')}" if len(seeds) > 1 else None
            axes.plot(shares.steps, shares.values, marker, color=colour, markersize=3, label=label)
            style.mark_break_even(axes, trajectory.break_even)
            if trajectory.break_even is not None:
                shares, over = trajectory.after_break_even(shares), "the steps from break-even on"
            medians.append(f"{np.median(shares.values):.3g}" if len(shares) else "no value")
        has_break_even = any(trajectory.break_even is not None for trajectory in seeds)
        several = f"step{' (dotted: break-even of each seed)' if has_break_even else ''}"
        label = style.step_label(seeds[0]) if len(seeds) == 1 else several
        axes.set(xlabel=label, ylim=(0, 1))
        axes.set_title(f"{name}: median {', '.join(medians)}\nover {over}", fontsize=9)
        if len(seeds) > 1:
            axes.legend(loc="upper right", ncols=len(seeds), fontsize=8)
    panels[0].set_ylabel("share of points with Δᵢ > 0 (grey: 0.4 to 0.6)")
    return figure


def change_distribution(trajectories: Mapping[str, Trajectory], panels: int = 4) -> Figure:
    """Histogram of the one-step changes Δ_i at several steps, with a Gaussian of equal variance.

    Args:
        panels: Steps shown, evenly spaced from break-even (or from the start) to the end.
    """
    (trajectory,) = trajectories.values()
    changes = trajectory.changes
    figure = style.figure(3.2 * panels, 3.6, style.about("How one step changes each point's loss", trajectories))
    first = 0 if trajectory.break_even is None else int(np.searchsorted(changes.steps, trajectory.break_even))
    rows = np.linspace(first, len(changes) - 1, panels).round().astype(int)
    for axes, row in zip(figure.subplots(1, panels), rows, strict=True):
        values = np.asarray(changes.values[row], dtype=np.float64)
        reach = float(np.abs(values).max()) or 1.0
        edges = np.linspace(-reach, reach, 81)
        axes.hist(values, edges, color=style.RUNS[0], log=True)
        width = edges[1] - edges[0]
        gaussian = len(values) * width * scipy.stats.norm.pdf(edges, values.mean(), values.std() or 1.0)
        axes.plot(edges, gaussian, color=style.RUNS[1], label="Gaussian")
        axes.set(
            title=f"step {changes.steps[row]}: excess kurtosis {scipy.stats.kurtosis(values):.1f}",
            xlabel="Δᵢ",
            ylim=(0.5, None),
        )
    figure.axes[0].set_ylabel("training points")
    style.legend_above(figure.axes[0])
    return figure
