"""Loss spikes: the two groups of examples that moved against each other around each spike, and their members."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpecFromSubplotSpec

from opposing_signals.signals import Spike, Trajectory, name_group
from opposing_signals.studies import style
from opposing_signals.studies.groups.figures import draw_images


def loss_spikes(trajectory: Trajectory, spikes: Sequence[Spike], thumbnails: int = 20, zoom: int = 24) -> Figure:
    """A row per spike: the losses of its two groups against each other, and their images, if there are any.

    Args:
        trajectory: The run with the spikes.
        spikes: As `opposing_signals.signals.find_spikes` gives them; at least one.
        thumbnails: Images shown per group.
        zoom: Steps shown around a spike.
    """
    has_images = trajectory.dataset.images is not None
    figure = style.figure(13 if has_images else 8, 1 + 3.3 * len(spikes), trajectory.title)
    grid = figure.add_gridspec(len(spikes), 2 if has_images else 1, width_ratios=[1.25, 1] if has_images else None)
    for row, spike in enumerate(spikes):
        groups = [group for group in (spike.rising, spike.falling) if len(group)]
        _draw_losses(figure.add_subplot(grid[row, 0]), trajectory, spike, groups, zoom)
        if has_images:
            sheets = GridSpecFromSubplotSpec(2, 1, grid[row, 1])
            for place, (group, look, moves) in enumerate(zip(groups, style.GROUPS, ("rise", "fall"), strict=False)):
                axes = figure.add_subplot(sheets[place])
                name = f"{moves} at step {spike.step}"
                draw_images(axes, trajectory.dataset, group, look["color"], name, thumbnails)
    return figure


def _draw_losses(axes: Axes, trajectory: Trajectory, spike: Spike, groups: list[np.ndarray], zoom: int) -> None:
    steps, values = trajectory.losses_between(spike.step - zoom // 2, spike.step + zoom // 2 + 1)
    dataset = trajectory.dataset
    named = dataset.targets.ndim == 1 and dataset.is_classification and len(dataset.class_names) > 1
    names = [f"{len(group)} {name_group(dataset, group) if named else 'examples'}" for group in groups]
    looks = [{**look, "markersize": 4} for look in style.GROUPS[: len(groups)]]
    style.draw_close(axes, steps, values, groups, looks, names)
    axes.plot(*style.broken(steps, values.mean(1)), color=style.INK, linewidth=2, label="mean of all that are followed")
    axes.axvspan(spike.step, spike.step + 1, color="#e6e7ea", zorder=0)
    carried = f"step {spike.step}: {len(spike.rising)} of {len(dataset)} examples carry {spike.share:.0%} of the rise"
    if spike.correlation is not None:
        carried += f"; correlation {spike.correlation:.2f}"
    axes.set(title=carried, xlabel="step", ylabel="mean loss", ylim=(0, None))
    style.legend_above(axes, 3)
