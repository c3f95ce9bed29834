"""Jobs that fail: one dies with its process when the others have ended, as a job out of memory does; one raises."""

import os
import signal
import time
from typing import Any

from omegaconf import DictConfig

from opposing_signals.record import Record
from opposing_signals.theory.jobs import sampled_descent


def descent_or_death(config: DictConfig, record: Record, logger: Any) -> None:
    if config.run.name == "linear_depth3":
        others, deadline = record.folder.parent, time.monotonic() + 60
        while len(list(others.glob("*/state.json"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGKILL)
    sampled_descent(config, record, logger)


def descent_or_error(config: DictConfig, record: Record, logger: Any) -> None:
    if config.run.name == "linear_depth3":
        raise ZeroDivisionError("a bug")
    sampled_descent(config, record, logger)


def descent_or_fault(config: DictConfig, record: Record, logger: Any) -> None:
    """Dies of a fault the first time."""
    if not (record.folder / "died.txt").exists():
        os.kill(os.getpid(), signal.SIGSEGV)
    sampled_descent(config, record, logger)
