"""What a run leaves behind: one folder, one array a quantity, appended step by step.

    <run>/
      configuration.json    what was asked for (the part that decides the numbers)
      provenance.json       where the numbers come from: versions, commit, machine, data set, wall time
      state.json            how far the run is: "running", "complete" or "stopped" with the reason
      sample_loss.npy       a structured array: field `step` int64, field `value` of the quantity's dtype and shape
      sharpness.npy
      checkpoint.ckpt       the last resumable state of the training

Arrays are plain ``.npy`` files. The format reserves room in its header so that the first axis can grow in place
(`numpy.lib.format.GROWTH_AXIS_MAX_DIGITS`); a row is written behind the last one and only then counted in the
header. So a reader sees whole rows at any time, a killed writer leaves at most an uncounted tail, and appending costs
one small write however long the run is. Cutting back lowers the count and leaves the bytes, so that a reader that
has the file memory-mapped is never cut off.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.lib import format as npy

from opposing_signals.errors import DamagedError, InputError, MissingQuantityError
from opposing_signals.files import read_json, write_json

log = getLogger(__name__)


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
    """An appendable ``.npy`` file of (step, value) rows."""

    def __init__(self, path: Path, dtype: np.dtype | None = None) -> None:
        """Open ``path``, creating it with ``dtype`` if it is not there."""
        self.path = path
        fresh = not path.exists()
        if fresh:
            if dtype is None:
                raise FileNotFoundError(path)
            self.dtype, self.rows, self.last_step = dtype, 0, -1
            path.write_bytes(self._header())
        else:
            counted = _mapped(path)
            self.dtype, self.rows = counted.dtype, len(counted)
            self.last_step = int(counted["step"][-1]) if self.rows else -1
        self._file = path.open("r+b", buffering=0)
        self._offset = len(self._header())

    def _header(self) -> bytes:
        buffer = io.BytesIO()
        description = npy.dtype_to_descr(self.dtype)
        npy.write_array_header_1_0(buffer, {"descr": description, "fortran_order": False, "shape": (self.rows,)})
        return buffer.getvalue()

    def append(self, step: int, value: np.ndarray) -> None:
        row = np.empty((), self.dtype)
        row["step"], row["value"] = step, value
        _write_all(self._file.fileno(), row.tobytes(), self._offset + self.rows * self.dtype.itemsize)
        self.rows += 1
        self.last_step = step
        _write_all(self._file.fileno(), self._header(), 0)

    def cut(self, step: int) -> None:
        """Forget the rows measured at ``step`` or later."""
        steps = _mapped(self.path)["step"]
        self.rows = int(np.searchsorted(steps, step))
        self.last_step = int(steps[self.rows - 1]) if self.rows else -1
        _write_all(self._file.fileno(), self._header(), 0)

    def sync(self) -> None:
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def _mapped(path: Path) -> np.ndarray:
    """The rows of a column counted so far, memory-mapped.

    Raises:
        DamagedError: It is no such file.
        OSError: It cannot be read.
    """
    try:
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # of many kinds: the header is parsed as Python, and may hold anything
        raise DamagedError(f"{path} is damaged: {' '.join(str(error).split()) or type(error).__name__}") from None
    if not isinstance(rows, np.ndarray) or rows.ndim != 1 or (rows.dtype.names or ())[:2] != ("step", "value"):
        raise DamagedError(f"{path} is damaged: it holds no rows of step and value")
    if rows.dtype["step"] != np.int64:
        raise DamagedError(f"{path} is damaged: its steps are no whole numbers of 64 bits")
    return rows


def _write_all(descriptor: int, data: bytes, offset: int) -> None:
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

    def _path(self, quantity: str) -> Path:
        return self.folder / f"{quantity}.npy"

    # -- writing ------------------------------------------------------------------------------------------------

    @classmethod
    @contextmanager
    def writing(cls, folder: str | Path, configuration: Mapping[str, Any], wait: bool = False) -> Iterator[Record]:
        """Open (or create) the record of ``configuration`` in ``folder`` as its only writer.

        Args:
            folder: The run's folder.
            configuration: What decides the run's numbers.
            wait: For the end of another process that writes it.

        Raises:
            InputError: Another process writes it (unless ``wait``), or it was written by another configuration.
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
            _check_same(folder, json.loads(json.dumps(configuration)))
            record = cls(folder)
            record._writable = True
            try:
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
        begun = [self.folder / "configuration.json", self.folder / "provenance.json"]
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
        if not self._writable:
            raise ValueError(f"{self.folder} is open for reading only")
        array = np.asarray(value)
        if quantity not in self._columns:
            dtype = np.dtype([("step", "<i8"), ("value", array.dtype.newbyteorder("<"), array.shape)])
            self._columns[quantity] = _Column(self._path(quantity), dtype)
        column = self._columns[quantity]
        if column.dtype["value"].shape != array.shape:
            raise ValueError(f"{quantity}: shape {array.shape} after {column.dtype['value'].shape}")
        if step <= column.last_step:
            raise ValueError(f"{quantity}: step {step} after step {column.last_step}")
        column.append(step, array)

    def cut(self, step: int) -> None:
        """Forget every row measured at ``step`` or later, before a run goes on from its checkpoint at ``step``."""
        for quantity in self:
            column = self._columns.setdefault(quantity, _Column(self._path(quantity)))
            column.cut(step)

    def sync(self) -> None:
        """Bring the rows so far to the disk, so that a checkpoint never claims more than the record holds."""
        for column in self._columns.values():
            column.sync()

    def write_state(self, state: str) -> None:
        """Set `state`."""
        write_json(self.folder / "state.json", {"state": state})

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

    def cut(self, step: int) -> None:
        """Leave it to the other process."""

    def sync(self) -> None:
        """Leave it to the other process."""

    def write_state(self, state: str) -> None:
        """Leave it to the other process."""

    def write_provenance(self, provenance: Mapping[str, Any]) -> None:
        """Leave it to the other process."""


def _check_same(folder: Path, configuration: dict[str, Any]) -> None:
    """Claim an empty folder for ``configuration``; refuse one that belongs to another."""
    path = folder / "configuration.json"
    if not path.is_file():
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
