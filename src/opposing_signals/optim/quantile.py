"""A quantile of the magnitudes of all entries of several tensors, of any number and on any device."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def magnitude_quantile(tensors: Sequence[Tensor], quantile: float) -> float:
    """The quantile of |x| over all entries x, interpolated linearly between order statistics as `torch.quantile` does.

    `torch.quantile` takes at most 16 million entries. The magnitudes are copied to the CPU for it, in float32 or more.

    Args:
        tensors: Any shapes; at least one entry.
        quantile: From 0 to 1.

    Returns:
        ``inf`` if the order statistic is not finite.
    """
    flat = [tensor.detach().abs().flatten() for tensor in tensors]
    magnitudes = np.concatenate([(x if x.dtype == torch.float64 else x.float()).cpu().numpy() for x in flat])
    position = quantile * (len(magnitudes) - 1)
    rank = min(math.floor(position), len(magnitudes) - 1)
    magnitudes.partition([rank, min(rank + 1, len(magnitudes) - 1)])
    lower, upper = (float(value) for value in magnitudes[rank : rank + 2][[0, -1]])
    share = position - rank
    if not math.isfinite(lower):
        return math.inf
    return lower + share * (upper - lower) if share else lower
