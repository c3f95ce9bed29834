import numpy as np

from opposing_signals.record import Series
from opposing_signals.signals.steps import between, one_step_changes, reversals, rising_share, stretches

EVERY_FIFTH = np.array([step for step in range(60) if step % 5 < 2])


def test_changes_are_those_of_successive_steps_whatever_else_was_measured():
    whole = np.random.default_rng(0).normal(size=(60, 3))
    changes = one_step_changes(Series(EVERY_FIFTH, whole[EVERY_FIFTH]))
    assert changes.steps.tolist() == list(range(0, 60, 5))
    np.testing.assert_array_equal(changes.values, np.diff(whole, axis=0)[::5])
    assert one_step_changes(Series(np.arange(0, 9, 2), np.arange(5.0))).values.shape == (0,)


def test_a_reversal_needs_two_successive_changes():
    signs = np.array([1.0, -1, -1, 0, 1, -1])
    found = reversals(Series(np.array([3, 4, 5, 6, 9, 10]), signs))
    assert found.steps.tolist() == [4, 5, 6, 10]
    assert found.values.tolist() == [True, False, False, True]
    assert len(reversals(Series(np.arange(0, 40, 5), np.ones(8)))) == 0


def test_a_change_that_is_nan_neither_rises_nor_reverses():
    losses = np.array([[1, 1, 1, 1], [2, 0, np.inf, np.nan], [3, -1, np.inf, np.nan], [np.nan] * 4, [1, 1, 1, 1]])
    shares = rising_share(one_step_changes(Series(np.arange(5), losses)))
    assert shares.steps.tolist() == [0, 1]
    assert shares.values.tolist() == [2 / 3, 1 / 2]
    turns = reversals(Series(np.arange(5), np.array([1.0, -1, np.nan, 1, -1])))
    assert turns.steps.tolist() == [1, 4]
    assert turns.values.all()


def test_parts_by_their_steps():
    series = Series(np.array([0, 1, 2, 7, 8, 20]), np.arange(6.0))
    assert between(series, 2, 8).steps.tolist() == [2, 7, 8]
    assert between(series, 3, 6).values.shape == (0,)
    assert [part.steps.tolist() for part in stretches(series, 2)] == [[0, 1, 2], [7, 8]]
