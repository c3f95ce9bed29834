"""A quantile of the magnitudes of all entries of several tensors, of any number and on any device."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

_PIECE = 2**20  # entries whose magnitudes are held at once


def magnitude_quantile(tensors: Sequence[Tensor], quantile: float) -> float:
    """The quantile of |x| over all entries x, interpolated linearly between order statistics as `torch.quantile` does.

    `torch.quantile` takes at most 16 million entries, and sorting or `torch.kthvalue` a copy of all of them and an
    index of each. Here the order statistic is found by bisection. Floating-point numbers from 0 on have the order of
    the integers with the same bits, so as many passes as a number has bits find it exactly; each pass counts the
    entries that are not larger.

    Args:
        tensors: Any shapes; at least one entry.
        quantile: From 0 to 1.

    Returns:
        ``inf`` if the order statistic is not finite.
    """
    tensors = [piece for tensor in tensors for piece in tensor.reshape(-1).split(_PIECE)]
    entries = sum(tensor.numel() for tensor in tensors)
    position = quantile * (entries - 1)
    rank = min(math.floor(position), entries - 1)
    lower = _order_statistic(tensors, rank)
    share = position - rank
    if share == 0 or not math.isfinite(float(lower)) or _not_larger(tensors, lower) > rank + 1:
        return float(lower)
    return float(lower) + share * (_next_larger(tensors, lower) - float(lower))


def _order_statistic(tensors: Sequence[Tensor], rank: int) -> Tensor:
    """``[1]`` the magnitude that ``rank`` others precede."""
    dtype = functools.reduce(torch.promote_types, (tensor.dtype for tensor in tensors))
    whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    low, high = 0, int(torch.tensor([math.inf], dtype=dtype).view(whole))
    while low < high:
        middle = (low + high) // 2
        if _not_larger(tensors, torch.tensor([middle], dtype=whole).view(dtype)) > rank:
            high = middle
        else:
            low = middle + 1
    return torch.tensor([low], dtype=whole).view(dtype)


def _not_larger(tensors: Sequence[Tensor], limit: Tensor) -> int:
    counts = [(tensor.abs() <= limit.to(tensor.device)).count_nonzero() for tensor in tensors]
    return int(torch.stack([count.to(counts[0].device) for count in counts]).sum())


def _next_larger(tensors: Sequence[Tensor], limit: Tensor) -> float:
    larger = [
        torch.where(tensor.abs() > limit.to(tensor.device), tensor.abs(), math.inf).amin()
        for tensor in tensors
        if tensor.numel()
    ]
    return float(torch.stack([value.to(larger[0].device, torch.float64) for value in larger]).min())
