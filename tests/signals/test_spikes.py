"""Spikes are found where the loss rises, and are attributed to the planted groups."""

import numpy as np
import pytest
from recording import made

from opposing_signals.signals import Trajectory, find_spikes

POINTS, STEPS = 200, 80
UP, DOWN = np.arange(10, 18), np.arange(50, 57)


def trajectory(folder, losses, steps=None) -> Trajectory:
    at = range(len(losses)) if steps is None else steps
    return made(folder, {"run": {"name": "drawn"}}, sample_loss=(at, losses.astype(np.float32)))


def losses_with_a_spike(at: int, jump: float = 1.0) -> np.ndarray:
    """Two groups alternate, grow towards step ``at`` and jump there; the others hardly move."""
    generator = np.random.default_rng(0)
    losses = 1 + 0.001 * generator.standard_normal((STEPS, POINTS))
    size = 0.02 * np.exp(-np.abs(np.arange(STEPS) - at - 1) / 6)[:, None]
    sign = np.where((np.arange(STEPS) - at) % 2 == 1, 1.0, -1.0)[:, None]
    losses[:, UP] += size * sign
    losses[:, DOWN] -= size * sign
    losses[at + 1, UP] += jump
    losses[at + 1, DOWN] -= jump / 5
    return losses


@pytest.mark.parametrize("at", [30, 31])
def test_the_planted_groups_carry_the_spike(tmp_path, at):
    losses = losses_with_a_spike(at)
    spike = find_spikes(trajectory(tmp_path, losses))[0]
    assert spike.step == at
    assert set(spike.rising) == set(UP)
    assert set(spike.falling) == set(DOWN)
    assert spike.correlation < -0.5
    changes = losses[at + 1] - losses[at]
    assert spike.rise == pytest.approx(changes.mean(), rel=1e-4)
    assert spike.share == pytest.approx(changes[UP].sum() / changes[changes > 0].sum(), rel=1e-3)
    assert spike.expected == len(UP) / POINTS
    assert spike.change == pytest.approx((changes[UP].mean(), changes[DOWN].mean()), rel=1e-3)
    np.testing.assert_array_equal(spike.rising, UP[np.argsort(-changes[UP])])


def test_without_a_pair_the_selection_of_the_step_stands_in(tmp_path):
    generator = np.random.default_rng(1)
    losses = 1 + 0.01 * generator.standard_normal((3, POINTS))
    losses[2] += np.linspace(0, 1, POINTS)
    (spike,) = find_spikes(trajectory(tmp_path, losses), count=1)
    assert (spike.step, spike.correlation, len(spike.falling)) == (1, None, 0)
    assert len(spike.rising) == 20
    assert spike.rising.min() >= POINTS - 30


def test_spikes_keep_their_distance_and_a_falling_loss_has_none(tmp_path):
    losses = np.linspace(2, 1, STEPS)[:, None] + np.zeros(POINTS)
    assert find_spikes(trajectory(tmp_path / "falling", losses)) == []
    losses[[11, 13, 51]] += np.array([[1.0], [0.9], [0.8]])
    spikes = find_spikes(trajectory(tmp_path / "rising", losses))
    assert [spike.step for spike in spikes] == [10, 50]


def test_spikes_before_a_loss_that_is_not_finite_are_found_as_without_it(tmp_path):
    losses = losses_with_a_spike(30)
    sound = find_spikes(trajectory(tmp_path / "sound", losses[:60]))
    losses[60, 3], losses[61:] = np.inf, np.nan
    diverged = find_spikes(trajectory(tmp_path / "diverged", losses))
    assert [(spike.step, spike.typical) for spike in diverged] == [(spike.step, spike.typical) for spike in sound]


def test_strided_records_give_spikes_at_their_own_steps(tmp_path):
    losses = losses_with_a_spike(30, jump=0.1)
    steps = [10 * (row // 2) + row % 2 for row in range(STEPS)]  # pairs of successive steps, ten apart
    (spike,) = find_spikes(trajectory(tmp_path, losses, steps), count=1)
    assert spike.step == 150  # rows 30 and 31 of the losses
    assert set(spike.rising) == set(UP)
    assert trajectory(tmp_path / "lone", losses[:20], range(0, 40, 2)).changes.values.shape == (0, POINTS)
