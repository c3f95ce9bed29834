"""Standard input, output and error as a command finds them: on a terminal, in a pipe, on a full disk, or closed."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper

BROKEN_PIPE = 1
"""The exit code if the reader of the output has gone, for instance with ``| head``; rich uses the same."""


@contextmanager
def usable() -> Iterator[None]:
    """Inside, the standard streams can be written to, whatever they are.

    A closed one is replaced: otherwise the next file opened, a run's record for instance, gets its descriptor and what
    is printed. Characters that the encoding lacks become question marks.

    Raises:
        SystemExit: The reader of the output has gone.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) < 3:
        pass  # it has taken the lowest free number
    os.close(number)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (as long as the process)
        elif isinstance(stream, TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        with suppress(OSError, ValueError):  # what is left in the buffer is discarded at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(BROKEN_PIPE) from None
