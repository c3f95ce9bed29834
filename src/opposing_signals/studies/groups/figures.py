"""Figure 1: the losses of opposing groups beside the overall loss."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpecFromSubplotSpec, SubplotSpec

from opposing_signals.data import Dataset
from opposing_signals.record.quantities import SHARPNESS
from opposing_signals.signals import OpposingPair, Trajectory, name_pair
from opposing_signals.studies import style

SMALLEST = 32
"""The least height of an image on a sheet, in pixels."""


def group_losses(trajectories: Mapping[str, Trajectory], thumbnails: int = 10, zoom: int = 30) -> Figure:
    """Overall train loss, sharpness, and the mean loss of each group of the found pairs, with sample images.

    Args:
        thumbnails: Images shown a group.
        zoom: Steps shown around each pair's selecting step.
    """
    (trajectory,) = trajectories.values()
    pairs = trajectory.pairs_in_time
    strips = max(1, len(pairs))
    title = style.about("Losses of opposing groups", trajectories)
    figure = style.figure(12, 2 + 1.15 * strips + 4.4 * bool(pairs), title)
    grid = figure.add_gridspec(2 if pairs else 1, 1, height_ratios=[1.2 + 1.15 * strips, 4.2] if pairs else None)
    upper = GridSpecFromSubplotSpec(strips + 1, 1, grid[0], hspace=0.08)
    first: Axes | None = None
    for number in range(strips):
        strip = figure.add_subplot(upper[number], sharex=first)
        first = first or strip
        _draw_strip(strip, trajectory, pairs[number] if pairs else None, number)
    _draw_sharpness(figure.add_subplot(upper[strips], sharex=first), trajectory)
    if pairs:
        columns = GridSpecFromSubplotSpec(1, len(pairs), grid[1], wspace=0.12)
        for number, pair in enumerate(pairs):
            _draw_pair(figure, columns[number], trajectory, pair, number, thumbnails, zoom)
    return figure


def _draw_strip(axes: Axes, trajectory: Trajectory, pair: OpposingPair | None, number: int) -> None:
    """The losses of a pair's groups where it is active, beside the train loss of the whole run."""
    style.draw(axes, trajectory.mean_loss, color=style.INK, linewidth=1.6, label="train loss")
    if pair is not None:
        style.draw_groups(axes, trajectory, pair, number)
    style.mark_break_even(axes, trajectory.break_even)
    axes.set_ylabel("loss" if pair is None else f"loss, pair {number + 1}")
    axes.tick_params(labelbottom=False)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))


def _draw_sharpness(axes: Axes, trajectory: Trajectory) -> None:
    if SHARPNESS in trajectory.record:
        style.draw_sharpness(axes, trajectory, trajectory.edge, marker="o", markersize=2.5, linewidth=0.9)
        axes.set_ylim(0, 1.1 * max(float(np.nanmax(trajectory.sharpness.values)), trajectory.edge or 0.0))
    style.mark_break_even(axes, trajectory.break_even)
    axes.set(xlabel=style.step_label(trajectory), ylabel="sharpness λ")


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
    steps, values = trajectory.losses_between(
        max(pair.window[0], pair.step - zoom // 2), min(pair.window[1], pair.step + zoom // 2) + 1
    )
    colours = style.PAIRS[number % 4]
    style.draw_close(axes, steps, values, pair.groups, style.pair_looks(number))
    axes.plot(*style.broken(steps, values.mean(1)), color=style.INK, linewidth=1.8)
    title = style.wrapped(f"pair {number + 1}: {name_pair(dataset, pair)}", 32)
    axes.set_title(f"{title}\ncorrelation {pair.correlation:.2f}", color=colours[0], fontsize=9)
    axes.set_xlabel("step")
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
    style.framed(axes, sheet, colour, 2)
    axes.set_title(style.wrapped(f"{name}: {classes(dataset, group)}", 34), fontsize=8)


def classes(dataset: Dataset, group: np.ndarray) -> str:
    """For instance "12 airplane, 5 ship, 3 other"."""
    counts = Counter(dataset.class_names[int(target)] for target in dataset.targets[group]).most_common()
    shown = [f"{count} {name}" for name, count in counts[:3]]
    rest = sum(count for _, count in counts[3:])
    return ", ".join(shown + ([f"{rest} other"] if rest else []))
