"""Figures 2, 32 to 35 and 38a, and the growth of sensitivity: curvature along a run."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from opposing_signals.record import Series
from opposing_signals.record.quantities import (
    EIGENVECTOR_SHARE,
    GRADIENT_NORM,
    JACOBIAN_NORM,
    LAYER_ALIGNMENT,
    LAYER_NORMS,
    PROJECTION,
    SAMPLE_CURVATURE,
    SAMPLE_SHARPNESS,
)
from opposing_signals.signals import Trajectory, name_pair
from opposing_signals.signals.steps import between
from opposing_signals.studies import style
from opposing_signals.studies.curvature.metrics import Metric, metric_of_points
from opposing_signals.studies.groups.figures import draw_pair

METRICS: tuple[tuple[Metric, str], ...] = (
    ("loss_change", "abs one-step change of the loss"),
    (GRADIENT_NORM, "gradient norm"),
    (SAMPLE_CURVATURE, "curvature on the full loss's top eigenvector"),
)
NEGLIGIBLE_SHARE = 0.01
"""A tensor whose fraction of v never exceeds this is left out, as in the paper."""


# -- figure 2 ---------------------------------------------------------------------------------------------------------


def outlier_metrics(trajectories: Mapping[str, Trajectory]) -> Figure:
    """Four metrics of the points of each dominant pair and of as many random points, over steps; medians.

    The top eigenvalue of a point's own Hessian is too costly for all points: it is drawn for the points whose loss rose
    or fell most in the last step.
    """
    (trajectory,) = trajectories.values()
    figure = style.figure(11, 7, style.about("Opposing outliers and random points by four metrics", trajectories))
    change, gradient, curvature, own = figure.subplots(2, 2, sharex=True).ravel()
    for axes, (metric, title) in zip((change, gradient, curvature), METRICS, strict=True):
        _draw_metric(axes, trajectory, metric_of_points(trajectory, metric))
        axes.set_title(title + _set_scale(axes))
    measured = trajectory.record[SAMPLE_SHARPNESS]
    values = np.asarray(measured.values)
    count = values.shape[1] // 3
    for columns, look, label in (
        (slice(None, count), style.GROUPS[0], "risers of the step"),
        (slice(count, 2 * count), style.GROUPS[1], "fallers of the step"),
        (slice(2 * count, None), {"color": style.MUTED, "marker": "^"}, "random points"),
    ):
        own.plot(measured.steps, np.median(values[:, columns], axis=1), **look, markersize=2.5, label=label)
    own.set_title("top eigenvalue of the point's own Hessian" + _set_scale(own))
    for axes in (change, gradient, curvature, own):
        style.mark_break_even(axes, trajectory.break_even)
    for axes in (curvature, own):
        axes.set_xlabel("step (dotted: break-even)")
    style.legend_above(change, 5)
    style.legend_above(own, 3)
    return figure


def _draw_metric(axes: Axes, trajectory: Trajectory, measured: Series) -> None:
    """The median of each pair while it is active, and of one random group of a pair's size."""
    steps, values = np.asarray(measured.steps), np.asarray(measured.values)
    size = 40
    for number, pair in enumerate(trajectory.pairs_in_time):
        points = np.concatenate(pair.groups)
        size = len(points)
        rows = (steps >= pair.window[0]) & (steps <= pair.window[1])
        axes.plot(
            steps[rows],
            np.median(values[rows][:, points], axis=1),
            color=style.PAIRS[number % 4][0],
            linestyle=style.LINES[number % 4],
            marker="o" if len(steps) < 100 else "",
            markersize=2.5,
            linewidth=0.9,
            label=f"pair {number + 1}",
        )
    draw = np.random.default_rng(0).choice(values.shape[1], min(size, values.shape[1]), replace=False)
    random: dict[str, Any] = {"color": style.MUTED, "linewidth": 2.0, "alpha": 0.8, "label": "random points"}
    axes.plot(steps, np.median(values[:, draw], axis=1), **random)


def _set_scale(axes: Axes) -> str:
    """Logarithmic, or linear around zero if a metric is zero or negative; the returned words for the title say so."""
    values = np.concatenate([np.asarray(line.get_ydata(), float) for line in axes.lines])
    sizes = np.abs(values[values != 0])
    if len(sizes) == len(values) and (values > 0).all():
        axes.set_yscale("log")
    elif len(sizes):
        decade = np.ceil(np.log10(np.quantile(sizes, 0.02)))  # a tick inside the linear part would overlap the one at 0
        axes.set_yscale("symlog", linthresh=float(10**decade))
        return f"\n(axis linear between −{10**decade:g} and {10**decade:g}, logarithmic beyond)"
    return ""


# -- figures 32 to 35 -------------------------------------------------------------------------------------------------


def curvature_share(trajectories: Mapping[str, Trajectory], title: str) -> Figure:
    """Share of the squared entries of v in each parameter tensor, over the steps at which it was measured.

    A layer is a parameter tensor: this count gives the paper's 38 for VGG-11 with batch norm and its 39 for a nanoGPT
    of 6 blocks without biases; a standard ResNet-18 has 62 (the paper counts 45), our Vision Transformer 104 (106).
    Tensors that never hold more than 0.01 are left out; the last linear layer is always shown.

    Args:
        title: Title of the figure.
    """
    (trajectory,) = trajectories.values()
    measured = trajectory.record[EIGENVECTOR_SHARE]
    names = trajectory.record.provenance["tensors"]
    shares = np.asarray(measured.values)
    shown = shown_tensors(names, shares)
    head = style.about(f"{title} ({len(shown)} of {len(names)} tensors)", trajectories)
    figure = style.figure(11, 1.8 + 0.2 * len(shown), head)
    axes = figure.subplots()
    # Successive measurements are columns of equal width, however far apart their steps are.
    image = axes.imshow(
        shares[:, shown].T, aspect="auto", cmap="magma_r", norm=PowerNorm(0.5, 0, 1), interpolation="none"
    )
    readable = readable_tensors(names)
    axes.set_yticks(range(len(shown)), [readable[row] for row in shown], fontsize=7)
    columns = range(0, len(shares), -(-len(shares) // 20))
    axes.set_xticks(columns, [str(measured.steps[column]) for column in columns])
    label = "measured steps side by side"
    if trajectory.break_even is not None:
        axes.axvline(
            float(np.searchsorted(measured.steps, trajectory.break_even)) - 0.5, color=style.INK, linestyle=":"
        )
        label += f"; dotted: break-even at {trajectory.break_even}"
    axes.set_xlabel(f"step ({label})")
    ticks = [0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1]
    figure.colorbar(image, ax=axes, label="share of v (colours by its square root)", pad=0.01, ticks=ticks)
    return figure


def shown_tensors(names: Sequence[str], shares: np.ndarray) -> list[int]:
    """Rows of the tensors that ever hold more than 0.01, and of the last linear layer, in the model's order."""
    last_layer = names[-1].rpartition(".")[0] + "."
    kept = shares.max(0) > NEGLIGIBLE_SHARE
    return [row for row, name in enumerate(names) if kept[row] or name.startswith(last_layer)]


def readable_tensors(names: Sequence[str]) -> list[str]:
    """Readable names of parameter tensors: in a plain sequence of layers "convolution 3, weight", not "0.8.weight".

    In such a sequence a bias belongs to the layer of the weight before it. Blocks are counted from 1; the parts
    of a block keep their names.

    Args:
        names: Names of all tensors in the model's order, as ``named_parameters`` gives them.
    """
    if all(
        not name.rpartition(".")[0].replace(".", "") or name.rpartition(".")[0].replace(".", "").isdigit()
        for name in names
    ):
        return _of_sequence(names)
    words = {"stem.0": "stem, convolution", "stem.1": "stem, batch norm", "head": "last linear layer"}
    words |= {"downsample.0": "shortcut, convolution", "downsample.1": "shortcut, batch norm"}
    words |= {"conv1": "convolution 1", "conv2": "convolution 2", "bn1": "batch norm 1", "bn2": "batch norm 2"}
    words |= {
        "norm1": "layer norm 1",
        "norm2": "layer norm 2",
        "mlp.0": "MLP 1",
        "mlp.2": "MLP 2",
        "norm": "last layer norm",
    }
    found = []
    for name in names:
        layer, _, kind = name.rpartition(".")
        layer, kind = (layer, kind) if layer else (kind, "")
        block = re.match(r"(?:stages|blocks)\.(\d+)(?:\.(.+))?$", layer)
        part = (block[2] or "") if block else layer
        parts = [f"block {int(block[1]) + 1}" if block else "", words.get(part, part.replace("_", " ")), kind]
        found.append(", ".join(part for part in parts if part))
    return found


def _of_sequence(names: Sequence[str]) -> list[str]:
    """Features first, as "0.i", then linear layers; a layer directly after a convolution is a batch norm."""
    kinds: dict[str, str] = {}
    counts = Counter[str]()
    for layer in dict.fromkeys(name.rpartition(".")[0] for name in names):
        before, _, position = layer.rpartition(".")
        follows = f"{before}.{int(position) - 1}" if before else ""
        kind = (
            "linear layer"
            if not before
            else "batch norm"
            if kinds.get(follows, "").startswith("conv")
            else "convolution"
        )
        counts[kind] += 1
        kinds[layer] = f"{kind} {counts[kind]}"
    return [f"{kinds[layer]}, {tensor}" for layer, _, tensor in (name.rpartition(".") for name in names)]


# -- figure 38a -------------------------------------------------------------------------------------------------------


def mlp_phases(trajectories: Mapping[str, Trajectory], zoom: int = 40) -> Figure:
    """Train loss, λ, and the size of the projection on v at break-even; and the dominant pair's losses in detail.

    Args:
        zoom: Steps shown around the step at which the pair was selected.
    """
    (trajectory,) = trajectories.values()
    figure = style.figure(12, 6.6, style.about("Losses, sharpness and projection over the steps", trajectories))
    loss, groups, sharpness, projection = figure.subplots(2, 2).T.ravel()
    style.draw(loss, trajectory.mean_loss, color=style.INK)
    loss.set_title("train loss")
    groups.set(title="no opposing pair was found", xlabel="step")
    if trajectory.pairs:
        pair = trajectory.pairs[0]
        draw_pair(groups, trajectory, pair, 0, pair.step - zoom // 2, pair.step + zoom // 2)
        groups.set_title(f"losses of the dominant pair around step {pair.step}: {name_pair(trajectory.dataset, pair)}")
        style.legend_above(groups, 4)
    style.draw_sharpness(sharpness, trajectory, trajectory.edge, linewidth=0.9)
    sharpness.set_title("sharpness λ")
    style.legend_above(sharpness, 2)
    along = trajectory.record[PROJECTION]
    projection.plot(along.steps, np.abs(along.values), color=style.INK, linewidth=0.9)
    projection.set_title("size of the projection on v at break-even")
    before = between(trajectory.sharpness, 0, trajectory.break_even or 0)
    lowest = int(before.steps[np.argmin(before.values)])
    for axes in (loss, sharpness, projection):
        if trajectory.break_even is not None:
            axes.axvspan(lowest, trajectory.break_even, color=style.GREY, zorder=0)
        style.mark_break_even(axes, trajectory.break_even)
        axes.set_xlabel("step (grey: λ grows; dotted: it reaches 2/η)")
    return figure


# -- growth of sensitivity --------------------------------------------------------------------------------------------


def sensitivity(trajectories: Mapping[str, Trajectory]) -> Figure:
    """Norm of the Jacobian, norms of the layers and alignment of adjacent layers over steps; one column per run."""
    title = style.about("Sensitivity of the network to its inputs", trajectories)
    figure = style.figure(5.2 * max(2, len(trajectories)), 7.6, title)
    panels = figure.subplots(3, len(trajectories), sharex="col", squeeze=False)
    for column, (name, trajectory) in enumerate(trajectories.items()):
        jacobian, layers, alignment = panels[:, column]
        style.draw(jacobian, trajectory.record[JACOBIAN_NORM], color=style.INK, marker="o", markersize=2.5)
        jacobian.set_title(f"{name}: spectral norm of the Jacobian")
        _draw_layers(layers, trajectory.record[LAYER_NORMS], "norms of the layers' weights")
        _draw_layers(alignment, trajectory.record[LAYER_ALIGNMENT], "alignment of adjacent layers")
        alignment.set(xlabel="step (dotted: break-even)", ylim=(0, 1))
        for axes in panels[:, column]:
            style.mark_break_even(axes, trajectory.break_even)
            style.whole_steps(axes)
    return figure


def _draw_layers(axes: Axes, measured: Series, title: str) -> None:
    """One line per layer, the first dark and the last light."""
    values = np.asarray(measured.values)
    for layer, colour in enumerate(style.ramp(values.shape[1])):
        ends = {0: "first", values.shape[1] - 1: "last"}
        axes.plot(measured.steps, values[:, layer], color=colour, linewidth=0.9, label=ends.get(layer))
    axes.set_title(title)
    style.legend_above(axes, 2)
