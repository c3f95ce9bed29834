"""What theorems 3.1 and 3.2 state, compared with gradient flow and gradient descent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpecFromSubplotSpec
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from opposing_signals.record import quantities
from opposing_signals.signals import Trajectory
from opposing_signals.studies import style
from opposing_signals.studies.theory import exact
from opposing_signals.studies.theory.jobs import PATH_FIELDS
from opposing_signals.studies.theory.theorems import sufficient_conditions

OTHER = style.PAIRS[1][0]
LOOKS: tuple[dict[str, Any], ...] = tuple(
    {"color": colour, "linestyle": line}
    for colour, line in zip(("#56a8dc", "#2f80bd", "#1b5793", "#0b2a55"), style.LINES, strict=False)
)
"""One hue for an ordered parameter, light to dark, and a line style for each value."""


def theorem31(trajectories: Mapping[str, Trajectory]) -> Figure:
    """Theorem 3.1: λ at the start, its decrease, the decay of ``b_o``, and the time it takes, with the bounds."""
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


def _by_k(trajectory: Trajectory) -> list[tuple[dict[str, Any], int, str]]:
    """Look, column of the grid and label of four values of k."""
    k = trajectory.record[quantities.GRID].at(0)[0]["k"][0]
    columns = np.linspace(0, len(k) - 1, 4).round().astype(int).tolist()
    return [(look, column, f"k = {k[column]:.3g}") for look, column in zip(LOOKS, columns, strict=True)]


def _draw_initial_sharpness(axes: Axes, trajectory: Trajectory) -> None:
    grid, measured = trajectory.record[quantities.GRID].at(0)[0], trajectory.record[quantities.MEASURED].at(0)[0]
    d1, beta_norm = trajectory.configuration["theory"]["grid"]["d1"], float(grid["beta_norm"].flat[0])
    for look, column, label in _by_k(trajectory):
        k = float(grid["k"][0, column])
        axes.plot(grid["alpha"][:, column], measured["initial_upper"][:, column], **look, label=label)
        threshold = exact.alpha_for_three_alpha(d1, k * d1, beta_norm)
        axes.plot(threshold, 3, "o", color=look["color"], markersize=6, markeredgecolor=style.INK, zorder=4)
    axes.axhspan(1, 3, color=style.GREY, zorder=0)
    axes.set(xscale="log", yscale="log", xlabel="α", ylabel="λ(0)/α", ylim=(0.8, None))
    axes.set_title(f"λ at the start over α, ‖β‖ = {beta_norm:g} (grey: as stated; dots: exact threshold)")


def _paths(trajectory: Trajectory) -> list[tuple[dict[str, Any], float, dict[str, np.ndarray], np.ndarray]]:
    """Look, α, rows by name and times of every single trajectory."""
    paths = trajectory.configuration["theory"]["paths"]
    rows, all_times = (trajectory.record[name].values for name in (quantities.PATH, quantities.PATH_TIMES))
    return [
        (LOOKS[index % 4], float(alpha), dict(zip(PATH_FIELDS, rows[index], strict=True)), times)
        for index, (alpha, times) in enumerate(zip(paths["alpha"], all_times, strict=True))
    ]


def _draw_decrease(axes: Axes, trajectory: Trajectory) -> None:
    paths = trajectory.configuration["theory"]["paths"]
    m = paths["d1"] / (paths["d1"] + paths["d2"])
    for look, alpha, path, (turn, lowest) in _paths(trajectory):
        t, ratio = path["t"][1:], path[quantities.SHARPNESS][1:] / alpha
        axes.plot(t, ratio, **look, label=f"α = {alpha:g}")
        for moment, marker in ((turn, "x"), (lowest, "v")):
            axes.plot(moment, np.interp(moment, t, ratio), marker, color=style.INK, markersize=5, zorder=4)
    deadline = np.log(paths["beta_norm"] / 2) / (2 * paths["beta_norm"])
    axes.axvline(deadline, color=style.MUTED, linewidth=0.8, linestyle=":")
    style.mark_level(axes, m, "λ ≥ αm", (4, -11), x=0)
    axes.annotate(
        "ln(‖β‖/2)/(2‖β‖)", (deadline, 0), xycoords=("data", "axes fraction"), xytext=(4, 5), textcoords="offset points"
    )
    axes.set(xscale="log", yscale="log", xlabel="time t", ylabel="λ(t)/α", ylim=(m / 1.8, None))
    axes.set_title(f"λ along the flow over α, k = {paths['d2'] / paths['d1']:g} (×: c turns, ▾: smallest λ)")


def _draw_decay(axes: Axes, trajectory: Trajectory) -> None:
    paths = trajectory.configuration["theory"]["paths"]
    m = paths["d1"] / (paths["d1"] + paths["d2"])
    end = 4 / m
    for look, alpha, path, _ in _paths(trajectory):
        scaled = alpha * path["t"]
        shown = scaled <= end
        axes.plot(scaled[shown], path["b_o"][shown], **look, label=f"α = {alpha:g}")
    scaled = alpha * path["t"]
    axes.plot(scaled[shown], np.sqrt(path["o_bound"][shown]), color=OTHER, linewidth=3, alpha=0.5, label="bound (51)")
    at = np.linspace(0, end, 200)
    axes.plot(at, path["b_o"][0] * np.exp(-at), ":", color=style.INK, linewidth=1.4, label=r"$e^{-\alpha t}$")
    axes.set(yscale="log", xlabel="αt", ylabel="‖b_o‖", ylim=(1e-4, 1.5))
    axes.set_title("size of b_o along the flow, its bound, and its decay as stated")


def _draw_time(axes: Axes, trajectory: Trajectory) -> None:
    grid, measured, conditions = (
        trajectory.record[name].at(0)[0] for name in (quantities.GRID, quantities.MEASURED, quantities.CONDITIONS)
    )
    bound = trajectory.record[quantities.BOUND].at(0)[0]
    for look, column, label in _by_k(trajectory):
        alpha = grid["alpha"][:, column]
        ratio = measured["minimum_in_time"][:, column] / bound["minimum_in_time"][:, column]
        axes.plot(alpha, ratio, **look, linewidth=1, label=label)
        proved = conditions["theorem_3_1"][:, column] & conditions["beta"][:, column]
        axes.plot(alpha[proved], ratio[proved], color=look["color"], linewidth=4, alpha=0.6, solid_capstyle="butt")
    axes.axhline(1, color=style.MUTED, linestyle="--", linewidth=0.9)
    axes.set(xscale="log", yscale="log", xlabel="α", ylabel="time of the smallest λ over ln(‖β‖/2)/(2‖β‖)")
    axes.set_title("time of the smallest λ over its bound (thick: the proof's condition is met)")


def theorem32(trajectories: Mapping[str, Trajectory]) -> Figure:
    """Theorem 3.2: growth and end of λ under gradient flow, and gradient descent around the largest stable step."""
    title = "Theorem 3.2, as stated and as measured: progressive sharpening and what follows it"
    return _panels(trajectories, title, _draw_growth, _draw_end, _draw_descents, _draw_step_sizes)


def _draw_growth(axes: Axes, trajectory: Trajectory) -> None:
    paths = trajectory.configuration["theory"]["paths"]
    beta_norm = float(paths["beta_norm"])
    m = paths["d1"] / (paths["d1"] + paths["d2"])
    for look, alpha, path, (_, lowest) in _paths(trajectory):
        shown = path["t"] <= 1.2
        ratio = path[quantities.SHARPNESS] / (alpha * beta_norm)
        axes.plot(path["t"][shown], ratio[shown], **look, label=f"α = {alpha:g}")
        axes.plot(lowest, np.interp(lowest, path["t"], ratio), "v", color=style.INK, markersize=5, zorder=4)
    t = np.linspace(0, 0.55, 100)
    axes.plot(
        t, m * np.cosh(beta_norm * t) ** 2 / beta_norm, color=OTHER, linewidth=3, alpha=0.5, label="αm cosh²(‖β‖t)"
    )
    for level, name in ((1, "α‖β‖"), (5 / 8, "⅝ α‖β‖")):
        style.mark_level(axes, level, name, (-38, 3))
    axes.set(yscale="log", xlabel="time t", ylabel="λ(t)/(α‖β‖)", ylim=(m / beta_norm / 2, 2.2))
    axes.set_title("λ along the flow over α‖β‖ (▾: smallest λ)")


def _draw_end(axes: Axes, trajectory: Trajectory) -> None:
    grid, measured = trajectory.record[quantities.GRID].at(0), trajectory.record[quantities.MEASURED].at(0)
    conditions = trajectory.record[quantities.CONDITIONS].at(0)
    proved = conditions["theorem_3_2"] & conditions["beta"]
    for chosen, look, mark, name in (
        (~proved, LOOKS[1], "x", "elsewhere"),
        (proved, LOOKS[3], ".", "under the proof's condition"),
    ):
        alpha, final = grid["alpha"][chosen], measured["final_sharpness"][chosen]
        axes.plot(alpha, final, mark, color=look["color"], markersize=4, label=name)
    alpha = np.unique(grid["alpha"])
    axes.plot(alpha, np.maximum(alpha, 2) / alpha, "--", color=OTHER, label="max(α, 2)‖β‖, exact")
    style.mark_level(axes, 5 / 8, "⅝", (-12, 3))
    axes.set(xscale="log", xlabel="α", ylabel="λ(∞)/(α‖β‖)", ylim=(0, 2.2))
    axes.set_title(f"λ at the end of the flow over α‖β‖, {grid.size:,} models")


def _draw_descents(axes: Axes, trajectory: Trajectory) -> None:
    ratios, sizes = (trajectory.record[name].values for name in (quantities.DESCENT_RATIO, quantities.DESCENT_LOG_B_O))
    for look, wanted in zip(style.looks("abcd").values(), (0.95, 1.1, 1.3, 1.7), strict=True):
        index = int(np.argmin(np.abs(ratios - wanted)))
        axes.plot(sizes[index] / np.log(10), **look, label=f"{ratios[index]:.2f}")
    axes.set(xlabel="step", ylabel="log₁₀ |b_o|", xlim=(0, min(1500, sizes.shape[1])), ylim=(-130, 8))
    axes.set_title("size of b_o under gradient descent, by η over 2/(α‖β‖)")


def _draw_step_sizes(axes: Axes, trajectory: Trajectory) -> None:
    record = trajectory.record
    ratios, last = record[quantities.DESCENT_RATIO].values, record[quantities.DESCENT_ETA_LAMBDA].values[:, -1]
    returned = np.isfinite(last)
    axes.plot(ratios[returned], last[returned], "o", color=LOOKS[3]["color"], markersize=3.5, label="ends at this ηλ")
    axes.plot(ratios[~returned], np.full(np.count_nonzero(~returned), 2.25), "x", color=OTHER, label="diverges")
    axes.plot([ratios[0], 1], [2 * ratios[0], 2], color=style.MUTED, label="ηα‖β‖, the end of the flow")
    axes.axhline(2, color=style.MUTED, linewidth=0.8, linestyle=":")
    axes.axvline(1, color=style.MUTED, linewidth=0.8, linestyle=":")
    axes.axvline(2, color=style.MUTED, linewidth=0.8, linestyle=":")
    axes.set(xlabel="η over 2/(α‖β‖)", ylabel="ηλ at the end", ylim=(1.5, 2.35))
    axes.set_title("ηλ at the end of gradient descent, by its step size")


# -- map -------------------------------------------------------------------------------------------------------------

MAP_COLOURS = ("#e8f1e9", "#f6d8a8", "#e39a8f", "#a5524a")
PALE = ListedColormap(matplotlib.colormaps["Blues"](np.linspace(0, 0.6, 256)))
"""Blues without the tones that are too dark for a line on them."""
MAP_NAMES = ("both hold", "smallest λ too late", "λ(0) ≥ 3α", "neither holds")


def theorem_map(trajectories: Mapping[str, Trajectory]) -> Figure:
    """Where the statements of theorem 3.1 hold over (α, k) for every ‖β‖, with the sufficient conditions."""
    (trajectory,) = trajectories.values()
    grid, holds, measured = (
        trajectory.record[name].at(0) for name in (quantities.GRID, quantities.HOLDS, quantities.MEASURED)
    )
    d1 = trajectory.configuration["theory"]["grid"]["d1"]
    figure = style.figure(12, 7.6, "Where theorems 3.1 and 3.2 hold, and where their proofs say so")
    rows = figure.add_gridspec(2, 1, height_ratios=[1, 0.04])
    panels: Any = GridSpecFromSubplotSpec(2, len(grid), rows[0]).subplots(sharex=True, sharey=True, squeeze=False)
    for column in range(len(grid)):
        upper, lower = panels[:, column]
        alpha, k = grid["alpha"][column], grid["k"][column]
        state = 1 * ~holds["minimum_in_time"][column] + 2 * ~holds["initial_upper"][column]
        upper.pcolormesh(alpha, k, state, cmap=ListedColormap(MAP_COLOURS), vmin=-0.5, vmax=3.5, rasterized=True)
        constants = measured["outlier_decay"][column] / np.log(10)
        levels = lower.pcolormesh(alpha, k, constants, cmap=PALE, vmin=0, vmax=20, rasterized=True)
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
    legend = figure.add_subplot(rows[1])
    legend.axis("off")
    legend.legend(handles=[*regions, *lines], loc="center left", ncols=7, columnspacing=1.2)
    return figure


def _draw_conditions(axes: Axes, alpha: np.ndarray, k: np.ndarray, beta_norm: float, d1: int) -> None:
    """The boundary of the region where each condition holds; it lies to the left of what the condition proves."""
    # A finer grid than the map's, so that the boundaries are smooth.
    alpha, k = np.geomspace(alpha.min(), alpha.max(), 500)[:, None], np.geomspace(k.min(), k.max(), 500)
    conditions = sufficient_conditions(d1, k * d1, alpha, beta_norm)
    for name, line in (("theorem_3_1", "-"), ("theorem_3_2", "--"), ("measured", ":")):
        met = conditions[name] & conditions["beta"]
        if 0 < met.mean() < 1:
            axes.contour(alpha[:, 0], k, met.T, [0.5], colors=[style.INK], linestyles=[line], linewidths=1.1)
