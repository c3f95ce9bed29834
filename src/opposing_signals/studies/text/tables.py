"""The tables of figures 7 and 8: contexts with their next tokens, and the losses before and after a step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from opposing_signals.signals.streaming import StreamedLosses
from opposing_signals.signals.tokens import TokenPair, TokenTrack, token_groups

CONTEXT = 32
"""Number of context tokens that are printed."""


@dataclass(frozen=True)
class Example:
    """One (context, next token) with its losses; line breaks are written ``\\n``."""

    context: str
    target: str
    before: float
    after: float


@dataclass(frozen=True)
class Section:
    """The examples of one group, those whose loss changed most first."""

    title: str
    examples: list[Example]

    def as_text(self, width: int = 72) -> str:
        """A table of fixed columns, with the last ``width`` characters of each context."""
        lines = []
        for example in self.examples:
            target, losses = f"[{example.target}]", f"{example.before:6.2f} → {example.after:5.2f}"
            lines.append(f"  {example.context[-width:]:>{width}} {target:<14} {losses}")
        return "\n".join([self.title, *lines])


def plain(text: str) -> str:
    """A group's name as it is printed."""
    return text.replace("_", " ")


def named_sections(track: TokenTrack, found: TokenPair, rows: int) -> list[Section]:
    """Both groups of a pair at its selecting step, ``rows`` examples each."""
    step = found.pair.step
    sections = []
    for name, columns in zip(found.names, found.pair.groups, strict=True):
        changes = track.changes.at(step)[columns]
        rises = changes.mean() > 0  # both groups may rise, if they do not oppose each other
        losses = track.at(step, columns[np.argsort(-changes if rises else changes, kind="stable")[:rows]])
        verb = "rises" if rises else "falls"
        title = f"{plain(name)}: the loss {verb} by {abs(changes.mean()):.2f} at step {step}, mean of {len(columns)}"
        sections.append(_section(track, title, losses))
    return sections


def found_sections(track: TokenTrack, step: int, largest: int, rows: int) -> list[Section]:
    """The largest rises and falls of a step, grouped by next token and by the end of their contexts."""
    sections = []
    for losses, verb in zip(track.largest(step, largest), ("rises", "falls"), strict=True):
        place = {point: i for i, point in enumerate(losses.ids.tolist())}
        for group in token_groups(losses.ids, track.contexts):
            members = losses[np.array([place[point] for point in group.points.tolist()])]
            share = f"{len(members)} of the {len(losses)} largest {verb} of step {step}"
            title = f"{track.contexts.name(group)}: {share}, by {abs(members.changes.mean()):.2f} on average"
            sections.append(_section(track, title, members[np.arange(min(rows, len(members)))]))
    return sections


def _section(track: TokenTrack, title: str, losses: StreamedLosses) -> Section:
    examples = []
    for point, before, after in zip(losses.ids, losses.before, losses.after, strict=True):
        context, target = track.contexts.printed(*track.contexts.of(point, CONTEXT))
        examples.append(Example(context, target, float(before), float(after)))
    return Section(title, examples)
