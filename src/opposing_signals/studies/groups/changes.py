"""Figure 36 and the talk's histograms: how the losses of all points change in one step."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import scipy
from matplotlib.figure import Figure

from opposing_signals.signals import Trajectory
from opposing_signals.signals.steps import rising_share
from opposing_signals.studies import style


def share_increasing(trajectories: Mapping[str, Trajectory]) -> Figure:
    """Share of training points whose loss rises, at each step of each run."""
    title = style.about("Share of the training points whose loss rises at each step", trajectories)
    figure = style.figure(3.9 * max(2, len(trajectories)), 3.8, title)
    panels = np.atleast_1d(figure.subplots(1, len(trajectories), sharey=True))
    for axes, (name, trajectory), colour in zip(panels, trajectories.items(), style.RUNS, strict=False):
        shares = rising_share(trajectory.changes)
        axes.axhspan(0.4, 0.6, color=style.GREY, zorder=0)
        axes.plot(shares.steps, shares.values, ".", color=colour, markersize=3)
        style.mark_break_even(axes, trajectory.break_even)
        late = shares if trajectory.break_even is None else trajectory.after_break_even(shares)
        over = "all steps" if late is shares else "the steps from break-even on"
        median = f"median {np.median(late.values):.4g}" if len(late) else "no value"
        axes.set(xlabel=style.step_label(trajectory), ylim=(0, 1))
        axes.set_title(f"{name}: {median}\nover {over}", fontsize=9)
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
            title=f"step {changes.steps[row]}: kurtosis {scipy.stats.kurtosis(values):.1f}",
            xlabel="Δᵢ",
            ylim=(0.5, None),
        )
    figure.axes[0].set_ylabel("training points")
    style.legend_above(figure.axes[0])
    return figure
