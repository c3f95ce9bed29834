"""A Chebyshev polynomial at evenly spaced points: opposing signals without outliers in the data (§2.1, figure 3)."""

from __future__ import annotations

import hashlib

import numpy as np
import torch

from opposing_signals.data.dataset import Dataset
from opposing_signals.errors import InputError
from opposing_signals.values import Count


def chebyshev(degree: Count = 5, points: Count = 20) -> Dataset:
    """The values of the Chebyshev polynomial T_k at evenly spaced x in [-1, 1], both ends included.

    The paper takes the task from Cohen et al. (2021) and leaves degree and number of points open; the code of that
    work (github.com/locuslab/edge-of-stability) fits degrees 3, 4 and 5 at 20 points. Nothing here is random.

    Args:
        degree: k, the degree of T_k.
        points: N, the number of training points.

    Returns:
        ``inputs`` ``[N, 1]`` holds x itself (its range is part of the task, so it is not normalized), ``targets`` ``[N,
        1]`` float32 holds T_k(x). No images, no test set.

    Raises:
        InputError: ``points`` is below 2.
    """
    if points < 2:
        raise InputError(f"data.points={points}: at least 2 points span the interval [-1, 1]")
    x = np.linspace(-1, 1, points)
    # The recurrence uses sums and products only, so the values, unlike cos(k arccos x), are equal on every machine.
    y = np.polynomial.chebyshev.chebval(x, [0] * degree + [1])
    inputs, targets = (values.astype("<f4").reshape(points, 1) for values in (x, y))
    return Dataset(
        name=f"chebyshev (degree {degree}, {points} points)",
        inputs=torch.from_numpy(inputs),
        targets=torch.from_numpy(targets),
        checksum=hashlib.sha256(inputs.tobytes() + targets.tobytes()).hexdigest(),
    )
