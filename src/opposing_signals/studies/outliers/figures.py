"""Figures 46 to 54: the images whose loss rises and falls most in a step, with the network's predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from opposing_signals.data import Dataset
from opposing_signals.errors import InputError
from opposing_signals.signals import Trajectory
from opposing_signals.studies import style
from opposing_signals.studies.outliers.panels import Panel, outlier_panels, pair_panels

COLUMNS = 8
ABOVE, BELOW, SIDE = 9, 17, 5
"""Room around an image for its labels, in pixels of an image 32 pixels high."""

RIGHT, WRONG = style.PAIRS[0][0], style.PAIRS[1][0]


def outlier_grids(trajectories: Mapping[str, Trajectory], moments: Sequence[float]) -> Figure:
    """The 24 images of most positive and of most negative Δ_i at each moment, then the same for the found pairs.

    The true label is above an image, the predictions before and after the step are below it.

    Args:
        trajectories: One run with the instrument `Predictions`, on images.
        moments: When to look, as fractions of the run.

    Raises:
        InputError: The data are not images.
    """
    (trajectory,) = trajectories.values()
    dataset = trajectory.dataset
    if dataset.images is None:
        raise InputError(f"outlier_grids draws images, and {dataset.name} has none: expected a run on images")
    panels = outlier_panels(trajectory, moments) + pair_panels(trajectory)
    rows = [max(-(-len(panel.rising) // COLUMNS), -(-len(panel.falling) // COLUMNS)) for panel in panels]
    title = (
        f"{style.about('Images of the largest loss changes', trajectories)}, seed {trajectory.configuration['seed']}\n"
        "above each image its class; below it the network's prediction before and after the step"
    )
    figure = style.figure(16, 1 + 1.42 * sum(rows) + 0.4 * len(panels), title)
    grid = figure.subplots(len(panels), 2, squeeze=False, gridspec_kw={"height_ratios": [0.3 + r for r in rows]})
    for axes, panel, count in zip(grid, panels, rows, strict=True):
        _draw(axes[0], dataset, panel, panel.rising, count, f"{panel.title}: loss rises")
        _draw(axes[1], dataset, panel, panel.falling, count, f"{panel.title}: loss falls")
    return figure


def _draw(axes: Axes, dataset: Dataset, panel: Panel, group: np.ndarray, rows: int, title: str) -> None:
    assert dataset.images is not None
    height, width = dataset.images.shape[1:3]
    scale = height / 32
    tall, wide = round((32 + ABOVE + BELOW) * scale), width + round(SIDE * scale)
    sheet = np.full((rows * tall, COLUMNS * wide, 3), 255, np.uint8)
    names = dataset.class_names
    for place, point in enumerate(group):
        top, left = place // COLUMNS * tall + round(ABOVE * scale), place % COLUMNS * wide + (wide - width) // 2
        sheet[top : top + height, left : left + width] = dataset.images[point]
        true = int(dataset.targets[point])
        middle = left + width / 2
        # Hundreds of texts would slow down the layout.
        style_of: dict[str, Any] = {"ha": "center", "fontsize": 7, "in_layout": False}
        axes.text(middle, top - 1.5 * scale, names[true], va="bottom", color=style.INK, weight="bold", **style_of)
        for line, predicted in enumerate((panel.before[point], panel.after[point])):
            is_right = predicted == true
            axes.text(
                middle,
                top + height + (1 + 7.5 * line) * scale,
                ("→ " if line else "") + names[predicted],
                va="top",
                color=RIGHT if is_right else WRONG,
                style="normal" if is_right else "italic",
                **style_of,
            )
    axes.imshow(sheet, interpolation="nearest")
    axes.set_axis_off()
    modal, count = panel.modal_prediction(group)
    axes.set_title(f"{title}; {count} of {len(group)} called {names[modal]} after the step", fontsize=9)
