"""Signals to end: by Ctrl-C, by a batch system (SIGTERM, SIGUSR1, SIGUSR2), by a terminal that closes (SIGHUP).

A training finishes its step and writes its state first; at a second signal, and outside of training, the process ends
at once. The exit code is that of a shell: 128 plus the signal's number, such as 130, 143 or 129.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MESSAGE = "interrupted: the same command goes on from the last checkpoint"

_SIGNALS = [
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)  # Windows has two of them
]
_REQUEUES = ("SIGUSR1", "SIGUSR2")
"""Sent by a cluster's launcher before a time limit; the launcher's own handler then submits the job again."""


_PATIENCE = 20.0
"""Seconds that worker processes have to finish their steps; a batch system kills 30 seconds after its signal."""


class Interrupted(SystemExit):
    """The process was told to end by the signal of this number."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.code: int = 128 + number


class _Handling:
    """How this process handles signals.

    Attributes:
        earlier: Signal ↦ its previous handler.
        finishes_step: Whether a training will check `told` after its step.
        told: The signal that arrived meanwhile.
        is_ending: Whether a signal has been passed on to workers.
    """

    def __init__(self) -> None:
        self.earlier: dict[int, Any] = {}
        self.finishes_step = False
        self.told = 0
        self.is_ending = False


_handling = _Handling()


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Inside, the signals that tell a process to end raise `Interrupted`; those that are ignored (nohup) stay so."""
    if _handling.earlier or threading.current_thread() is not threading.main_thread():
        yield
        return
    for number in _SIGNALS:
        if signal.getsignal(number) not in (signal.SIG_IGN, None):
            _handling.earlier[number] = signal.signal(number, _handle)
    try:
        yield
    finally:
        for number, handler in _handling.earlier.items():
            signal.signal(number, handler)
        _handling.earlier.clear()
        _handling.told, _handling.is_ending = 0, False


def _handle(number: int, frame: Any) -> None:
    # A batch system signals all processes, and a worker gets a second signal from its launcher.
    if _handling.finishes_step and (not _handling.told or _is_worker()):
        _handling.told = number
        if sys.stderr.isatty():
            os.write(2, b"\nending after this step; once more to end at once\n")
        return
    _end(number, frame)


def _end(number: int, frame: Any = None) -> None:
    earlier: Callable[[int, Any], Any] | Any = _handling.earlier.get(number)
    if signal.Signals(number).name in _REQUEUES and callable(earlier):
        earlier(number, frame)
        return
    if not _handling.is_ending:
        _handling.is_ending = True
        _end_workers()
    _handling.told = number  # if the exception is lost, as in a destructor, the training ends after its next step
    raise Interrupted(number)


def _end_workers() -> None:
    """Let the trainings in worker processes finish their steps, before their launcher kills them.

    The launcher kills them when this process leaves it, and as soon as one of them has ended. So only workers with a
    handler are signalled, and each waits once it is done (`leave_worker`).
    """
    workers = [worker for worker in multiprocessing.active_children() if _is_heeding(worker.pid)]
    for worker in workers:
        worker.terminate()
    deadline = time.monotonic() + _PATIENCE
    while any(worker.is_alive() and _is_heeding(worker.pid) for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.01)


def _is_heeding(process: int | None) -> bool:
    """Whether a process has a handler for SIGTERM; assumed on systems that cannot tell."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return not Path("/proc/self/status").exists()
    (caught,) = (line for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


def _is_worker() -> bool:
    return multiprocessing.current_process().name != "MainProcess"


def leave_worker(told: Interrupted) -> None:
    """End this process if it is a worker, which would otherwise take the exception for a result and start its next job.

    First wait for the launcher to end, because it kills the other workers once this one ends.
    """
    if not _is_worker():
        return
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    launcher, deadline = os.getppid(), time.monotonic() + _PATIENCE
    while os.getppid() == launcher and time.monotonic() < deadline:
        time.sleep(0.05)
    os._exit(told.code)


def begin_steps() -> None:
    """From now until `end_steps`, a training checks `is_told_to_end` after each step."""
    _handling.finishes_step = bool(_handling.earlier)
    for number in _handling.earlier:
        signal.signal(number, _handle)  # Lightning has set its own handler, which exits with code 0


def end_steps() -> None:
    """From now on a signal ends the process at once."""
    _handling.finishes_step = False


def is_told_to_end() -> bool:
    """Whether a signal has arrived since the step began."""
    return bool(_handling.told)


def end() -> None:
    """Act on the signal, now that the state is written.

    Raises:
        Interrupted: Unless a launcher's own handler submits the job again.
    """
    number, _handling.told = _handling.told, 0
    _end(number)


def end_children() -> None:
    """Signal the child processes to end, such as the jobs of a sweep; on Linux only."""
    for listing in Path(f"/proc/{os.getpid()}/task").glob("*/children"):
        for child in listing.read_text().split():
            os.kill(int(child), signal.SIGTERM)
