"""How the process that wrote a run has died, told to the next one.

A process that is killed, or ended by a fault in compiled code, says nothing. So while it writes a run it leaves a file
there, into which Python's fault handler puts the signal and what was running. Whoever finds the file and no writer
knows.
"""

from __future__ import annotations

import atexit
import faulthandler
import os
import platform
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

RUNNING, DIED = "running.txt", "died.txt"

_open: list[IO[str]] = []
"""The files of the runs that this process writes; the fault handler has the last one."""


@contextmanager
def watched(folder: Path) -> Iterator[None]:
    """Inside, this process writes the run in ``folder``; an exception is an end like any other."""
    path = (folder / RUNNING).absolute()
    was_enabled = faulthandler.is_enabled()
    with path.open("w", encoding="utf-8") as file:
        file.write(f"process {os.getpid()} on {platform.node()}\n")
        file.flush()
        _open.append(file)
        faulthandler.enable(file)
        try:
            yield
        finally:
            _open.remove(file)
            if _open:
                faulthandler.enable(_open[-1])
            elif was_enabled and sys.__stderr__ is not None:
                faulthandler.enable(sys.__stderr__)
            else:
                faulthandler.disable()
            path.unlink(missing_ok=True)


@atexit.register
def _end() -> None:
    """An interpreter that comes to its end has not died, though it may have left a run open."""
    for file in _open:
        Path(file.name).unlink(missing_ok=True)


def death_in(folder: Path) -> str | None:
    """How the last process that wrote the run in ``folder`` died, None if it did not; asked once, by the only writer.

    What the process left stays there as ``died.txt``.
    """
    path = folder / RUNNING
    if not path.is_file():
        return None
    fault = re.search("Fatal Python error: (.*)", path.read_text(encoding="utf-8", errors="replace"))
    path.replace(folder / DIED)
    return fault[1] if fault else "killed without a trace, as by SIGKILL where memory runs out"
