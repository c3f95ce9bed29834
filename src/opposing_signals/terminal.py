"""Text for the terminal, and for the files and pipes that stand in its place."""

from __future__ import annotations

import os
import sys

from rich.console import Console

WIDTH = 140
"""Columns of what is written to a file or a pipe, unless ``COLUMNS`` says otherwise."""


def console() -> Console:
    """Standard output, as wide as the terminal. Rich itself reads ``COLUMNS`` and ``NO_COLOR``."""
    return Console(highlight=False, width=None if sys.stdout.isatty() or os.environ.get("COLUMNS") else WIDTH)
