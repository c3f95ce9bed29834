import math

import pytest
import torch

from opposing_signals.curvature import TopEigenpair


def matrix_with(eigenvalues, seed=0):
    generator = torch.Generator().manual_seed(seed)
    n = len(eigenvalues)
    basis, _ = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=generator))
    return basis @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)) @ basis.T


@pytest.mark.parametrize(
    "eigenvalues",
    [
        [5.0, 1.0, 0.5, 0.1, 0.0, -0.2],
        [1.0, 0.5, -9.0, 0.2],  # the largest in absolute value is not the one that is asked for
        [-1.0, -2.0, -3.0],
        [3.0, 3.0, 1.0, 0.0],
        list(range(50)),
    ],
)
def test_a_cold_start_finds_the_algebraically_largest_pair(eigenvalues):
    matrix = matrix_with([float(e) for e in eigenvalues])
    pair = TopEigenpair(tolerance=1e-7, max_products=60)(lambda v: v @ matrix, matrix[0])
    assert pair.value == pytest.approx(max(eigenvalues), rel=1e-9)
    residual = matrix @ pair.vector - pair.value * pair.vector
    assert float(residual.norm()) == pytest.approx(pair.residual, abs=1e-9)
    assert float(pair.vector.norm()) == pytest.approx(1)
    assert pair.products <= len(eigenvalues)


def test_the_residual_bounds_the_distance_to_an_eigenvalue():
    matrix = matrix_with([10.0 * 0.9**i for i in range(40)])
    pair = TopEigenpair(tolerance=0, max_products=5)(lambda v: v @ matrix, matrix[0])
    assert pair.products == 5
    assert torch.linalg.eigvalsh(matrix).sub(pair.value).abs().min() <= pair.residual + 1e-12


def test_a_warm_start_follows_a_slow_change_with_few_products_and_a_steady_sign():
    solver = TopEigenpair(tolerance=1e-2, max_products=60)
    drift = matrix_with([1.0] + [0.0] * 39, seed=1)
    spent, last = [], None
    for t in range(20):
        matrix = matrix_with([20.0] + [float(i) * 0.45 for i in range(39)]) + 0.01 * t * drift
        pair = solver(lambda v, m=matrix: v @ m, matrix[0])
        assert pair.value == pytest.approx(float(torch.linalg.eigvalsh(matrix)[-1]), rel=1e-3)
        if last is not None:
            assert last @ pair.vector > 0
        spent.append(pair.products)
        last = pair.vector
    assert max(spent[2:]) <= 4 < spent[0]


def test_alternating_operators_are_followed_by_the_last_two_vectors():
    even, odd = matrix_with([9.0] + [1.0] * 20, seed=3), matrix_with([8.0] + [1.0] * 20, seed=4)
    solver = TopEigenpair(tolerance=1e-6, max_products=60)
    for t in range(8):
        matrix = even if t % 2 == 0 else odd
        pair = solver(lambda v, m=matrix: v @ m, matrix[0])
        if t >= 2:
            assert pair.products == 2
            assert pair.value == pytest.approx(9.0 if t % 2 == 0 else 8.0)


def test_a_restored_solver_goes_on_exactly():
    matrix, later = matrix_with([5.0, 4.0, 3.0, 2.0, 1.0]), matrix_with([5.5, 4.0, 3.0, 2.0, 1.0], seed=2)
    solver, restored = TopEigenpair(1e-3, 9), TopEigenpair(1e-3, 9)
    solver(lambda v: v @ matrix, matrix[0])
    restored.load_state_dict(solver.state_dict())
    a, b = (s(lambda v: v @ later, later[0]) for s in (solver, restored))
    assert (a.value, a.residual, a.products) == (b.value, b.residual, b.products)
    assert torch.equal(a.vector, b.vector)


def test_a_one_dimensional_operator_is_exact():
    pair = TopEigenpair()(lambda v: 7 * v, torch.zeros(1, dtype=torch.float64))
    assert (pair.value, pair.products) == (pytest.approx(7), 1)
    assert math.isclose(pair.residual, 0, abs_tol=1e-12)
