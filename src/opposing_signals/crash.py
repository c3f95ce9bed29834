"""Tells the next process how the one that wrote a run has died.

A process that is killed, or crashes in compiled code, reports nothing. So while it writes a run it keeps a file there,
to which Python's fault handler writes the signal and the traceback. If the file exists without a writer, the process
died.
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
"""The files of the runs that this process writes; the fault handler writes to the last one."""


@contextmanager
def watched(folder: Path) -> Iterator[None]:
    """Inside, this process writes the run in ``folder``; an exception counts as a normal end."""
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
    """An interpreter that exits normally has not died, even if it left a run open."""
    for file in _open:
        Path(file.name).unlink(missing_ok=True)


def death_in(folder: Path) -> str | None:
    """How the last process that wrote the run in ``folder`` died, None if it did not; to be called once, by its writer.

    What the process left stays there as ``died.txt``.
    """
    path = folder / RUNNING
    if not path.is_file():
        return None
    fault = re.search("Fatal Python error: (.*)", path.read_text(encoding="utf-8", errors="replace"))
    path.replace(folder / DIED)
    return fault[1] if fault else "killed without a trace, as by SIGKILL where memory runs out"
