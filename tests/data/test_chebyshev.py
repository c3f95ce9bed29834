import numpy as np
import pytest
import torch

from opposing_signals.data import chebyshev
from opposing_signals.errors import InputError


@pytest.mark.parametrize("degree", [1, 2, 3, 5, 8])
def test_values_are_cos_of_k_arccos(degree: int) -> None:
    data = chebyshev(degree=degree, points=50)
    x = data.inputs.double().numpy()
    np.testing.assert_allclose(data.targets.numpy(), np.cos(degree * np.arccos(x)), atol=1e-5)


def test_points_are_evenly_spaced_from_end_to_end() -> None:
    data = chebyshev(points=9)
    assert data.inputs.shape == data.targets.shape == (9, 1)
    assert data.inputs.dtype == data.targets.dtype == torch.float32
    torch.testing.assert_close(data.inputs[:, 0], torch.arange(9) / 4 - 1)
    assert not data.is_classification
    assert data.output_width == 1


def test_checksum_tells_data_apart() -> None:
    checksums = {chebyshev(degree, points).checksum for degree in (2, 3) for points in (10, 20)}
    assert len(checksums) == 4
    assert chebyshev(2, 10).checksum in checksums


def test_one_point_is_refused() -> None:
    with pytest.raises(InputError, match="points=1"):
        chebyshev(5, 1)
