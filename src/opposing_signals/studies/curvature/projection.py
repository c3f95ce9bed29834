"""Figure 6b: the iterates of several rules along one direction, and Adam's effective step size on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpecFromSubplotSpec

from opposing_signals.record.quantities import EFFECTIVE_STEP_SIZE, FLOOR_DISTANCE, PROJECTION
from opposing_signals.signals import Trajectory
from opposing_signals.signals.steps import between
from opposing_signals.studies import style
from opposing_signals.studies.curvature.metrics import SizeAlongV, sizes_by_floor_distance

ZOOM = 80
WIDE = 10
"""Ratio of the largest to the smallest size above which their axis is logarithmic."""


def projection(
    trajectories: Mapping[str, Trajectory], descent: str = "mlp5k_gd", adaptive: str = "mlp5k_adam"
) -> Figure:
    """Projections of the rules' iterates on v over steps; Adam's effective step size against distance to the floor.

    The effective step size ignores momentum and gradient, so Adam's actual step along v is shown as well.

    Args:
        trajectories: One run per rule.
        descent: Name of the run under gradient descent, whose break-even is marked.
        adaptive: Name of the run under Adam.
    """
    figure = style.figure(
        11,
        8.4,
        style.about("Iterates projected on the top eigenvector of gradient descent at break-even", trajectories),
    )
    grid = figure.add_gridspec(3, 1, height_ratios=[1, 1.2, 1])
    break_even = trajectories[descent].break_even if descent in trajectories else None
    first = break_even or 0
    shown = first - ZOOM // 4, first + 3 * ZOOM // 4
    looks = style.looks(trajectories)
    overview: Any = GridSpecFromSubplotSpec(1, len(trajectories), grid[0]).subplots(sharey=True, squeeze=False)[0]
    zoomed = figure.add_subplot(grid[1])
    for axes, (name, trajectory) in zip(overview, trajectories.items(), strict=True):
        along = trajectory.record[PROJECTION]
        style.draw(axes, along, color=looks[name]["color"], linewidth=0.7)
        axes.set_title(f"{name}: projection on v")
        part = between(along, *shown)
        style.draw(zoomed, part, **looks[name], marker="o", markersize=2, linewidth=0.9, label=name)
    zoomed.set_title(f"all of them, {ZOOM} steps around break-even")
    style.legend_above(zoomed, len(trajectories))
    for axes in (*overview, zoomed):
        style.mark_break_even(axes, break_even)
        axes.set_xlabel("step (dotted: break-even of descent)")
    if adaptive in trajectories:
        lowest: Any = GridSpecFromSubplotSpec(1, 3, grid[2]).subplots()
        sizes, steps, floor = lowest
        colour = looks[adaptive]["color"]
        sizes.set_title("Adam's effective step size on v")
        _draw_against_distance(sizes, trajectories[adaptive], EFFECTIVE_STEP_SIZE, first, colour)
        steps.set_title("size of Adam's steps along v")
        _draw_against_distance(steps, trajectories[adaptive], "step_along_v", first, colour)
        _draw_floor(floor, trajectories[adaptive], break_even, colour)
    return figure


def _draw_against_distance(
    axes: Axes, trajectory: Trajectory, quantity: SizeAlongV, first_step: int, colour: str
) -> None:
    distance, size = sizes_by_floor_distance(trajectory, quantity, first_step)
    axes.plot(distance, size, ".", color=colour, markersize=3)
    axes.set(xlabel="distance to the valley's floor")
    if len(size) and size.max() > WIDE * size.min() > 0:
        axes.set_yscale("log")
    if len(size) > 2:
        axes.axhline(float(np.median(size)), color=style.MUTED, linestyle="--", linewidth=0.9)
        correlation = np.corrcoef(distance, size)[0, 1]
        axes.set_title(f"{axes.get_title(loc='left')}\ncorrelation {correlation:.2f} (dashed: median)")


def _draw_floor(axes: Axes, trajectory: Trajectory, break_even: int | None, colour: str) -> None:
    """The floor is the minimum of the loss's expansion along v: the projection minus the signed distance."""
    along, distance = trajectory.record[PROJECTION], trajectory.record[FLOOR_DISTANCE]
    measured = np.isin(along.steps, distance.steps)
    style.draw(axes, along, color=colour, label="Adam")
    floor = np.asarray(along.values)[measured] - np.asarray(distance.values)
    axes.plot(distance.steps, floor, color=style.INK, linewidth=0.7, label="floor")
    style.mark_break_even(axes, break_even)
    reach = np.ptp(along.values)
    axes.set(title="Adam and the floor along v", xlabel="step")
    axes.set_ylim(np.min(along.values) - reach, np.max(along.values) + reach)
    style.legend_above(axes, 2)
