import numpy as np
import pytest

from opposing_signals.signals import find_pairs


def planted_changes(steps=120, points=600, seed=0):
    """Small noise on all points; two opposing pairs of 15 + 15, active one after the other."""
    generator = np.random.default_rng(seed)
    changes = 0.01 * generator.normal(size=(steps, points))
    members = generator.permutation(points)[:60].reshape(4, 15)
    sign = np.where(np.arange(steps) % 2 == 0, 1.0, -1.0)
    for pair, (first, last) in enumerate([(10, 50), (70, 115)]):
        rows = np.arange(first, last)
        size = 1.0 + pair
        envelope = size * np.sin(np.pi * (rows - first + 0.5) / (last - first))
        for group, direction in ((members[2 * pair], 1), (members[2 * pair + 1], -1)):
            strength = generator.uniform(0.7, 1.3, size=15)
            changes[np.ix_(rows, group)] += direction * np.outer(sign[rows] * envelope, strength)
    return changes, members


@pytest.mark.parametrize("seed", range(5))
def test_planted_pairs_are_found_with_their_members_and_windows(seed):
    changes, members = planted_changes(seed=seed)
    pairs = find_pairs(changes, group=15)
    assert len(pairs) >= 2
    late, early = pairs[0], pairs[1]  # the largest amplitude first
    for pair, (one, other), (first, last) in ((late, members[2:], (70, 115)), (early, members[:2], (10, 50))):
        found = {frozenset(pair.rising.tolist()), frozenset(pair.falling.tolist())}
        assert found == {frozenset(one.tolist()), frozenset(other.tolist())}
        assert pair.correlation < -0.95
        assert abs(pair.window[0] - first) <= 5
        assert abs(pair.window[1] - last) <= 5


def test_noise_has_no_strongly_opposed_pairs():
    changes = np.random.default_rng(0).normal(size=(120, 600))
    assert all(pair.correlation > -0.8 for pair in find_pairs(changes))


def test_the_selecting_step_is_left_out_of_the_correlation():
    """At the selecting step the groups differ by construction; nowhere else in this noise."""
    changes = np.random.default_rng(1).normal(size=(40, 300))
    changes[20, :20] += 50
    changes[20, 20:40] -= 50
    assert all(pair.correlation > -0.8 for pair in find_pairs(changes, phases=1))


@pytest.mark.parametrize("shape", [(0, 10), (2, 10), (50, 2)])
def test_too_little_data_gives_no_pairs(shape):
    assert find_pairs(np.zeros(shape)) == []


def test_points_that_oppose_each_other_alone_are_a_pair_where_a_group_may_be_so_small():
    changes = np.zeros((40, 30))
    changes[::2, 3], changes[1::2, 3] = 1, -1
    changes[::2, 7], changes[1::2, 7] = -1, 1
    (pair,) = find_pairs(changes, group=3, smallest_group=1, phases=1)
    assert sorted([*pair.rising.tolist(), *pair.falling.tolist()]) == [3, 7]
    assert pair.correlation == -1
