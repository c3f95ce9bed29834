"""The record of a run: one folder with one array per quantity, appended step by step.

    <run>/
      configuration.json    the part of the configuration that decides the numbers
      provenance.json       where the numbers come from: versions, commit, machine, data set, wall time, other runs
      state.json            "complete", or "stopped" with the reason, and the number of rows at that time
      sample_loss.npy       a structured array: field `step` int64, field `value` of the quantity's dtype and shape,
                            field `crc32` of the two
      sharpness.npy
      checkpoint.ckpt       the last resumable state of the training
      running.txt           exists while a process writes the run, and after one that died (then died.txt)

Arrays are plain ``.npy`` files. The format reserves room in its header so that the first axis can grow in place
(`numpy.lib.format.GROWTH_AXIS_MAX_DIGITS`); a row is written after the last one and only then counted in the header. So
a reader sees whole rows at any time, a killed writer leaves at most an uncounted tail, and appending costs one small
write however long the run is. Cutting back lowers the count and leaves the bytes, so that a reader with the file
memory-mapped stays valid. Corruption on disk is detected by each row's checksum: `Record.verify`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from opposing_signals.crash import DIED, death_in, watched
from opposing_signals.errors import DamagedError, InputError, MissingQuantityError
from opposing_signals.files import read_json, sync_folder, write_json
from opposing_signals.record.column import CHECKSUM, Column, mapped, sound_rows, what_is_wrong
from opposing_signals.record.quantities import Quantity

log = getLogger(__name__)

_BLOCK = 64  # rows copied at once


@dataclass(frozen=True)
class Series:
    """One recorded quantity: ``steps`` ``[T]`` int64 and ``values`` ``[T, ...]``, value t measured at θ_{steps[t]}."""

    steps: np.ndarray
    values: np.ndarray

    def __len__(self) -> int:
        return len(self.steps)

    def at(self, step: int) -> np.ndarray:
        """The value measured at ``step``; KeyError if there is none."""
        row = int(np.searchsorted(self.steps, step))
        if row == len(self.steps) or self.steps[row] != step:
            raise KeyError(f"nothing was measured at step {step}")
        return self.values[row]


class Record:
    """A run's folder, open for reading; `writing` opens it for appending too.

    Args:
        folder: The run's folder. It must hold a record.

    Raises:
        InputError: There is no record in ``folder``.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not (self.folder / "configuration.json").is_file():
            raise InputError(f"no record of a run in {self.folder}: expected a folder with configuration.json in it")
        self._columns: dict[str, Column] = {}
        self._writable = False

    # -- reading ------------------------------------------------------------------------------------------------

    @property
    def configuration(self) -> dict[str, Any]:
        """The configuration that decides the numbers (see `opposing_signals.configuration.decisive`)."""
        return read_json(self.folder / "configuration.json")

    @property
    def provenance(self) -> dict[str, Any]:
        """Where the numbers come from; empty before the first step."""
        path = self.folder / "provenance.json"
        return read_json(path) if path.exists() else {}

    @property
    def state(self) -> str:
        """``"running"`` (or interrupted), ``"complete"``, or ``"stopped: <reason>"``."""
        path = self.folder / "state.json"
        if not path.exists():
            return "running"
        state = read_json(path).get("state")
        if not isinstance(state, str):
            raise DamagedError(f"{path} is damaged: it holds no state")
        return state

    @property
    def is_complete(self) -> bool:
        """Whether the run has ended with every result it was meant to have."""
        return self.state == "complete"

    @property
    def checkpoint(self) -> Path:
        """Path of the last resumable state of the training."""
        return self.folder / "checkpoint.ckpt"

    def __contains__(self, quantity: str) -> bool:
        return self._path(quantity).is_file()

    def __iter__(self) -> Iterator[str]:
        return (path.stem for path in sorted(self.folder.glob("*.npy")) if path.is_file())

    def __getitem__(self, quantity: str) -> Series:
        """The rows of ``quantity`` counted so far, memory-mapped.

        Raises:
            MissingQuantityError: The run did not record it; the message lists what it did record. It is a KeyError.
            DamagedError: Its file is not as a run writes it.
        """
        if quantity not in self:
            held = ", ".join(self) or "nothing yet"
            writer = f" (written by {quantity.writer})" if isinstance(quantity, Quantity) else ""
            raise MissingQuantityError(f"{self.folder.name} holds no {quantity!r}{writer}; it holds {held}")
        rows = mapped(self._path(quantity))
        return Series(rows["step"], rows["value"])

    def verify(self, quantities: Iterable[str] | None = None) -> None:
        """Read every row, or those of the recorded ``quantities``, and check that the files are as they were written.

        Raises:
            DamagedError: One is damaged or missing; the message names it.
        """
        path = self.folder / "state.json"
        noted = read_json(path).get("rows", {}) if path.exists() else {}
        if not isinstance(noted, dict):
            raise DamagedError(f"{path} is damaged: its rows are a {type(noted).__name__}")
        _ = self.configuration, self.state
        if not self.provenance and self.is_complete:
            raise DamagedError(f"{self.folder / 'provenance.json'} is missing")
        for quantity in {**dict.fromkeys(self), **noted}:
            if quantities is None or quantity in quantities:
                self._verify(quantity, noted.get(quantity))

    def _verify(self, quantity: str, noted: int | None) -> None:
        path = self._path(quantity)
        if quantity not in self:
            raise DamagedError(f"{path} is missing: it held {noted} rows")
        rows = mapped(path)
        sound = sound_rows(rows)
        if sound < len(rows):  # perhaps its writer has cut it back meanwhile and written other rows there
            rows = mapped(path)
            sound = sound_rows(rows)
        expected = len(rows) if noted is None else noted
        if sound < len(rows) or len(rows) != expected:
            raise DamagedError(what_is_wrong(path, sound, len(rows), expected))

    def _path(self, quantity: str) -> Path:
        return self.folder / f"{quantity}.npy"

    # -- writing ------------------------------------------------------------------------------------------------

    @classmethod
    @contextmanager
    def writing(
        cls, folder: str | Path, configuration: Mapping[str, Any], wait: bool = False, anew: bool = False
    ) -> Iterator[Record]:
        """Open (or create) the record of ``configuration`` in ``folder`` as its only writer.

        Args:
            folder: The run's folder.
            configuration: The part that decides the run's numbers.
            wait: Whether to wait for another process that writes it.
            anew: Whether to delete the run's files there first.

        Raises:
            InputError: Another process writes it (unless ``wait``), or it was written with another configuration.
            DamagedError: The configuration stored in it is damaged (unless ``anew``).
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / "lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if not wait:
                raise InputError(
                    f"another process is writing {folder}: wait for it to end, or choose another output_dir"
                ) from None
            log.info("waiting for another process that is writing %s", folder)
            lock.acquire()
        try:
            if anew:
                with suppress(DamagedError):
                    _check_same(folder, json.loads(json.dumps(configuration)))
                _delete(folder)
            _check_same(folder, json.loads(json.dumps(configuration)))
            record = cls(folder)
            record._writable = True
            death = death_in(folder)
            if death is not None and record.state == "running":
                log.warning(
                    "the process that wrote %s died: %s; the run goes on from its last checkpoint, and %s there says "
                    "what it was doing, should it die again",
                    folder,
                    death,
                    DIED,
                )
            try:
                with watched(folder):
                    yield record
            except Exception:
                record._forget_if_empty()
                raise
            finally:
                for column in record._columns.values():
                    column.close()
                record._columns.clear()
                record._writable = False
        finally:
            lock.release()

    def _forget_if_empty(self) -> None:
        """Delete the record of a run that failed before its first row; the lock stays, since others may wait for it."""
        begun = [self.folder / name for name in ("configuration.json", "provenance.json", DIED)]
        if {*self.folder.iterdir()} <= {*begun, self.folder / "lock"}:
            for path in begun:
                path.unlink(missing_ok=True)

    def append(self, quantity: str, step: int, value: np.ndarray | float) -> None:
        """Append a row: ``quantity`` had ``value`` at θ_step.

        Args:
            quantity: A file name without its ending.
            step: Larger than that of the last row.
            value: A number or array; shape and dtype are those of the quantity's first row.

        Raises:
            ValueError: The step is not larger than the last one, or the shape changed.
            OSError: The disk is full (or worse); the rows so far stay readable.
        """
        array = np.asarray(value)
        self._column(quantity, step, array).extend(np.array([step]), array[None])

    def extend(self, quantity: str, steps: np.ndarray, values: np.ndarray) -> None:
        """`append` several rows at once, at little more than the cost of one.

        Args:
            quantity: A file name without its ending.
            steps: ``[T]``, increasing.
            values: ``[T, ...]``.

        Raises:
            ValueError: The steps do not increase, or the shape changed.
            OSError: The disk is full (or worse); the rows so far stay readable.
        """
        if not len(steps):
            return
        if (np.diff(steps) <= 0).any():
            raise ValueError(f"{quantity}: steps that do not increase")
        self._column(quantity, int(steps[0]), values[0]).extend(steps, values)

    def replace(self, quantity: str, series: Series) -> None:
        """Replace the rows of ``quantity`` by those of ``series``."""
        if quantity in self._columns:
            self._columns.pop(quantity).close()
        self._path(quantity).unlink(missing_ok=True)
        for first in range(0, len(series), _BLOCK):
            block = slice(first, first + _BLOCK)
            self.extend(quantity, series.steps[block], series.values[block])

    def _column(self, quantity: str, step: int, array: np.ndarray) -> Column:
        """The column for a row with this step and value, after checking that it fits the existing rows."""
        if not self._writable:
            raise ValueError(f"{self.folder} is open for reading only")
        if quantity not in self._columns:
            kind = array.dtype.newbyteorder("<")
            dtype = np.dtype([("step", "<i8"), ("value", kind, array.shape), (CHECKSUM, "<u8")])
            self._columns[quantity] = Column(self._path(quantity), dtype)
        column = self._columns[quantity]
        if column.dtype["value"].shape != array.shape:
            raise ValueError(f"{quantity}: shape {array.shape} after {column.dtype['value'].shape}")
        if step <= column.last_step:
            raise ValueError(f"{quantity}: step {step} after step {column.last_step}")
        return column

    def cut(self, step: int, counted: Mapping[str, int] | None = None) -> None:
        """Forget every row measured at ``step`` or later, before a run resumes from its checkpoint at ``step``.

        Damage in the rows that are cut is not reported.

        Args:
            step: Of the checkpoint.
            counted: `rows` when it was written; None if unknown.

        Raises:
            DamagedError: A row that stays is damaged or missing.
        """
        for path in sorted(self.folder.glob("*.npy")):
            quantity = path.stem
            expected = None if counted is None else counted.get(quantity, 0)
            try:
                if not path.is_file():
                    raise DamagedError(f"{path} is damaged: it is no file")
                column = self._columns.setdefault(quantity, Column(path))
            except DamagedError:
                if step and expected != 0:
                    raise
                _remove(path)
            else:
                column.cut(step, expected)
        if counted is not None and step:
            for quantity, rows in counted.items():
                if rows and quantity not in self:
                    raise DamagedError(f"{self._path(quantity)} is missing: at the checkpoint it held {rows} rows")

    @property
    def rows(self) -> dict[str, int]:
        return {quantity: len(self[quantity]) for quantity in self}

    def sync(self) -> None:
        """Flush the rows so far to disk, so that a checkpoint never claims more than the record holds."""
        for column in self._columns.values():
            column.sync()
        sync_folder(self.folder)

    def write_state(self, state: str) -> None:
        """Set `state`; at the end of a run also note the number of rows."""
        noted = {} if state == "running" else {"rows": self.rows}
        write_json(self.folder / "state.json", {"state": state, **noted})

    def write_provenance(self, provenance: Mapping[str, Any]) -> None:
        """Set `provenance`."""
        write_json(self.folder / "provenance.json", provenance)


class WrittenElsewhere(Record):
    """A record written by another process: writing here does nothing, and no quantity can be read."""

    def __contains__(self, quantity: str) -> bool:
        return False

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def _leave(self, *arguments: Any, **keywords: Any) -> None:
        """Do nothing: the other process does it."""

    append = extend = cut = sync = write_state = write_provenance = _leave


def _delete(folder: Path) -> None:
    """Delete a run's files, and nothing else in its folder."""
    for name in ("*.npy", "configuration.json", "provenance.json", "state.json", "checkpoint.ckpt"):
        for path in folder.glob(name):
            _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _check_same(folder: Path, configuration: dict[str, Any]) -> None:
    """Claim an empty folder for ``configuration``; refuse one that belongs to another."""
    path = folder / "configuration.json"
    if not path.exists() and not any(folder.glob("*.npy")):
        write_json(path, configuration)
        return
    theirs = _flatten(read_json(path))
    ours = _flatten(configuration)
    different = sorted(key for key in theirs.keys() | ours.keys() if theirs.get(key) != ours.get(key))
    if different:
        changes = ", ".join(f"{key} = {theirs.get(key)!r} there, {ours.get(key)!r} here" for key in different[:5])
        raise InputError(
            f"{folder} was written by another configuration ({changes}): choose another output_dir or run_dir, "
            "or delete the folder"
        )


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(tree, dict) and tree:
        return {k: v for key, sub in tree.items() for k, v in _flatten(sub, f"{prefix}{key}.").items()}
    return {prefix[:-1]: tree}
