"""The conjectures of §3.4 and §5 and of the talk: the jobs of a grid side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from opposing_signals.record import Series
from opposing_signals.record.quantities import JACOBIAN_NORM
from opposing_signals.signals import Trajectory
from opposing_signals.studies import style
from opposing_signals.studies.curvature.metrics import SMOOTH, relative_feature_norms

ZOOM = 40
"""Steps shown around a pair's selecting step."""


def descents(trajectories: Mapping[str, Trajectory], title: str, by_time: bool = False) -> Figure:
    """Train loss, sharpness and sensitivity of all jobs, and below them each job's dominant pair.

    Args:
        trajectories: One per job.
        title: Of the figure.
        by_time: The upper panels show time Σ η instead of steps, to compare step sizes.
    """
    figure = style.figure(max(11, 2.9 * len(trajectories)), 6.6, title)
    parts: Any = figure.subfigures(2, 1, height_ratios=[1.15, 1])
    upper, lower = parts
    loss, sharpness, jacobian = upper.subplots(1, 3, sharex=True)
    looks = style.looks(trajectories)
    edges = {trajectory.edge for trajectory in trajectories.values()}
    for name, trajectory in trajectories.items():
        unit = trajectory.step_size if by_time else 1
        for axes, series in (
            (loss, trajectory.mean_loss),
            (sharpness, trajectory.sharpness),
            (jacobian, trajectory.record[JACOBIAN_NORM]),
        ):
            timed = Series(np.asarray(series.steps) * unit, series.values)
            style.draw(axes, timed, **looks[name], linewidth=0.9, label=name)
        if len(edges) > 1 and trajectory.edge is not None:
            sharpness.axhline(trajectory.edge, color=looks[name]["color"], linewidth=0.6, alpha=0.6)
    if len(edges) == 1:
        style.mark_edge(sharpness, *edges)
    loss.set(title="train loss", ylim=(0, None))
    style.legend_above(loss, 2)
    sharpness.set(title="sharpness λ (horizontal: 2/η)", ylim=(0, None))
    jacobian.set(title="spectral norm of the Jacobian", ylim=(0, None))
    for axes in (loss, sharpness, jacobian):
        axes.set_xlabel("time Σ η" if by_time else "step")
    panels = lower.subplots(1, len(trajectories), squeeze=False)[0]
    for axes, (name, trajectory) in zip(panels, trajectories.items(), strict=True):
        _draw_dominant_pair(axes, name, trajectory)
    return figure


def _draw_dominant_pair(axes: Axes, name: str, trajectory: Trajectory) -> None:
    """The mean losses of the dominant pair's groups around its selecting step."""
    axes.set_xlabel("step")
    if not trajectory.pairs:
        axes.set_title(f"{name}: no pair")
        return
    pair = trajectory.pairs[0]
    steps, values = trajectory.losses_between(
        max(pair.window[0], pair.step - ZOOM // 2), min(pair.window[1], pair.step + ZOOM // 2) + 1
    )
    style.draw_close(axes, steps, values, pair.groups, style.pair_looks(0))
    axes.plot(*style.broken(steps, values.mean(1)), color=style.INK, linewidth=1.5)
    axes.set_title(f"{name}\ndominant pair: correlation {pair.correlation:.2f}", fontsize=9)


# -- batch norm -------------------------------------------------------------------------------------------------------


def group_variance(trajectories: Mapping[str, Trajectory]) -> Figure:
    """One panel per job: losses of the dominant pairs' groups, of a random subset of equal size, and of all points."""
    columns = 2
    rows = -(-len(trajectories) // columns)
    figure = style.figure(12, 0.8 + 3 * rows, style.about("Losses of opposing groups", trajectories))
    panels = figure.subplots(rows, columns, squeeze=False, sharex="row").ravel()
    for axes, (name, trajectory) in zip(panels, trajectories.items(), strict=False):
        losses = trajectory.losses
        values = np.asarray(losses.values)
        for number, pair in enumerate(trajectory.pairs_in_time):
            style.draw_groups(axes, trajectory, pair, number, None)
        draw = np.random.default_rng(0).choice(values.shape[1], min(20, values.shape[1]), replace=False)
        axes.plot(losses.steps, values[:, draw].mean(1), color=style.MUTED, linewidth=0.8, label="20 random points")
        axes.plot(losses.steps, values.mean(1), color=style.INK, linewidth=1.6, label="train loss")
        axes.set(title=name, xlabel="step", ylim=(0, None))
        style.legend_above(axes, 2)
    for axes in panels[len(trajectories) :]:
        axes.set_visible(False)
    return figure


# -- SAM and 1-SAM ----------------------------------------------------------------------------------------------------


def probes_by_rule(trajectories: Mapping[str, Trajectory]) -> Figure:
    """Relative feature norm of each probe under each rule, beside train loss and sharpness.

    The thick line is a running median, the dot its peak.
    """
    first = next(iter(trajectories.values()))
    probes = list(first.configuration["instruments"]["block_probe"]["probes"])
    figure = style.figure(11.5, 6.8, style.about("Feature norm of pure signals over the batch's mean", trajectories))
    columns = -(-(len(probes) + 2) // 2)
    panels = figure.subplots(2, columns, sharex=True).ravel()
    looks = style.looks(trajectories)
    for name, trajectory in trajectories.items():
        norms, smoothed = relative_feature_norms(trajectory), relative_feature_norms(trajectory, SMOOTH)
        for axes, noisy, values in zip(panels, norms.values.T, smoothed.values.T, strict=False):
            axes.plot(norms.steps, noisy, color=looks[name]["color"], linewidth=0.5, alpha=0.3)
            axes.plot(norms.steps, values, **looks[name], linewidth=1.2, label=name)
            peak = int(np.argmax(values))
            axes.plot(norms.steps[peak], values[peak], "o", color=looks[name]["color"], markersize=5)
        loss, sharpness = panels[len(probes) : len(probes) + 2]
        style.draw(loss, trajectory.mean_loss, **looks[name], linewidth=0.9)
        style.draw(sharpness, trajectory.sharpness, **looks[name], linewidth=0.9)
    for axes, probe in zip(panels, [*probes, "train loss", "sharpness λ"], strict=False):
        axes.set_title(probe)
    for axes in panels[len(probes) + 2 :]:
        axes.set_visible(False)
    for axes in panels[-columns:]:
        axes.set_xlabel("step")
    style.legend_beside(figure, panels[0])
    return figure
