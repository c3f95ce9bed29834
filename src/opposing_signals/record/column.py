"""One quantity's file: an ``.npy`` array of rows that grows in place."""

from __future__ import annotations

import io
import os
import zlib
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from opposing_signals.errors import DamagedError, first_line

CHECKSUM = "crc32"
"""The last field of a row. It has 64 bits to keep the values of all rows aligned."""


class Column:
    """An appendable ``.npy`` file of (step, value, crc32) rows."""

    def __init__(self, path: Path, dtype: np.dtype | None = None) -> None:
        """Open ``path``, creating it with ``dtype`` if it is missing or empty."""
        self.path = path
        if dtype is not None and (not path.exists() or path.stat().st_size == 0):
            self.dtype, self.rows, self.last_step = dtype, 0, -1
            path.write_bytes(self._header())
        else:
            counted = mapped(path)
            self.dtype, self.rows = counted.dtype, len(counted)
            self.last_step = int(counted["step"][-1]) if self.rows else -1
        self._file = path.open("r+b", buffering=0)
        self._offset = len(self._header())

    def _header(self) -> bytes:
        buffer = io.BytesIO()
        description = npy.dtype_to_descr(self.dtype)
        npy.write_array_header_1_0(buffer, {"descr": description, "fortran_order": False, "shape": (self.rows,)})
        return buffer.getvalue()

    def extend(self, steps: np.ndarray, values: np.ndarray) -> None:
        """Write rows after the last one, and then count them.

        Raises:
            OSError: The disk is full (or worse).
        """
        rows = np.empty(len(steps), self.dtype)
        rows["step"], rows["value"] = steps, values
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
            DamagedError: A row that stays is damaged, or some of the ``counted`` rows are missing.
        """
        rows = mapped(self.path)
        sound = sound_rows(rows)
        kept = int(np.searchsorted(rows["step"][:sound], step))
        if counted is None:  # whether the first damaged row would stay is unknown
            counted = len(rows) if step and kept == sound else 0
        if sound < counted:
            raise DamagedError(what_is_wrong(self.path, sound, len(rows), counted))
        self.rows = kept
        self.last_step = int(rows["step"][kept - 1]) if kept else -1
        _write_all(self._file.fileno(), self._header(), 0)

    def sync(self) -> None:
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def _checksums(rows: np.ndarray) -> list[int]:
    """CRC-32 of step and value of each row."""
    data = rows.view(np.uint8).reshape(len(rows), rows.dtype.itemsize)
    end = rows.dtype.itemsize - rows.dtype[CHECKSUM].itemsize
    return [zlib.crc32(row[:end].data) for row in data]


def sound_rows(rows: np.ndarray) -> int:
    """The number of rows before the first one with a wrong checksum."""
    wrong = np.flatnonzero(np.array(_checksums(rows), np.uint64) != rows[CHECKSUM])
    return int(wrong[0]) if len(wrong) else len(rows)


def what_is_wrong(path: Path, sound: int, rows: int, expected: int) -> str:
    """The message about a damaged column whose first ``sound`` rows are intact and which should hold ``expected``."""
    if sound < min(rows, expected):
        return f"{path} is damaged: the checksum of its row {sound} of {rows} is wrong"
    return f"{path} is damaged: it holds {rows} rows, expected {expected}"


def mapped(path: Path) -> np.ndarray:
    """The rows of a column counted so far, memory-mapped.

    Raises:
        DamagedError: It is not the file of a column.
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
        raise DamagedError(f"{path} is damaged: {first_line(error)}") from None
    if not isinstance(rows, np.ndarray) or rows.ndim != 1 or rows.dtype.names != ("step", "value", CHECKSUM):
        raise DamagedError(f"{path} is damaged: it holds no rows of step, value and {CHECKSUM}")
    if rows.dtype["step"] != np.int64 or rows.dtype[CHECKSUM] != np.uint64:
        raise DamagedError(f"{path} is damaged: its steps and checksums are no whole numbers of 64 bits")
    return rows


def _write_all(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    """`os.pwrite` until everything is written: a nearly full disk accepts a part first and fails on the rest."""
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written
