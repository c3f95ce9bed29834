"""Jobs that fail: one kills its process once the others have ended, as running out of memory does; one raises."""

import os
import signal
import time
from typing import Any

from omegaconf import DictConfig

from opposing_signals.record import Record
from opposing_signals.studies.theory.jobs import sampled_descent


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
    """Crashes the first time."""
    if not (record.folder / "died.txt").exists():
        os.kill(os.getpid(), signal.SIGSEGV)
    sampled_descent(config, record, logger)


def train_until_the_launcher_is_told_to_end(config: DictConfig, record: Record, logger: Any) -> None:
    """At step 3 of the first seed its launcher gets a signal; the step takes a while. The second seed never trains.

    It would leave on the signal, and joblib would then kill the first one.
    """
    from opposing_signals.training.job import train  # imports Lightning, for which the other jobs need not wait

    append = record.append

    def append_and_tell(quantity: str, step: int, value: Any) -> None:
        append(quantity, step, value)
        if (quantity, step) == ("train_loss", 3):
            while not list(record.folder.parent.glob("*/waits.txt")):
                time.sleep(0.02)
            os.kill(os.getppid(), signal.SIGTERM)
            time.sleep(0.5)

    if config.seed == 2:
        (record.folder / "waits.txt").touch()
        time.sleep(60)
    record.append = append_and_tell  # type: ignore[method-assign]
    train(config, record, logger)
