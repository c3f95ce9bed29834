import copy
import math

import pytest
import torch
from layers import matrix_with

from opposing_signals.curvature import EigenTracker, power_iteration
from opposing_signals.curvature.tracking import COLD_PRODUCTS, LOOK_PRODUCTS
from opposing_signals.errors import InputError

SPECTRUM = [9.0, 7.0, 4.0, 1.0, 0.5, 0.0, -2.0, -8.0]


@pytest.mark.parametrize(
    "eigenvalues",
    [
        [5.0, 1.0, 0.5, 0.1, 0.0, -0.2],
        [1.0, 0.5, -9.0, 0.2],  # the eigenvalue largest in absolute value is not the largest one
        [-1.0, -2.0, -3.0],
        [3.0, 3.0, 1.0, 0.0],
        list(range(50)),
    ],
)
def test_a_cold_start_finds_the_algebraically_largest_pair(eigenvalues):
    matrix = matrix_with([float(e) for e in eigenvalues])
    pair = EigenTracker(tolerance=1e-7, cold_products=60)(lambda v: v @ matrix, matrix[0])
    assert pair.value == pytest.approx(max(eigenvalues), rel=1e-9)
    residual = matrix @ pair.vector - pair.value * pair.vector
    assert float(residual.norm()) == pytest.approx(pair.residual, abs=1e-9)
    assert float(pair.vector.norm()) == pytest.approx(1)
    assert pair.products <= len(eigenvalues)


@pytest.mark.parametrize("k", [1, 3, 12])
def test_a_cheap_cold_start_spends_ten_products_and_warm_starts_find_the_rest(k):
    matrix = matrix_with([10.0, 9.8, 9.7, *torch.linspace(-5, 9, 297).tolist()])
    tracker, top = (
        EigenTracker(k, tolerance=1e-4, cold_products=COLD_PRODUCTS),
        torch.linalg.eigvalsh(matrix).flip(0)[:k],
    )
    spent = []
    for _ in range(8):
        assert not spent or tracker.budget <= 40 + LOOK_PRODUCTS
        budget, pairs = tracker.budget, tracker(lambda v: v @ matrix, matrix[0])
        assert pairs.products <= budget
        residuals = (pairs.vectors @ matrix - pairs.quotients[:, None] * pairs.vectors).norm(dim=1)
        torch.testing.assert_close(pairs.residuals, residuals, rtol=1e-6, atol=1e-9)
        spent.append(pairs.products)
    assert spent[0] == max(10, k)
    assert spent[1] <= 2 * spent[0] + LOOK_PRODUCTS
    torch.testing.assert_close(pairs.values[:3], top[:3], rtol=1e-3, atol=0)


def test_memory_does_not_grow_with_products(monkeypatch):
    """A restarted basis finds what an unbounded one does, with vectors that are still orthonormal."""
    monkeypatch.setattr("opposing_signals.curvature.tracking._FLOATS_HELD", 0)
    monkeypatch.setattr("opposing_signals.curvature.subspace._COLUMNS", 7)
    matrix, widths = matrix_with([10.0, 9.0, *torch.linspace(-5, 8, 198).tolist()]), []

    def products(vectors):
        widths.append(len(vectors))
        return vectors @ matrix

    pairs = EigenTracker(2, tolerance=1e-5, cold_products=100)(products, matrix[0])
    assert pairs.products == sum(widths) > 30
    assert pairs.values.tolist() == pytest.approx([10.0, 9.0], rel=1e-8)
    torch.testing.assert_close(pairs.vectors @ pairs.vectors.T, torch.eye(2, dtype=torch.float64))
    torch.testing.assert_close(pairs.vectors @ matrix, pairs.values[:, None] * pairs.vectors, atol=1e-4, rtol=0)


def test_a_checkpoint_holds_two_numbers_for_each_of_the_parameters():
    matrix, tracker = matrix_with(SPECTRUM).float(), EigenTracker()
    for _ in range(5):
        tracker(lambda v: v @ matrix, matrix[0])
    held = sum(start.nbytes for start in tracker.state_dict()["starts"])
    assert held == 2 * matrix[0].nbytes


def test_the_residual_bounds_the_distance_to_an_eigenvalue():
    matrix, before = matrix_with([10.0 * 0.9**i for i in range(60)]), matrix_with([1.0] * 60, seed=5)
    tracker = EigenTracker(tolerance=0, max_products=5)
    assert tracker(lambda v: v @ before, matrix[0]).products <= COLD_PRODUCTS
    pair = tracker(lambda v: v @ matrix, matrix[0])
    assert pair.products == 5
    assert torch.linalg.eigvalsh(matrix).sub(pair.value).abs().min() <= pair.residual + 1e-12


def test_a_warm_start_follows_a_slow_change_with_few_products_and_a_steady_sign():
    solver = EigenTracker(tolerance=1e-2, max_products=60, cold_products=40, look=100)
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


def test_alternating_operators_are_followed_phase_by_phase():
    even, odd = matrix_with([9.0] + [1.0] * 20, seed=3), matrix_with([8.0] + [1.0] * 20, seed=4)
    solver = EigenTracker(tolerance=1e-6, max_products=60, look=100)
    for t in range(8):
        matrix = even if t % 2 == 0 else odd
        pair = solver(lambda v, m=matrix: v @ m, matrix[0])
        if t >= 2:
            assert pair.products <= 2
            assert pair.value == pytest.approx(9.0 if t % 2 == 0 else 8.0)


def test_two_products_a_step_converge_on_each_phase_of_an_alternating_operator():
    spectrum = [9.0, 7.0] + [0.1 * i for i in range(50)]
    phases = [matrix_with(spectrum, seed=3), matrix_with(spectrum, seed=4)]
    tracker = EigenTracker(max_products=2)
    errors = []
    for t in range(24):
        pair = tracker(lambda v, m=phases[t % 2]: v @ m, phases[0][0])
        errors.append(9 - pair.value)
    assert max(errors[-2:]) < 1e-4 < max(errors[2:4])  # {Hu_{t-1}, Hu_{t-2}} would still err by 2e-3


def test_a_calm_operator_needs_one_product_and_a_sudden_change_gets_more_again():
    calm, other = matrix_with([9.0] + [1.0] * 20, seed=3), matrix_with([9.0, 5.0] + [1.0] * 19, seed=4)
    tracker = EigenTracker(tolerance=0.01, look=100)
    products = [tracker(lambda v: v @ calm, calm[0]).products for _ in range(12)]
    assert products[-6:] in ([1, 1, 2, 1, 1, 2], [1, 2, 1, 1, 2, 1], [2, 1, 1, 2, 1, 1])  # one looks for new vectors
    surprised, next_one = (tracker(lambda v: v @ other, other[0]) for _ in range(2))
    assert surprised.products > 2
    assert surprised.residual <= 0.01 * surprised.value
    assert next_one.products == 2  # not calm any more


@pytest.mark.parametrize("max_products", [2, 4])
@pytest.mark.parametrize("phases", [(0, 0), (0, 1), (1, 0)])
@pytest.mark.parametrize("rise", [0.05, 0.2])
def test_an_eigenvalue_that_overtakes_the_one_that_is_followed_is_found(max_products, phases, rise):
    """Eigenvectors are constant, so that the tracked one has residual 0, while another rises in one phase or both."""
    generator = torch.Generator().manual_seed(0)
    bases = [torch.linalg.qr(torch.randn(40, 40, dtype=torch.float64, generator=generator))[0] for _ in range(2)]
    tracker, late = EigenTracker(tolerance=0.1, max_products=max_products), 0
    for t in range(int(10 / rise)):
        phase = phases[t % 2]
        risen = 6.0 + rise * t if phase == phases[0] else 6.0
        values = torch.cat([torch.tensor([10.0, risen]), torch.linspace(-1, 3, 38)]).double()
        matrix = bases[phase] @ torch.diag(values) @ bases[phase].T
        late += tracker(lambda v, m=matrix: v @ m, matrix[0]).value < 0.99 * float(values.max())
    assert late <= 4


@pytest.mark.parametrize(("second", "left"), [(8.0, 0.2), (4.0, 0.5)])  # in networks it is as close as here
def test_a_value_is_nearer_to_the_eigenvalue_than_the_rayleigh_quotient(second, left):
    spectrum = [10.0, *torch.linspace(-2, second, 60).tolist()]
    base, drift = matrix_with(spectrum), matrix_with([1.0] * 30 + [-1.0] * 31, seed=1)
    tracker, errors, short = EigenTracker(max_products=2), [], []
    for t in range(30):
        matrix = base + 0.3 * math.sin(2 * t) * drift
        pair = tracker(lambda v, m=matrix: v @ m, matrix[0])
        truth = float(torch.linalg.eigvalsh(matrix)[-1])
        assert pair.quotient == pytest.approx(float(pair.vector @ matrix @ pair.vector))
        errors.append(abs(pair.value - truth))
        short.append(truth - pair.quotient)
    assert min(short) > 0
    assert sum(errors) < left * sum(short)


@pytest.mark.parametrize(("k", "which"), [(1, "largest"), (1, "magnitude"), (3, "largest")])
def test_a_value_is_what_rayleigh_ritz_finds_in_the_basis_and_the_residual(k, which):
    """With 0.4 q as the residual's own Rayleigh quotient, the only unknown."""
    before = matrix_with([10.0, *torch.linspace(-5, 8, 60).tolist()])
    tracker = EigenTracker(k, which, max_products=2 * k + 2, tolerance=1e-4)
    for _ in range(2):  # including a look
        tracker(lambda v: v @ before, before[0])
    matrix = before + 0.5 * matrix_with([1.0] * 30 + [-1.0] * 31, seed=1)
    basis = [tracker.directions(matrix[0])]

    def products(vectors):
        basis.append(vectors)
        return vectors @ matrix

    pair = tracker.update(basis[0] @ matrix, products)
    residual = matrix @ pair.vector - pair.quotient * pair.vector
    space = torch.cat([*basis, residual[None] / residual.norm()])
    operator = space @ matrix @ space.T
    operator[-1, -1] = 0.4 * pair.quotient
    found = float(torch.linalg.eigvalsh(operator)[-1])
    assert pair.residual > 0.01 * pair.quotient
    assert operator[:-1, -1].norm() > 1.2 * residual.norm(), "it shares something with the other residuals"
    assert pair.value - pair.quotient == pytest.approx(found - pair.quotient, rel=0.02)


@pytest.mark.parametrize(("which", "sign"), [("smallest", 1), ("smallest", -1), ("magnitude", -1), ("largest", -1)])
def test_where_a_residual_tells_nothing_the_value_is_the_quotient(which, sign):
    matrix = matrix_with([sign * value for value in [9.0, 7.0, *torch.linspace(0.1, 3, 30).tolist()]])
    tracker = EigenTracker(1, which, tolerance=0.3, max_products=3)
    pairs = [tracker(lambda v: v @ matrix, matrix[0]) for _ in range(4)]
    assert [pair.value for pair in pairs] == [pair.quotient for pair in pairs]


def test_pairs_stand_in_the_order_of_their_values():
    matrix = torch.diag(torch.tensor([10.0, 10.0, 5.0, 1.0], dtype=torch.float64))
    matrix[1, 2] = matrix[2, 1] = 2.0
    tracker = EigenTracker(2, max_products=2)
    tracker(lambda v: v @ torch.diag(torch.tensor([10.0, 9.9, 0, 0], dtype=torch.float64)), matrix[0])
    pairs = tracker(lambda v: v @ matrix, matrix[0])
    assert pairs.values.tolist() == sorted(pairs.values.tolist(), reverse=True)
    torch.testing.assert_close((pairs.vectors @ matrix * pairs.vectors).sum(1), pairs.quotients)
    assert pairs.value == pytest.approx(float(torch.linalg.eigvalsh(matrix)[-1]), rel=0.02)


def test_two_products_a_step_converge_on_the_smallest_eigenvalue():
    matrix = matrix_with([9.0, 7.0, 4.0, 1.0, 0.5, 0.0, -2.0, -8.0] * 4 + [-10.0])
    tracker = EigenTracker(1, "smallest", max_products=2, tolerance=0)
    errors = [tracker(lambda v, s=s: v @ matrix + s * v, matrix[0]).value + 10 - s for s in torch.linspace(0, 3, 40)]
    assert abs(float(errors[-1])) < 1e-6


@pytest.mark.parametrize("k", [1, 3])
def test_with_no_more_products_than_the_start_has_there_is_one_pass(k):
    spectrum = [9.0, 7.0] + [0.1 * i for i in range(50)]
    phases = [matrix_with(spectrum, seed=3), matrix_with(spectrum, seed=4)]
    tracker = EigenTracker(k, tolerance=0.5, max_products=2 * k, look=100)
    for t in range(12):
        directions = tracker.directions(phases[0][0])
        pairs = tracker.update(directions @ phases[t % 2], lambda v, m=phases[t % 2]: v @ m)
        if t > 2:
            assert pairs.products == len(directions) == 2 * k


def test_a_restored_solver_goes_on_exactly():
    matrix, later = matrix_with([5.0, 4.0, 3.0, 2.0, 1.0]), matrix_with([5.5, 4.0, 3.0, 2.0, 1.0], seed=2)
    solver, restored = EigenTracker(1, "largest", 1e-3, 9), EigenTracker(1, "largest", 1e-3, 9)
    for _ in range(6):  # until it is calm
        solver(lambda v: v @ matrix, matrix[0])
    restored.load_state_dict(solver.state_dict())
    for _ in range(4):
        a, b = (s(lambda v: v @ later, later[0]) for s in (solver, restored))
        assert (a.value, a.residual, a.products) == (b.value, b.residual, b.products)
        assert torch.equal(a.vector, b.vector)


def test_a_state_from_another_device_or_dtype_goes_on():
    matrix, tracker, restored = matrix_with(SPECTRUM), EigenTracker(), EigenTracker()
    for _ in range(4):
        tracker(lambda v: v @ matrix, matrix[0])
    restored.load_state_dict(tracker.state_dict())
    single = matrix.float()
    for _ in range(4):
        assert restored(lambda v: v @ single, single[0]).value == pytest.approx(9)


def test_a_one_dimensional_operator_is_exact():
    pair = EigenTracker()(lambda v: 7 * v, torch.zeros(1, dtype=torch.float64))
    assert (pair.value, pair.products) == (pytest.approx(7), 1)
    assert math.isclose(pair.residual, 0, abs_tol=1e-12)


@pytest.mark.parametrize(
    ("spectrum", "which", "expected"),
    [
        (SPECTRUM, "largest", [9.0, 7.0, 4.0]),
        (SPECTRUM, "smallest", [-8.0, -2.0, 0.0]),
        (SPECTRUM, "magnitude", [9.0, -8.0, 7.0]),
        ([5.0, 5.0, 5.0, 1.0, 0.0, -1.0], "largest", [5.0, 5.0, 5.0]),
    ],
)
def test_several_pairs_are_those_that_are_asked_for(spectrum, which, expected):
    matrix = matrix_with(spectrum)
    pairs = EigenTracker(3, which, tolerance=1e-8)(lambda v: v @ matrix, matrix[0])
    assert pairs.values.tolist() == pytest.approx(expected, abs=1e-9)
    torch.testing.assert_close(pairs.vectors @ pairs.vectors.T, torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(pairs.vectors @ matrix, pairs.values[:, None] * pairs.vectors, atol=1e-6, rtol=0)


@pytest.mark.parametrize("which", ["largest", "smallest", "magnitude"])
def test_a_block_follows_a_slow_change(which):
    tracker = EigenTracker(3, which, tolerance=1e-3, cold_products=20)
    drift = matrix_with([1.0] * 4 + [-1.0] * 16, seed=1)
    base = matrix_with([i + 0.25 for i in range(-10, 10)])  # no two of equal size
    for t in range(12):
        matrix = base + 0.01 * t * drift
        pairs = tracker(lambda v, m=matrix: v @ m, matrix[0])
        values = torch.linalg.eigvalsh(matrix)
        wanted = {"largest": values, "smallest": -values, "magnitude": values.abs()}[which].argsort(descending=True)[:3]
        assert pairs.values.tolist() == pytest.approx(values[wanted].tolist(), rel=1e-4, abs=1e-4)
    assert pairs.products < 20


def test_power_iteration_finds_the_largest_in_absolute_value_and_needs_more_products():
    matrix = matrix_with([9.0, *[0.2 * i for i in range(40)]])
    pair = power_iteration(lambda v: v @ matrix, torch.ones(41, dtype=torch.float64), 1e-4, 500)
    ours = EigenTracker(tolerance=1e-4, cold_products=40)(lambda v: v @ matrix, matrix[0])
    assert pair.value == pytest.approx(9.0) == ours.value
    assert pair.products > ours.products
    negative = power_iteration(lambda v: -v @ matrix, torch.ones(41, dtype=torch.float64), 1e-4, 500)
    assert negative.value == pytest.approx(-9.0)


@pytest.mark.parametrize("which", ["largest", "smallest", "magnitude"])
def test_an_operator_that_vanishes_has_eigenvalue_zero(which):
    matrix = matrix_with(SPECTRUM)
    tracker = EigenTracker(2, which)
    tracker(lambda v: v @ matrix, matrix[0])
    assert [tracker(lambda v: 0 * v, matrix[0]).values.tolist() for _ in range(6)] == [[0, 0]] * 6
    assert abs(tracker(lambda v: v @ matrix, matrix[0]).value) == pytest.approx(8 if which == "smallest" else 9)


def test_products_that_are_not_finite_are_reported_and_forgotten():
    matrix = matrix_with(SPECTRUM)
    tracker = EigenTracker(tolerance=1e-6)
    tracker(lambda v: v @ matrix, matrix[0])
    assert math.isnan(tracker(lambda v: v * torch.nan, matrix[0]).value)
    assert tracker(lambda v: v @ matrix, matrix[0]).value == pytest.approx(9.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 0}, "k=0: expected at least one"),
        ({"k": 3, "max_products": 2}, "max_products=2: expected at least k=3"),
        ({"which": "widest"}, "which=widest: expected largest, smallest or magnitude"),
        ({"which": "smallest", "above": 1.0}, "above=1.0: expected which=largest or magnitude"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        EigenTracker(**settings)


def test_a_state_of_another_version_is_refused():
    with pytest.raises(
        InputError, match=r"holds starts, vectors: expected starts, alternates, calm, calls, looked, .* train it again"
    ):
        EigenTracker().load_state_dict({"starts": [], "vectors": None})


def test_more_pairs_than_parameters_are_refused():
    with pytest.raises(InputError, match="k=5: expected at most 3, the number of parameters"):
        EigenTracker(5).directions(torch.zeros(3))


def test_a_vector_that_few_entries_hold_is_a_unit_vector_in_float32():
    """Many small entries beside a few large ones: a sum in float32 would lose them."""
    shape = torch.full((200_000,), 3e-4)
    shape[:50] = 0.1
    unit = shape.double() / shape.double().norm()
    pair = EigenTracker(tolerance=1e-5)(lambda v: (7 * (v.double() @ unit)[:, None] * unit).float(), unit.float())
    assert float(pair.vector.double().square().sum()) == pytest.approx(1, abs=2e-6)
    assert pair.value == pytest.approx(7, rel=2e-6)


@pytest.mark.parametrize(("which", "sign"), [("largest", 1), ("smallest", -1), ("magnitude", 1), ("magnitude", -1)])
@pytest.mark.parametrize("size", [10.5, 20.0])
def test_an_eigenvector_that_no_start_knows_is_found_when_it_overtakes(which, sign, size):
    """From one call to the next, an eigenvector of the bulk gets the largest eigenvalue; the tracked one stays."""
    generator = torch.Generator().manual_seed(0)
    bulk = torch.rand(196, generator=generator, dtype=torch.float64) / 2
    matrix = sign * matrix_with([10.0, 9.0, 8.0, 7.0, *bulk.tolist()])
    values, vectors = torch.linalg.eigh(matrix)
    hidden = vectors[:, values.abs().argsort()[50]]
    overtaken = matrix + sign * size * torch.outer(hidden, hidden)
    tracker = EigenTracker(1, which, look=5)
    known = [tracker(lambda v: v @ matrix, matrix[0]).value for _ in range(4)]
    assert known[-1] == pytest.approx(10 * sign, rel=1e-3)
    hinted = copy.deepcopy(tracker)
    found = [tracker(lambda v: v @ overtaken, matrix[0]).value for _ in range(5)]
    expected = torch.linalg.eigvalsh(overtaken).abs().max()
    assert abs(found[0]) == pytest.approx(10, rel=1e-3)  # the residual does not show it
    assert found[-1] == pytest.approx(sign * float(expected), rel=1e-3)
    hint = hidden / 2 + torch.ones(200, dtype=torch.float64) / 20  # equal parts of it and of everything else
    for _ in range(3):  # one of them has a wide basis
        images = hinted.directions(matrix[0]) @ overtaken
        pairs = hinted.update(images, lambda v: v @ overtaken, hint)
    assert pairs.value == pytest.approx(sign * float(expected), rel=1e-3)


def test_a_sudden_change_of_the_eigenvalue_calls_for_a_look():
    before, after = matrix_with(SPECTRUM_OF_A_NETWORK), 1.5 * matrix_with(SPECTRUM_OF_A_NETWORK)
    tracker = EigenTracker(look=100)
    spent = [tracker(lambda v: v @ before, before[0]).products for _ in range(6)]
    assert max(spent[1:]) + 3 <= tracker(lambda v: v @ after, before[0]).products
    assert tracker(lambda v: v @ after, before[0]).products <= max(spent[1:])


SPECTRUM_OF_A_NETWORK = [10.0 * 0.8**i for i in range(20)] + [0.02 * (i - 60) / 60 for i in range(180)]


@pytest.mark.parametrize("which", ["largest", "smallest", "magnitude"])
def test_the_bound_holds_also_where_the_largest_eigenvalue_is_missed(which):
    """Few products, so that values are far off; of 300 bounds that each fail with probability 1%, few fail."""
    sign = -1 if which == "smallest" else 1
    matrix, largest = sign * matrix_with(SPECTRUM_OF_A_NETWORK), 10.0
    trackers = [EigenTracker(1, which, cold_products=3, seed=seed) for seed in range(300)]
    pairs = [tracker(lambda v: v @ matrix, matrix[0]) for tracker in trackers]
    assert sum(sign * pair.value < 0.95 * largest for pair in pairs) > 20
    assert sum(sign * pair.bound < largest for pair in pairs) <= 8  # more than 8 fail with probability 0.4%
    assert sorted(sign * pair.bound for pair in pairs)[150] < 4 * largest
    tracker = EigenTracker(1, which, seed=1, look=1)
    bounds = [sign * tracker(lambda v: v @ matrix, matrix[0]).bound for _ in range(8)]
    assert largest <= min(bounds[1:]) <= max(bounds[1:]) < 1.02 * largest  # eight more products, with a known pair


def test_a_bound_is_as_wide_as_the_residuals_between_two_looks():
    """Whatever the followed pair misses couples through its residual: an exact bound of a 2 x 2 matrix."""
    matrix = matrix_with(SPECTRUM_OF_A_NETWORK)
    tracker = EigenTracker(look=100, max_products=1)
    drift = matrix_with([0.5 * (-1) ** i for i in range(200)], seed=3)
    tracker(lambda v: v @ matrix, matrix[0])
    pair = tracker(lambda v: v @ (matrix + drift), matrix[0])
    assert pair.residual > 0.3
    assert pair.bound >= pair.quotient + pair.residual**2 / (pair.bound - 0)
    assert pair.bound >= float(torch.linalg.eigvalsh(matrix + drift)[-1])


@pytest.mark.parametrize(("look", "factors", "size"), [(100, [1, 1, 1, 2], 24), (3, [1, 1, 1, 1, 0.75], 9.6)])
def test_between_two_looks_what_is_not_followed_may_grow_as_what_is_followed_does(look, factors, size):
    """λ doubles, and at the next call an eigenvector unknown to every start has more than that, within its growth.

    Or λ falls, and the unknown one is 9% above what the last look found possible.
    """
    matrix = matrix_with(SPECTRUM_OF_A_NETWORK)
    vectors = torch.linalg.eigh(matrix).eigenvectors
    tracker = EigenTracker(look=look)
    for factor in factors:
        known = tracker(lambda v, f=factor: v @ (f * matrix), matrix[0])
    hidden = factor * matrix + size * torch.outer(vectors[:, 100], vectors[:, 100])
    pair = tracker(lambda v: v @ hidden, matrix[0])
    assert pair.value == pytest.approx(known.value, rel=1e-3)
    assert pair.bound > torch.linalg.eigvalsh(hidden)[-1] > 1.1 * pair.value


def test_several_pairs_have_tolerances_of_their_own():
    spectrum = [10.0, 4.0, 2.0, *torch.linspace(-1, 1.5, 150).tolist()]
    base, drift = matrix_with(spectrum), matrix_with([1.0] * 77 + [-1.0] * 76, seed=1)
    tracker = EigenTracker(3, tolerance=0.05)
    for t in range(12):
        matrix = base + 0.5 * math.sin(2 * t) * drift
        pairs = tracker(lambda v, m=matrix: v @ m, matrix[0])
        if t > 1:
            assert (pairs.residuals <= 0.05 * pairs.quotients).all()
            top = torch.linalg.eigvalsh(matrix).flip(0)[:3]
            torch.testing.assert_close(pairs.values, top, rtol=0.01, atol=0)


def test_a_bound_needs_no_more_than_the_whole_space():
    matrix = matrix_with([5.0, 1.0, 0.5])
    tracker = EigenTracker(look=1, tolerance=1e-8)
    assert [tracker(lambda v: v @ matrix, matrix[0]).bound for _ in range(4)] == pytest.approx([5.0] * 4, rel=1e-6)


@pytest.mark.parametrize("which", ["largest", "magnitude"])
def test_all_eigenvalues_beyond_a_threshold_are_followed(which):
    """Six eigenvalues cross it upwards and downwards."""
    sign, bulk = 1 if which == "largest" else -1, torch.linspace(-1, 1.5, 120, dtype=torch.float64)
    basis = torch.linalg.qr(torch.randn(126, 126, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
    tracker, restored = (EigenTracker(8, which, tolerance=0.02, above=sign * 5.0) for _ in range(2))
    counts = []
    for t in range(24):
        moved = 3 + 5 * math.sin(math.pi * t / 24) + torch.arange(6, dtype=torch.float64) * 0.7
        matrix = sign * basis @ torch.diag(torch.cat([moved, bulk])) @ basis.T
        wanted = moved[moved > 5].flip(0)
        pairs = tracker(lambda v, m=matrix: v @ m, matrix[0])
        if t == 12:
            restored.load_state_dict(tracker.state_dict())
        if t > 12:
            assert torch.equal(restored(lambda v, m=matrix: v @ m, matrix[0]).values, pairs.values)
        if t > 2:
            assert len(pairs.values) == max(1, len(wanted))
            torch.testing.assert_close(sign * pairs.values, moved.flip(0)[: len(pairs.values)], rtol=0.005, atol=0)
            assert (pairs.residuals <= 0.02 * pairs.quotients.abs()).all()
        counts.append(len(pairs.values))
    assert max(counts) == 6
    assert counts[-1] == 4


def test_no_value_is_above_its_bound():
    """Next to λ_1 = 1 the others are so small that a residual says less than usual."""
    generator = torch.Generator().manual_seed(3)
    skew = torch.randn(60, 60, dtype=torch.float64, generator=generator)
    turn = torch.linalg.matrix_exp(0.01 * (skew - skew.T))
    matrix = torch.diag(torch.cat([torch.ones(1), torch.linspace(0, 0.01, 59)]).double())
    tracker = EigenTracker(tolerance=0.1, look=1)
    held = []
    for _ in range(4):
        matrix = turn @ matrix @ turn.T
        directions = tracker.directions(matrix[0])
        pair = tracker.update(directions @ matrix, lambda v, matrix=matrix: v @ matrix)
        assert pair.value <= pair.bound
        held.append(pair.value == pair.bound)
    assert any(held)
