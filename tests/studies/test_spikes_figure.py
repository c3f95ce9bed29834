import numpy as np
import pytest
from recording import made

from opposing_signals.data import planted
from opposing_signals.data.tracked import write_tracked
from opposing_signals.signals import Trajectory, find_spikes
from opposing_signals.studies.groups.spikes import loss_spikes

POINTS, UP, DOWN = 120, np.arange(10, 18), np.arange(50, 57)


@pytest.fixture
def trajectory(tmp_path):
    """A record of one's own model whose two groups alternate; from step 40 to 41 the first group jumps."""

    def make(shown, every=1) -> Trajectory:
        configuration = {
            "run": {"name": "mine"},
            "data": {"_target_": "opposing_signals.data.tracked"},
            "model": {"_target_": "script.Model"},
            "optimizer": {"lr": 0.5},
        }
        losses = 1 + 0.001 * np.random.default_rng(0).standard_normal((80, POINTS), np.float32)
        swing = np.where(np.arange(80) % 2, 0.2, -0.2)[:, None]
        losses[:, UP] += swing
        losses[:, DOWN] -= swing
        losses[41, UP] += 1
        kept = [step for step in range(80) if step % every < 2]
        labels = ["cat" if i in UP else "dog" for i in range(POINTS)]
        write_tracked(tmp_path, np.arange(POINTS), shown, labels, None)
        return made(tmp_path, configuration, {"data": {"name": "Pairs"}}, sample_loss=(kept, losses[kept]))

    return make


def test_a_spike_shows_who_rises_and_who_falls(trajectory):
    images = list(planted(POINTS).images)
    run = trajectory(images)
    (spike,) = find_spikes(run, 1)
    figure = loss_spikes(run, [spike], thumbnails=4, zoom=10)
    losses, rising, falling = figure.axes
    assert "step 40: 8 of 120 examples carry" in losses.get_title(loc="left")
    for group, line in zip((UP, DOWN), losses.lines, strict=False):
        assert line.get_xdata()[0] == 35
        assert line.get_xdata()[-1] == 46
        expected = [run.losses.at(int(step))[group].mean() for step in line.get_xdata()]
        np.testing.assert_allclose(line.get_ydata(), expected, rtol=1e-5)
    assert rising.get_title(loc="left") == "rise at step 40: 8 cat"
    assert falling.get_title(loc="left") == "fall at step 40: 7 dog"
    np.testing.assert_array_equal(rising.images[0].get_array()[:32, :32], images[spike.rising[0]])


def test_small_images_are_drawn_larger(trajectory):
    run = trajectory([np.full((8, 8), i, np.uint8) for i in range(POINTS)])
    (spike,) = find_spikes(run, 1)
    sheet = loss_spikes(run, [spike]).axes[1].images[0].get_array()
    assert (sheet[:32, :32] == spike.rising[0]).all()


def test_examples_without_pictures_show_their_losses_alone(trajectory):
    run = trajectory([f"sentence {i}" for i in range(POINTS)])
    (axes,) = loss_spikes(run, find_spikes(run, 1)).axes
    assert [line.get_label() for line in axes.lines[:2]] == ["8 examples", "7 examples"]


def test_lines_end_where_steps_were_not_measured(trajectory):
    run = trajectory(None, every=4)
    (axes,) = loss_spikes(run, find_spikes(run, 1), zoom=10).axes
    steps = axes.lines[0].get_xdata()
    measured = steps[~np.isnan(steps)]
    assert set(np.diff(measured)) == {1, 3}
    assert np.isnan(steps).sum() == (np.diff(measured) > 1).sum()
