"""Figure 3: opposing signals without outliers, in a one-dimensional regression."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from opposing_signals.figures import style
from opposing_signals.signals import Trajectory


def chebyshev(trajectories: Mapping[str, Trajectory], zoom: int = 40) -> Figure:
    """The fit at two successive steps with the two alternating groups of x, their losses, and the sharpness.

    Args:
        trajectories: One run that recorded its outputs.
        zoom: Steps shown around the selecting step.

    Raises:
        InputError: The run fits no function of one variable.
    """
    (trajectory,) = trajectories.values()
    figure = style.figure(12, 3.9, "Opposing signals when a small MLP fits a Chebyshev polynomial")
    fit, zoomed, overview, sharpness = figure.subplots(1, 4, width_ratios=[1.25, 1.1, 1.1, 1])
    x, target = trajectory.curve
    dark, light = style.PAIRS[0][0], style.PAIRS[1][0]
    fit.plot(x, target, color=style.MUTED, marker="o", markersize=4, linewidth=0, label="target")
    losses = trajectory.losses
    if trajectory.pairs:
        pair = trajectory.pairs[0]
        step = int(trajectory.changes.steps[pair.change])
        for shown, line in ((step, "-"), (step + 1, "--")):
            outputs = trajectory.record["outputs"].at(shown).ravel()
            fit.plot(x, outputs, line, color=style.INK, label=f"network at step {shown}")
        rows = slice(max(0, pair.change - zoom // 2), pair.change + zoom // 2)
        for group, colour, name in ((pair.rising, dark, "group a"), (pair.falling, light, "group b")):
            fit.plot(x[group], target[group], "o", color=colour, markersize=7, label=name)
            mean = np.asarray(losses.values)[:, group].mean(1)
            zoomed.plot(losses.steps[rows], mean[rows], color=colour, marker="o", markersize=2.5, label=name)
            overview.plot(losses.steps, mean, color=colour, linewidth=0.7)
        zoomed.set_title(f"losses of the groups, correlation {pair.correlation:.2f}")
    fit.set(xlabel="x", ylabel="f(x)", title="fit at two successive steps")
    fit.set_ylim(target.min() - 0.35, target.max() + 1.1)
    fit.legend(fontsize=7, loc="upper left", ncols=2)
    zoomed.set(xlabel="step", ylabel="loss")
    overview.plot(trajectory.mean_loss.steps, trajectory.mean_loss.values, color=style.INK, label="train loss")
    overview.set(xlabel="step", yscale="log", title="train loss and groups")
    overview.legend(loc="lower left")
    measured = trajectory.sharpness
    sharpness.plot(measured.steps, measured.values, color=style.INK, linewidth=0.8)
    sharpness.axhline(2 / trajectory.step_size, color=style.MUTED, linestyle="--", linewidth=0.9, label="2/η")
    sharpness.set(xlabel="step", ylim=(0, None), title="sharpness λ")
    sharpness.legend(loc="lower right")
    for axes in (overview, sharpness):
        style.mark_break_even(axes, trajectory.break_even)
    return figure
