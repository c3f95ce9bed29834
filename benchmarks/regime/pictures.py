"""The eight panels of docs/regime.md."""

from __future__ import annotations

from typing import Any

from grid import WITH_BATCH_NORM, is_ghost
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from tables import NETWORKS

from opposing_signals.studies import style

LOOK: dict[str, dict[str, Any]] = {
    "resnet18": {"color": style.RUNS[0], "marker": "o", "linestyle": "-"},
    "vgg11": {"color": style.RUNS[1], "marker": "s", "linestyle": "--"},
    "vgg11bn": {"color": style.RUNS[2], "marker": "D", "linestyle": "-."},
    "mlp": {"color": style.RUNS[3], "marker": "^", "linestyle": ":"},
    "vit": {"color": style.RUNS[4], "marker": "v", "linestyle": (0, (5, 1))},
}
"""Colour, marker and line of a network; width 8 has hollow markers, width 32 a dark edge."""


def draw(rows: list[dict[str, Any]]) -> Figure:
    """The oscillation against η, width, N and the stage of training, and λ against N and batch norm's chunk."""
    title = "Gradient descent on CIFAR-10: what oscillates, by step size, width, images and batch norm's chunk"
    figure = style.figure(15, 7.4, title)
    by_eta, coherence, many, by_width, by_images, by_loss, sharpness, by_chunk = figure.subplots(2, 4).ravel()
    whole = [row for row in rows if row["seed"] == 1 and not is_ghost(row)]
    of_thousand = [row for row in whole if row["images"] == 1000 and row["eta"] in ETAS]
    of_tenth = [row for row in whole if row["eta"] == 0.1]
    _draw_lines(by_eta, of_thousand, "eta", "class_r2")
    _draw_lines(coherence, of_thousand, "eta", "coherence")
    _draw_lines(many, of_thousand, "eta", "directions")
    _draw_lines(by_images, of_tenth, "images", "class_r2")
    _draw_lines(sharpness, of_tenth, "images", "sharpness_over_edge_late")
    _draw_widths(by_width, [row for row in of_tenth if row["images"] == 1000])
    for axes in (by_eta, coherence, many):
        axes.set(xlabel="step size η", xscale="log", xlim=(0.02, 0.4), xticks=ETAS, xticklabels=ETAS)
        axes.minorticks_off()
    by_eta.set(title="Class R² of the changes, N = 1,000", ylabel="class R²", ylim=(0, 1.03))
    coherence.set(title="Modal class in a pair's purer group", ylabel="share", ylim=(0, 1.03))
    coherence.axhline(0.22, **CHANCE)
    many.set(title="Directions of the changes, N = 1,000", ylabel="participation ratio", ylim=(0, None))
    by_images.set(title="Class R² of the changes, η = 0.1", ylabel="class R²", ylim=(0, 1.03))
    sharpness.set(title="Median sharpness, η = 0.1", ylabel="λ / (2/η)", ylim=(0, None))
    sharpness.axhline(1, color=style.INK, linewidth=0.8)
    for axes in (by_images, sharpness):
        axes.set(xlabel="images N", xscale="log", xlim=(700, 70_000))
    _draw_stages(by_loss, of_thousand)
    _draw_chunks(by_chunk, rows)
    handles = {name: line for axes in figure.axes for line, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=max(1, len(handles)))
    return figure


ETAS = (0.03, 0.1, 0.3)
WIDTHS = (8, 16, 32, 64)
CHANCE: dict[str, Any] = {"color": style.MUTED, "linewidth": 0.8, "linestyle": (0, (1, 3))}


def _draw_lines(axes: Axes, rows: list[dict[str, Any]], by: str, quantity: str) -> None:
    for network, width in sorted({(row["network"], row["width"]) for row in rows}):
        ours = [row for row in rows if (row["network"], row["width"]) == (network, width) and row[quantity] is not None]
        points = sorted((row[by], row[quantity]) for row in ours)
        if points:
            axes.plot(*zip(*points, strict=True), label=NETWORKS[network].format(width), **_look(network, width))


def _draw_widths(axes: Axes, rows: list[dict[str, Any]]) -> None:
    """Class R² against the width of the networks, with batch norm over all images."""
    for network in sorted({row["network"] for row in rows if row["network"] in WITH_BATCH_NORM}):
        ours = [row for row in rows if row["network"] == network and row["class_r2"] is not None]
        for row in ours:
            axes.plot(row["width"], row["class_r2"], **_look(network, row["width"]))
        axes.plot(
            *zip(*sorted((row["width"], row["class_r2"]) for row in ours), strict=True), color=LOOK[network]["color"]
        )
    axes.set(title="Class R², N = 1,000, η = 0.1", xlabel="channels of the first layer", ylabel="class R²")
    axes.set(xscale="log", xlim=(6, 85), ylim=(0, 1.03), xticks=WIDTHS, xticklabels=WIDTHS)
    axes.minorticks_off()


def _look(network: str, width: int) -> dict[str, Any]:
    fill = {8: {"markerfacecolor": "white"}, 32: {"markeredgecolor": style.INK}} if network != "vit" else {}
    return {**LOOK[network], **fill.get(width, {}), "markersize": 5}


def _draw_stages(axes: Axes, rows: list[dict[str, Any]]) -> None:
    """Class R² of each quarter of the late steps, against the loss of that quarter, a line per η."""
    for row in rows:
        points = [(part["loss"], part["class_r2"]) for part in row["parts"] if part["class_r2"] is not None]
        if points:
            look = {**_look(row["network"], row["width"]), "markersize": 3 + 2 * ETAS.index(row["eta"])}
            axes.plot(*zip(*points, strict=True), **look)
    axes.set(title="Class R² along training; larger marks, larger η", xlabel="loss L", ylabel="class R²")
    axes.set(xscale="log", ylim=(0, 1.03))
    axes.invert_xaxis()


def _draw_chunks(axes: Axes, rows: list[dict[str, Any]]) -> None:
    """λ/(2/η) over steps with batch norm over all images, and over a part of them."""
    for row in rows:
        if row["network"] in WITH_BATCH_NORM and (row["images"], row["eta"], row["seed"]) == (1000, 0.1, 1):
            look = {**_look(row["network"], row["width"]), "linestyle": ":" if is_ghost(row) else "-"}
            axes.plot(row["sharpness_steps"], row["sharpness_over_edge"], **look)
    axes.axhline(1, color=style.INK, linewidth=0.8)
    axes.set(title="Sharpness; dotted: chunks of N/4", xlabel="step", ylabel="λ / (2/η)", yscale="log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")
