from dataclasses import replace

import numpy as np
import pytest
from recording import made

from opposing_signals.data import planted
from opposing_signals.record import Series
from opposing_signals.signals import Trajectory
from opposing_signals.studies.groups.changes import change_distribution, share_increasing
from opposing_signals.studies.groups.figures import group_losses, spike_of

EXAMPLES, STEPS = 120, 40


@pytest.fixture
def run(tmp_path):
    """A run on drawn images whose first ten points oppose the next ten, or in which nothing happens."""

    def make(opposed: bool) -> dict[str, Trajectory]:
        configuration = {
            "run": {"name": "made_up"},
            "optimizer": {"lr": 0.1},
            "data": {"_target_": "opposing_signals.data.planted", "images": EXAMPLES},
        }
        losses = np.ones((STEPS, EXAMPLES), np.float32)
        if opposed:
            losses[::2, :10] += 1
            losses[1::2, 10:20] += 1
        return {
            "made_up": made(
                tmp_path / str(opposed), configuration, sample_loss=losses, sharpness=10.0 + np.arange(STEPS)
            )
        }

    return make


def test_a_pair_is_drawn_with_its_losses_and_images(run):
    trajectories = run(opposed=True)
    (pair,) = trajectories["made_up"].pairs
    figure = group_losses(trajectories, thumbnails=4)
    overview, sharpness, zoomed, *sheets = figure.axes
    mean = trajectories["made_up"].losses.values[:, pair.rising].mean(1)
    drawn = [line.get_ydata() for line in overview.lines]
    assert any(np.array_equal(line, mean[pair.window[0] : pair.window[1] + 2]) for line in drawn)
    assert sharpness.lines
    assert zoomed.lines
    sheet = sheets[0].images[0].get_array()
    np.testing.assert_array_equal(sheet[:32, :32], planted(EXAMPLES).images[pair.rising[0]])
    assert len(sheets) == 2


def test_pairs_are_shown_around_the_spike_of_the_train_loss_while_they_are_active(run):
    trajectory = run(opposed=True)["made_up"]
    (pair,) = trajectory.pairs
    losses = np.array(trajectory.losses.values)
    losses[[5, 20, 33]] += [[0.5], [1.0], [2.0]]
    for step, active in ((33, pair.window), (20, (0, 25)), (5, (0, 10))):
        assert spike_of(with_losses(trajectory, losses), [replace(pair, window=active)]) == step
    trajectory = run(opposed=False)["made_up"]
    assert spike_of(trajectory, []) == STEPS // 2
    assert spike_of(trajectory, [pair]) == pair.step


def with_losses(trajectory, losses):
    changed = Trajectory(trajectory.record)
    changed.losses = Series(trajectory.losses.steps, losses)
    return changed


def test_a_run_without_pairs_is_drawn_too(run):
    assert len(group_losses(run(opposed=False)).axes) == 2


def of_seed(trajectory, seed):
    configuration = {**trajectory.configuration, "seed": seed}
    return type("OfSeed", (Trajectory,), {"configuration": configuration})(trajectory.record)


def test_every_run_gets_its_panel(run):
    trajectories = run(opposed=True)
    both = {"one": trajectories["made_up"], "other": trajectories["made_up"]}
    assert [axes.get_title(loc="left").split(":")[0] for axes in share_increasing(both).axes] == ["one", "other"]
    seeds = {f"run=one,seed={seed}": of_seed(trajectories["made_up"], seed) for seed in range(12)}
    (panel,) = share_increasing(seeds).axes
    assert panel.get_title(loc="left").startswith("made_up: median")
    assert len(panel.get_legend().get_texts()) == len(seeds)
    assert len(change_distribution(trajectories, panels=3).axes) == 3
