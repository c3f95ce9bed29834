"""The conjectures of §3.4 and §5 and of the talk: the jobs of a grid side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from opposing_signals.record import Series
from opposing_signals.record.quantities import JACOBIAN_NORM
from opposing_signals.signals import Trajectory, name_pair
from opposing_signals.signals.steps import between, reversals
from opposing_signals.studies import style
from opposing_signals.studies.curvature.metrics import SMOOTH, gap_changes, relative_feature_norms
from opposing_signals.studies.estimates import random_groups
from opposing_signals.studies.groups.figures import draw_pair

ZOOM = 40
"""Steps shown around the step at which a pair was selected."""


def descents(trajectories: Mapping[str, Trajectory], title: str, by_time: bool = False) -> Figure:
    """Train loss, sharpness and sensitivity of all jobs, and below them each job's dominant pair.

    Args:
        trajectories: One per job.
        title: Title of the figure.
        by_time: The upper panels show time Σ η instead of steps, to compare step sizes.
    """
    figure = style.figure(max(12, 3 * len(trajectories)), 7.4, style.about(title, trajectories))
    parts: Any = figure.subfigures(2, 1, height_ratios=[1, 1.05])
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
            style.draw(axes, timed, **looks[name], linewidth=0.9, label=_job(name, trajectory))
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
        _draw_dominant_pair(axes, _job(name, trajectory), trajectory)
    panels[0].set_ylabel("loss")
    style.legend_above(panels[0], 2)
    return figure


def _job(name: str, trajectory: Trajectory) -> str:
    """A job of a sweep over one field in words: "η = 0.1" for "optimizer.lr=0.1", "1-SAM" for "optimizer=one_sam"."""
    field, _, value = name.partition("=")
    if not value or "," in name:
        return name
    if field == "optimizer":
        return style.rule_name(trajectory)
    if "." not in field:
        return value.replace("_", " ")
    field = field.rpartition(".")[2].replace("_", " ")
    return f"{'η' if field == 'lr' else field} = {value}"


def _draw_dominant_pair(axes: Axes, name: str, trajectory: Trajectory) -> None:
    """The mean losses of the dominant pair's groups around its selecting step, and how often their gap reverses.

    Groups that drift apart correlate as strongly as groups that alternate; only the reversals distinguish them.
    """
    axes.set_xlabel("step")
    if not trajectory.pairs:
        axes.set_title(f"{name}: no pair")
        return
    pair = trajectory.pairs[0]
    first, last = max(pair.window[0], pair.step - ZOOM // 2), min(pair.window[1], pair.step + ZOOM // 2) + 1
    draw_pair(axes, trajectory, pair, 0, first, last)
    turns = reversals(gap_changes(trajectory, pair)).values
    turned = f", turns at {np.mean(turns):.0%} of the steps" if len(turns) else ""
    members = style.wrapped(name_pair(trajectory.dataset, pair), 38)
    correlation = f"correlation {pair.correlation:.2f}".replace("-", "\u2212")
    axes.set_title(f"{name}: dominant pair\n{members}\n{correlation}{turned}", fontsize=8)


# -- batch norm -------------------------------------------------------------------------------------------------------


def group_variance(trajectories: Mapping[str, Trajectory]) -> Figure:
    """The variance of one-step changes of all dominant pairs' groups and of random groups, side by side over seeds.

    The other panels show the dominant pair of the first seed for each network and rule.
    """
    kinds: dict[str, list[Trajectory]] = {}
    for trajectory in trajectories.values():
        kinds.setdefault(_described(trajectory), []).append(trajectory)
    rows = -(-len(kinds) // 2)
    title = style.about("Losses of opposing groups with and without batch norm", trajectories)
    figure = style.figure(14, 1 + 3.2 * rows, title)
    grid = figure.add_gridspec(rows, 3, width_ratios=[1, 1, 0.95])
    variances = figure.add_subplot(grid[:, 2])
    for number, (kind, runs) in enumerate(kinds.items()):
        axes = figure.add_subplot(grid[number // 2, number % 2])
        of_one = f", seed {runs[0].configuration['seed']}" if len(runs) > 1 else ""
        _draw_dominant_pair(axes, kind + of_one, runs[0])
        axes.set_ylabel("loss")
        style.legend_above(axes, 4)
        room = 0.9 / len(runs)
        for i, run in enumerate(runs):
            _draw_variances(variances, number + (i + 0.5) * room - 0.45, room, run)
    names = [kind.replace(", ", "\n").replace("gradient descent", "GD") for kind in kinds]
    variances.set_xticks(range(len(names)), names, fontsize=8)
    several = ", seeds side by side" if len(trajectories) > len(kinds) else ""
    variances.set(yscale="log", title=f"variance of a group's one-step loss change\n(bars: medians){several}")
    variances.set_xlim(-0.5, len(names) - 0.5)
    style.legend_above(variances)
    return figure


def _described(trajectory: Trajectory) -> str:
    """For instance "VGG-11-BN, SGD"."""
    rule = "gradient descent" if trajectory.configuration.get("batch") is None else "SGD"
    return f"{trajectory.network.partition(' (')[0]}, {rule}"


def _draw_variances(axes: Axes, place: float, room: float, trajectory: Trajectory) -> None:
    """A dot for each group of each dominant pair and for random groups of equal size, with a bar at each median."""
    groups, random = [], []
    for pair in trajectory.pairs:
        changes = np.asarray(between(trajectory.changes, *pair.window).values, np.float64)
        for group in pair.groups:
            groups.append(changes[:, group].mean(1).var())
            draws = random_groups(changes.shape[1], len(group))
            random.append(np.mean([changes[:, draw].mean(1).var() for draw in draws]))
    for values, colour, marker, name, shift in (
        (groups, style.RUNS[0], "o", "groups of the dominant pairs", -room / 6),
        (random, style.MUTED, "^", "random groups of equal size", room / 6),
    ):
        if values:
            label = "" if name in axes.get_legend_handles_labels()[1] else name
            axes.plot([place + shift] * len(values), values, marker, color=colour, markersize=5, alpha=0.6, label=label)
            ends = place + shift - room / 7, place + shift + room / 7
            axes.hlines(np.median(values), *ends, color=colour, linewidth=2.5)


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
            axes.plot(norms.steps, values, **looks[name], linewidth=1.2, label=_job(name, trajectory))
            peak = int(np.argmax(values))
            axes.plot(norms.steps[peak], values[peak], "o", color=looks[name]["color"], markersize=5)
        loss, sharpness = panels[len(probes) : len(probes) + 2]
        style.draw(loss, trajectory.mean_loss, **looks[name], linewidth=0.9)
        style.draw(sharpness, trajectory.sharpness, **looks[name], linewidth=0.9)
    for axes, probe in zip(panels, [*probes, "train loss", "sharpness λ"], strict=False):
        axes.set_title(probe)
    for axes in panels[len(probes) + 2 :]:
        axes.set_visible(False)
    for axes in panels[len(probes) + 2 - columns : len(probes) + 2]:  # the last one of each column
        axes.set_xlabel("step")
        axes.tick_params(labelbottom=True)
    style.legend_above(panels[0], 3)
    return figure
