"""The folder of a followed training's record, and the record's configuration."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from logging import getLogger
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from torch import nn
from torch.optim import Optimizer

from opposing_signals.errors import InputError
from opposing_signals.processes import agreed, count, is_first
from opposing_signals.record import Record, WrittenElsewhere

log = getLogger(__name__)


def free_folder(wanted: Path) -> Path:
    """``wanted``, or the next of wanted-2, wanted-3, … if it holds an earlier run's record; the same in all processes.

    A run that ended before its first step leaves nothing to keep.
    """

    def find() -> str:
        for number in range(1, 10_000):
            folder = wanted.with_name(wanted.name + (f"-{number}" if number > 1 else ""))
            if _is_free(folder):
                break
        if folder != wanted:
            log.warning("%s holds an earlier run: this one is written to %s", wanted, folder)
        return str(folder)

    return Path(agreed(find))


def _is_free(folder: Path) -> bool:
    """Whether the folder holds no earlier run's record.

    Raises:
        InputError: It is a file.
    """
    if folder.is_file():
        raise InputError(f"folder={folder} is a file: expected a folder for the record, which need not exist")
    if any(folder.glob("*.npy")):
        return False
    described = folder / "configuration.json"
    if described.exists():
        try:
            with FileLock(folder / "lock", timeout=0):
                described.unlink()
        except Timeout:  # a running process that has not written a row yet
            return False
    return True


@contextmanager
def writing(folder: Path, configuration: dict[str, Any]) -> Iterator[Record]:
    """The record in the first process; in the others one that writes nothing."""
    if is_first():
        with Record.writing(folder, configuration) as record:
            if count() > 1:
                agreed(lambda: None)  # the others wait for its folder
            yield record
    else:
        agreed(lambda: None)
        yield WrittenElsewhere(folder)


def configuration_of(name: str, model: nn.Module, optimizer: Optimizer, described: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a record, as figures and claims read it.

    Args:
        name: The run's name.
        model: The model in training.
        optimizer: The first optimizer.
        described: Further entries.
    """
    group = optimizer.param_groups[0]
    settings = {name: value for name, value in group.items() if isinstance(value, (bool, int, float, str))}
    settings.pop("initial_lr", None)
    seed = os.environ.get("PL_GLOBAL_SEED")
    return json.loads(
        json.dumps(
            {
                "run": {"name": name},
                "seed": None if seed is None else int(seed),
                "data": {"_target_": "opposing_signals.data.tracked"},
                "model": {"_target_": _qualified(model)},
                "optimizer": {
                    "_target_": _qualified(optimizer),
                    **settings,
                    "lr": float(group.get("initial_lr", group["lr"])),
                },
                **described,
            }
        )
    )


def _qualified(thing: Any) -> str:
    kind = type(thing)
    return f"{kind.__module__}.{kind.__qualname__}"
