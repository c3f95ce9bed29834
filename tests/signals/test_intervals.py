from itertools import combinations
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opposing_signals.signals import interval_coverage

POINTS = 20


def coverage(one, other, points=POINTS):
    return interval_coverage(np.array(one), np.array(other), points)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ((4, 5, 6), (3, 7), 1),
        ((3, 7), (4, 5, 6), 1),
        ((5, 6), (2, 3, 4, 7), 1),  # neighbours may reach further
        ((0, 1, 2), (3, 4), 1),  # at the end of the line there is one side
        ((18, 19), (16, 17), 1),
        ((5, 6), (7, 8), 4 / 5),  # N lacks the left neighbour
        ((1, 2, 3), (0, 5, 6), 6 / 7),  # a point of neither group
        ((2, 4), (1, 3, 5), 4 / 5),  # they alternate: one gap in I
        ((2, 17, 18), (0, 19), 5 / 20),  # from both ends of the line
        ((4,), (3, 5), 2 / 5),  # one point is no interval, and the two on both sides of it have a gap
        ((4,), (5,), 0),
        (tuple(range(10)), (10, 11), 0),  # more than half of the points are no small interval
    ],
)
def test_known_pairs(one, other, expected):
    assert coverage(one, other) == pytest.approx(expected)


@given(st.data())
def test_it_is_a_share_that_does_not_depend_on_the_side(data):
    chosen = data.draw(st.lists(st.integers(0, POINTS - 1), min_size=2, max_size=10, unique=True))
    cut = data.draw(st.integers(1, len(chosen) - 1))
    one, other = chosen[:cut], chosen[cut:]
    value = coverage(one, other)
    assert 0 <= value <= 1
    assert coverage(other, one) == value
    assert coverage([POINTS - 1 - i for i in one], [POINTS - 1 - i for i in other]) == pytest.approx(value)


def test_a_coverage_of_one_is_rare_among_random_groups():
    """Counted over all groups of three and three: one in 12,000."""
    windows = [range(low, low + 6) for low in range(POINTS - 5)]  # nothing wider has a coverage of 1
    hits = {
        (one, other)
        for window in windows
        for one in combinations(window, 3)
        for other in [tuple(sorted(set(window) - set(one)))]
        if coverage(one, other) == 1
    }
    assert len(hits) / (comb(POINTS, 3) * comb(POINTS - 3, 3)) == pytest.approx(1 / 12_000, rel=0.02)
