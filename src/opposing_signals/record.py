"""What a run leaves behind: one folder, one array a quantity, appended step by step.

    <run>/
      configuration.json    what was asked for (the part that decides the numbers)
      provenance.json       where the numbers come from: versions, commit, machine, data set, wall time
      state.json            how far the run is, "complete" or "stopped" with the reason, and how many rows it then had
      sample_loss.npy       a structured array: field `step` int64, field `value` of the quantity's dtype and shape,
                            field `crc32` of the two
      sharpness.npy
      checkpoint.ckpt       the last resumable state of the training
      running.txt           there while a process writes the run, and behind one that has died (then died.txt)

Arrays are plain ``.npy`` files. The format reserves room in its header so that the first axis can grow in place
(`numpy.lib.format.GROWTH_AXIS_MAX_DIGITS`); a row is written behind the last one and only then counted in the
header. So a reader sees whole rows at any time, a killed writer leaves at most an uncounted tail, and appending costs
one small write however long the run is. Cutting back lowers the count and leaves the bytes, so that a reader that
has the file memory-mapped is never cut off. What a disk has changed is found by each row's checksum: `Record.verify`.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.lib import format as npy

from opposing_signals.crash import DIED, death_in, watched
from opposing_signals.errors import DamagedError, InputError, MissingQuantityError
from opposing_signals.files import read_json, sync_folder, write_json

log = getLogger(__name__)

CHECKSUM = "crc32"
"""The last field of a row. It has 64 bits, so that the values of all rows are aligned alike."""


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


class _Column:
    """An appendable ``.npy`` file of (step, value, crc32) rows; files without the last are written on as they are."""

    def __init__(self, path: Path, dtype: np.dtype | None = None) -> None:
        """Open ``path``, creating it with ``dtype`` if it is not there or empty."""
        self.path = path
        if dtype is not None and (not path.exists() or path.stat().st_size == 0):
            self.dtype, self.rows, self.last_step = dtype, 0, -1
            path.write_bytes(self._header())
        else:
            counted = _mapped(path)
            self.dtype, self.rows = counted.dtype, len(counted)
            self.last_step = int(counted["step"][-1]) if self.rows else -1
        self._file = path.open("r+b", buffering=0)
        self._offset = len(self._header())
        self._row = np.empty(1, self.dtype)

    def _header(self) -> bytes:
        buffer = io.BytesIO()
        description = npy.dtype_to_descr(self.dtype)
        npy.write_array_header_1_0(buffer, {"descr": description, "fortran_order": False, "shape": (self.rows,)})
        return buffer.getvalue()

    def append(self, step: int, value: np.ndarray) -> None:
        self._row["step"], self._row["value"] = step, value
        if CHECKSUM in _fields(self.dtype):
            self._row[CHECKSUM] = _checksums(self._row)[0]
        try:
            _write_all(
                self._file.fileno(), self._row.view(np.uint8).data, self._offset + self.rows * self.dtype.itemsize
            )
            self.rows += 1
            self.last_step = step
            _write_all(self._file.fileno(), self._header(), 0)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from None

    def extend(self, steps: np.ndarray, values: np.ndarray) -> None:
        rows = np.empty(len(steps), self.dtype)
        rows["step"], rows["value"] = steps, values
        if CHECKSUM in _fields(self.dtype):
            rows[CHECKSUM] = _checksums(rows)
        try:
            _write_all(self._file.fileno(), rows.view(np.uint8).data, self._offset + self.rows * self.dtype.itemsize)
            self.rows += len(rows)
            self.last_step = int(steps[-1])
            _write_all(self._file.fileno(), self._header(), 0)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from None

    def cut(self, step: int, counted: int | None) -> None:
        """Forget the rows measured at ``step`` or later.

        Raises:
            DamagedError: Of those that stay, one is damaged, or some of the ``counted`` are missing.
        """
        rows = _mapped(self.path)
        sound = _sound(rows)
        kept = int(np.searchsorted(rows["step"][:sound], step))
        if counted is None:  # whether the first damaged row belongs to those that stay cannot be told
            counted = len(rows) if step and kept == sound else 0
        if sound < counted:
            raise DamagedError(_what_is_wrong(self.path, sound, len(rows), counted))
        self.rows = kept
        self.last_step = int(rows["step"][kept - 1]) if kept else -1
        _write_all(self._file.fileno(), self._header(), 0)

    def sync(self) -> None:
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def _fields(dtype: np.dtype) -> tuple[str, ...]:
    return dtype.names or ()


def _checksums(rows: np.ndarray) -> list[int]:
    """CRC-32 of step and value of each row."""
    data = rows.view(np.uint8).reshape(len(rows), rows.dtype.itemsize)
    end = rows.dtype.itemsize - rows.dtype[CHECKSUM].itemsize
    return [zlib.crc32(row[:end].data) for row in data]


def _sound(rows: np.ndarray) -> int:
    """How many rows there are in front of the first whose checksum is wrong."""
    if CHECKSUM not in _fields(rows.dtype):
        return len(rows)
    wrong = np.flatnonzero(np.array(_checksums(rows), np.uint64) != rows[CHECKSUM])
    return int(wrong[0]) if len(wrong) else len(rows)


def _what_is_wrong(path: Path, sound: int, rows: int, expected: int) -> str:
    if sound < min(rows, expected):
        return f"{path} is damaged: the checksum of its row {sound} of {rows} is wrong"
    return f"{path} is damaged: it holds {rows} rows, expected {expected}"


def _mapped(path: Path) -> np.ndarray:
    """The rows of a column counted so far, memory-mapped.

    Raises:
        DamagedError: It is no such file.
        OSError: It cannot be read.
    """
    try:
        with path.open("rb") as file:
            if file.read(len(npy.MAGIC_PREFIX)) != npy.MAGIC_PREFIX:
                raise DamagedError(f"{path} is damaged: it does not begin as an .npy file")
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, DamagedError):
        raise
    except Exception as error:  # of many kinds: the header is parsed as Python, and may hold anything
        raise DamagedError(f"{path} is damaged: {' '.join(str(error).split()) or type(error).__name__}") from None
    if not isinstance(rows, np.ndarray) or rows.ndim != 1 or _fields(rows.dtype)[:2] != ("step", "value"):
        raise DamagedError(f"{path} is damaged: it holds no rows of step and value")
    if rows.dtype["step"] != np.int64 or _fields(rows.dtype)[2:] not in ((), (CHECKSUM,)):
        raise DamagedError(f"{path} is damaged: its rows are no step, value and checksum")
    if CHECKSUM in _fields(rows.dtype) and rows.dtype[CHECKSUM] != np.uint64:
        raise DamagedError(f"{path} is damaged: its checksums are no whole numbers of 64 bits")
    return rows


def _write_all(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    """`os.pwrite` until everything is written: a nearly full disk takes a part first and fails on the rest."""
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


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
        self._columns: dict[str, _Column] = {}
        self._writable = False

    # -- reading ------------------------------------------------------------------------------------------------

    @property
    def configuration(self) -> dict[str, Any]:
        """The configuration that decides the numbers (see `opposing_signals.key`)."""
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
        """True when every step that was asked for has been taken."""
        return self.state == "complete"

    @property
    def checkpoint(self) -> Path:
        """Where the last resumable state of the training is kept."""
        return self.folder / "checkpoint.ckpt"

    def __contains__(self, quantity: str) -> bool:
        return self._path(quantity).is_file()

    def __iter__(self) -> Iterator[str]:
        return (path.stem for path in sorted(self.folder.glob("*.npy")) if path.is_file())

    def __getitem__(self, quantity: str) -> Series:
        """The rows of ``quantity`` counted so far, memory-mapped.

        Raises:
            MissingQuantityError: The run did not record it; the message lists what it did record. It is a KeyError.
            DamagedError: Its file is not what a run writes.
        """
        if quantity not in self:
            held = ", ".join(self) or "nothing yet"
            raise MissingQuantityError(f"{self.folder.name} holds no {quantity!r}; it holds {held}")
        rows = _mapped(self._path(quantity))
        return Series(rows["step"], rows["value"])

    def verify(self, quantities: Iterable[str] | None = None) -> None:
        """Read every row, or those of ``quantities`` that there are, and see that the files are as they were written.

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
            raise DamagedError(f"{path} is missing, of which there were {noted} rows")
        rows = _mapped(path)
        sound = _sound(rows)
        if sound < len(rows):  # or its writer has cut it back in between, and written other rows there
            rows = _mapped(path)
            sound = _sound(rows)
        expected = len(rows) if noted is None else noted
        if sound < len(rows) or len(rows) != expected:
            raise DamagedError(_what_is_wrong(path, sound, len(rows), expected))

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
            configuration: What decides the run's numbers.
            wait: For the end of another process that writes it.
            anew: Delete what the run has left there.

        Raises:
            InputError: Another process writes it (unless ``wait``), or it was written by another configuration.
            DamagedError: What it was written by can no longer be told (unless ``anew``).
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
        """What failed before its first row is no run; the lock stays, on which others may wait."""
        begun = [self.folder / name for name in ("configuration.json", "provenance.json", DIED)]
        if {*self.folder.iterdir()} <= {*begun, self.folder / "lock"}:
            for path in begun:
                path.unlink(missing_ok=True)

    def append(self, quantity: str, step: int, value: np.ndarray | float) -> None:
        """Write down that ``quantity`` had ``value`` at θ_step.

        Args:
            quantity: A file name without its ending.
            step: Iteration, larger than that of the last row.
            value: A number or array; shape and dtype are those of the quantity's first row.

        Raises:
            ValueError: The step is not larger than the last one, or the shape changed.
            OSError: The disk is full (or worse); the rows so far stay readable.
        """
        array = np.asarray(value)
        self._column(quantity, step, array).append(step, array)

    def extend(self, quantity: str, steps: np.ndarray, values: np.ndarray) -> None:
        """`append` of several rows at once, which costs little more than of one.

        Args:
            quantity: A file name without its ending.
            steps: ``[T]`` iterations that increase.
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

    def _column(self, quantity: str, step: int, array: np.ndarray) -> _Column:
        """Where a row is appended, which must fit to those that are there."""
        if not self._writable:
            raise ValueError(f"{self.folder} is open for reading only")
        if quantity not in self._columns:
            kind = array.dtype.newbyteorder("<")
            dtype = np.dtype([("step", "<i8"), ("value", kind, array.shape), (CHECKSUM, "<u8")])
            self._columns[quantity] = _Column(self._path(quantity), dtype)
        column = self._columns[quantity]
        if column.dtype["value"].shape != array.shape:
            raise ValueError(f"{quantity}: shape {array.shape} after {column.dtype['value'].shape}")
        if step <= column.last_step:
            raise ValueError(f"{quantity}: step {step} after step {column.last_step}")
        return column

    def cut(self, step: int, counted: Mapping[str, int] | None = None) -> None:
        """Forget every row measured at ``step`` or later, before a run goes on from its checkpoint at ``step``.

        What is damaged in a part that is forgotten is forgotten with it.

        Args:
            step: Of the checkpoint.
            counted: The `rows` that there were when it was written; None if that is not known.

        Raises:
            DamagedError: A row that stays is damaged or missing.
        """
        for path in sorted(self.folder.glob("*.npy")):
            quantity = path.stem
            expected = None if counted is None else counted.get(quantity, 0)
            try:
                if not path.is_file():
                    raise DamagedError(f"{path} is damaged: it is no file")
                column = self._columns.setdefault(quantity, _Column(path))
            except DamagedError:
                if step and expected != 0:
                    raise
                _remove(path)
            else:
                column.cut(step, expected)
        if counted is not None and step:
            for quantity, rows in counted.items():
                if rows and quantity not in self:
                    raise DamagedError(f"{self._path(quantity)} is missing, of which the checkpoint counts {rows} rows")

    @property
    def rows(self) -> dict[str, int]:
        """How many rows of each quantity there are."""
        return {quantity: len(self[quantity]) for quantity in self}

    def sync(self) -> None:
        """Bring the rows so far to the disk, so that a checkpoint never claims more than the record holds."""
        for column in self._columns.values():
            column.sync()
        sync_folder(self.folder)

    def write_state(self, state: str) -> None:
        """Set `state`; at the end of a run note how many rows there are."""
        noted = {} if state == "running" else {"rows": self.rows}
        write_json(self.folder / "state.json", {"state": state, **noted})

    def write_provenance(self, provenance: Mapping[str, Any]) -> None:
        """Set `provenance`."""
        write_json(self.folder / "provenance.json", provenance)


class WrittenElsewhere(Record):
    """A record that another process writes: nothing is written here, and no quantity is looked at."""

    def __contains__(self, quantity: str) -> bool:
        return False

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def append(self, quantity: str, step: int, value: np.ndarray | float) -> None:
        """Leave it to the other process, which appends the same."""

    def extend(self, quantity: str, steps: np.ndarray, values: np.ndarray) -> None:
        """Leave it to the other process, which appends the same."""

    def cut(self, step: int, counted: Mapping[str, int] | None = None) -> None:
        """Leave it to the other process."""

    def sync(self) -> None:
        """Leave it to the other process."""

    def write_state(self, state: str) -> None:
        """Leave it to the other process."""

    def write_provenance(self, provenance: Mapping[str, Any]) -> None:
        """Leave it to the other process."""


def _delete(folder: Path) -> None:
    """Delete a run, and nothing else that lies in its folder."""
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
