"""Figures 5 and 10 to 31: a pure signal passed through the network along a run, and the images nearest to a colour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec, GridSpecFromSubplotSpec, SubplotSpec
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

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
_REST: dict[str, Any] = {"color": "#c3c7cd", "linewidth": 0.6, "zorder": 1}
"""Look of the classes that do not lead."""


# -- figures 5, 10, 11, 13 to 21 --------------------------------------------------------------------------------------


def block_probe(trajectories: Mapping[str, Trajectory], probe: str) -> Figure:
    """The input, its class logits, its class probabilities where the dominant class changes, and its feature norm.

    The probabilities are shown around `ProbePath.shown_step`, chosen from break-even on (for rules other than gradient
    descent from the start): θ before and after that step in bold, and one more step on either side.

    Args:
        probe: Name of one of the run's probes.
    """
    (trajectory,) = trajectories.values()
    path = probe_path(trajectory, probe)
    figure = style.figure(13, 3.9, _title(trajectory, probe))
    grid = figure.add_gridspec(1, 4, width_ratios=[0.62, 1.5, 1.35, 1.25])
    _draw_panels(figure, grid, trajectory, path)
    return figure


def _draw_panels(figure: Figure, grid: GridSpec, trajectory: Trajectory, path: ProbePath) -> None:
    """Input, logits, probabilities and feature norm in the first four places."""
    first = trajectory.break_even or 0
    looks = _class_looks(path, first, path.shown_step(first))
    _draw_input(figure, grid[0], trajectory, path, looks)
    logits = figure.add_subplot(grid[1])
    _draw_classes(logits, path.steps, path.logits, looks, "class logits")
    _draw_probabilities(figure, grid[2], trajectory, path, path.shown_step(first), looks, logits)
    _label_steps(trajectory, logits, _draw_norms(figure, grid[3], path))


def _class_looks(path: ProbePath, first: int, shown: int | None = None, leading: int = 3) -> list[dict[str, Any]]:
    """Look of each class: a colour for the leading ones, grey for the others.

    A class leads if it dominates before or after the ``shown`` step, or by mean probability from ``first`` on.
    """
    rows = np.searchsorted(path.steps, [] if shown is None else [shown, shown + 1])
    by_mean = np.argsort(-path.probabilities[path.steps >= first].mean(0))
    leaders = list(dict.fromkeys([*path.logits[rows].argmax(1).tolist(), *by_mean.tolist()]))[:leading]
    looks = [dict(_REST) for _ in by_mean]
    for rank, label in enumerate(leaders):
        looks[label] = {"color": style.RUNS[rank], "linewidth": 1.1, "zorder": 3 - 0.1 * rank}
    return looks


def _draw_norms(figure: Figure, place: SubplotSpec, path: ProbePath) -> Axes:
    axes = figure.add_subplot(place)
    _plot_norms(axes, path.steps, path)
    between = (path.steps[1:] + path.steps[:-1]) / 2
    axes.plot(between, path.course, color=style.INK, linewidth=1.4, label="smoothed, as claims read it")
    axes.set(title="feature norm", ylim=(0, 1.05 * max(path.norm.max(), path.mean_norm.max())))
    style.legend_above(axes, 2)
    return axes


def _label_steps(trajectory: Trajectory, *panels: Axes) -> None:
    for axes in panels:
        style.whole_steps(axes)
        axes.set_xlabel(style.step_label(trajectory))
        style.mark_break_even(axes, trajectory.break_even)


def _title(trajectory: Trajectory, probe: str) -> str:
    return style.about(f"{_described(probe)} passed through the network", {probe: trajectory})


def _described(probe: str) -> str:
    return "An image of grass" if probe == "grass" else f"A block of {probe.replace('_', ' ')}"


def _draw_input(
    figure: Figure, place: SubplotSpec, trajectory: Trajectory, path: ProbePath, looks: Sequence[dict[str, Any]]
) -> None:
    """The picture, above the colours of the leading classes."""
    inner = GridSpecFromSubplotSpec(2, 1, place, height_ratios=[1, 0.7])
    picture, legend = figure.add_subplot(inner[0]), figure.add_subplot(inner[1])
    _show(picture, path.picture, "input")
    legend.axis("off")
    for look, name in zip(looks, trajectory.dataset.class_names, strict=True):
        if look["color"] != _REST["color"]:
            legend.plot([], [], **look, label=name)
    if any(look["color"] == _REST["color"] for look in looks):
        legend.plot([], [], **_REST, label="other classes")
    legend.legend(loc="upper center", handlelength=1.5)


def _show(axes: Axes, picture: np.ndarray, title: str) -> None:
    style.framed(axes, picture, style.MUTED)
    axes.set_title(title, fontsize=9)


def _draw_classes(
    axes: Axes, positions: np.ndarray, values: np.ndarray, looks: Sequence[dict[str, Any]], title: str
) -> None:
    """A line for each column of ``values`` ``[T, C]``."""
    for column, look in zip(values.T, looks, strict=True):
        axes.plot(positions, column, **look)
    axes.set_title(title)


def _draw_probabilities(
    figure: Figure,
    place: SubplotSpec,
    trajectory: Trajectory,
    path: ProbePath,
    step: int | None,
    looks: Sequence[dict[str, Any]],
    logits: Axes,
) -> None:
    """At four successive steps, the middle two around `ProbePath.shown_step`, which is marked in ``logits``."""
    if step is None:
        axes = figure.add_subplot(place)
        axes.axis("off")
        axes.set_title("probabilities: no four successive steps measured", fontsize=8)
        return
    logits.axvspan(step - 1, step + 2, color="#dcdfe4", zorder=0)
    inner = GridSpecFromSubplotSpec(2, 2, place)
    names = trajectory.dataset.class_names
    row = int(np.searchsorted(path.steps, step))
    for number in range(4):
        axes = figure.add_subplot(inner[number])
        chosen = number in (1, 2)
        heights = path.probabilities[row - 1 + number]
        axes.bar(np.arange(len(looks)), heights, color=[look["color"] for look in looks])
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
    """The input, its class logits under gradient flow and gradient descent, and both norms, over time Σ η.

    Args:
        trajectories: The two runs; one that failed is left out.
        probe: The probe.
        flow: Name of the run under gradient flow.
        descent: Name of the run under gradient descent, whose break-even is marked.
    """
    shown = [name for name in (flow, descent) if name in trajectories]
    paths = {name: probe_path(trajectories[name], probe) for name in shown}
    last = trajectories[shown[-1]]
    figure = style.figure(13, 4.1, _title(last, probe) + ", gradient flow and gradient descent")
    grid = figure.add_gridspec(1, 4, width_ratios=[0.62, 1.3, 1.3, 1.5])
    looks = _class_looks(paths[shown[-1]], last.break_even or 0)
    _draw_input(figure, grid[0], last, paths[shown[-1]], looks)
    norms = figure.add_subplot(grid[3])
    panels: list[Axes] = []
    for name, title, colour in ((flow, "gradient flow", _OTHER), (descent, "gradient descent", _INPUT)):
        if name not in paths:
            continue
        path, elapsed = paths[name], times(trajectories[name], paths[name].steps)
        axes = figure.add_subplot(grid[1 + len(panels)], sharey=panels[0] if panels else None)
        _draw_classes(axes, elapsed, path.logits, looks, f"class logits, {title}")
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
    """The input, its logits, probabilities and norm under Adam, and the norm relative to its peak at equal loss.

    The norm under gradient descent is drawn in the same panel.

    Args:
        trajectories: The two runs; one that failed is left out.
        probe: The probe.
        adam: Name of the run under Adam.
        descent: Name of the run under gradient descent.
    """
    if adam not in trajectories:
        return block_probe({descent: trajectories[descent]}, probe)
    trajectory = trajectories[adam]
    path = probe_path(trajectory, probe)
    figure = style.figure(16, 4.2, _title(trajectory, probe))
    grid = figure.add_gridspec(1, 5, width_ratios=[0.62, 1.3, 1.3, 1.3, 1.3])
    looks = _class_looks(path, 0)
    _draw_input(figure, grid[0], trajectory, path, looks)
    logits = figure.add_subplot(grid[1])
    _draw_classes(logits, path.steps, path.logits, looks, "class logits")
    middle, right = (GridSpecFromSubplotSpec(2, 1, grid[column]) for column in (2, 4))
    probabilities, alternation, decline = (figure.add_subplot(place) for place in (middle[0], middle[1], right[1]))
    _draw_classes(probabilities, path.steps, path.probabilities, looks, "class probabilities")
    style.draw(alternation, path.alternation, color=_INPUT, linewidth=0.8)
    alternation.set(title="alternating change of probabilities", ylim=(0, None))
    norms = figure.add_subplot(grid[3])
    _plot_norms(norms, path.steps, path)
    norms.set(title="feature norm under Adam", ylim=(0, None))
    compared = figure.add_subplot(right[0])
    colours = {adam: _INPUT, descent: _OTHER}
    for (name, colour), line, rule in zip(colours.items(), style.LINES, _RULES, strict=False):
        if name in trajectories:
            other = probe_path(trajectories[name], probe)
            compared.plot(other.steps, other.norm, color=colour, linestyle=line, linewidth=0.9, label=rule)
    compared.set(title="feature norm of the input", ylim=(0, None))
    style.legend_above(norms, 1)
    style.legend_above(compared, 2)
    _label_steps(trajectory, logits, probabilities, alternation, norms, compared)
    _draw_decline(decline, trajectories, probe, colours)
    return figure


_RULES = ("Adam", "gradient descent")


def _draw_decline(axes: Axes, trajectories: Mapping[str, Trajectory], probe: str, colours: Mapping[str, str]) -> None:
    """Norm over its peak so far against the smallest train loss so far; dotted: the smallest that both runs reach."""
    for (name, colour), line, rule in zip(colours.items(), style.LINES, _RULES, strict=False):
        if name not in trajectories:
            continue
        path, losses = probe_path(trajectories[name], probe), trajectories[name].record[TRAIN_LOSS]
        lowest = np.minimum.accumulate(losses.values)
        rows = np.isin(path.steps, losses.steps)
        rows[-1] = False  # the level averages two steps, so the last has none
        axes.plot(
            lowest[np.isin(losses.steps, path.steps[rows])],
            (path.level / np.maximum.accumulate(path.level))[rows[:-1]],
            **{"color": colour, "linestyle": line, "linewidth": 0.9, "label": rule},
        )
    present = [trajectories[name] for name in colours if name in trajectories]
    if len(present) == 2:
        axes.axvline(common_loss(*present), color=style.MUTED, linewidth=0.8, linestyle=":")
    label = "lowest train loss so far" + ("\n(dotted: reached by both)" if len(present) == 2 else "")
    axes.set(title="norm over its peak so far", xlabel=label, ylim=(0, 1.05), xscale="log")
    axes.xaxis.set_major_locator(LogLocator(numticks=20))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda loss, _: f"{loss:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.invert_xaxis()


# -- the family -------------------------------------------------------------------------------------------------------


def probe_family(trajectories: Mapping[str, Trajectory], probes: Sequence[str]) -> Figure:
    """Feature norm of every colour block and its mean over the data, with rise, oscillation and decline as numbers.

    Oscillation is that of the probability of the block's class, which is not drawn.

    Args:
        trajectories: One run per row.
        probes: One block per column.
    """
    title = style.about("Colour blocks: rise, oscillation and decline of the feature norm", trajectories)
    figure = style.figure(3 * len(probes), 0.9 + 2.5 * len(trajectories), title)
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
    panels[0, 0].legend(loc="upper left", fontsize=7, borderaxespad=0)  # above the curves, which end at two thirds
    return figure


def _pattern(path: ProbePath, break_even: int | None) -> str:
    oscillation = "-"
    if break_even is not None:
        oscillation = f"{lag_one_autocorrelation(path.successive_changes(break_even)):.2f}"
    return (
        f"rises {path.rise:.2f}-fold ({path.growth_over_mean:.2f} times the data's rise)\n"
        f"end/peak {path.remainder:.2f}; probability\nof its class: lag-1 correlation {oscillation}"
    )


# -- figure 12 --------------------------------------------------------------------------------------------------------


def colour_neighbours(trajectories: Mapping[str, Trajectory]) -> Figure:
    """Blocks of colour and the training images whose pixels are closest to them, with class and distance.

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
