"""Text for the terminal, or for a file or pipe in its place."""

from __future__ import annotations

import os
import sys

from rich.console import Console

WIDTH = 140
"""Columns of output to a file or a pipe, unless ``COLUMNS`` is set."""


def console(markup: bool = True) -> Console:
    """Standard output, as wide as the terminal. Rich itself reads ``COLUMNS`` and ``NO_COLOR``.

    Args:
        markup: Whether ``[bold]`` and the like are styles, rather than text.
    """
    return Console(
        highlight=False, markup=markup, width=None if sys.stdout.isatty() or os.environ.get("COLUMNS") else WIDTH
    )
