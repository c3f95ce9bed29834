import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from opposing_signals.optim.quantile import magnitude_quantile

ENTRIES = st.one_of(st.floats(-1e3, 1e3, width=32), st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-40]))


@settings(deadline=None, max_examples=60)
@given(
    pieces=st.lists(arrays(np.float32, st.integers(1, 9), elements=ENTRIES), min_size=1, max_size=4),
    quantile=st.floats(0, 1),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_it_is_numpys_quantile_of_the_magnitudes(pieces, quantile, dtype):
    tensors = [torch.from_numpy(piece).to(dtype) for piece in pieces]
    expected = np.quantile(np.abs(np.concatenate(pieces)).astype(np.float64), quantile)
    assert magnitude_quantile(tensors, quantile) == pytest.approx(expected, rel=1e-12, abs=1e-300)


def test_more_entries_than_torchs_quantile_takes():
    torch.manual_seed(0)
    values, times = torch.randn(2**20, dtype=torch.float16), 17  # it takes 16 of them
    position = 0.1 * (times * len(values) - 1)
    rank = math.floor(position)
    low, high = (float(values.abs().sort().values[place // times]) for place in (rank, rank + 1))
    assert magnitude_quantile([values] * times, 0.1) == pytest.approx(low + (position - rank) * (high - low), rel=1e-12)


def test_tensors_of_several_types_count_as_one():
    tensors = [torch.tensor([0.1, 0.3]), torch.tensor([0.1, 0.2], dtype=torch.float64)]
    expected = float(torch.cat([tensor.double() for tensor in tensors]).quantile(0.4))
    assert magnitude_quantile(tensors, 0.4) == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_what_is_not_finite_shows(value):
    assert magnitude_quantile([torch.tensor([1.0, value, -value])], 0.9) == math.inf
    assert magnitude_quantile([torch.tensor([1.0, value])], 0.9) == math.inf
    assert magnitude_quantile([torch.tensor([1.0, value])], 0.0) == 1
