"""Tables of Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def print_table(rows: Iterable[Sequence[str]]) -> None:
    """Print rows of cells, each as soon as it is there; the first one is the head."""
    for number, cells in enumerate(rows):
        print("|", " | ".join(cells), "|", flush=True)
        if number == 0:
            print("|---" * len(cells) + "|")
