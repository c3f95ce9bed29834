"""Memory of a training process."""

from __future__ import annotations

import ctypes
import os

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of malloc.h
_NEVER = -1
_LARGEST = 32 * 2**20  # which glibc does not exceed


def keep_freed_memory() -> None:
    """Let this process keep freed memory of tensors up to 32 MiB for the next step.

    Activations are megabytes each and live for part of a step. By default the C library returns such memory to the
    system and asks for it again. The system then zeroes every page, which takes a large part of a convolutional
    network's pass. The process stays at its peak size, which can grow by fragmentation. If the C library is not glibc,
    or an environment variable ``MALLOC_…`` is set, nothing changes.
    """
    adjust = getattr(ctypes.CDLL(None), "mallopt", None)
    if adjust is not None and not any(name.startswith("MALLOC_") for name in os.environ):
        adjust(_MMAP_THRESHOLD, _LARGEST)
        adjust(_TRIM_THRESHOLD, _NEVER)
