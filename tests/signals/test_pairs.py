import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from opposing_signals.record import Record, Series
from opposing_signals.signals import (
    Match,
    Trajectory,
    agreement,
    find_pairs,
    find_pairs_by_gradients,
    match,
    match_pair,
    outliers_of,
    stability,
)
from opposing_signals.signals.search import Search
from opposing_signals.signals.steps import one_step_changes

POINTS, STEPS = 800, 160


def found_in(changes):
    """The pairs found in changes of successive steps."""
    return find_pairs(Series(np.arange(len(changes)), changes))


def planted_changes(seed=0):
    """Two pairs of 60 against 25 that alternate in phase: one strong, one later and weaker."""
    generator = np.random.default_rng(seed)
    changes = 0.02 * generator.standard_normal((STEPS, POINTS))
    chosen = generator.permutation(POINTS)[:170]
    pairs = [(chosen[:60], chosen[60:85]), (chosen[85:145], chosen[145:])]
    sign = np.where(np.arange(STEPS) % 2 == 0, 1.0, -1.0)
    for (first, last), size, (many, few) in zip([(30, 90), (60, 140)], [1.0, 0.5], pairs, strict=True):
        rows = np.arange(first, last)
        course = size * sign[rows] * np.sin(np.pi * (rows - first + 0.5) / (last - first))
        changes[np.ix_(rows, many)] += np.outer(course, generator.uniform(0.5, 1.0, len(many)))
        changes[np.ix_(rows, few)] -= np.outer(course, generator.uniform(1.0, 2.0, len(few)))
    return changes, pairs


@pytest.mark.parametrize("seed", range(3))
def test_planted_pairs_are_found_with_all_their_members(seed):
    changes, pairs = planted_changes(seed)
    strong, weak = found_in(changes)
    for found, wanted, window in ((strong, pairs[0], (30, 90)), (weak, pairs[1], (60, 140))):
        assert match_pair(found.groups, wanted).f1 > 0.97
        assert found.correlation < -0.97
        assert abs(found.window[0] - window[0]) <= 6
        assert abs(found.window[1] - window[1]) <= 6
        assert found.window[0] <= found.step <= found.window[1]
        assert changes[found.step, found.rising].mean() > 0 > changes[found.step, found.falling].mean()
        assert min(found.rising_scores.min(), found.falling_scores.min()) > 0.5
    assert strong.contrast > weak.contrast > 5


def test_steps_are_those_of_the_record():
    changes, _ = planted_changes()
    found = found_in(changes)
    later = find_pairs(Series(np.arange(STEPS) * 2 + 7, changes))
    for one, other in zip(found, later, strict=True):
        np.testing.assert_array_equal(one.members, other.members)
        assert other.step == 2 * one.step + 7
        assert other.window == tuple(2 * step + 7 for step in one.window)


def test_amplitude_and_share_of_the_spikes():
    """Six of 100 points rise by 3 every other step and the others by 0.01, so the members carry 18 of 18.94."""
    changes = np.full((64, 100), 0.0)
    changes[::2] = 0.01
    changes[1::2] = -0.01
    changes[::2, :6] = 3
    changes[1::2, :6] = -3
    changes[::2, 6:10] = -1
    changes[1::2, 6:10] = 1
    (pair,) = found_in(changes)
    assert sorted(pair.members.tolist()) == list(range(10))
    assert pair.window == (0, 63)
    assert pair.amplitude == pytest.approx(2)
    assert pair.spike_share == pytest.approx(18 / (18 + 90 * 0.01))
    assert pair.contrast == pytest.approx(100)


@pytest.mark.parametrize("shape", [(0, 20), (2, 20), (50, 3), (120, 600)])
def test_noise_and_too_little_data_show_no_pairs(shape):
    changes = np.random.default_rng(0).normal(size=shape)
    assert found_in(changes) == []
    assert found_in(np.zeros(shape)) == []


def independent(generator, steps, points):
    return generator.standard_normal((steps, points))


def unequal(generator, steps, points):
    """Every point has its own scale, over two orders of magnitude."""
    return independent(generator, steps, points) * np.exp(0.8 * generator.standard_normal(points))


def heavy_tailed(generator, steps, points):
    return generator.standard_t(3, (steps, points))


def decaying(generator, steps, points):
    return unequal(generator, steps, points) * np.exp(-4 * np.arange(steps) / steps)[:, None]


def of_noisy_losses(generator, steps, points):
    """Successive changes are dependent: the noise of a loss enters the change before it and the one after."""
    return np.diff(unequal(generator, steps + 1, points), axis=0)


def with_common_spikes(generator, steps, points):
    """At some steps all points move together, each in proportion to its own scale."""
    spikes = np.where(generator.random(steps) < 0.05, 10 * generator.standard_normal(steps), 0)
    return unequal(generator, steps, points) + np.outer(spikes, np.exp(0.5 * generator.standard_normal(points)))


def with_bursts_of_one_side(generator, steps, points):
    """Groups of 30 that move together for 20 steps, without opponents."""
    changes = independent(generator, steps, points)
    for _ in range(5):
        start = generator.integers(steps - 20)
        group = generator.choice(points, 30, replace=False)
        changes[start : start + 20, group] += 5 * generator.standard_normal((20, 1))
    return changes


def alternating_alone(generator, steps, points):
    """A group that alternates at every step, without an opponent."""
    changes = independent(generator, steps, points)
    changes[:, :30] += 5 * (-1.0) ** np.arange(steps)[:, None]
    return changes


def with_courses_of_their_own(generator, steps, points):
    """Five groups of 30 that move together over the whole run, independently of each other."""
    changes = independent(generator, steps, points)
    for group in range(5):
        changes[:, 30 * group : 30 * (group + 1)] += 5 * generator.standard_normal((steps, 1))
    return changes


def with_many_bursts(generator, steps, points):
    """Ten groups of 30 that move together for 20 steps, sometimes at the same time by chance."""
    changes = independent(generator, steps, points)
    for group in range(10):
        start = generator.integers(steps - 20)
        changes[start : start + 20, 30 * group : 30 * (group + 1)] += 5 * generator.standard_normal((20, 1))
    return changes


NULLS = [
    independent, unequal, heavy_tailed, decaying, of_noisy_losses, with_common_spikes, with_bursts_of_one_side,
    alternating_alone, with_courses_of_their_own, with_many_bursts,
]  # fmt: skip


@pytest.mark.parametrize("null", NULLS)
def test_what_has_no_opponent_is_no_pair(null):
    for seed in range(3):
        changes = null(np.random.default_rng(seed), 100, 800).astype(np.float32)
        assert found_in(changes) == []


WINDOWS = {"quarter": (30, 70), "twelve steps": (51, 63), "whole run": (0, 120)}
COURSES = {
    "even": np.ones_like,
    "growing": lambda time: 0.3 + 1.4 * time,
    "shrinking": lambda time: 1.7 - 1.4 * time,
    "waxing and waning": lambda time: 1.4 * np.sin(np.pi * time),
}


def with_pairs(generator, noise, pairs, amplitude=5.0, points=800):
    """Alternating pairs of (sizes, window, course) in noise, with ``amplitude`` times its size."""
    changes = noise(generator, 120, points)
    chosen, truth = generator.permutation(points), []
    for (many, few), (first, stop), course in pairs:
        groups, chosen = (chosen[:many], chosen[many : many + few]), chosen[many + few :]
        rows = np.arange(first, stop)
        moves = amplitude * course((rows - first + 0.5) / len(rows)) * (-1.0) ** rows
        for group, sign in zip(groups, (1, -1), strict=True):
            changes[first:stop, group] += np.outer(sign * moves, generator.uniform(0.7, 1.3, len(group)))
        truth.append(groups)
    return changes, truth


@pytest.mark.parametrize("course", COURSES)
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("sizes", [(5, 50), (4, 200), (20, 20)], ids=str)
def test_planted_pairs_of_every_kind_come_first(sizes, window, course):
    changes, (truth,) = with_pairs(np.random.default_rng(0), independent, [(sizes, WINDOWS[window], COURSES[course])])
    found = found_in(changes)
    members = match_pair(found[0].groups, truth)
    assert min(members.precision, members.recall) >= 0.9
    assert len(found) == 1
    assert found[0].p_value < 0.05


@pytest.mark.parametrize("noise", [independent, heavy_tailed])
def test_three_pairs_in_time_with_each_other_are_told_apart(noise):
    wave = COURSES["waxing and waning"]
    pairs = [((20, 20), window, wave) for window in ((15, 60), (30, 90), (60, 120))]
    changes, truth = with_pairs(np.random.default_rng(1), noise, pairs)
    found = found_in(changes)
    assert len(found) == 3
    for groups in truth:
        best = max((match_pair(pair.groups, groups) for pair in found), key=lambda members: members.f1)
        assert min(best.precision, best.recall) >= 0.9


def test_a_pair_is_found_beside_leaps_that_all_points_share():
    """As on a ResNet: where the train loss leaps, both groups rise, and their losses hardly correlate."""
    generator = np.random.default_rng(0)
    changes, (truth,) = with_pairs(generator, independent, [((30, 30), (30, 90), np.ones_like)])
    leaps = np.zeros(120)
    leaps[[45, 46, 60]] = 40.0, -40.0, 20.0
    sizes = np.exp(0.5 * generator.standard_normal(800))
    sizes[np.concatenate(truth)] *= 2
    changes += np.outer(leaps, sizes)
    pair = max(found_in(changes), key=lambda pair: match_pair(pair.groups, truth).f1)
    assert match_pair(pair.groups, truth).f1 > 0.9
    assert pair.correlation > -0.5


def test_pairs_that_live_for_fourteen_steps_at_a_time_are_found_where_everything_alternates():
    """As on a ResNet-18 at the paper's step size: every point alternates, and three pairs take turns."""
    generator = np.random.default_rng(0)
    signs = (-1.0) ** np.arange(56)
    changes = independent(generator, 56, 800) + signs[:, None] * generator.standard_normal(800)
    truth = []
    for number, first in enumerate((5, 20, 36)):
        groups = np.arange(60 * number, 60 * number + 30), np.arange(60 * number + 30, 60 * number + 60)
        moves = generator.uniform(6, 12, 14) * generator.choice([-1, 1], 14)
        for group, sign in zip(groups, (1, -1), strict=True):
            changes[first : first + 14, group] += sign * moves[:, None]
        truth.append(groups)
    found = found_in(changes)
    for groups in truth:
        assert max(match_pair(pair.groups, groups).f1 for pair in found) > 0.9


def test_a_point_can_be_in_a_pair_at_one_time_and_in_another_at_another():
    generator = np.random.default_rng(0)
    changes = independent(generator, 120, 800)
    truth = []
    for first, points in ((10, range(40)), (70, range(20, 60))):
        groups = np.arange(points.start, points.start + 20), np.arange(points.start + 20, points.stop)
        for group, sign in zip(groups, (1, -1), strict=True):
            changes[first : first + 40, group] += sign * 6 * (-1.0) ** np.arange(40)[:, None]
        truth.append(groups)
    found = found_in(changes)
    for groups in truth:
        assert max(match_pair(pair.groups, groups).f1 for pair in found) > 0.9


def test_outliers_are_the_members_that_swing_most_measured_anew():
    """Of 60 against 25 members some swing twice as much as others."""
    changes, pairs = planted_changes()
    pair = found_in(changes)[0]
    outliers = outliers_of(pair, Series(np.arange(STEPS), changes), size=10)
    assert [len(group) for group in outliers.groups] == [10, 10]
    sizes = np.abs(changes[30:90]).sum(0)
    for group, whole in zip(outliers.groups, pair.groups, strict=True):
        assert set(group) <= set(whole)
        assert sizes[group].min() >= np.sort(sizes[whole])[-12]
    assert outliers.amplitude > pair.amplitude
    assert outliers.p_value == pair.p_value
    assert {frozenset(group) for group in pair.groups} == {frozenset(group) for group in pairs[0]}


def test_what_follows_a_loss_that_is_not_finite_is_left_out():
    changes, _ = planted_changes()
    changes[100, 3] = np.nan
    for one, other in zip(found_in(changes), found_in(changes[:100]), strict=True):
        np.testing.assert_array_equal(one.members, other.members)


def thinned(changes, every=5):
    """Losses with these changes, recorded at pairs of successive steps."""
    losses = np.concatenate([np.zeros((1, changes.shape[1])), np.cumsum(changes, 0)])
    steps = np.array([step for step in range(len(losses)) if step % every < 2])
    return Series(steps, losses[steps])


def test_a_thinned_record_shows_a_pair_at_its_own_steps():
    """The same run, recorded at every fifth step and the next one."""
    changes, (strong, _) = planted_changes()
    pair = find_pairs(one_step_changes(thinned(changes)))[0]
    assert match_pair(pair.groups, strong).f1 > 0.9
    assert abs(pair.window[0] - 30) <= 20  # four recorded changes
    assert abs(pair.window[1] - 90) <= 20
    assert pair.step % 5 == 0
    assert changes[pair.step, pair.rising].mean() > 0.5


def sketched(seed=0, steps=6, dimensions=32):
    """Gradients in random directions; a group of long ones and a group of short ones point against each other."""
    generator = np.random.default_rng(seed)
    sketches = generator.standard_normal((steps, 300, dimensions)) / np.sqrt(dimensions)
    members = generator.permutation(300)[:50]
    one, other = members[:20], members[20:]
    direction = generator.standard_normal(dimensions)
    direction /= np.linalg.norm(direction)
    sketches[:, one] = 5 * (direction + 0.5 * sketches[:, one])
    sketches[:, other] = 0.1 * (-direction + 0.5 * sketches[:, other])
    return sketches, (one, other)


def test_gradients_that_point_against_each_other_are_found_however_short():
    sketches, wanted = sketched()
    found, *_ = find_pairs_by_gradients(Series(np.arange(0, 60, 10), sketches))
    assert match_pair(found.groups, wanted).f1 == 1
    assert found.correlation < -0.9
    assert np.isnan(found.amplitude)  # without losses
    moves = 0.1 * np.random.default_rng(0).normal(size=(60, 300))
    for group, sign in zip(wanted, (1, -1), strict=True):
        moves[:, group] += sign * (-1.0) ** np.arange(60)[:, None]
    with_losses, *_ = find_pairs_by_gradients(
        Series(np.arange(10, 60, 1), sketches.repeat(9, 0)[:50]), Series(np.arange(60), moves)
    )
    assert match_pair(with_losses.groups, wanted).f1 == 1
    assert with_losses.amplitude == pytest.approx(1, rel=0.1)
    assert moves[with_losses.step, with_losses.rising].mean() > 0.5


def test_no_sketches_show_no_pairs():
    assert find_pairs_by_gradients(Series(np.arange(0), np.zeros((0, 20, 4)))) == []


def test_matches():
    assert match(np.array([1, 2, 3, 4]), np.array([3, 4, 5])) == Match(0.5, 2 / 3)
    assert match(np.array([1]), np.array([2])).f1 == 0
    one, other = np.array([1, 2]), np.array([3, 4, 5])
    assert match_pair((other, one), (one, other)).f1 == 1
    mixed = np.array([1, 3]), np.array([2, 4, 5])
    assert match_pair(mixed, (one, other)) == Match(3 / 5, 3 / 5)


def test_agreement_and_stability():
    changes, _ = planted_changes()
    strong, weak = found_in(changes)
    assert agreement([strong, weak], [weak, strong]) == [1, 1]
    assert agreement([strong], []) == [0]
    assert stability([[strong, weak], [weak, strong], []]) == [0.5, 0.5, 0]


def test_a_trajectory_shows_both_ways(tmp_path):
    changes, pairs = planted_changes()
    losses = 5 + np.concatenate([np.zeros((1, POINTS)), np.cumsum(changes, 0)])
    sketches = 0.01 * np.random.default_rng(0).standard_normal((4, POINTS, 32)).astype(np.float32)
    sketches[:, pairs[0][0], 0] += 1
    sketches[:, pairs[0][1], 0] -= 3
    with Record.writing(tmp_path, {}) as record:
        for step, row in enumerate(losses):
            record.append("sample_loss", step, row.astype(np.float32))
            if step % 40 == 0 and step // 40 < 4:
                record.append("gradient_sketch", step, sketches[step // 40])
    trajectory = Trajectory(Record(tmp_path))
    assert match_pair(trajectory.all_pairs[0].groups, pairs[0]).f1 > 0.97
    assert agreement(trajectory.all_pairs[:1], trajectory.gradient_pairs)[0] > 0.97
    assert trajectory.gradient_pairs[0].amplitude > 0


def test_pairs_are_looked_for_in_one_thread(monkeypatch):
    threads = []

    def listening(search):
        threads.extend(library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas")
        return []

    monkeypatch.setattr(Search, "pairs", listening)
    changes = Series(np.arange(40), np.random.default_rng(0).normal(size=(40, 30)))
    with threadpool_limits(2, user_api="blas"):
        assert find_pairs(changes) == []
    assert threads
    assert set(threads) == {1}
