"""Figures 7, 8, 9 and 45: opposing pairs of tokens, and two optimizers on text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from opposing_signals.files import write_text
from opposing_signals.record import Series
from opposing_signals.record.quantities import SIGNED_SHARE, TRAIN_LOSS
from opposing_signals.signals import Trajectory
from opposing_signals.signals.steps import between
from opposing_signals.signals.tokens import TokenPair, TokenTrack
from opposing_signals.studies import style
from opposing_signals.studies.curvature.metrics import detrended
from opposing_signals.studies.text.tables import Section, found_sections, named_sections, plain
from opposing_signals.templates import templates

WIDTH = 62
"""Number of characters of a context that are drawn."""


def token_pair(trajectories: Mapping[str, Trajectory], pair: str, title: str, rows: int = 12, zoom: int = 60) -> Figure:
    """The contexts of a named pair with their next tokens, and their losses around the step that moved them most.

    Args:
        pair: One of `token_patterns.PAIRS`.
        title: Title of the figure.
        rows: Contexts shown per group, those whose loss changed most.
        zoom: Steps shown around the selecting step.
    """
    (trajectory,) = trajectories.values()
    track = trajectory.tokens
    found = track.named(pair)
    title = style.about(title, trajectories)
    if found is None:
        figure = style.figure(11, 2, title)
        figure.subplots().set_axis_off()
        figure.text(0.01, 0.4, "The followed text lacks one of the two patterns, or too few steps were measured.")
        return figure
    sections = named_sections(track, found, rows)
    lines = [len(section.examples) + 1.2 for section in sections]
    figure = style.figure(11, 3.2 + 0.21 * sum(lines), title)
    losses, *tables = figure.subplots(3, 1, height_ratios=[11, *lines])
    step = found.pair.step
    _draw_losses(losses, track, found, (step - zoom // 2, step + zoom // 2), style.PAIRS[0])
    losses.axvline(step, color=style.MUTED, linewidth=0.8, linestyle=":")
    losses.set_title(f"mean loss of each group; correlation of its changes {found.pair.correlation:.2f}")
    losses.legend(ncols=3, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0)
    for axes, section, colour in zip(tables, sections, style.PAIRS[0], strict=True):
        _draw_section(axes, section, colour)
    return figure


def _draw_losses(
    axes: Axes, track: TokenTrack, found: TokenPair, span: tuple[float, float], colours: Sequence[str]
) -> None:
    """The mean losses of both groups and of all tracked tokens, over the steps of ``span``."""
    shown = between(track.before, *span)
    steps = shown.steps
    for name, group, colour in zip(found.names, found.pair.groups, colours, strict=True):
        axes.plot(
            steps,
            shown.values[:, group].mean(1, dtype=np.float64),
            color=colour,
            marker="o" if len(steps) < 100 else "",
            markersize=2.5,
            linewidth=0.9,
            label=plain(name),
        )
    axes.plot(steps, shown.values.mean(1, dtype=np.float64), color=style.INK, linewidth=0.9, label="all tracked tokens")
    axes.set(xlabel="step", ylabel="loss")
    style.whole_steps(axes)


def _draw_section(axes: Axes, section: Section, colour: str) -> None:
    """One line per context: its end, the next token in brackets, and the two losses."""
    axes.set_axis_off()
    axes.set(xlim=(0, 1), ylim=(len(section.examples) - 0.5, -1.7))
    axes.text(0, -1.2, section.title, color=colour, fontweight="bold", va="center", parse_math=False)
    style_of: dict[str, Any] = {"family": "DejaVu Sans Mono", "fontsize": 7.5, "va": "center", "parse_math": False}
    for line, example in enumerate(section.examples):
        context = example.context if len(example.context) <= WIDTH else "…" + example.context[1 - WIDTH :]
        axes.text(0.62, line, context, ha="right", **style_of)
        axes.text(0.625, line, f"[{example.target}]", color=colour, fontweight="bold", **style_of)
        axes.text(0.86, line, f"{example.before:6.2f} → {example.after:5.2f}", **style_of)


def token_losses(trajectories: Mapping[str, Trajectory], pairs: Sequence[str], zoom: int = 60) -> Figure:
    """Losses of the named pairs and of the pairs found, over the run and around their selecting steps.

    Args:
        pairs: Names from `token_patterns.PAIRS`.
        zoom: Steps around the selecting step.
    """
    (trajectory,) = trajectories.values()
    track = trajectory.tokens
    shown = [pair for name in pairs if (pair := track.named(name)) is not None] + track.pairs
    title = style.about("Losses of opposing tokens", trajectories)
    figure = style.figure(11, 0.8 + 2.1 * max(1, len(shown)), title)
    panels = figure.subplots(max(1, len(shown)), 2, squeeze=False, width_ratios=[1.4, 1])
    for number, pair in enumerate(shown):
        whole, close = panels[number]
        step, colours = pair.pair.step, style.PAIRS[number % 4]
        _draw_losses(whole, track, pair, (-np.inf, np.inf), colours)
        _draw_losses(close, track, pair, (step - zoom // 2, step + zoom // 2), colours)
        whole.axvline(step, color=style.MUTED, linewidth=0.8, linestyle=":")
        whole.legend(ncols=3, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0)
        first, last = pair.pair.window
        close.set_title(f"correlation {pair.pair.correlation:.2f} over steps {first} to {last}")
    return figure


def token_tables(
    trajectories: Mapping[str, Trajectory], folder: Path, pair: str, rows: int = 20, largest: int = 200
) -> None:
    """Write ``tables.txt`` and ``tables.html``: a named pair's contexts, and one step's largest changes by group.

    Args:
        folder: The experiment's folder.
        pair: One of `token_patterns.PAIRS`.
        rows: Contexts per group.
        largest: Number of rises, and of falls, that are grouped by next token and shared context.
    """
    (trajectory,) = trajectories.values()
    track = trajectory.tokens
    named = track.named(pair)
    step = int(track.before.steps[len(track.before) // 2]) if named is None else named.pair.step
    sections = ([] if named is None else named_sections(track, named, rows)) + found_sections(
        track, step, largest, rows
    )
    data = trajectory.record.provenance["data"]["name"]
    head = f"Losses of next tokens at step {step} and after it: {trajectory.configuration['run']['name']}, {data}"
    text = [head, *("\n" + section.as_text() for section in sections)]
    write_text(folder / "tables.txt", "\n".join(text) + "\n")
    environment = templates("studies/text")
    page = environment.get_template("tokens.html.j2").render(head=head, sections=sections)
    write_text(folder / "tables.html", page)


# -- figure 45 --------------------------------------------------------------------------------------------------------


def adam_and_splitsgd(
    trajectories: Mapping[str, Trajectory],
    adam: str = "gpt2_adam",
    split: str = "gpt2_splitsgd",
    window: int = 50,
    zoom: int = 100,
) -> Figure:
    """Train loss of both, their oscillations over the last steps of both runs, and SplitSGD's fraction of signed steps.

    Args:
        trajectories: One run per rule.
        adam: Name of the run under Adam.
        split: Name of the run under SplitSGD.
        window: Steps of the running mean that is subtracted from the losses.
        zoom: Steps at the end of the shorter run whose oscillations are shown.
    """
    end = min((int(one.record[TRAIN_LOSS].steps[-1]) for one in trajectories.values()), default=0)
    figure = style.figure(12, 3.8, style.about("Train loss of Adam and SplitSGD", trajectories))
    loss, oscillation, share = figure.subplots(1, 3)
    for name, colour, label in ((adam, style.RUNS[0], "Adam"), (split, style.RUNS[1], "SplitSGD")):
        if name not in trajectories:
            loss.plot([], [], color=colour, label=f"{label}: no run")
            continue
        measured = trajectories[name].record[TRAIN_LOSS]
        style.draw(loss, measured, color=colour, linewidth=0.7, label=label)
        rest = Series(measured.steps, detrended(np.asarray(measured.values, dtype=np.float64), window))
        style.draw(oscillation, between(rest, end - zoom + 1, end), color=colour, linewidth=0.9, label=label)
    loss.set(title="train loss", xlabel="step")
    style.legend_above(loss, 2)
    oscillation.set(title=f"without its running mean,\nlast {zoom} steps of both", xlabel="step")
    if split in trajectories:
        style.draw(share, trajectories[split].record[SIGNED_SHARE], color=style.RUNS[1])
    share.set(title="share of parameters with a signed step", xlabel="step", ylim=(0, 1))
    return figure
