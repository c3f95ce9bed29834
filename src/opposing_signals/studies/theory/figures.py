"""Figures 4 and 38b, and what theorems 3.1 and 3.2 say beside what gradient flow and gradient descent do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from opposing_signals.record.quantities import (
    BOUND,
    CONDITIONS,
    DESCENT_ETA_LAMBDA,
    DESCENT_LOG_B_O,
    DESCENT_RATIO,
    GRID,
    GROUP_LOSS,
    HOLDS,
    MAGNITUDE,
    MEASURED,
    PATH,
    PATH_TIMES,
    PROJECTION,
    SHARPNESS,
    TRAIN_LOSS,
    WEIGHT,
)
from opposing_signals.signals import Trajectory
from opposing_signals.studies import style
from opposing_signals.studies.theory import exact, toy
from opposing_signals.studies.theory.theorems import sufficient_conditions

PLANE, OTHER = style.PAIRS[0][0], style.PAIRS[1][0]
AVERAGE = style.PAIRS[3][0]
SERIES = ("#c6dbef", "#6baed6", "#2171b5", "#08306b")
"""One hue for an ordered parameter, light to dark; four values."""


# -- the toy valley --------------------------------------------------------------------------------------------------


def toy_valley(trajectories: Mapping[str, Trajectory]) -> Figure:
    """The valley before and after sharpening with the iterates on the curves, and both over the steps."""
    (trajectory,) = trajectories.values()
    record, break_even = trajectory.record, trajectory.break_even
    w, magnitude = record[WEIGHT].values, record[MAGNITUDE].values
    figure = style.figure(12, 4.1, "A valley between opposing groups, before and after it sharpens")
    before, after, time = figure.subplots(1, 3, width_ratios=[1, 1, 1.15])
    first, last = np.flatnonzero(magnitude == magnitude[0]), np.flatnonzero(magnitude == magnitude[-1])
    for axes, steps, name in ((before, first, "before: the iterates settle"), (after, last, "after: they alternate")):
        _draw_valley(axes, float(magnitude[steps[0]]), trajectory, max(1.15 * float(np.abs(w[steps]).max()), 1.5))
        _draw_iterates(axes, w[steps], float(magnitude[steps[0]]), trajectory)
        times_curvature = trajectory.step_size * trajectory.sharpness.values[steps[0]]
        axes.set_title(f"{name} (s = {magnitude[steps[0]]:g}, ηL'' = {times_curvature:.2g})")
    share = float(trajectory.configuration["theory"]["share"])
    flat = np.linspace(after.get_xlim()[0], after.get_xlim()[1], 100)
    earlier = toy.group_losses(flat, float(magnitude[0]), share).average
    after.plot(flat, earlier, color=AVERAGE, linewidth=1, linestyle="--", label="average before", zorder=1)
    style.legend_above(before, 3)
    style.legend_above(after, 4)
    before.set_ylabel("loss")
    losses = record[GROUP_LOSS]
    time.plot(losses.steps, losses.values[:, 0], color=PLANE, marker="o", markersize=2.5, label="plane")
    time.plot(losses.steps, losses.values[:, 1], color=OTHER, marker="o", markersize=2.5, label="other")
    time.plot(losses.steps, record[TRAIN_LOSS].values, color=AVERAGE, linewidth=1.8, label="average")
    time.axvspan(len(first), last[0], color=style.GREY, zorder=0)
    style.mark_break_even(time, break_even)
    time.set(xlabel="step (grey: the feature grows; dotted: λ reaches 2/η)", title="losses over the steps")
    style.legend_above(time, 3)
    return figure


def toy_valley_animation(trajectories: Mapping[str, Trajectory], path: Path, frames_a_second: int = 6) -> None:
    """Write the toy valley as an animated GIF: the curves sharpen while gradient descent goes on."""
    (trajectory,) = trajectories.values()
    w, magnitude = trajectory.record[WEIGHT].values, trajectory.record[MAGNITUDE].values
    figure = style.figure(5.2, 3.6, "Gradient descent while the valley sharpens")
    figure.set_layout_engine("none")  # it would lay out every frame anew
    axes = figure.add_axes((0.1, 0.15, 0.87, 0.66))

    def draw(step: int) -> list[Line2D]:
        axes.clear()
        _draw_valley(axes, float(magnitude[step]), trajectory, 1.15 * float(np.abs(w).max()))
        _draw_iterates(axes, w[max(0, step - 3) : step + 1], float(magnitude[step]), trajectory)
        times_curvature = trajectory.step_size * trajectory.sharpness.values[step]
        axes.set_title(f"step {step}, ηL'' = {times_curvature:.2f}" + ("  > 2" if times_curvature > 2 else ""))
        axes.set_ylabel("loss")
        axes.legend(loc="upper center", ncols=3)
        return []

    animation = FuncAnimation(figure, draw, init_func=list, frames=len(w), blit=False)
    animation.save(path, PillowWriter(fps=frames_a_second), dpi=80)
    plt.close(figure)


def _draw_valley(axes: Axes, magnitude: float, trajectory: Trajectory, reach: float) -> None:
    share = float(trajectory.configuration["theory"]["share"])
    grid = np.linspace(-reach, reach, 241)
    losses = toy.group_losses(grid, magnitude, share)
    for values, colour, name in (
        (losses.plane, PLANE, "plane"),
        (losses.other, OTHER, "other"),
        (losses.average, AVERAGE, "average"),
    ):
        axes.plot(grid, values, color=colour, linewidth=2 if name == "average" else 1.2, label=name)
    axes.set(xlabel='w, the direction "sky means plane"', xlim=(-reach, reach), ylim=(0, 4.2))


def _draw_iterates(axes: Axes, w: np.ndarray, magnitude: float, trajectory: Trajectory) -> None:
    """Iterates on all three curves, and the steps between them on the average; later ones are darker."""
    losses = toy.group_losses(w, magnitude, float(trajectory.configuration["theory"]["share"]))
    axes.plot(w, losses.average, color=style.INK, linewidth=0.7, alpha=0.6)
    for values, colour, size in ((losses.plane, PLANE, 12), (losses.other, OTHER, 12), (losses.average, style.INK, 22)):
        shades = [(*to_rgb(colour), opacity) for opacity in np.linspace(0.25, 1, len(w))]
        axes.scatter(w, values, s=size, color=shades, zorder=3, linewidths=0)


# -- three phases ----------------------------------------------------------------------------------------------------


def three_phases(trajectories: Mapping[str, Trajectory], title: str) -> Figure:
    """Train loss, the outlier groups' losses, λ with 2/η and the size of ``b_o`` along the signal; a column a run."""
    columns = len(trajectories)
    if columns == 1:
        figure = style.figure(11, 5.6, title)
        panels = figure.subplots(2, 2, sharex=True).T.reshape(4, 1)
    else:
        figure = style.figure(4.1 * columns, 8.6, title)
        panels = figure.subplots(4, columns, sharex="col", height_ratios=[1, 1.2, 1, 1])
    for column, trajectory in enumerate(trajectories.values()):
        loss, groups, sharpness, size = panels[:, column]
        _draw_losses(loss, groups, trajectory)
        _draw_sharpness(sharpness, trajectory)
        _draw_projection(size, trajectory)
        loss.set_title(_describe(trajectory))
        for axes in panels[:, column]:
            _shade_phases(axes, trajectory)
        for axes in panels[:, column] if columns == 1 else panels[-1:, column]:
            if axes.get_subplotspec().is_last_row():
                axes.set_xlabel("step (grey: λ grows; dotted: it reaches 2/η)")
    for axes, label in zip(panels[:, 0], ("train loss", "loss of outliers", "sharpness λ", "|b_o|"), strict=True):
        axes.set_ylabel(label)
    style.legend_above(panels[1, -1], 2)
    return figure


def _describe(trajectory: Trajectory) -> str:
    theory = trajectory.configuration["theory"]
    depth = f"{theory['layers']} layers, " if "layers" in theory else ""
    return f"{depth}α = {theory['alpha']:g}, ‖β‖ = {theory['beta_norm']:g}, η = {trajectory.step_size:.3g}"


def _draw_losses(loss: Axes, groups: Axes, trajectory: Trajectory) -> None:
    train, group = trajectory.record[TRAIN_LOSS], trajectory.record[GROUP_LOSS]
    theory = trajectory.configuration["theory"]
    loss.plot(train.steps, train.values, color=style.INK)
    if theory.get("loss") != "logistic":
        style.mark_level(loss, theory["alpha"] / 2, "α/2")
    for index, colour, label in ((0, PLANE, "signal +"), (1, OTHER, "signal −")):
        groups.plot(group.steps, group.values[:, index], color=colour, linewidth=0.9, label=label)
    largest = int(np.argmax(np.abs(np.diff(group.values[:, 0]))))
    if trajectory.break_even is not None and largest > trajectory.break_even:
        zoom = groups.inset_axes((0.68, 0.55, 0.32, 0.42))
        rows = slice(largest - 5, largest + 7)
        for index, colour in ((0, PLANE), (1, OTHER)):
            zoom.plot(
                group.steps[rows], group.values[rows, index], color=colour, marker="o", markersize=2, linewidth=0.9
            )
        zoom.set_yticks([])
        zoom.set_title("at its largest", fontsize=8)


def _draw_sharpness(axes: Axes, trajectory: Trajectory) -> None:
    measured = trajectory.sharpness
    axes.plot(measured.steps, measured.values, color=style.INK)
    style.shade_bound(axes, trajectory.record)
    style.mark_edge(axes, 2 / trajectory.step_size)
    axes.set_ylim(0, None)


def _draw_projection(axes: Axes, trajectory: Trajectory) -> None:
    projection = trajectory.record[PROJECTION]
    axes.plot(projection.steps, np.maximum(np.abs(projection.values), 1e-300), color=style.INK, linewidth=0.9)
    axes.set_yscale("log")


def _shade_phases(axes: Axes, trajectory: Trajectory) -> None:
    """Grey from the smallest λ to break-even: between the decrease and the oscillation."""
    if trajectory.break_even is None:
        return
    lowest = int(np.argmin(trajectory.sharpness.values[: trajectory.break_even + 1]))
    axes.axvspan(lowest, trajectory.break_even, color=style.GREY, zorder=0)
    style.mark_break_even(axes, trajectory.break_even)


# -- theorems --------------------------------------------------------------------------------------------------------


def theorem31(trajectories: Mapping[str, Trajectory]) -> Figure:
    """Theorem 3.1: λ at the start, its decrease, the decay of ``b_o``, and the time it takes, beside the bounds."""
    title = "Theorem 3.1, as stated and as measured: the initial decrease in sharpness"
    return _panels(trajectories, title, _draw_initial_sharpness, _draw_decrease, _draw_decay, _draw_time)


def _panels(trajectories: Mapping[str, Trajectory], title: str, *drawn: Callable[[Axes, Trajectory], None]) -> Figure:
    """Two rows of two panels of one run, each with its legend above it."""
    (trajectory,) = trajectories.values()
    figure = style.figure(12, 8.2, title)
    for axes, draw in zip(figure.subplots(2, 2).flat, drawn, strict=True):
        draw(axes, trajectory)
        style.legend_above(axes, 4)
    return figure


def _by_k(trajectory: Trajectory) -> list[tuple[str, int, str]]:
    """Colour, column of the grid and label of four values of k."""
    k = trajectory.record[GRID].at(0)[0]["k"][0]
    columns = np.linspace(0, len(k) - 1, 4).round().astype(int).tolist()
    return [(colour, column, f"k = {k[column]:.3g}") for colour, column in zip(SERIES, columns, strict=True)]


def _draw_initial_sharpness(axes: Axes, trajectory: Trajectory) -> None:
    grid, measured = trajectory.record[GRID].at(0)[0], trajectory.record[MEASURED].at(0)[0]
    d1, beta_norm = trajectory.configuration["theory"]["grid"]["d1"], float(grid["beta_norm"].flat[0])
    for colour, column, label in _by_k(trajectory):
        k = float(grid["k"][0, column])
        axes.plot(grid["alpha"][:, column], measured["initial_upper"][:, column], color=colour, label=label)
        threshold = exact.alpha_for_three_alpha(d1, k * d1, beta_norm)
        axes.plot(threshold, 3, "o", color=colour, markersize=6, markeredgecolor=style.INK, zorder=4)
    axes.axhspan(1, 3, color=style.GREY, zorder=0)
    axes.set(xscale="log", yscale="log", xlabel="α", ylabel="λ(0)/α", ylim=(0.8, None))
    axes.set_title(f"λ(0) ∈ (α, 3α), grey, fails for small α (‖β‖ = {beta_norm:g}; dots: exact threshold)")


def _paths(trajectory: Trajectory) -> list[tuple[str, float, dict[str, np.ndarray], np.ndarray]]:
    """Colour, α, rows by name and times of every single trajectory."""
    paths = trajectory.configuration["theory"]["paths"]
    names = ("t", SHARPNESS, "b_o", "c_squared", "b_squared", "o_bound")
    rows = trajectory.record[PATH].values
    return [
        (SERIES[index % 4], float(alpha), dict(zip(names, rows[index], strict=True)), times)
        for index, (alpha, times) in enumerate(zip(paths["alpha"], trajectory.record[PATH_TIMES].values, strict=True))
    ]


def _draw_decrease(axes: Axes, trajectory: Trajectory) -> None:
    paths = trajectory.configuration["theory"]["paths"]
    m = paths["d1"] / (paths["d1"] + paths["d2"])
    for colour, alpha, path, (turn, lowest) in _paths(trajectory):
        t, ratio = path["t"][1:], path[SHARPNESS][1:] / alpha
        axes.plot(t, ratio, color=colour, label=f"α = {alpha:g}")
        for moment, marker in ((turn, "x"), (lowest, "v")):
            axes.plot(moment, np.interp(moment, t, ratio), marker, color=style.INK, markersize=5, zorder=4)
    deadline = np.log(paths["beta_norm"] / 2) / (2 * paths["beta_norm"])
    axes.axvline(deadline, color=style.MUTED, linewidth=0.8, linestyle=":")
    style.mark_level(axes, m, "λ ≥ αm", (4, -11), x=0)
    axes.annotate(
        "ln(‖β‖/2)/(2‖β‖)", (deadline, 0), xycoords=("data", "axes fraction"), xytext=(4, 5), textcoords="offset points"
    )
    axes.set(xscale="log", yscale="log", xlabel="time t", ylabel="λ(t)/α", ylim=(m / 1.8, None))
    axes.set_title(f"λ falls by at most 3(1+k), k = {paths['d2'] / paths['d1']:g} (×: c turns, ▾: smallest λ)")


def _draw_decay(axes: Axes, trajectory: Trajectory) -> None:
    paths = trajectory.configuration["theory"]["paths"]
    m = paths["d1"] / (paths["d1"] + paths["d2"])
    end = 4 / m
    for colour, alpha, path, _ in _paths(trajectory):
        scaled = alpha * path["t"]
        shown = scaled <= end
        axes.plot(scaled[shown], path["b_o"][shown], color=colour, label=f"α = {alpha:g}")
    scaled = alpha * path["t"]
    axes.plot(scaled[shown], np.sqrt(path["o_bound"][shown]), "--", color=OTHER, label="bound (51)")
    at = np.linspace(0, end, 200)
    axes.plot(at, path["b_o"][0] * np.exp(-at), ":", color=style.INK, linewidth=1.4, label=r"$e^{-\alpha t}$")
    axes.set(yscale="log", xlabel="αt", ylabel="‖b_o‖", ylim=(1e-4, 1.5))
    axes.set_title("‖b_o‖ decays at rate αm in the end, not at α; its bound holds for every α")


def _draw_time(axes: Axes, trajectory: Trajectory) -> None:
    grid, measured, conditions = (trajectory.record[name].at(0)[0] for name in (GRID, MEASURED, CONDITIONS))
    bound = trajectory.record[BOUND].at(0)[0]
    for colour, column, label in _by_k(trajectory):
        alpha = grid["alpha"][:, column]
        ratio = measured["minimum_in_time"][:, column] / bound["minimum_in_time"][:, column]
        axes.plot(alpha, ratio, color=colour, linewidth=1, label=label)
        proved = conditions["theorem_3_1"][:, column] & conditions["beta"][:, column]
        axes.plot(alpha[proved], ratio[proved], color=colour, linewidth=4, alpha=0.6, solid_capstyle="butt")
    axes.axhline(1, color=style.MUTED, linestyle="--", linewidth=0.9)
    axes.set(xscale="log", yscale="log", xlabel="α", ylabel="time of the smallest λ over ln(‖β‖/2)/(2‖β‖)")
    axes.set_title("The decrease ends in time long before the proof's condition (thick) is met")


def theorem32(trajectories: Mapping[str, Trajectory]) -> Figure:
    """Theorem 3.2: growth and end of λ under gradient flow, and gradient descent around the largest stable step."""
    title = "Theorem 3.2, as stated and as measured: progressive sharpening and what follows it"
    return _panels(trajectories, title, _draw_growth, _draw_end, _draw_descents, _draw_step_sizes)


def _draw_growth(axes: Axes, trajectory: Trajectory) -> None:
    paths = trajectory.configuration["theory"]["paths"]
    beta_norm = float(paths["beta_norm"])
    m = paths["d1"] / (paths["d1"] + paths["d2"])
    for colour, alpha, path, (_, lowest) in _paths(trajectory):
        shown = path["t"] <= 1.2
        ratio = path[SHARPNESS] / (alpha * beta_norm)
        axes.plot(path["t"][shown], ratio[shown], color=colour, label=f"α = {alpha:g}")
        axes.plot(lowest, np.interp(lowest, path["t"], ratio), "v", color=style.INK, markersize=5, zorder=4)
    t = np.linspace(0, 0.55, 100)
    axes.plot(t, m * np.cosh(beta_norm * t) ** 2 / beta_norm, "--", color=OTHER, label="αm cosh²(‖β‖t)")
    for level, name in ((1, "α‖β‖"), (5 / 8, "⅝ α‖β‖")):
        style.mark_level(axes, level, name, (-38, 3))
    axes.set(yscale="log", xlabel="time t", ylabel="λ(t)/(α‖β‖)", ylim=(m / beta_norm / 2, 2.2))
    axes.set_title("From its minimum (▾) λ grows, exponentially, up to α‖β‖")


def _draw_end(axes: Axes, trajectory: Trajectory) -> None:
    grid, measured = trajectory.record[GRID].at(0), trajectory.record[MEASURED].at(0)
    conditions = trajectory.record[CONDITIONS].at(0)
    proved = conditions["theorem_3_2"] & conditions["beta"]
    for chosen, colour, name in ((~proved, SERIES[1], "elsewhere"), (proved, SERIES[3], "under the proof's condition")):
        alpha, final = grid["alpha"][chosen], measured["final_sharpness"][chosen]
        axes.plot(alpha, final, ".", color=colour, markersize=3, label=name)
    alpha = np.unique(grid["alpha"])
    axes.plot(alpha, np.maximum(alpha, 2) / alpha, "--", color=OTHER, label="max(α, 2)‖β‖, exact")
    style.mark_level(axes, 5 / 8, "⅝", (-12, 3))
    axes.set(xscale="log", xlabel="α", ylabel="λ(∞)/(α‖β‖)", ylim=(0, 2.2))
    axes.set_title(f"The end needs no condition: all {grid.size:,} models of the grid")


def _draw_descents(axes: Axes, trajectory: Trajectory) -> None:
    ratios, sizes = (trajectory.record[name].values for name in (DESCENT_RATIO, DESCENT_LOG_B_O))
    for colour, wanted in zip((SERIES[1], SERIES[3], style.PAIRS[1][1], OTHER), (0.95, 1.1, 1.3, 1.7), strict=True):
        index = int(np.argmin(np.abs(ratios - wanted)))
        size = sizes[index] / np.log(10)
        axes.plot(size, color=colour, label=f"η = {ratios[index]:.2f}·2/(α‖β‖)")
    axes.set(xlabel="step", ylabel="log₁₀ |b_o|", xlim=(0, min(1500, sizes.shape[1])), ylim=(-130, 8))
    axes.set_title("Gradient descent: above the edge b_o comes back, alternating, and dies again")


def _draw_step_sizes(axes: Axes, trajectory: Trajectory) -> None:
    record = trajectory.record
    ratios, last = record[DESCENT_RATIO].values, record[DESCENT_ETA_LAMBDA].values[:, -1]
    returned = np.isfinite(last)
    axes.plot(ratios[returned], last[returned], "o", color=SERIES[3], markersize=3.5, label="ends at this ηλ")
    axes.plot(ratios[~returned], np.full(np.count_nonzero(~returned), 2.25), "x", color=OTHER, label="diverges")
    axes.plot([ratios[0], 1], [2 * ratios[0], 2], color=style.MUTED, label="ηα‖β‖, the end of the flow")
    axes.axhline(2, color=style.MUTED, linewidth=0.8, linestyle=":")
    axes.axvline(1, color=style.MUTED, linewidth=0.8, linestyle=":")
    axes.axvline(2, color=style.MUTED, linewidth=0.8, linestyle=":")
    axes.set(xlabel="η over 2/(α‖β‖)", ylabel="ηλ at the end", ylim=(1.5, 2.35))
    axes.set_title("Up to about 4/(α‖β‖) gradient descent returns to a flatter minimum")


# -- map -------------------------------------------------------------------------------------------------------------

MAP_COLOURS = ("#e8f1e9", "#f6d8a8", "#e39a8f", "#a5524a")
MAP_NAMES = ("both hold", "smallest λ too late", "λ(0) ≥ 3α", "neither holds")


def theorem_map(trajectories: Mapping[str, Trajectory]) -> Figure:
    """Where the statements of theorem 3.1 hold over (α, k) for every ‖β‖, beside the conditions that suffice."""
    (trajectory,) = trajectories.values()
    grid, holds, measured = (trajectory.record[name].at(0) for name in (GRID, HOLDS, MEASURED))
    d1 = trajectory.configuration["theory"]["grid"]["d1"]
    figure = style.figure(12, 7.6, "Where theorems 3.1 and 3.2 hold, and where their proofs say so")
    panels = figure.subplots(2, len(grid), sharex=True, sharey=True, squeeze=False)
    for column in range(len(grid)):
        upper, lower = panels[:, column]
        alpha, k = grid["alpha"][column], grid["k"][column]
        state = 1 * ~holds["minimum_in_time"][column] + 2 * ~holds["initial_upper"][column]
        upper.pcolormesh(alpha, k, state, cmap=ListedColormap(MAP_COLOURS), vmin=-0.5, vmax=3.5, rasterized=True)
        constants = measured["outlier_decay"][column] / np.log(10)
        levels = lower.pcolormesh(alpha, k, constants, cmap="Blues", vmin=0, vmax=20, rasterized=True)
        for axes in (upper, lower):
            _draw_conditions(axes, alpha, k, float(grid["beta_norm"][column].flat[0]), d1)
        lower.contour(alpha, k, constants, [1.0], colors=[OTHER], linewidths=1.2)
        upper.set_title(f"‖β‖ = {grid['beta_norm'][column].flat[0]:g}")
        lower.set_xlabel("α")
    panels[0, 0].set(xscale="log", yscale="log", ylabel="λ(0) < 3α, and smallest λ in time\n\nk = d2/d1")
    panels[1, 0].set_ylabel("$\\|b_o\\| \\leq K e^{-\\alpha t}\\|b_o(0)\\|$ up to $t_1$\n\nk = d2/d1")
    figure.colorbar(levels, ax=panels[1], label="log₁₀ of the smallest K (orange: K = 10)", extend="max", pad=0.01)
    regions = [Patch(color=colour, label=name) for colour, name in zip(MAP_COLOURS, MAP_NAMES, strict=True)]
    lines = [
        Line2D([], [], color=style.INK, linestyle="-", label="condition in the proof of 3.1"),
        Line2D([], [], color=style.INK, linestyle="--", label="of 3.2"),
        Line2D([], [], color=style.INK, linestyle=":", label="α = 4‖β‖(1+k), measured"),
    ]
    figure.legend(handles=[*regions, *lines], loc="outside lower left", ncols=7)
    return figure


def _draw_conditions(axes: Axes, alpha: np.ndarray, k: np.ndarray, beta_norm: float, d1: int) -> None:
    """The boundary of the region where each condition is met; it lies to the left of what it proves."""
    # A finer grid than the map's, so that the boundaries are smooth.
    alpha, k = np.geomspace(alpha.min(), alpha.max(), 500)[:, None], np.geomspace(k.min(), k.max(), 500)
    conditions = sufficient_conditions(d1, k * d1, alpha, beta_norm)
    for name, line in (("theorem_3_1", "-"), ("theorem_3_2", "--"), ("measured", ":")):
        met = conditions[name] & conditions["beta"]
        if 0 < met.mean() < 1:
            axes.contour(alpha[:, 0], k, met.T, [0.5], colors=[style.INK], linestyles=[line], linewidths=1.1)
