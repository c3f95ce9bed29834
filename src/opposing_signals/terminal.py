"""Text for the terminal, and for the files and pipes that stand in its place."""

from __future__ import annotations

import os
import sys

from rich.console import Console

WIDTH = 140
"""Columns of what is written to a file or a pipe, unless ``COLUMNS`` says otherwise."""


def console(markup: bool = True) -> Console:
    """Standard output, as wide as the terminal. Rich itself reads ``COLUMNS`` and ``NO_COLOR``.

    Args:
        markup: Whether brackets such as ``[bold]`` are styles, or text as any other.
    """
    return Console(
        highlight=False, markup=markup, width=None if sys.stdout.isatty() or os.environ.get("COLUMNS") else WIDTH
    )
