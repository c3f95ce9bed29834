"""Atomic file writes: a reader finds the old file or the new one, also after a crash."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from opposing_signals.errors import DamagedError, InputError, NotWrittenError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path with the suffix of ``path``; at the end it replaces ``path``, synced to disk.

    Raises:
        NotWrittenError: It cannot be written; ``path`` is unchanged.
    """
    unfinished = path.with_name(f"{path.stem}.part{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield unfinished
        with unfinished.open("rb+") as file:
            os.fsync(file.fileno())
        unfinished.replace(path)
        sync_folder(path.parent)
    except BaseException as error:
        kept = f"the earlier {path.name} is kept" if path.is_file() else f"there is no {path.name} yet"
        with suppress(OSError):  # the disk may no longer be writable
            unfinished.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise NotWrittenError(f"{path} cannot be written ({error.strerror or error}); {kept}") from error
        raise


def write_text(path: Path, text: str) -> None:
    """Write ``text`` in UTF-8; see `replacing`."""
    with replacing(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` as JSON; see `replacing`."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``.

    Raises:
        DamagedError: It is missing, or holds anything else.
        OSError: It cannot be read.
    """
    if not path.is_file():  # reading a pipe, for instance, would block forever
        raise DamagedError(f"{path} is {'no file' if path.exists() else 'missing'}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{path} is damaged: no JSON ({error})") from None
    if not isinstance(content, dict):
        raise DamagedError(f"{path} is damaged: it holds a {type(content).__name__}, expected an object")
    return content


def sync_folder(folder: Path) -> None:
    """Flush the names in ``folder`` to disk: otherwise a crash can lose a file that was just created or renamed.

    A no-op where folders cannot be opened, as on Windows.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    with suppress(OSError):  # some network file systems cannot
        os.fsync(descriptor)
    os.close(descriptor)


def cache_folder() -> Path:
    """The user's cache of this package.

    Raises:
        InputError: There is no home folder to hold it.
    """
    named = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(named) if named else Path.home() / ".cache") / "opposing-signals"
    except RuntimeError:
        raise InputError(
            "no home folder: expected the environment variable XDG_CACHE_HOME or HOME to name a folder for what is "
            "downloaded or tokenized"
        ) from None
