"""A quantile of the magnitudes of all entries of several tensors, of any size and on any device."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def magnitude_quantile(tensors: Sequence[Tensor], quantile: float) -> float:
    """The quantile of |x| over all entries x, interpolated linearly between order statistics as `torch.quantile` does.

    `torch.quantile` takes at most 16 million entries. NumPy finds the order statistics on the CPU, in float32 or more;
    on a GPU the magnitudes are sorted there, so that a step does not copy them all to the CPU.

    Args:
        tensors: Any shapes; at least one entry.
        quantile: From 0 to 1.

    Returns:
        ``inf`` if an order statistic in use is not finite.
    """
    flat = [tensor.detach().abs().flatten() for tensor in tensors]
    flat = [x if x.dtype == torch.float64 else x.float() for x in flat]
    entries = sum(x.numel() for x in flat)
    position = quantile * (entries - 1)
    rank = min(math.floor(position), entries - 1)
    places = [rank, min(rank + 1, entries - 1)]
    if flat[0].is_cpu:
        magnitudes = np.concatenate([x.cpu().numpy() for x in flat])
        magnitudes.partition(places)
        lower, upper = magnitudes[places].tolist()
    else:
        lower, upper = torch.cat([x.to(flat[0].device) for x in flat]).sort().values[places].tolist()
    share = position - rank
    found = lower + share * (upper - lower) if share else lower
    return found if math.isfinite(found) else math.inf
