"""The complete record of a run: reused if it exists, otherwise trained to its end."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from logging import getLogger
from pathlib import Path
from typing import Any

from hydra.utils import get_method
from omegaconf import DictConfig

from opposing_signals.app.dashboard import Dashboard
from opposing_signals.configuration import decisive, reference_of, run_folder
from opposing_signals.errors import DamagedError, InputError, NotWrittenError, TrainingStoppedError
from opposing_signals.processes import agreed, count, together
from opposing_signals.record import Record, WrittenElsewhere

log = getLogger(__name__)

SHARED_JOB = "opposing_signals.training.job.train"
"""The job whose work several processes can share."""


def is_reused(config: DictConfig) -> bool:
    """Whether the run of ``config`` is complete."""
    folder = run_folder(config)
    try:
        return (folder / "configuration.json").is_file() and Record(folder).is_complete
    except DamagedError:
        return False


def announce(config: DictConfig, what: str) -> None:
    """Print what is about to be done: the first line of a command.

    Nothing is printed for a damaged run: `recorded` reports it, with the remedy.
    """
    folder = run_folder(config)
    record = Record(folder) if (folder / "configuration.json").is_file() else None
    begun = "going on with" if record and record.checkpoint.is_file() else "new run"
    try:
        doing = "reusing" if record and record.is_complete else begun
    except DamagedError:
        return
    log.info("%s: %s %s", what, doing, folder)


def recorded(config: DictConfig, mirror: Dashboard | None, wait: bool = False, announced: str = "") -> Record:
    """The complete record of ``config``; a damaged one is trained again if ``retrain_damaged`` is true."""
    try:
        return _completed(config, mirror, wait, announced)
    except DamagedError as error:
        if not config.retrain_damaged or count() > 1:
            again = "train the run again from the start by adding retrain_damaged=true, or restore the file"
            raise InputError(f"{error}; {again}{' (without torchrun)' if count() > 1 else ''}") from None
        log.warning("%s: the run is trained again from the start", error)
        return _completed(config, mirror, wait, announced, anew=True)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise NotWrittenError(
            f"{error.strerror}: {error.filename or run_folder(config)}; the steps before are kept, and the same "
            "command goes on from the last checkpoint when there is room"
        ) from None


def _completed(config: DictConfig, mirror: Dashboard | None, wait: bool, announced: str, anew: bool = False) -> Record:
    """The complete record of ``config``: reused if it exists, otherwise begun or resumed.

    The reference of a run, if it has one, is completed first. Jobs of a parallel sweep that share a reference, or the
    whole run, ``wait`` for the one that trains it. If not empty, ``announced`` names the run in a first line.
    """
    folder = run_folder(config)
    configuration = decisive(config)
    if count() > 1 and config.job != SHARED_JOB:
        raise InputError(
            f"{count()} processes for {config.experiment.name}: expected one, {config.job} is no training whose work "
            "they could share; start the same command without torchrun"
        )
    with _writing(folder, configuration, wait, anew) as record:
        state = agreed(lambda: record.state)
        if state == "complete":
            agreed(record.verify)
        if state.startswith("stopped"):
            raise TrainingStoppedError(f"{state.removeprefix('stopped: ')} ({folder}); try a smaller optimizer.lr")
        if state != "complete":
            if announced:
                announce(config, announced)
            if "reference" in config:
                recorded(reference_of(config), None, wait=True, announced=f"the reference of {config.run.name}")
            try:
                if mirror is not None:
                    mirror.was_live = config.job == SHARED_JOB
                with together():
                    get_method(config.job)(config, record, mirror and mirror.logger)
                if mirror is not None and "extends" in record.provenance:
                    mirror.was_live = False
            except TrainingStoppedError as stop:
                raise TrainingStoppedError(
                    f"{stop}; the record is kept in {folder}; try a smaller optimizer.lr"
                ) from None
    return Record(folder)


@contextmanager
def _writing(folder: Path, configuration: dict[str, Any], wait: bool, anew: bool) -> Iterator[Record]:
    """`Record.writing` in the first process; in the others a record that writes nothing."""
    with ExitStack() as held:
        opened: list[Record] = []
        agreed(lambda: opened.append(held.enter_context(Record.writing(folder, configuration, wait, anew))))
        yield opened[0] if opened else WrittenElsewhere(folder)
