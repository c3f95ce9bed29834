"""The toy valley: opposing groups that balance, convergence before sharpening and alternation after it."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.special import expit

from opposing_signals.errors import InputError
from opposing_signals.studies.theory import toy

shares = st.floats(0.05, 0.95)
magnitudes = st.floats(0.1, 30)


@settings(max_examples=40, deadline=None)
@given(magnitude=magnitudes, share=shares, w=st.floats(-3, 3))
def test_average_loss_and_its_derivatives(magnitude, share, w):
    losses = toy.group_losses(w, magnitude, share)
    assert losses.average == pytest.approx(share * losses.plane + (1 - share) * losses.other)
    assert losses.plane == pytest.approx(toy.group_losses(-w, magnitude, share).other)  # mirror images
    low, h = toy.minimum(magnitude, share), 1e-3 / magnitude
    values = toy.group_losses(low + h * np.array([-1, 0, 1]), magnitude, share).average
    assert values[1] <= values[0]
    assert values[1] <= values[2]
    assert toy.slope(w, magnitude, share) == pytest.approx(magnitude * (expit(magnitude * w) - share), abs=1e-12)
    assert (values[0] - 2 * values[1] + values[2]) / h**2 == pytest.approx(toy.curvature(magnitude, share), rel=1e-3)


@settings(max_examples=40, deadline=None)
@given(magnitude=magnitudes, share=shares)
def test_groups_pull_in_opposite_directions_everywhere(magnitude, share):
    w = np.linspace(-3, 3, 50) / magnitude
    losses = toy.group_losses(w, magnitude, share)
    assert np.all(np.diff(losses.plane) < 0)
    assert np.all(np.diff(losses.other) > 0)


@settings(max_examples=40, deadline=None)
@given(step_size=st.floats(0.01, 10), share=shares, ratio=st.floats(0.1, 3), offset=st.sampled_from([-1, 1]))
def test_stable_exactly_below_the_break_even_magnitude(step_size, share, ratio, offset):
    assume(abs(ratio - 1) > 0.1)
    magnitude = ratio * toy.break_even_magnitude(step_size, share)
    low = toy.minimum(magnitude, share)
    path = toy.descend(low + offset * 1e-6 / magnitude, step_size, np.full(300, magnitude), share)
    distance = np.abs(path.w - low) * magnitude
    if ratio < 1:
        assert distance[-1] < distance[0]
    else:
        assert distance[-1] > 100 * distance[0]
        side = path.w - low
        near = distance < 1e-3
        assert np.all(side[:-1][near[:-1]] * side[1:][near[:-1]] < 0)


@pytest.mark.parametrize("ratio", [1.05, 1.2, 1.5])
def test_alternation_grows_into_the_two_cycle(ratio):
    magnitude = ratio * toy.break_even_magnitude(0.5)
    cycle = toy.two_cycle(magnitude, 0.5)
    path = toy.descend(1e-3 / magnitude, 0.5, np.full(2000, magnitude))
    assert abs(path.w[-1]) == pytest.approx(cycle, rel=1e-6)
    assert path.w[-1] == pytest.approx(-path.w[-2], rel=1e-6)
    assert toy.descend(cycle, 0.5, np.full(1, magnitude)).w[1] == pytest.approx(-cycle, rel=1e-9)


@pytest.mark.parametrize("ratio", [4.0, 100.0])
def test_far_above_the_edge_iterates_jump_between_the_straight_walls(ratio):
    magnitude = ratio * toy.break_even_magnitude(0.5)
    w = toy.descend(1e-3 / magnitude, 0.5, np.full(2000, magnitude)).w
    assert w[-1] * w[-2] < 0
    assert abs(w[-1] - w[-2]) == pytest.approx(2 * toy.two_cycle(magnitude, 0.5), rel=1e-3)
    assert abs(w[-1] - w[-2]) == pytest.approx(0.5 * magnitude / 2, rel=1e-3)


def test_an_iterate_very_near_the_minimum_still_leaves_a_sharpened_valley():
    path = toy.descend(1e-40, 1.0, np.full(100, 1.5 * toy.break_even_magnitude(1.0)))
    assert abs(path.w[-1]) > 0.1


def test_no_cycle_while_the_valley_is_stable():
    assert toy.two_cycle(0.99 * toy.break_even_magnitude(0.5), 0.5) == 0.0
    assert toy.two_cycle(1.0001 * toy.break_even_magnitude(0.5), 0.5) > 0.0


def test_converges_before_sharpening_and_alternates_after_it():
    """Figure 4 in one run: the magnitude grows from half to 1.4 times the break-even magnitude."""
    edge = toy.break_even_magnitude(1.0)
    path = toy.descend(
        0.5, 1.0, edge * np.concatenate([np.full(100, 0.5), np.linspace(0.5, 1.4, 100), np.full(500, 1.4)])
    )
    stable = path.magnitudes < edge
    assert np.all(np.diff(np.abs(path.w[:40])) < 0)
    assert abs(path.w[100]) < 1e-12
    end = path.w[-30:]
    assert np.all(end[1:] * end[:-1] < 0)
    assert np.abs(end).min() > 1e3 * np.abs(path.w[:-1][stable]).min()
    plane, other, average = (field[-30:] for field in (path.losses.plane, path.losses.other, path.losses.average))
    assert np.corrcoef(plane, other)[0, 1] < -0.99  # one group's loss is high when the other's is low
    assert np.ptp(average) < 0.1 * np.ptp(plane)
    assert average.min() > path.losses.average[100]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.1, 0.0, np.ones(3)), "step_size = 0.0"),
        ((0.1, 0.5, np.array([1.0, 0.0])), "magnitude"),
        ((0.1, 0.5, np.ones(3), 1.0), r"share = 1.0: expected .* \(0, 1\)"),
    ],
)
def test_bad_arguments_to_descend_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        toy.descend(*arguments)


def test_a_break_even_magnitude_needs_a_positive_step():
    with pytest.raises(InputError, match="step_size"):
        toy.break_even_magnitude(-1.0)
