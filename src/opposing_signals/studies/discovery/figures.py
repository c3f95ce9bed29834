"""Opposing pairs found automatically, with all their members."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from opposing_signals.record.quantities import GRADIENT_SKETCH
from opposing_signals.signals import Trajectory, agreement, match_pair, nearest_planted
from opposing_signals.studies import style
from opposing_signals.studies.groups.figures import classes, draw_images


def discovered_pairs(trajectories: Mapping[str, Trajectory], pairs: int = 4, thumbnails: int = 16) -> Figure:
    """One row per run: when the pairs are active, the losses of the most outstanding one, and images of its groups.

    Args:
        trajectories: Runs; if gradients were sketched, the agreement of both methods is given.
        pairs: The largest number shown per run.
        thumbnails: Images shown per group.
    """
    figure = style.figure(
        15, 1 + 2.9 * len(trajectories), style.about("Opposing pairs found by their loss series", trajectories)
    )
    rows = figure.subplots(len(trajectories), 4, squeeze=False, width_ratios=[1.3, 1.1, 1, 1])
    for (courses, losses, *sheets), (name, trajectory) in zip(rows, trajectories.items(), strict=True):
        _draw_courses(courses, name, trajectory, pairs)
        _draw_losses(losses, trajectory)
        for axes in sheets:
            axes.set_axis_off()
        if trajectory.all_pairs and trajectory.dataset.images is not None:
            groups = zip(trajectory.all_pairs[0].groups, style.PAIRS[0], "ab", strict=True)
            for axes, (group, colour, letter) in zip(sheets, groups, strict=True):
                axes.set_axis_on()
                draw_images(axes, trajectory.dataset, group, colour, f"1{letter}", thumbnails)
    return figure


def _draw_courses(axes: Axes, name: str, trajectory: Trajectory, count: int) -> None:
    found = trajectory.all_pairs[:count]
    has_gradients = GRADIENT_SKETCH in trajectory.record
    agreed = agreement(found, trajectory.gradient_pairs) if has_gradients else [np.nan] * len(found)
    for number, (pair, f1) in enumerate(zip(found, agreed, strict=True)):
        colour = style.PAIRS[number % 4][0]
        axes.barh(number, pair.window[1] - pair.window[0] + 1, left=pair.window[0], height=0.24, color=colour)
        facts = [f"{len(pair.rising)} against {len(pair.falling)}", f"contrast {pair.contrast:.0f}"]
        facts += [f"correlation {pair.correlation:.2f}"]
        facts += [f"{pair.spike_share:.0%} of the spikes"] if np.isfinite(pair.spike_share) else []
        facts += [f"by gradients: F1 {f1:.2f}"] if has_gradients else []
        text = f"{number + 1}: " + ", ".join(facts[:3]) + "\n    " + ", ".join(facts[3:])
        axes.text(0.01, number - 0.2, text, fontsize=7, va="bottom", transform=axes.get_yaxis_transform())
    axes.set(title=f"{name}: pairs over time", xlabel="step", yticks=[], ylim=(max(1, len(found)) - 0.6, -0.95))
    axes.set_xlim(0, int(trajectory.losses.steps[-1]))


def _draw_losses(axes: Axes, trajectory: Trajectory) -> None:
    """Losses of the pair of largest amplitude, around the steps in which it is active."""
    losses = trajectory.losses
    if trajectory.all_pairs:
        pair = trajectory.all_pairs[0]
        axes.set_xlim(max(0, pair.window[0] - 20), pair.window[1] + 20)
        axes.axvspan(*pair.window, color=style.GREY, zorder=0)
        for group, look, letter in zip(pair.groups, style.pair_looks(0), "ab", strict=True):
            axes.plot(losses.steps, losses.values[:, group].mean(1), **look, label=f"1{letter}")
    style.draw(axes, trajectory.mean_loss, color=style.INK, label="train loss")
    axes.set(title="losses of pair 1", xlabel="step")
    style.legend_above(axes, 3)


def planted_pair(
    trajectories: Mapping[str, Trajectory], features: Sequence[str], thumbnails: int = 40, zoom: int = 32
) -> Figure:
    """The dominant pair found, above the planted pair most like it: losses and members of both.

    Args:
        trajectories: One run on data with planted features.
        features: The planted features that the network uses.
        thumbnails: Images shown per group.
        zoom: Steps shown, around the step at which the pair has reached half of its largest amplitude.
    """
    (trajectory,) = trajectories.values()
    dataset = trajectory.dataset
    pair = trajectory.all_pairs[0] if trajectory.all_pairs else None
    planted = None if pair is None else nearest_planted(pair, dataset, features)
    if pair is None or planted is None:
        return style.figure(8, 2, f"{trajectory.title}\nno opposing pair was found")
    feature, truth = planted
    matched = match_pair(pair.groups, truth)
    found = pair.groups
    if len(np.intersect1d(found[0], truth[0])) < len(np.intersect1d(found[1], truth[0])):
        found = found[::-1]  # in the order of the planted groups
    figure = style.figure(14, 6.6, trajectory.title)
    rows = figure.subplots(2, 3, width_ratios=[1.25, 1, 1])
    steps, values = trajectory.losses_between(*pair.window)
    gap = np.abs(np.diff(values[:, found[0]].mean(1) - values[:, found[1]].mean(1)))
    grown = int(steps[np.argmax(gap >= gap.max() / 2)])
    steps, values = trajectory.losses_between(grown - zoom // 2, grown + zoom // 2)
    courses = {
        f"found by their losses alone: F1 {matched.f1:.2f}, correlation {pair.correlation:.2f}": found,
        f"planted: the images with {feature}, by class": truth,
    }
    for (losses, *sheets), (title, groups) in zip(rows, courses.items(), strict=True):
        for group, look, axes in zip(groups, style.GROUPS, sheets, strict=True):
            bearers = dataset.truth[feature][group]
            name = f"{bearers.sum()} with {feature}" + (f", {(~bearers).sum()} without" if not bearers.all() else "")
            losses.plot(steps, values[:, group].mean(1), **look, markersize=4, label=classes(dataset, group))
            ordered = np.concatenate([group[bearers], group[~bearers]])
            draw_images(axes, dataset, ordered, look["color"], name, thumbnails, rows=4)
        losses.plot(steps, values.mean(1), color=style.INK, linewidth=2, label="train loss")
        losses.set(title=title, xlabel="step", ylabel="mean loss", ylim=(0, None))
        style.whole_steps(losses)
        style.legend_above(losses, 3)
    return figure
