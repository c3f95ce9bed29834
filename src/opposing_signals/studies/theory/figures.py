"""Figures 4 and 38b: a toy valley, and the three phases of §3.3's model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from opposing_signals.record.quantities import (
    GROUP_LOSS,
    MAGNITUDE,
    PROJECTION,
    TRAIN_LOSS,
    WEIGHT,
)
from opposing_signals.signals import Trajectory
from opposing_signals.studies import style
from opposing_signals.studies.theory import toy

PLANE, OTHER = style.PAIRS[0][0], style.PAIRS[1][0]
AVERAGE = style.PAIRS[3][0]


# -- the toy valley --------------------------------------------------------------------------------------------------


def toy_valley(trajectories: Mapping[str, Trajectory]) -> Figure:
    """The valley before and after sharpening with the iterates on the curves, and both groups' losses over steps."""
    (trajectory,) = trajectories.values()
    record, break_even = trajectory.record, trajectory.break_even
    w, magnitude = record[WEIGHT].values, record[MAGNITUDE].values
    figure = style.figure(12, 4.1, "A valley between opposing groups, before and after it sharpens")
    before, after, time = figure.subplots(1, 3, width_ratios=[1, 1, 1.15])
    first, last = np.flatnonzero(magnitude == magnitude[0]), np.flatnonzero(magnitude == magnitude[-1])
    for axes, steps, name in ((before, first, "before: the iterates settle"), (after, last, "after: they alternate")):
        _draw_valley(axes, float(magnitude[steps[0]]), trajectory, max(1.15 * float(np.abs(w[steps]).max()), 1.5))
        _draw_iterates(axes, w[steps], float(magnitude[steps[0]]), trajectory)
        times_curvature = trajectory.step_size * trajectory.sharpness.values[steps[0]]
        axes.set_title(f"{name} (s = {magnitude[steps[0]]:g}, ηL'' = {times_curvature:.2g})")
    share = float(trajectory.configuration["theory"]["share"])
    flat = np.linspace(after.get_xlim()[0], after.get_xlim()[1], 100)
    earlier = toy.group_losses(flat, float(magnitude[0]), share).average
    after.plot(flat, earlier, color=AVERAGE, linewidth=1, linestyle="--", label="average before", zorder=1)
    style.legend_above(before, 3)
    style.legend_above(after, 4)
    before.set_ylabel("loss")
    losses = record[GROUP_LOSS]
    time.plot(losses.steps, losses.values[:, 0], color=PLANE, marker="o", markersize=2.5, label="plane")
    time.plot(losses.steps, losses.values[:, 1], color=OTHER, marker="o", markersize=2.5, label="other")
    time.plot(losses.steps, record[TRAIN_LOSS].values, color=AVERAGE, linewidth=1.8, label="average")
    time.axvspan(len(first), last[0], color=style.GREY, zorder=0)
    style.mark_break_even(time, break_even)
    time.set(xlabel="step (grey: the feature grows; dotted: λ reaches 2/η)", title="losses over the steps")
    style.legend_above(time, 3)
    return figure


def toy_valley_animation(trajectories: Mapping[str, Trajectory], path: Path) -> None:
    """Write the toy valley as an animated GIF: the curves sharpen while gradient descent goes on."""
    (trajectory,) = trajectories.values()
    w, magnitude = trajectory.record[WEIGHT].values, trajectory.record[MAGNITUDE].values
    figure = style.figure(5.2, 3.6, "Gradient descent while the valley sharpens")
    figure.set_layout_engine("none")  # it would recompute the layout of every frame
    axes = figure.add_axes((0.1, 0.15, 0.87, 0.66))

    def draw(step: int) -> list[Line2D]:
        axes.clear()
        _draw_valley(axes, float(magnitude[step]), trajectory, 1.15 * float(np.abs(w).max()))
        _draw_iterates(axes, w[max(0, step - 3) : step + 1], float(magnitude[step]), trajectory)
        times_curvature = trajectory.step_size * trajectory.sharpness.values[step]
        axes.set_title(f"step {step}, ηL'' = {times_curvature:.2f}" + ("  > 2" if times_curvature > 2 else ""))
        axes.set_ylabel("loss")
        axes.legend(loc="upper center", ncols=3)
        return []

    animation = FuncAnimation(figure, draw, init_func=list, frames=len(w), blit=False)
    animation.save(path, PillowWriter(fps=6), dpi=80)


def _draw_valley(axes: Axes, magnitude: float, trajectory: Trajectory, reach: float) -> None:
    share = float(trajectory.configuration["theory"]["share"])
    grid = np.linspace(-reach, reach, 241)
    losses = toy.group_losses(grid, magnitude, share)
    for values, colour, name in (
        (losses.plane, PLANE, "plane"),
        (losses.other, OTHER, "other"),
        (losses.average, AVERAGE, "average"),
    ):
        axes.plot(grid, values, color=colour, linewidth=2 if name == "average" else 1.2, label=name)
    axes.set(xlabel='w, the direction "sky means plane"', xlim=(-reach, reach), ylim=(0, 4.2))


def _draw_iterates(axes: Axes, w: np.ndarray, magnitude: float, trajectory: Trajectory) -> None:
    """Iterates on all three curves, and the steps between them on the average; later ones are darker."""
    losses = toy.group_losses(w, magnitude, float(trajectory.configuration["theory"]["share"]))
    axes.plot(w, losses.average, color=style.INK, linewidth=0.7, alpha=0.6)
    for values, colour, size in ((losses.plane, PLANE, 12), (losses.other, OTHER, 12), (losses.average, style.INK, 22)):
        shades = [(*to_rgb(colour), opacity) for opacity in np.linspace(0.25, 1, len(w))]
        axes.scatter(w, values, s=size, color=shades, zorder=3, linewidths=0)


# -- three phases ----------------------------------------------------------------------------------------------------


def three_phases(trajectories: Mapping[str, Trajectory], title: str) -> Figure:
    """Train loss, the outlier groups' losses, λ with 2/η and the size of ``b_o`` along the signal; a column per run."""
    columns = len(trajectories)
    if columns == 1:
        figure = style.figure(11, 5.6, title)
        panels = figure.subplots(2, 2, sharex=True).T.reshape(4, 1)
    else:
        figure = style.figure(4.1 * columns, 8.6, title)
        panels = figure.subplots(4, columns, sharex="col", height_ratios=[1, 1.2, 1, 1])
    for column, trajectory in enumerate(trajectories.values()):
        loss, groups, sharpness, size = panels[:, column]
        _draw_losses(loss, groups, trajectory)
        style.draw_sharpness(sharpness, trajectory, 2 / trajectory.step_size)
        _draw_projection(size, trajectory)
        loss.set_title(_describe(trajectory))
        for axes in panels[:, column]:
            _shade_phases(axes, trajectory)
        for axes in panels[:, column] if columns == 1 else panels[-1:, column]:
            if axes.get_subplotspec().is_last_row():
                axes.set_xlabel("step (grey: λ grows; dotted: it reaches 2/η)")
    for axes, label in zip(panels[:, 0], ("train loss", "loss of outliers", "sharpness λ", "|b_o|"), strict=True):
        axes.set_ylabel(label)
    style.legend_above(panels[1, -1], 2)
    return figure


def _describe(trajectory: Trajectory) -> str:
    theory = trajectory.configuration["theory"]
    depth = f"{theory['layers']} layers, " if "layers" in theory else ""
    return f"{depth}α = {theory['alpha']:g}, ‖β‖ = {theory['beta_norm']:g}, η = {trajectory.step_size:.3g}"


def _draw_losses(loss: Axes, groups: Axes, trajectory: Trajectory) -> None:
    train, group = trajectory.record[TRAIN_LOSS], trajectory.record[GROUP_LOSS]
    theory = trajectory.configuration["theory"]
    style.draw(loss, train, color=style.INK)
    if theory.get("loss") != "logistic":
        style.mark_level(loss, theory["alpha"] / 2, "α/2")
    for index, colour, label in ((0, PLANE, "signal +"), (1, OTHER, "signal −")):
        groups.plot(group.steps, group.values[:, index], color=colour, linewidth=0.9, label=label)
    largest = int(np.argmax(np.abs(np.diff(group.values[:, 0]))))
    if trajectory.break_even is not None and largest > trajectory.break_even:
        zoom = groups.inset_axes((0.68, 0.55, 0.32, 0.42))
        rows = slice(largest - 5, largest + 7)
        for index, colour in ((0, PLANE), (1, OTHER)):
            zoom.plot(
                group.steps[rows], group.values[rows, index], color=colour, marker="o", markersize=2, linewidth=0.9
            )
        zoom.set_yticks([])
        zoom.set_title("at its largest", fontsize=8)


def _draw_projection(axes: Axes, trajectory: Trajectory) -> None:
    projection = trajectory.record[PROJECTION]
    axes.plot(projection.steps, np.maximum(np.abs(projection.values), 1e-300), color=style.INK, linewidth=0.9)
    axes.set_yscale("log")


def _shade_phases(axes: Axes, trajectory: Trajectory) -> None:
    """Grey from the smallest λ to break-even: between the decrease and the oscillation."""
    if trajectory.break_even is None:
        return
    lowest = int(np.argmin(trajectory.sharpness.values[: trajectory.break_even + 1]))
    axes.axvspan(lowest, trajectory.break_even, color=style.GREY, zorder=0)
    style.mark_break_even(axes, trajectory.break_even)
