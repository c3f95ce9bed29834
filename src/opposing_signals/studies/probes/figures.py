"""Figures 5 and 10 to 31: a pure signal passed through the network along a run, and the images nearest to a colour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec, GridSpecFromSubplotSpec, SubplotSpec
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from opposing_signals.record.quantities import NEIGHBOUR_DISTANCE, TRAIN_LOSS
from opposing_signals.signals import Trajectory
from opposing_signals.studies import style
from opposing_signals.studies.probes.paths import (
    ProbePath,
    common_loss,
    lag_one_autocorrelation,
    probe_path,
    times,
)

_INPUT, _OTHER, _MEAN = style.RUNS[0], style.RUNS[1], style.MUTED


# -- figures 5, 10, 11, 13 to 21 --------------------------------------------------------------------------------------


def block_probe(trajectories: Mapping[str, Trajectory], probe: str) -> Figure:
    """The input, its class logits, its class probabilities where the dominant class changes, and its feature norm.

    Of the steps from break-even on (of all under another rule than gradient descent) that of `ProbePath.shown_step` is
    shown: θ before and after it in bold, and one step more to either side.

    Args:
        probe: Which of the run's probes.
    """
    (trajectory,) = trajectories.values()
    path = probe_path(trajectory, probe)
    figure = style.figure(13, 3.9, _title(trajectory, probe))
    grid = figure.add_gridspec(1, 4, width_ratios=[0.62, 1.5, 1.35, 1.25])
    _draw_panels(figure, grid, trajectory, path)
    return figure


def _draw_panels(figure: Figure, grid: GridSpec, trajectory: Trajectory, path: ProbePath) -> None:
    """Input, logits, probabilities and feature norm in the first four places."""
    _draw_input(figure, grid[0], trajectory, path)
    logits, norms = figure.add_subplot(grid[1]), figure.add_subplot(grid[3])
    _draw_logits(logits, path.steps, path, "class logits")
    _draw_probabilities(figure, grid[2], trajectory, path, trajectory.break_even or 0, logits)
    _plot_norms(norms, path.steps, path)
    norms.set(title="feature norm", ylim=(0, 1.05 * max(path.norm.max(), path.mean_norm.max())))
    style.legend_above(norms, 2)
    style.whole_steps(norms)
    for axes in (logits, norms):
        axes.set_xlabel(style.step_label(trajectory))
        style.mark_break_even(axes, trajectory.break_even)


def _title(trajectory: Trajectory, probe: str) -> str:
    return style.about(f"{_described(probe)} passed through the network", {probe: trajectory})


def _described(probe: str) -> str:
    return "An image of grass" if probe == "grass" else f"A block of {probe.replace('_', ' ')}"


def _draw_input(figure: Figure, place: SubplotSpec, trajectory: Trajectory, path: ProbePath) -> None:
    """The picture above the colours of the classes."""
    inner = GridSpecFromSubplotSpec(2, 1, place, height_ratios=[1, 1.15])
    picture, legend = figure.add_subplot(inner[0]), figure.add_subplot(inner[1])
    _show(picture, path.picture, "input")
    names = trajectory.dataset.class_names
    legend.axis("off")
    for look, name in zip(style.class_looks(len(names)), names, strict=True):
        legend.plot([], [], **look, linewidth=1.6, label=name)
    legend.legend(loc="center", fontsize=7, labelspacing=0.25, handlelength=2.4)


def _show(axes: Axes, picture: np.ndarray, title: str) -> None:
    style.framed(axes, picture, style.MUTED)
    axes.set_title(title, fontsize=9)


def _draw_logits(axes: Axes, positions: np.ndarray, path: ProbePath, title: str) -> None:
    for label, look in enumerate(style.class_looks(path.logits.shape[1])):
        axes.plot(positions, path.logits[:, label], **look, linewidth=0.8)
    axes.set_title(title)


def _draw_probabilities(
    figure: Figure, place: SubplotSpec, trajectory: Trajectory, path: ProbePath, first: int, logits: Axes
) -> None:
    """At four successive steps, the middle two those of `ProbePath.shown_step`; marked in ``logits``."""
    step = path.shown_step(first)
    if step is None:
        axes = figure.add_subplot(place)
        axes.axis("off")
        axes.set_title("probabilities: no four successive steps measured", fontsize=8)
        return
    logits.axvspan(step - 1, step + 2, color="#dcdfe4", zorder=0)
    inner = GridSpecFromSubplotSpec(2, 2, place)
    names = trajectory.dataset.class_names
    looks = style.class_looks(path.logits.shape[1])
    row = int(np.searchsorted(path.steps, step))
    for number in range(4):
        axes = figure.add_subplot(inner[number])
        chosen = number in (1, 2)
        bars = axes.bar(
            np.arange(len(looks)), path.probabilities[row - 1 + number], color=[look["color"] for look in looks]
        )
        for bar, look in zip(bars, looks, strict=True):
            bar.set_alpha(1 if look["linestyle"] == "-" else 0.55)  # as the lines of that colour: solid and dashed
        axes.set_title(f"step {step - 1 + number}", fontsize=8, fontweight="bold" if chosen else "normal")
        axes.set(ylim=(0, 1), yticks=[0, 0.5, 1])
        if number >= 2:
            axes.set_xticks(np.arange(len(looks)), names, rotation=90, fontsize=6)
        else:
            axes.set_xticks([])
        if number % 2:
            axes.tick_params(labelleft=False)
        else:
            axes.set_ylabel("probability", fontsize=8)


def _plot_norms(axes: Axes, positions: np.ndarray, path: ProbePath, **look: Any) -> None:
    axes.plot(positions, path.norm, color=_INPUT, label="input", **look)
    axes.plot(positions, path.mean_norm, color=_MEAN, linestyle="--", label="mean over the training data", **look)


# -- figures 22 to 27 -------------------------------------------------------------------------------------------------


def probe_under_flow(trajectories: Mapping[str, Trajectory], probe: str, flow: str, descent: str) -> Figure:
    """The input, its class logits under gradient flow and under gradient descent, and both norms, over time Σ η.

    Args:
        trajectories: The two runs; one that failed is left out.
        probe: Which of their probes.
        flow: Name of the run under gradient flow.
        descent: Name of the run under gradient descent, whose break-even is marked.
    """
    shown = [name for name in (flow, descent) if name in trajectories]
    paths = {name: probe_path(trajectories[name], probe) for name in shown}
    first = trajectories[shown[0]]
    figure = style.figure(13, 4.1, _title(first, probe) + ", gradient flow and gradient descent")
    grid = figure.add_gridspec(1, 4, width_ratios=[0.62, 1.3, 1.3, 1.5])
    _draw_input(figure, grid[0], first, paths[shown[0]])
    norms = figure.add_subplot(grid[3])
    panels: list[Axes] = []
    for name, title, colour in ((flow, "gradient flow", _OTHER), (descent, "gradient descent", _INPUT)):
        if name not in paths:
            continue
        path, elapsed = paths[name], times(trajectories[name], paths[name].steps)
        axes = figure.add_subplot(grid[1 + len(panels)], sharey=panels[0] if panels else None)
        _draw_logits(axes, elapsed, path, f"class logits, {title}")
        rule = title.rpartition(" ")[2]
        norms.plot(elapsed, path.norm, color=colour, label=f"input, {rule}")
        norms.plot(elapsed, path.mean_norm, color=colour, linewidth=0.9, linestyle="--", label=f"data, {rule}")
        panels.append(axes)
    norms.set(title="feature norm", ylim=(0, None))
    style.legend_above(norms, 2)
    break_even = trajectories[descent].break_even if descent in trajectories else None
    for axes in (*panels, norms):
        axes.set_xlabel("time Σ η" if break_even is None else "time Σ η (dotted: break-even of descent)")
        if break_even is not None:
            axes.axvline(break_even * trajectories[descent].step_size, color=style.MUTED, linewidth=0.8, linestyle=":")
    return figure


# -- figures 28 to 31 -------------------------------------------------------------------------------------------------


def probe_under_adam(trajectories: Mapping[str, Trajectory], probe: str, adam: str, descent: str) -> Figure:
    """As `block_probe`, and the norm over its peak against the train loss, for Adam and gradient descent.

    Args:
        trajectories: The two runs; one that failed is left out.
        probe: Which of their probes.
        adam: Name of the run under Adam.
        descent: Name of the run under gradient descent.
    """
    if adam not in trajectories:
        return block_probe({descent: trajectories[descent]}, probe)
    trajectory = trajectories[adam]
    path = probe_path(trajectory, probe)
    figure = style.figure(15, 4.2, _title(trajectory, probe))
    grid = figure.add_gridspec(1, 5, width_ratios=[0.62, 1.5, 1.35, 1.2, 1.2])
    _draw_panels(figure, grid, trajectory, path)
    right = GridSpecFromSubplotSpec(2, 1, grid[4])
    alternation, decline = figure.add_subplot(right[0]), figure.add_subplot(right[1])
    style.draw(alternation, path.alternation, color=_INPUT, linewidth=0.8)
    alternation.set(title="alternating change of probabilities", xlabel="step", ylim=(0, None))
    _draw_decline(decline, trajectories, probe, {adam: _INPUT, descent: _OTHER})
    return figure


def _draw_decline(axes: Axes, trajectories: Mapping[str, Trajectory], probe: str, colours: Mapping[str, str]) -> None:
    """Norm over its peak so far against the smallest train loss so far; dotted the smallest that both runs reach."""
    for (name, colour), line in zip(colours.items(), style.LINES, strict=False):
        if name not in trajectories:
            continue
        path, losses = probe_path(trajectories[name], probe), trajectories[name].record[TRAIN_LOSS]
        lowest = np.minimum.accumulate(losses.values)
        rows = np.isin(path.steps, losses.steps)
        rows[-1] = False  # the level is a mean over two steps
        values = (path.level / np.maximum.accumulate(path.level))[rows[:-1]]
        axes.plot(
            lowest[np.isin(losses.steps, path.steps[rows])],
            values,
            color=colour,
            linestyle=line,
            linewidth=0.9,
            label=name,
        )
    present = [trajectories[name] for name in colours if name in trajectories]
    if len(present) == 2:
        axes.axvline(common_loss(*present), color=style.MUTED, linewidth=0.8, linestyle=":")
    axes.set(title="norm over its peak so far", xlabel="lowest train loss so far", ylim=(0, 1.05), xscale="log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 3), numticks=20))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda loss, _: f"{loss:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.invert_xaxis()
    style.legend_above(axes, 2)


# -- the family -------------------------------------------------------------------------------------------------------


def probe_family(trajectories: Mapping[str, Trajectory], probes: Sequence[str]) -> Figure:
    """Feature norm of every colour block beside the mean over the data, with rise, oscillation and decline as numbers.

    Args:
        trajectories: A row a run.
        probes: A column a block.
    """
    title = style.about("Colour blocks: rise, oscillation and decline of the feature norm", trajectories)
    figure = style.figure(2.7 * len(probes) + 2, 0.9 + 2.5 * len(trajectories), title)
    panels = figure.subplots(len(trajectories), len(probes), sharex="row", squeeze=False)
    for row, (name, trajectory) in zip(panels, trajectories.items(), strict=True):
        for axes, probe in zip(row, probes, strict=True):
            path = probe_path(trajectory, probe)
            _plot_norms(axes, path.steps, path, linewidth=0.9)
            axes.set_ylim(0, 1.5 * max(path.norm.max(), path.mean_norm.max()))
            style.mark_break_even(axes, trajectory.break_even)
            axes.set_title(_pattern(path, trajectory.break_even), fontsize=8)
            inset = axes.inset_axes((0.8, 0.76, 0.18, 0.22))
            _show(inset, path.picture, "")
        row[0].set_ylabel(f"{name}: feature norm")
    for axes, probe in zip(panels[0], probes, strict=True):
        axes.set_title(f"{probe.replace('_', ' ')}\n{axes.get_title(loc='left')}", fontsize=8)
    for axes in panels[-1]:
        axes.set_xlabel("step (dotted: break-even)")
    style.legend_beside(figure, panels[0, 0])
    return figure


def _pattern(path: ProbePath, break_even: int | None) -> str:
    oscillation = "-"
    if break_even is not None:
        oscillation = f"{lag_one_autocorrelation(path.successive_changes(break_even)):.2f}"
    return (
        f"over mean {path.growth_over_mean:.2f}, lag-1 {oscillation}\n"
        f"peak/start {path.rise:.2f}, end/peak {path.remainder:.2f}"
    )


# -- figure 12 --------------------------------------------------------------------------------------------------------


def colour_neighbours(trajectories: Mapping[str, Trajectory]) -> Figure:
    """Blocks of colours and the training images whose pixels are nearest to them, with class and distance.

    Args:
        trajectories: One run of `opposing_signals.studies.probes.measure.colour_neighbours`.
    """
    (trajectory,) = trajectories.values()
    names = trajectory.configuration["neighbours"]["colours"]
    colours, neighbours, distances = (
        trajectory.record[quantity].values for quantity in ("colour", "neighbour", NEIGHBOUR_DISTANCE)
    )
    dataset = trajectory.dataset
    assert dataset.images is not None
    count = neighbours.shape[1]
    data = trajectory.record.provenance["data"]["name"]
    title = f"Training images nearest to a colour, by mean distance in RGB: {data}"
    figure = style.figure(1.15 * (count + 1), 0.5 + 1.6 * len(names), title)
    panels = figure.subplots(len(names), count + 1, squeeze=False)
    for row, name, colour, indices, apart in zip(panels, names, colours, neighbours, distances, strict=True):
        block = np.broadcast_to(colour, dataset.images.shape[1:])
        _show(row[0], block, f"{name.replace('_', ' ')}\n{tuple(colour.tolist())}")
        for axes, index, distance in zip(row[1:], indices, apart, strict=True):
            _show(axes, dataset.images[index], f"{dataset.class_names[int(dataset.targets[index])]}\n{distance:.0f}")
        for axes in row:
            axes.title.set_fontsize(7)
    return figure
