"""Memory of a training process."""

from __future__ import annotations

import ctypes
import os

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of malloc.h
_NEVER = -1
_LARGEST = 32 * 2**20  # which glibc does not exceed


def keep_freed_memory() -> None:
    """Have this process keep tensors of up to 32 MiB that it frees, for the next step.

    Activations are megabytes each and live for a part of a step. The C library returns such memory to the system and
    asks for it again, and the system fills every page of it with zeros, which takes a good part of the time of a
    convolutional network's pass. The process stays as large as its peak, which can grow where freed pieces do not fit
    together. Where the C library is not glibc, or an environment variable ``MALLOC_…`` is set, nothing changes.
    """
    adjust = getattr(ctypes.CDLL(None), "mallopt", None)
    if adjust is not None and not any(name.startswith("MALLOC_") for name in os.environ):
        adjust(_MMAP_THRESHOLD, _LARGEST)
        adjust(_TRIM_THRESHOLD, _NEVER)
