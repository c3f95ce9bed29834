"""Random states that a measurement leaves as they were."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def isolated() -> Iterator[None]:
    """Afterwards the random states of Python, NumPy and torch, on every device in use, are what they were before."""
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002  (data sets still draw from it)
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)  # noqa: NPY002
