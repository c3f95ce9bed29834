"""Figure 1: the losses of opposing groups beside the overall loss."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpecFromSubplotSpec, SubplotSpec

from opposing_signals.data import Dataset
from opposing_signals.record.quantities import SHARPNESS, SHARPNESS_BOUND
from opposing_signals.signals import OpposingPair, Trajectory, name_pair
from opposing_signals.studies import style

SMALLEST = 32
"""Minimum height of an image on a sheet, in pixels."""


def group_losses(trajectories: Mapping[str, Trajectory], thumbnails: int = 10, zoom: int = 30) -> Figure:
    """Overall train loss, sharpness, and the mean loss of each group of the found pairs, with sample images.

    Below, all pairs are shown around the same step: a spike of the train loss.

    Args:
        thumbnails: Images shown per group.
        zoom: Steps shown around the spike.
    """
    (trajectory,) = trajectories.values()
    pairs = trajectory.pairs_in_time
    strips = max(1, len(pairs))
    title = style.about("Losses of opposing groups", trajectories)
    figure = style.figure(12, 2 + 1.15 * strips + 5.2 * bool(pairs), title)
    grid = figure.add_gridspec(2 if pairs else 1, 1, height_ratios=[1.2 + 1.15 * strips, 5] if pairs else None)
    upper = GridSpecFromSubplotSpec(strips + 1, 1, grid[0], hspace=0.08)
    spike = spike_of(trajectory, pairs)
    window = max(0, spike - zoom // 2), spike + zoom // 2
    first: Axes | None = None
    for number in range(strips):
        strip = figure.add_subplot(upper[number], sharex=first)
        first = first or strip
        _draw_strip(strip, trajectory, pairs[number] if pairs else None, number)
        if pairs:
            strip.axvspan(*window, color=style.GREY, zorder=0)
    _draw_sharpness(figure.add_subplot(upper[strips], sharex=first), trajectory)
    if pairs:
        columns = GridSpecFromSubplotSpec(1, len(pairs), grid[1], wspace=0.12)
        for number, pair in enumerate(pairs):
            place = GridSpecFromSubplotSpec(2, 1, columns[number], height_ratios=[1.5, 2], hspace=0.05)
            axes = figure.add_subplot(place[0])
            draw_pair(axes, trajectory, pair, number, *window)
            axes.axvline(spike, color=style.INK, linestyle="--", linewidth=0.8)
            title = style.wrapped(f"pair {number + 1}: {name_pair(trajectory.dataset, pair)}", 32)
            axes.set_title(f"{title}\n{_correlation(pair)}", color=style.PAIRS[number % 4][0], fontsize=9)
            axes.set(xlabel=f"step (dashed: the train loss peaks at {spike})", ylabel="" if number else "loss")
            draw_members(figure, place[1], trajectory.dataset, pair, number, thumbnails)
    return figure


def spike_of(trajectory: Trajectory, pairs: Sequence[OpposingPair]) -> int:
    """The step of the most prominent peak of the train loss, among the steps at which the most pairs are active.

    Without any peak, the selecting step of the first pair, or the middle of the run.
    """
    losses = trajectory.mean_loss
    peaks, described = scipy.signal.find_peaks(losses.values, prominence=0)
    steps = np.asarray(losses.steps)[peaks]
    if not len(peaks):
        return pairs[0].step if pairs else int(losses.steps[len(losses) // 2])
    active = sum(((pair.window[0] <= steps) & (steps <= pair.window[1] + 1) for pair in pairs), np.zeros(len(steps)))
    return int(steps[np.lexsort((described["prominences"], active))[-1]])


def _draw_strip(axes: Axes, trajectory: Trajectory, pair: OpposingPair | None, number: int) -> None:
    """The losses of a pair's groups where it is active, beside the train loss of the whole run."""
    style.draw(axes, trajectory.mean_loss, color=style.INK, linewidth=1.6, label="train loss")
    if pair is not None:
        for group, look, letter in zip(pair.groups, style.pair_looks(number), "ab", strict=True):
            loss = trajectory.group_loss(group, pair.window[0], pair.window[1] + 1)
            style.draw(axes, loss, **look, linewidth=0.8, label=f"{number + 1}{letter}")
        random = _random_points(trajectory, pair, number)
        look = {"color": style.MUTED, "linewidth": 0.8, "label": f"{len(random)} random"}
        style.draw(axes, trajectory.group_loss(random), **look)
    style.mark_break_even(axes, trajectory.break_even)
    axes.set_ylabel("loss" if pair is None else f"loss, pair {number + 1}")
    axes.tick_params(labelbottom=False)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))


def _draw_sharpness(axes: Axes, trajectory: Trajectory) -> None:
    if SHARPNESS in trajectory.record:
        style.draw_sharpness(axes, trajectory, trajectory.edge, marker="o", markersize=2.5, linewidth=0.9)
        top = 1.1 * max(float(np.nanmax(trajectory.sharpness.values)), trajectory.edge or 0.0)
        axes.set_ylim(0, top)
        legend = axes.legend(loc="center left", bbox_to_anchor=(1, 0.75))
        if SHARPNESS_BOUND in trajectory.record:
            bound = trajectory.record[SHARPNESS_BOUND]
            row = int(np.argmax(bound.values))
            if bound.values[row] > top:
                legend.texts[-1].set_text(f"upper bound of λ:\n{bound.values[row]:,.0f} at step {bound.steps[row]}")
    style.mark_break_even(axes, trajectory.break_even)
    axes.set(xlabel=style.step_label(trajectory) + ("; grey in the losses: shown below" if trajectory.pairs else ""))
    axes.set_ylabel("sharpness λ")


def draw_pair(axes: Axes, trajectory: Trajectory, pair: OpposingPair, number: int, first: int, last: int) -> None:
    """The mean losses of a pair's groups, of as many random points and of all points, from step to step.

    Args:
        axes: Axes to draw in.
        trajectory: The run.
        pair: The pair.
        number: The pair's number, from 0, which sets its colours.
        first: The first step that is shown.
        last: The last step that is shown.
    """
    steps, values = trajectory.losses_between(first, last)
    names = [f"{number + 1}{letter}" for letter in "ab"]
    style.draw_close(axes, steps, values, pair.groups, style.pair_looks(number), names)
    random = _random_points(trajectory, pair, number)
    look: dict[str, Any] = {"color": style.MUTED, "linewidth": 0.9, "label": f"{len(random)} random points"}
    axes.plot(*style.broken(steps, values[:, random].mean(1)), **look)
    axes.plot(*style.broken(steps, values.mean(1)), color=style.INK, linewidth=1.8, label="all points")


def _random_points(trajectory: Trajectory, pair: OpposingPair, number: int) -> np.ndarray:
    """As many random points as the larger of the pair's groups has."""
    size = max(map(len, pair.groups))
    return np.random.default_rng(number).choice(trajectory.losses.values.shape[1], size, replace=False)


def _correlation(pair: OpposingPair) -> str:
    first, last = pair.window
    return f"correlation {pair.correlation:.2f}, steps {first}-{last}".replace("-", "\u2212", 1).replace("-", "\u2013")


def draw_members(
    figure: Figure, place: SubplotSpec, dataset: Dataset, pair: OpposingPair, number: int, count: int
) -> None:
    """Images of a pair's groups, one group above the other, each under its name; nothing if there are no images."""
    if dataset.images is None:
        return
    sheets = GridSpecFromSubplotSpec(2, 1, place)
    for row, (group, colour, letter) in enumerate(zip(pair.groups, style.PAIRS[number % 4], "ab", strict=True)):
        name = f"{number + 1}{letter}, {len(group)} images" + (f" ({count} shown)" if count < len(group) else "")
        draw_images(figure.add_subplot(sheets[row]), dataset, group, colour, name, count)


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
    axes.set_title(style.wrapped(f"{name}: {classes(dataset, group)}", max(34, 6 * columns)), fontsize=8)


def classes(dataset: Dataset, group: np.ndarray) -> str:
    """For instance "12 airplane, 5 ship, 3 other"."""
    counts = Counter(dataset.class_names[int(target)] for target in dataset.targets[group]).most_common()
    shown = [f"{count} {name}" for name, count in counts[:3]]
    rest = sum(count for _, count in counts[3:])
    return ", ".join(shown + ([f"{rest} other"] if rest else []))
