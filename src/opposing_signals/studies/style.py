"""The look that all figures share."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import zip_longest
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator
from PIL import Image

from opposing_signals.record.quantities import SHARPNESS, SHARPNESS_BOUND

if TYPE_CHECKING:
    from opposing_signals.record import Series
    from opposing_signals.signals.trajectory import Trajectory
    from opposing_signals.studies.claim import Verdict

INK = "#22252b"
MUTED = "#7a7f87"
# The palette of Okabe and Ito, safe for colour-blind readers; a pair's groups are a dark and a light tone.
PAIRS = (("#0072B2", "#56B4E9"), ("#D55E00", "#E69F00"), ("#00674F", "#3CC29B"), ("#8E3B74", "#DE9CC6"))
GROUPS: tuple[dict[str, Any], ...] = (
    {"color": PAIRS[0][0], "linestyle": "-", "marker": "o"},
    {"color": PAIRS[1][0], "linestyle": (0, (5, 1)), "marker": "s"},
)
"""The two groups of a pair drawn by itself: they differ in colour, line and marker."""
ALARM = "#B3261E"
RUNS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GREY = "#f0f1f3"
"""Marks a range of steps, drawn under the lines."""
LINES: tuple[Any, ...] = ("-", (0, (5, 1)), (0, (1, 1)), (0, (5, 1, 1, 1)), (0, (3, 1)), (0, (1, 2)))
"""Line styles of several runs in one panel, in addition to their colours."""
DPI = 150
"""Pixels per inch."""
LARGEST_PNG = 1_000_000
"""Size in bytes above which a picture, usually of many photographs, is saved with a palette."""

_LOOK: Any = {
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.labelsize": 9,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "grid.color": "#e6e7ea",
    "grid.linewidth": 0.6,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.2,
    "text.color": INK,
    "xtick.color": MUTED,
    "xtick.labelcolor": INK,
    "xtick.labelsize": 8,
    "ytick.color": MUTED,
    "ytick.labelcolor": INK,
    "ytick.labelsize": 8,
}
_INCHES_A_LETTER = 0.115  # in a title
_INCHES_A_NOTE = 0.135  # in a line under the panels


def look() -> AbstractContextManager[None]:
    """The settings with which figures are drawn and saved; outside of this context Matplotlib's defaults apply."""
    return matplotlib.rc_context(_LOOK)


def figure(width: float, height: float, title: str) -> Figure:
    """An empty figure of ``width`` x ``height`` inches with a title, which is wrapped to fit."""
    new = Figure(figsize=(width, height), layout="constrained")
    lines = [_broken(line, int(width / _INCHES_A_LETTER)) for line in title.splitlines()]
    new.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=12, fontweight="bold")
    return new


def save(figure: Figure, path: Path) -> None:
    """Write ``figure`` to ``path`` as PNG or PDF; a PNG of more than `LARGEST_PNG` bytes is reduced to 256 colours."""
    figure.savefig(path, dpi=DPI)
    if path.suffix == ".png" and path.stat().st_size > LARGEST_PNG:
        with Image.open(path) as picture:
            fewer = picture.convert("RGB").quantize(256)
        fewer.save(path, optimize=True)


def _broken(line: str, letters: int) -> str:
    """As few lines of at most ``letters`` as possible, of about equal length.

    "x = 1" and text in parentheses are not broken.
    """
    whole = re.sub(r" = |\([^()]*\)", lambda part: part[0].replace(" ", "\u00a0"), line)  # no line breaks there
    parts = narrower = _wrapped(whole, letters)
    width = min(letters, max(map(len, parts), default=0))
    while len(narrower) == len(parts) > 1 and max(map(len, narrower)) <= width:
        parts, width = narrower, max(map(len, narrower)) - 1
        narrower = _wrapped(whole, width)
    return "\n".join(parts)


def _wrapped(line: str, letters: int, indent: str = "") -> list[str]:
    return textwrap.wrap(line, letters, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def draw(axes: Axes, series: Series, **look: Any) -> None:
    """A quantity over the steps at which it was measured."""
    axes.plot(series.steps, series.values, **look)


def draw_sharpness(axes: Axes, trajectory: Trajectory, edge: float | None, **look: Any) -> None:
    """λ, shaded up to its upper bound (see `curvature.Eigenpairs`), and 2/η if it is given."""
    record = trajectory.record
    draw(axes, record[SHARPNESS], **{"color": INK, "label": "λ", **look})
    if SHARPNESS_BOUND in record:
        measured, bound = record[SHARPNESS], record[SHARPNESS_BOUND]
        shade: dict[str, Any] = {"color": MUTED, "alpha": 0.2, "linewidth": 0, "zorder": 0, "label": "upper bound of λ"}
        axes.fill_between(measured.steps, measured.values, bound.values, **shade)
    mark_edge(axes, edge)
    axes.set_ylim(0, None)


def draw_close(
    axes: Axes,
    steps: np.ndarray,
    values: np.ndarray,
    groups: Sequence[np.ndarray],
    looks: Sequence[Any],
    names: Sequence[str] = (),
) -> None:
    """The mean losses of groups at some steps, step by step.

    Args:
        axes: Axes to draw in.
        steps: ``[t]``.
        values: ``[t, N]`` losses.
        groups: Points of each group.
        looks: Look of each group.
        names: Name of each group, for the legend.
    """
    for group, look, name in zip_longest(groups, looks, names):
        line = {"marker": "o", "markersize": 2.5, **look}
        axes.plot(*broken(steps, values[:, group].mean(1)), **line, label=name)
    whole_steps(axes)


def whole_steps(axes: Axes) -> None:
    """Ticks at whole steps only."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def step_label(trajectory: Trajectory) -> str:
    """The label below the steps of a panel in which break-even is marked."""
    step = trajectory.break_even
    return "step" if step is None else f"step (dotted: break-even at {step})"


def framed(axes: Axes, picture: np.ndarray, colour: str, linewidth: float | None = None) -> None:
    """A picture in a frame."""
    axes.imshow(picture, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(visible=True, color=colour, **({} if linewidth is None else {"linewidth": linewidth}))


def mark_break_even(axes: Axes, step: int | None) -> None:
    """A vertical line at the step where λ first reaches 2/η."""
    if step is not None:
        axes.axvline(step, color=MUTED, linewidth=0.8, linestyle=":")


def mark_edge(axes: Axes, edge: float | None) -> None:
    """A horizontal line at 2/η, named at its end; nothing if ``edge`` is None."""
    if edge is not None:
        mark_level(axes, edge, "2/η")


def mark_level(axes: Axes, level: float, name: str, place: tuple[float, float] = (4, -3), x: float = 1) -> None:
    """A horizontal line with its name, ``place`` points from where it ends (``x = 1``) or begins (``x = 0``)."""
    axes.axhline(level, color=MUTED, linestyle="--", linewidth=0.9)
    axes.annotate(name, (x, level), xycoords=("axes fraction", "data"), xytext=place, textcoords="offset points")


def broken(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A line that is interrupted by NaN where steps were not measured."""
    gaps = np.flatnonzero(np.diff(steps) > 1) + 1
    return np.insert(steps.astype(float), gaps, np.nan), np.insert(values.astype(float), gaps, np.nan)


def wrapped(text: str, letters: int) -> str:
    """``text`` in lines of at most ``letters``."""
    return "\n".join(_wrapped(text, letters))


def legend_above(axes: Axes, columns: int = 1) -> None:
    """A legend between the title and the panel, where it covers no curve; none if nothing is labelled."""
    rows = -(-len(axes.get_legend_handles_labels()[1]) // columns)
    if not rows:
        return
    axes.legend(ncols=columns, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2, columnspacing=1.2)
    title = axes.get_title(loc="left")
    size = next(text.get_fontsize() for text in axes.findobj(Text) if text.get_text() == title)
    axes.set_title(title, pad=4 + 13.5 * rows, fontsize=size)


def legend_beside(figure: Figure, axes: Axes) -> None:
    """The legend of one panel, to the right of all panels: for long names."""
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper")


def name_verdicts(
    figure: Figure,
    verdicts: Sequence[Verdict],
    failures: Mapping[str, str] = MappingProxyType({}),
    notes: Sequence[str] = (),
) -> None:
    """Write notes under the panels, the verdict on each of the figure's claims, and which runs failed, and why.

    The figure grows with this text, so that the panels keep their size.
    """
    room = int(15 * figure.get_figwidth())
    said = [*notes, *map(_told, verdicts)]
    lines = [line for one in said for line in _wrapped(one, room, indent="    ")]
    lines += [textwrap.shorten(f"{name} failed: {why}", room, placeholder=" …") for name, why in failures.items()]
    if lines:
        figure.set_figheight(figure.get_figheight() + _INCHES_A_NOTE * len(lines))
        colour = ALARM if failures else MUTED
        figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=8, color=colour)


def _told(verdict: Verdict) -> str:
    """For instance "PASS (-0.9123, claimed < -0.8; 95% interval -0.95 to -0.87): The two groups ..."."""
    if verdict.value is None:
        measured = f"no value, claimed {verdict.threshold}"
    else:
        measured = f"{verdict.value:.4g}, claimed {verdict.threshold}"
    if verdict.interval is not None:
        measured += "; 95% interval {:.4g} to {:.4g}".format(*verdict.interval)
    if verdict.by_seed:
        passed = sum(one["verdict"] == "PASS" for one in verdict.by_seed)
        measured += f"; passes in {passed} of {len(verdict.by_seed)} seeds"
    return f"{verdict.verdict} ({measured}): {verdict.statement}"


def pair_looks(number: int) -> list[dict[str, Any]]:
    """Colour and line of the two groups of the ``number``-th pair: dark and solid, light and dashed."""
    return [
        {"color": colour, "linestyle": line} for colour, line in zip(PAIRS[number % len(PAIRS)], LINES[:2], strict=True)
    ]


def looks(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Name ↦ colour and line of each of several runs in one panel."""
    return {
        name: {"color": RUNS[number % len(RUNS)], "linestyle": LINES[number % len(LINES)]}
        for number, name in enumerate(names)
    }


def about(what: str, trajectories: Mapping[str, Trajectory]) -> str:
    """A title that names the subject: "…: ResNet-18 and VGG-11, cifar10 (5,000 images), η = 0.1 and 0.2"."""
    runs = trajectories.values()
    sizes: dict[str, list[str]] = {}
    for run in runs:
        rule = rule_name(run)
        sizes.setdefault("η" if rule == "SGD" else f"{rule} η", []).append(f"{run.step_size:g}")
    networks = _listed(run.network for run in runs)
    data = _listed(run.record.provenance["data"]["name"] for run in runs)
    return f"{what}: {networks}, {data}, {_listed(f'{rule} = {_listed(given)}' for rule, given in sizes.items())}"


def rule_name(trajectory: Trajectory) -> str:
    """The update rule as the literature writes it, for instance "1-SAM"."""
    rule = str(trajectory.configuration["optimizer"].get("_target_", "SGD")).rpartition(".")[2]
    return {"OneSAM": "1-SAM", "SignSGD": "sign SGD", "ClippedSGD": "clipped SGD"}.get(rule, rule)


def _listed(values: Iterable[str]) -> str:
    """For instance "a, b and c", without repetition; a part in parentheses that all share is given once at the end."""
    once = list(dict.fromkeys(values))
    heads, _, ends = zip(*(value.partition(" (") for value in once), strict=True)
    if len(once) > 1 and ends[0] and len(set(ends)) == 1:
        return f"{_listed(heads)} ({ends[0]}"
    *first, last = once
    return f"{', '.join(first)} and {last}" if first else last


def ordered_looks(count: int) -> list[dict[str, Any]]:
    """Colour and line of each of an ordered family of runs, from dark to light."""
    return [{"color": colour, "linestyle": LINES[number % len(LINES)]} for number, colour in enumerate(ramp(count))]


def ramp(count: int) -> list[tuple[float, float, float, float]]:
    """``count`` colours for an ordered family of lines, from dark to light."""
    return [matplotlib.colormaps["viridis"](0.85 * index / max(1, count - 1)) for index in range(count)]
