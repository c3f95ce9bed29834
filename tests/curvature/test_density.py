import pytest
import torch
from layers import matrix_with

from opposing_signals.curvature import spectral_density
from opposing_signals.errors import InputError


def density_of(matrix, **settings):
    return spectral_density(lambda v: v @ matrix, matrix[0], **settings)


def test_moments_agree_with_those_of_the_random_vectors():
    """The quadrature rule of m steps is exact for vᵀ A^p v up to p = 2m − 1."""
    matrix = matrix_with([8.0, 5.0, *[0.02 * i - 0.3 for i in range(48)]])
    found = density_of(matrix, probes=3, steps=4, seed=5)
    generator = torch.Generator().manual_seed(5)
    starts = torch.stack([torch.randn(50, dtype=torch.float64, generator=generator) for _ in range(3)])
    starts = starts / starts.norm(dim=1, keepdim=True)
    for power in range(8):
        expected = (starts @ torch.linalg.matrix_power(matrix, power) * starts).sum(1).mean()
        torch.testing.assert_close((found.weights * found.nodes**power).sum(), expected, rtol=1e-9, atol=1e-12)


def test_as_many_steps_as_dimensions_give_the_spectrum():
    eigenvalues = [-3.0, -1.0, 0.0, 0.5, 2.0, 7.0]
    found = density_of(matrix_with(eigenvalues), probes=2, steps=6)
    torch.testing.assert_close(found.nodes.view(2, 6), torch.tensor([eigenvalues] * 2, dtype=torch.float64))
    assert float(found.weights.sum()) == pytest.approx(1)
    assert (found.weights >= 0).all()


def test_many_vectors_see_the_share_of_each_eigenvalue():
    matrix = matrix_with([10.0] * 5 + [0.0] * 45)
    found = density_of(matrix, probes=400, steps=3)
    assert float(found.weights[found.nodes > 5].sum()) == pytest.approx(0.1, abs=0.01)


def test_an_operator_with_few_eigenvalues_ends_the_recurrence_early():
    found = density_of(matrix_with([4.0] * 3 + [1.0] * 5), probes=2, steps=7)
    assert found.nodes.isfinite().all()
    heavy = found.weights > 1e-12
    is_eigenvalue = torch.minimum((found.nodes - 4).abs(), (found.nodes - 1).abs()) < 1e-9
    assert is_eigenvalue[heavy].all()
    assert float(found.weights.sum()) == pytest.approx(1)


def test_blocks_of_vectors_change_nothing():
    matrix = matrix_with([float(i) for i in range(20)])
    alone = density_of(matrix, probes=1, steps=5)
    together = density_of(matrix, probes=2, steps=5)
    torch.testing.assert_close(together.nodes[:5], alone.nodes)
    torch.testing.assert_close(together.weights[:5], alone.weights / 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"probes": 0}, "probes=0: expected at least one"),
        ({"steps": 0}, "steps=0: expected 1 to 4"),
        ({"steps": 5}, "steps=5: expected 1 to 4"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        density_of(matrix_with([1.0, 2.0, 3.0, 4.0]), **settings)
