"""Figure 1: the losses of opposing groups beside the overall loss."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpecFromSubplotSpec, SubplotSpec
from matplotlib.ticker import MaxNLocator

from opposing_signals.data import Dataset
from opposing_signals.signals import OpposingPair, Trajectory
from opposing_signals.studies import style

SMALLEST = 32
"""Pixels of an image's height on a sheet, at the least."""


def group_losses(trajectories: Mapping[str, Trajectory], thumbnails: int = 10, zoom: int = 30) -> Figure:
    """Overall train loss, sharpness, and the mean loss of each group of the found pairs, with sample images.

    Args:
        trajectories: One run.
        thumbnails: Images shown a group.
        zoom: Steps shown around each pair's selecting step.
    """
    (trajectory,) = trajectories.values()
    pairs = trajectory.pairs
    run, data = trajectory.configuration["run"]["name"], trajectory.record.provenance["data"]["name"]
    title = f"Outliers with opposing signals: {run}, {data}, η = {trajectory.step_size:g}"
    figure = style.figure(12, 9 if pairs else 4.6, title)
    grid = figure.add_gridspec(2 if pairs else 1, 1, height_ratios=[1.15, 1] if pairs else None)
    upper = GridSpecFromSubplotSpec(2, 1, grid[0], height_ratios=[2.2, 1], hspace=0.05)
    overview = figure.add_subplot(upper[0])
    sharpness = figure.add_subplot(upper[1], sharex=overview)
    _draw_overview(overview, trajectory)
    _draw_sharpness(sharpness, trajectory)
    if pairs:
        columns = GridSpecFromSubplotSpec(1, len(pairs), grid[1], wspace=0.12)
        for number, pair in enumerate(pairs):
            _draw_pair(figure, columns[number], trajectory, pair, number, thumbnails, zoom)
    return figure


def _draw_overview(axes: Axes, trajectory: Trajectory) -> None:
    losses = trajectory.losses
    for number, pair in enumerate(trajectory.pairs):
        rows = _losses_of(trajectory, *pair.window)
        for group, colour, name in zip(pair.groups, style.PAIRS[number % 4], "ab", strict=True):
            axes.plot(
                losses.steps[rows],
                losses.values[rows][:, group].mean(1),
                color=colour,
                label=f"pair {number + 1}{name}",
            )
    axes.plot(trajectory.mean_loss.steps, trajectory.mean_loss.values, color=style.INK, linewidth=2, label="train loss")
    style.mark_break_even(axes, trajectory.break_even)
    axes.set_ylabel("loss")
    axes.tick_params(labelbottom=False)
    axes.legend(ncols=2 * len(trajectory.pairs) + 1, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0)


def _losses_of(trajectory: Trajectory, start: int, stop: int) -> slice:
    """Rows of the losses from which the rows ``start`` to ``stop`` - 1 of the changes come."""
    steps = trajectory.changes.steps[[start, min(stop, len(trajectory.changes)) - 1]]
    first, last = np.searchsorted(trajectory.losses.steps, steps)
    return slice(int(first), int(last) + 2)


def _draw_sharpness(axes: Axes, trajectory: Trajectory) -> None:
    if "sharpness" in trajectory.record:
        measured = trajectory.sharpness
        axes.plot(measured.steps, measured.values, color=style.INK, marker="o", markersize=2.5, linewidth=0.9)
        style.shade_bound(axes, trajectory.record)
        threshold = 2 / trajectory.step_size
        axes.axhline(threshold, color=style.MUTED, linestyle="--", linewidth=0.9)
        axes.annotate(
            "2/η", (1, threshold), xycoords=("axes fraction", "data"), xytext=(4, -3), textcoords="offset points"
        )
        axes.set_ylim(0, 1.1 * max(float(np.nanmax(measured.values)), threshold))
    style.mark_break_even(axes, trajectory.break_even)
    axes.set_ylabel("sharpness λ")
    axes.set_xlabel(
        "step" if trajectory.break_even is None else f"step (dotted: break-even at {trajectory.break_even})"
    )


def _draw_pair(
    figure: Figure,
    place: SubplotSpec,
    trajectory: Trajectory,
    pair: OpposingPair,
    number: int,
    thumbnails: int,
    zoom: int,
) -> None:
    """One column: the pair's losses around its selecting step above the images of its two groups."""
    dataset = trajectory.dataset
    has_images = dataset.images is not None
    inner = GridSpecFromSubplotSpec(3 if has_images else 1, 1, place, height_ratios=[1.5, 1, 1] if has_images else None)
    axes = figure.add_subplot(inner[0])
    centre = pair.change
    rows = _losses_of(trajectory, max(pair.window[0], centre - zoom // 2), min(pair.window[1], centre + zoom // 2))
    colours = style.PAIRS[number % 4]
    losses = trajectory.losses
    for group, colour in zip(pair.groups, colours, strict=True):
        axes.plot(losses.steps[rows], losses.values[rows][:, group].mean(1), color=colour, marker="o", markersize=2.5)
    axes.plot(losses.steps[rows], losses.values[rows].mean(1), color=style.INK, linewidth=1.8)
    axes.set_title(f"pair {number + 1}: correlation {pair.correlation:.2f}", color=colours[0])
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if has_images:
        for row, (group, colour) in enumerate(zip(pair.groups, colours, strict=True)):
            draw_images(
                figure.add_subplot(inner[row + 1]), dataset, group, colour, f"{number + 1}{'ab'[row]}", thumbnails
            )


def draw_images(
    axes: Axes, dataset: Dataset, group: np.ndarray, colour: str, name: str, count: int, rows: int = 2
) -> None:
    """The first ``count`` images of a group in ``rows`` rows, framed, under its name and classes."""
    assert dataset.images is not None
    shown = dataset.images[group[:count]]
    larger = max(1, SMALLEST // shown.shape[1])  # so that the lines between small images stay thin
    shown = shown.repeat(larger, 1).repeat(larger, 2)
    height, width = shown.shape[1:3]
    columns = -(-count // rows)
    sheet = np.full((rows * (height + 2), columns * (width + 2), 3), 255, np.uint8)
    for i, image in enumerate(shown):
        top, left = i // columns * (height + 2), i % columns * (width + 2)
        sheet[top : top + height, left : left + width] = image
    axes.imshow(sheet, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(visible=True, color=colour, linewidth=2)
    axes.set_title(f"{name}: {classes(dataset, group)}", fontsize=8)


def classes(dataset: Dataset, group: np.ndarray) -> str:
    """For instance "12 airplane, 5 ship, 3 other"."""
    counts = Counter(dataset.class_names[int(target)] for target in dataset.targets[group]).most_common()
    shown = [f"{count} {name}" for name, count in counts[:3]]
    rest = sum(count for _, count in counts[3:])
    return ", ".join(shown + ([f"{rest} other"] if rest else []))
