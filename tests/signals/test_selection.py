import numpy as np

from opposing_signals.signals import fallers, risers


def test_the_selection_is_the_sorted_extremes():
    changes = np.random.default_rng(0).normal(size=500)
    order = np.argsort(changes)
    np.testing.assert_array_equal(risers(changes, 20), order[::-1][:20])
    np.testing.assert_array_equal(fallers(changes, 20), order[:20])


def test_no_more_points_than_there_are():
    assert sorted(risers(np.array([3.0, 1.0, 2.0]), 20).tolist()) == [0, 1, 2]
