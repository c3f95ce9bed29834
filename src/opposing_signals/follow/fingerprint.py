"""A fingerprint of an example, to detect that it has changed."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


def fingerprint(example: Any, opaque: set[str] | None = None) -> str:
    """sha256 of the numbers and strings in an example: tensors, arrays, pictures, and containers and objects of them.

    Args:
        example: An example of any type.
        opaque: Collects the names of types whose content cannot be read.
    """
    digest = hashlib.sha256()
    passed: set[int] = set()

    def add(part: Any) -> None:
        if isinstance(part, Tensor):
            add_tensor(part.detach())
        elif isinstance(part, (np.ndarray, np.generic)) or hasattr(part, "__array_interface__"):
            digest.update(np.ascontiguousarray(part).tobytes())
        elif part is None or isinstance(part, (str, bytes, int, float, complex)):
            digest.update(repr(part).encode())
        elif id(part) not in passed:  # an object may contain itself
            passed.add(id(part))
            add_container(part)

    def add_container(part: Any) -> None:
        if isinstance(part, Mapping):
            for key in part:
                add(str(key))
                add(part[key])
        elif isinstance(part, (list, tuple)):
            for one in part:
                add(one)
        elif isinstance(part, (set, frozenset)):
            for one in sorted(part, key=repr):
                add(one)
        elif dataclasses.is_dataclass(part) and not isinstance(part, type):
            add({field.name: getattr(part, field.name) for field in dataclasses.fields(part)})
        elif vars_of := getattr(part, "__dict__", None):
            add(vars_of)
        elif opaque is not None:
            opaque.add(type(part).__name__)

    def add_tensor(tensor: Tensor) -> None:
        if tensor.layout is not torch.strided:
            tensor = tensor.to_sparse_coo().coalesce()
            add(list(tensor.shape))
            add_tensor(tensor.indices())
            add_tensor(tensor.values())
        else:
            digest.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())

    add(example)
    return digest.hexdigest()
