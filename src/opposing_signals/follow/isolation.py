"""State beside the model that a measurement restores: random states, and the casts that autocast caches."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def isolated() -> Iterator[None]:
    """Restore the random states of Python, NumPy and torch, on every device in use, on exit."""
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002  (data sets still draw from it)
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices), uncached_casts():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)  # noqa: NPY002


@contextmanager
def uncached_casts() -> Iterator[None]:
    """Inside, autocast caches no parameter that it casts.

    The training step would use a parameter cast without a graph from the cache, and get no gradient of it.
    """
    was = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(was)
