import numpy as np
import pytest

from opposing_signals.record import Record
from opposing_signals.signals import Trajectory


@pytest.fixture
def record(tmp_path):
    with Record.writing(tmp_path, {"optimizer": {"lr": 0.5}}) as writer:
        for step in (0, 1, 5, 6, 7):
            writer.append("sample_loss", step, np.array([step, 2 * step, -step], np.float32))
        for step, value in ((0, 1.0), (5, 4.0), (6, 3.0)):
            writer.append("sharpness", step, value)
    return Record(tmp_path)


def test_changes_are_taken_between_successive_steps_only(record):
    changes = Trajectory(record).changes
    assert changes.steps.tolist() == [0, 5, 6]
    np.testing.assert_array_equal(changes.values, np.tile([1, 2, -1], (3, 1)))


def test_break_even_is_the_first_measured_step_at_or_above_the_threshold(record):
    trajectory = Trajectory(record)
    assert trajectory.break_even == 5
    assert trajectory.after_break_even(trajectory.changes).steps.tolist() == [5, 6]
    assert trajectory.mean_loss.values.tolist() == pytest.approx([0, 2 / 3, 10 / 3, 4, 14 / 3])


def test_without_break_even_nothing_comes_after_it(tmp_path):
    with Record.writing(tmp_path, {"optimizer": {"lr": 0.1}}) as writer:
        writer.append("sharpness", 0, 19.9)
    trajectory = Trajectory(Record(tmp_path))
    assert trajectory.break_even is None
    assert len(trajectory.after_break_even(trajectory.sharpness)) == 0
