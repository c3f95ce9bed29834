"""The provenance of a run's numbers."""

from __future__ import annotations

import platform
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from opposing_signals.processes import count
from opposing_signals.record import Record

PACKAGES = ("opposing-signals", "torch", "torchvision", "lightning", "hydra-core", "numpy")


def environment(device: torch.device | None = None) -> dict[str, Any]:
    """Start time, versions, commit and machine of a run that begins now, as JSON values."""
    on_gpu = device is not None and device.type == "cuda"
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), **{package: version(package) for package in PACKAGES}},
        "commit": commit(),
        "machine": {
            "device": torch.cuda.get_device_name(device) if on_gpu else platform.machine(),
            "threads": torch.get_num_threads(),
            "processes": count(),
            "system": platform.system(),
        },
    }


def commit() -> str:
    """The commit that the package's source is at, with ``+changes`` if it differs; "unknown" outside a checkout."""
    source = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(source), *arguments], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        tracked = git("ls-files", "--error-unmatch", Path(__file__).name)
        changes = "+changes" if git("status", "--porcelain", "--untracked-files=no", ".") else ""
        return git("rev-parse", "--short=12", "HEAD") + changes if tracked else "unknown"
    except (OSError, subprocess.SubprocessError):
        return "unknown"


@contextmanager
def recording(record: Record, data: dict[str, Any]) -> Iterator[None]:
    """Start the record of a job without training from scratch, note ``data`` and machine, and complete it at the end.

    After an exception the record stays incomplete, and nothing in it is reused.
    """
    started = time.monotonic()
    record.cut(0)  # a killed job may have left rows; there is no checkpoint to resume from
    origin = {**environment(), "data": data}
    record.write_provenance({**origin, "training_seconds": 0.0})
    yield
    record.write_provenance({**origin, "training_seconds": round(time.monotonic() - started, 2)})
    record.write_state("complete")
