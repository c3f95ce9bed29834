"""Figures 2, 32 to 35 and 38a, and the growth of sensitivity: what curvature shows along a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from opposing_signals.record import Series
from opposing_signals.signals import Trajectory
from opposing_signals.studies import style
from opposing_signals.studies.curvature.metrics import Metric, metric_of_points

METRICS: tuple[tuple[Metric, str], ...] = (
    ("loss_change", "abs one-step change of the loss"),
    ("gradient_norm", "gradient norm"),
    ("sample_curvature", "curvature on the full loss's top eigenvector"),
)
NEGLIGIBLE_SHARE = 0.01
"""A tensor that never holds more of v than this is left out, as in the paper."""


# -- figure 2 ---------------------------------------------------------------------------------------------------------


def outlier_metrics(trajectories: Mapping[str, Trajectory]) -> Figure:
    """Four metrics of the points of each dominant pair and of as many random points, over steps; medians.

    The top eigenvalue of a point's own Hessian is too dear for every point: it is drawn for the points whose loss
    rose or fell most in the last step.
    """
    (trajectory,) = trajectories.values()
    run, data = trajectory.configuration["run"]["name"], trajectory.record.provenance["data"]["name"]
    figure = style.figure(11, 6.8, f"Opposing outliers and random points by four metrics: {run}, {data}")
    change, gradient, curvature, own = figure.subplots(2, 2, sharex=True).ravel()
    for axes, (metric, title) in zip((change, gradient, curvature), METRICS, strict=True):
        _draw_metric(axes, trajectory, metric_of_points(trajectory, metric))
        axes.set_title(title)
    measured = trajectory.record["sample_sharpness"]
    values = np.asarray(measured.values)
    count = values.shape[1] // 3
    for columns, colour, label in (
        (slice(None, count), style.PAIRS[0][0], "risers of the step"),
        (slice(count, 2 * count), style.PAIRS[1][0], "fallers of the step"),
        (slice(2 * count, None), style.MUTED, "random points"),
    ):
        medians = np.median(values[:, columns], axis=1)
        own.plot(measured.steps, medians, color=colour, marker="o", markersize=2.5, label=label)
    own.set_title("top eigenvalue of the point's own Hessian")
    for axes in (change, gradient, curvature, own):
        _set_scale(axes)
        style.mark_break_even(axes, trajectory.break_even)
    for axes in (curvature, own):
        axes.set_xlabel("step (dotted: break-even)")
    change.legend(ncols=2)
    own.legend()
    return figure


def _draw_metric(axes: Axes, trajectory: Trajectory, measured: Series) -> None:
    """The median of each pair where it is active, and of one random group of a pair's size."""
    steps, values = np.asarray(measured.steps), np.asarray(measured.values)
    size = 40
    for number, pair in enumerate(trajectory.pairs):
        points = np.concatenate(pair.groups)
        size = len(points)
        active = np.asarray(trajectory.changes.steps)[slice(*pair.window)]
        rows = (steps >= active[0]) & (steps <= active[-1])
        axes.plot(
            steps[rows],
            np.median(values[rows][:, points], axis=1),
            color=style.PAIRS[number % 4][0],
            marker="o" if len(steps) < 100 else "",
            markersize=2.5,
            linewidth=0.9,
            label=f"pair {number + 1}",
        )
    draw = np.random.default_rng(0).choice(values.shape[1], min(size, values.shape[1]), replace=False)
    axes.plot(steps, np.median(values[:, draw], axis=1), color=style.MUTED, linewidth=0.9, label="random points")


def _set_scale(axes: Axes) -> None:
    """Logarithmic, around zero linear where a metric is zero or negative."""
    values = np.concatenate([np.asarray(line.get_ydata(), float) for line in axes.lines])
    sizes = np.abs(values[values != 0])
    if len(sizes) == len(values) and (values > 0).all():
        axes.set_yscale("log")
    elif len(sizes):
        axes.set_yscale("symlog", linthresh=float(np.quantile(sizes, 0.02)))


# -- figures 32 to 35 -------------------------------------------------------------------------------------------------


def curvature_share(trajectories: Mapping[str, Trajectory], title: str) -> Figure:
    """Share of the squared entries of v in each parameter tensor, over the steps at which it was measured.

    A layer is a parameter tensor: this counting gives the paper's 38 for VGG-11 with batch norm and its 39 for a
    nanoGPT of 6 blocks without biases; a standard ResNet-18 has 62 of them (the paper counts 45), our Vision
    Transformer 104 (106). Tensors that never hold more than 0.01 are left out; the last linear layer is always shown.

    Args:
        trajectories: One run.
        title: Of the figure.
    """
    (trajectory,) = trajectories.values()
    measured = trajectory.record["eigenvector_share"]
    names = trajectory.record.provenance["tensors"]
    shares = np.asarray(measured.values)
    shown = shown_tensors(names, shares)
    figure = style.figure(11, 1.8 + 0.2 * len(shown), f"{title}: {len(shown)} of {len(names)} tensors")
    axes = figure.subplots()
    # Successive measured steps are columns of equal width, however far apart the steps are.
    image = axes.imshow(
        shares[:, shown].T, aspect="auto", cmap="magma_r", norm=PowerNorm(0.5, 0, 1), interpolation="none"
    )
    axes.set_yticks(range(len(shown)), [names[row] for row in shown], fontsize=7)
    columns = np.unique(np.linspace(0, len(shares) - 1, min(12, len(shares))).round().astype(int))
    axes.set_xticks(columns, [str(measured.steps[column]) for column in columns])
    if trajectory.break_even is not None:
        axes.axvline(
            float(np.searchsorted(measured.steps, trajectory.break_even)) - 0.5, color=style.INK, linestyle=":"
        )
    axes.set_xlabel("step (measured steps side by side; dotted: break-even)")
    figure.colorbar(image, ax=axes, label="share of v", pad=0.01, ticks=[0, 0.01, 0.1, 0.25, 0.5, 1])
    return figure


def shown_tensors(names: Sequence[str], shares: np.ndarray) -> list[int]:
    """Rows of the tensors that ever hold more than 0.01, and of the last linear layer, in the model's order."""
    last_layer = names[-1].rpartition(".")[0] + "."
    kept = shares.max(0) > NEGLIGIBLE_SHARE
    return [row for row, name in enumerate(names) if kept[row] or name.startswith(last_layer)]


# -- figure 38a -------------------------------------------------------------------------------------------------------


def mlp_phases(trajectories: Mapping[str, Trajectory]) -> Figure:
    """Train loss, losses of the dominant outlier groups, λ, and the size of the projection on v at break-even."""
    (trajectory,) = trajectories.values()
    data = trajectory.record.provenance["data"]["name"]
    figure = style.figure(11, 5.8, f"A 3-layer ReLU network in three phases: {data}, η = {trajectory.step_size:g}")
    loss, groups, sharpness, projection = figure.subplots(2, 2, sharex=True).T.ravel()
    loss.plot(trajectory.mean_loss.steps, trajectory.mean_loss.values, color=style.INK)
    loss.set_title("train loss")
    for number, pair in enumerate(trajectory.pairs[:2]):
        for group, colour, name in zip(pair.groups, style.PAIRS[number], "ab", strict=True):
            mean = np.asarray(trajectory.losses.values)[:, group].mean(1)
            groups.plot(trajectory.losses.steps, mean, color=colour, linewidth=0.9, label=f"pair {number + 1}{name}")
    groups.set_title("losses of the outlier groups")
    if trajectory.pairs:
        groups.legend(ncols=2)
    measured = trajectory.sharpness
    sharpness.plot(measured.steps, measured.values, color=style.INK, linewidth=0.9)
    style.shade_bound(sharpness, trajectory.record)
    sharpness.axhline(2 / trajectory.step_size, color=style.MUTED, linestyle="--", linewidth=0.9, label="2/η")
    sharpness.set(title="sharpness λ", ylim=(0, None))
    sharpness.legend(loc="lower right")
    along = trajectory.record["projection"]
    projection.plot(along.steps, np.abs(along.values), color=style.INK, linewidth=0.9)
    projection.set_title("size of the projection on v at break-even")
    lowest = int(np.argmin(measured.values[: (trajectory.break_even or 0) + 1]))
    for axes in (loss, groups, sharpness, projection):
        if trajectory.break_even is not None:
            axes.axvspan(lowest, trajectory.break_even, color="#f0f1f3", zorder=0)
        style.mark_break_even(axes, trajectory.break_even)
    for axes in (groups, projection):
        axes.set_xlabel("step (grey: λ grows; dotted: it reaches 2/η)")
    return figure


# -- growth of sensitivity --------------------------------------------------------------------------------------------


def sensitivity(trajectories: Mapping[str, Trajectory]) -> Figure:
    """Norm of the Jacobian, norms of the layers and alignment of adjacent layers over steps; a column a run."""
    figure = style.figure(5.2 * max(2, len(trajectories)), 7.6, "Sensitivity of the network to its inputs")
    panels = figure.subplots(3, len(trajectories), sharex="col", squeeze=False)
    for column, (name, trajectory) in enumerate(trajectories.items()):
        jacobian, layers, alignment = panels[:, column]
        norms = trajectory.record["jacobian_norm"]
        jacobian.plot(norms.steps, norms.values, color=style.INK, marker="o", markersize=2.5)
        jacobian.set_title(f"{name}: spectral norm of the Jacobian")
        _draw_layers(layers, trajectory.record["layer_norms"], "norms of the layers' weights")
        _draw_layers(alignment, trajectory.record["layer_alignment"], "alignment of adjacent layers")
        alignment.set(xlabel="step (dotted: break-even)", ylim=(0, 1))
        for axes in panels[:, column]:
            style.mark_break_even(axes, trajectory.break_even)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _draw_layers(axes: Axes, measured: Series, title: str) -> None:
    """One line a layer, the first dark and the last light."""
    values = np.asarray(measured.values)
    for layer, colour in enumerate(style.ramp(values.shape[1])):
        ends = {0: "first", values.shape[1] - 1: "last"}
        axes.plot(measured.steps, values[:, layer], color=colour, linewidth=0.9, label=ends.get(layer))
    axes.set_title(title)
    axes.legend()
