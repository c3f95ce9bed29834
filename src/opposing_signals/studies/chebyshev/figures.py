"""Figure 3: opposing signals without outliers, in a one-dimensional regression."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from opposing_signals.record.quantities import OUTPUTS
from opposing_signals.signals import OpposingPair, Trajectory
from opposing_signals.studies import style

NAMED = 4
"""Number of a group's points whose x is written out."""


def chebyshev(trajectories: Mapping[str, Trajectory], zoom: int = 30) -> Figure:
    """Two pairs on the curve and their losses: the pair closest to an interval and its neighbours, and the largest.

    Also shows train loss and sharpness of the whole run.

    Args:
        trajectories: One run that recorded its outputs.
        zoom: Steps shown around the step at which a pair was selected.

    Raises:
        InputError: The run is not a regression in one variable.
    """
    (trajectory,) = trajectories.values()
    trajectory.curve  # noqa: B018  refuses another kind of data set
    coverages = trajectory.interval_coverages
    shown = list(dict.fromkeys([int(np.argmax(coverages)), 0])) if coverages else []
    title = style.about("Opposing groups in a regression in one variable", trajectories)
    figure = style.figure(13, 4.6 + 3.4 * (len(shown) > 1), title)
    grid = figure.add_gridspec(2, 3, width_ratios=[1.25, 1.1, 1])
    loss, sharpness = figure.add_subplot(grid[0, 2]), figure.add_subplot(grid[1, 2])
    for row, rank in enumerate(shown):
        place = row if len(shown) > 1 else slice(None)
        _draw_pair(figure.add_subplot(grid[place, 0]), figure.add_subplot(grid[place, 1]), trajectory, rank, zoom)
    style.draw(loss, trajectory.mean_loss, color=style.INK)
    loss.set(ylabel="train loss", yscale="log", title="the whole run")
    style.draw_sharpness(sharpness, trajectory, trajectory.edge, linewidth=0.8)
    sharpness.set(xlabel=style.step_label(trajectory), ylabel="sharpness λ")
    style.legend_above(sharpness, 2)
    for axes in (loss, sharpness):
        style.mark_break_even(axes, trajectory.break_even)
    for row, rank in enumerate(shown):
        step = trajectory.pairs[rank].step
        loss.axvline(step, color=style.MUTED, linewidth=0.8)
        loss.annotate(
            f" pair {rank + 1}",
            (step, 0.02 + 0.08 * row),
            xycoords=("data", "axes fraction"),
            fontsize=8,
            color=style.MUTED,
        )
    return figure


def _draw_pair(fit: Axes, losses: Axes, trajectory: Trajectory, rank: int, zoom: int) -> None:
    pair = trajectory.pairs[rank]
    x, target = trajectory.curve
    step = pair.step
    rest = np.setdiff1d(np.arange(len(x)), np.concatenate(pair.groups))
    for shown, line in ((step, "-"), (step + 1, ":")):
        outputs = trajectory.record[OUTPUTS].at(shown).ravel()
        fit.plot(x, outputs, color=style.INK, linestyle=line, label=f"network, step {shown}")
    fit.plot(x[rest], target[rest], ".", color=style.MUTED, markersize=5, label="targets, in neither group")
    steps, values = trajectory.losses_between(step - zoom // 2, step + zoom // 2)
    for group, look, moves in zip(pair.groups, style.GROUPS, ("rises", "falls"), strict=True):
        fit.plot(x[group], target[group], look["marker"], color=look["color"], markersize=8)
        name = f"{moves} at step {step}: {_named(x[group])}"
        losses.plot(steps, values[:, group].mean(1), **look, markersize=3, label=name)
    title = f"pair {rank + 1} by amplitude{' (the largest)' if rank == 0 else ''}"
    fit.set(xlabel="x", ylabel="f(x)", title=f"{title}: {_place(pair, trajectory, rank)}")
    style.legend_above(fit, 2)
    losses.set(xlabel="step", ylabel="mean loss", title=f"correlation {pair.correlation:.2f}")
    style.whole_steps(losses)
    losses.axvspan(step, step + 1, color="#e6e7ea", zorder=0)
    style.legend_above(losses)


def _place(pair: OpposingPair, trajectory: Trajectory, rank: int) -> str:
    x = trajectory.curve[0][np.concatenate(pair.groups)]
    return f"in [{x.min():.2g}, {x.max():.2g}], coverage {trajectory.interval_coverages[rank]:.2f}"


def _named(x: np.ndarray) -> str:
    if len(x) > NAMED:
        return f"{len(x)} points in [{x.min():.2g}, {x.max():.2g}]"
    return "x = " + ", ".join(f"{value:.2g}" for value in np.sort(x)).replace("-", "−")
