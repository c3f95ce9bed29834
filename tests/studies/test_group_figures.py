import numpy as np
import pytest

from opposing_signals.data import planted
from opposing_signals.record import Record
from opposing_signals.signals import Trajectory
from opposing_signals.studies.groups.changes import change_distribution, share_increasing
from opposing_signals.studies.groups.figures import group_losses

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
        with Record.writing(tmp_path, configuration) as record:
            record.write_provenance({"data": {"name": "drawn"}})
            for step, row in enumerate(losses):
                record.append("sample_loss", step, row)
                record.append("sharpness", step, 10.0 + step)
        return {"made_up": Trajectory(Record(tmp_path))}

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


def test_a_run_without_pairs_is_drawn_too(run):
    assert len(group_losses(run(opposed=False)).axes) == 2


def test_every_run_gets_its_panel(run):
    trajectories = run(opposed=True)
    both = {"one": trajectories["made_up"], "other": trajectories["made_up"]}
    assert [axes.get_title(loc="left").split(":")[0] for axes in share_increasing(both).axes] == ["one", "other"]
    assert len(change_distribution(trajectories, panels=3).axes) == 3
