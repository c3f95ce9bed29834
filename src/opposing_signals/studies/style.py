"""The look that all figures share."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from opposing_signals.record import Record
    from opposing_signals.studies.claim import Verdict

INK = "#22252b"
MUTED = "#7a7f87"
# Okabe and Ito's palette, which colour-blind readers can tell apart; a pair's groups are a dark and a light tone.
PAIRS = (("#0072B2", "#56B4E9"), ("#D55E00", "#E69F00"), ("#00674F", "#3CC29B"), ("#8E3B74", "#DE9CC6"))
GROUPS: tuple[dict[str, Any], ...] = (
    {"color": PAIRS[0][0], "linestyle": "-", "marker": "o"},
    {"color": PAIRS[1][0], "linestyle": (0, (5, 1)), "marker": "s"},
)
"""The two groups of a pair where it is drawn by itself: colour, line and marker each tell them apart."""
ALARM = "#B3261E"
RUNS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")

plt.rcParams.update(
    {
        "axes.edgecolor": MUTED,
        "axes.labelcolor": INK,
        "axes.labelsize": 9,
        "axes.linewidth": 0.8,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlelocation": "left",
        "axes.titlesize": 10,
        "figure.constrained_layout.use": True,
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
)

_INCHES_A_LETTER = 0.135  # of a title


def figure(width: float, height: float, title: str) -> Figure:
    """An empty figure of ``width`` x ``height`` inches with a title, its lines broken where they do not fit."""
    new = plt.figure(figsize=(width, height))
    lines = [_broken(line, int(width / _INCHES_A_LETTER)) for line in title.splitlines()]
    new.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=12, fontweight="bold")
    return new


def _broken(line: str, letters: int) -> str:
    """As few lines of at most ``letters`` as there can be, of about the same length; "x = 1" stays in one of them."""
    whole = line.replace(" = ", "\u00a0=\u00a0")  # no place to break
    parts = narrower = _wrapped(whole, letters)
    width = min(letters, max(map(len, parts), default=0))
    while len(narrower) == len(parts) > 1 and max(map(len, narrower)) <= width:
        parts, width = narrower, max(map(len, narrower)) - 1
        narrower = _wrapped(whole, width)
    return "\n".join(parts)


def _wrapped(line: str, letters: int) -> list[str]:
    return textwrap.wrap(line, letters, break_long_words=False)


def shade_bound(axes: Axes, record: Record) -> None:
    """Between λ and what no eigenvalue exceeds, where the record knows that (see `curvature.Eigenpairs`)."""
    if "sharpness_bound" in record:
        measured, bound = record["sharpness"], record["sharpness_bound"]
        axes.fill_between(measured.steps, measured.values, bound.values, color=MUTED, alpha=0.2, linewidth=0, zorder=0)


def mark_break_even(axes: Axes, step: int | None) -> None:
    """A vertical line at the step where λ first reaches 2/η."""
    if step is not None:
        axes.axvline(step, color=MUTED, linewidth=0.8, linestyle=":")


def legend_above(axes: Axes, columns: int = 1) -> None:
    """A legend between the title and the panel, where it covers no curve."""
    rows = -(-len(axes.get_legend_handles_labels()[1]) // columns)
    axes.legend(ncols=columns, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2, columnspacing=1.2)
    axes.set_title(axes.get_title(loc="left"), pad=4 + 13.5 * rows)


def name_verdicts(figure: Figure, verdicts: Sequence[Verdict]) -> None:
    """Say under the title, in a line, what became of the figure's claims."""
    title = figure.get_suptitle()
    if not verdicts or not title:
        return
    told = " · ".join(
        f"{one.id} {one.verdict}" + ("" if one.value is None else f" ({one.value:.3g}, {one.threshold})")
        for one in verdicts
    )
    room = int(15 * figure.get_figwidth())
    if len(told) > room:  # the counts, and those that did not pass
        counts = Counter(one.verdict for one in verdicts)
        told = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
        others = [f"{one.id} {one.verdict}" for one in verdicts if one.verdict != "PASS"]
        told += ": " * bool(others) + ", ".join(others)
    figure.suptitle(title + "\n ", x=0.01, ha="left", fontsize=12, fontweight="bold")
    height = 0.02 * figure.get_figheight() + 0.2 * len(title.splitlines())  # of the margin and the lines, in inches
    figure.text(
        0.01,
        1 - height / figure.get_figheight(),
        textwrap.shorten(told, room, placeholder=" …"),
        fontsize=8,
        va="top",
        color=MUTED,
    )


def ramp(count: int) -> list[tuple[float, float, float, float]]:
    """``count`` colours for an ordered family of lines, from dark to light."""
    return [plt.get_cmap("viridis")(0.85 * index / max(1, count - 1)) for index in range(count)]


def name_failures(figure: Figure, failures: Mapping[str, str]) -> None:
    """Say below the panels which runs failed, and why."""
    if failures:
        width = int(15 * figure.get_figwidth())
        lines = [textwrap.shorten(f"{name} failed: {why}", width, placeholder=" …") for name, why in failures.items()]
        figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=8, color=ALARM)
