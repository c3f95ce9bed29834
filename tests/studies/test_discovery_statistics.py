"""The claims on pairs found automatically, and their figure, on losses and gradients with known pairs."""

import numpy as np
import pytest
from recording import made, why

from opposing_signals.data import planted
from opposing_signals.signals import Trajectory, planted_groups
from opposing_signals.studies.discovery.claims import found_again, planted_correlation, planted_match, ways_agree
from opposing_signals.studies.discovery.figures import discovered_pairs, planted_pair

STEPS = 40
DATA = {"_target_": "opposing_signals.data.planted", "images": 240, "sky_in_plane": 0.5, "sky_in_bird": 0.5}
CONFIGURATION = {"data": DATA, "model": {"_target_": "opposing_signals.models.mlp"}, "optimizer": {"lr": 0.1}}


@pytest.fixture
def run(tmp_path):
    """A run whose losses oppose the planes with sky to the birds with sky; gradients do so as ``by`` says."""

    def make(name: str, oppose: str, by: str) -> Trajectory:
        dataset = planted(**{key: value for key, value in DATA.items() if key != "_target_"})
        targets, bears = dataset.targets.numpy(), dataset.truth
        sky = [np.flatnonzero(bears["sky"] & (targets == label)) for label in (0, 1)]
        wheels = [np.flatnonzero(bears["wheels"] & (targets == label)) for label in (2, 3)]
        groups = {"sky": sky, "wheels": wheels}
        generator = np.random.default_rng(0)
        losses = 1 + 0.001 * generator.standard_normal((STEPS, len(dataset)), np.float32)
        for step, group in enumerate(groups[oppose] * (STEPS // 2) if oppose in groups else ()):
            losses[step, group] += 1
        sketched = range(0, STEPS, 10)
        sketch = generator.standard_normal((len(sketched), len(dataset), 32), np.float32) / 10
        sketch[:, groups[by][0], 0] += 2
        sketch[:, groups[by][1], 0] -= 2
        configuration = {**CONFIGURATION, "run": {"name": name}}
        return made(tmp_path / name, configuration, sample_loss=losses, gradient_sketch=(sketched, sketch))

    return make


def test_the_planted_pair_counts_and_another_does_not(run):
    runs = {"right": run("right", "sky", "sky"), "other": run("other", "wheels", "sky")}
    assert planted_match({"right": runs["right"]}, features=["sky"]).value == 1
    assert planted_match(runs, features=["sky", "wheels"]).value == 1
    assert planted_match(runs, features=["sky", "texture"]).value == 0


def test_agreement_of_losses_and_gradients(run):
    assert ways_agree({"right": run("right", "sky", "sky")}).value == 1
    assert ways_agree({"wrong": run("wrong", "sky", "wheels")}).value < 0.3


def test_a_pair_is_found_again_in_other_runs_or_not(run):
    one, same, other = run("one", "sky", "sky"), run("same", "sky", "sky"), run("other", "wheels", "sky")
    assert found_again({"one": one, "same": same}).value == 1
    assert found_again({"one": one, "other": other}).value == 0
    assert why(found_again, {"one": one}) == "1 of the 2 needed runs"


def test_every_run_has_a_row_with_its_pairs_losses_and_images(run):
    trajectories = {"one": run("one", "sky", "sky"), "other": run("other", "wheels", "sky")}
    figure = discovered_pairs(trajectories, thumbnails=4)
    courses, losses, first, second = figure.axes[:4]
    pair = trajectories["one"].all_pairs[0]
    assert f"{len(pair.rising)} against {len(pair.falling)}" in courses.texts[0].get_text()
    drawn = trajectories["one"].losses.values[:, pair.rising].mean(1)
    assert any(np.array_equal(line.get_ydata(), drawn) for line in losses.lines)
    sheet = first.images[0].get_array()
    np.testing.assert_array_equal(sheet[:32, :32], trajectories["one"].dataset.images[pair.rising[0]])
    assert {axes.get_title(loc="left").split(":")[1].split()[1] for axes in (first, second)} == {"plane", "bird"}
    assert len(figure.axes) == 8


def test_the_correlation_is_that_of_the_planted_groups(run):
    trajectory = run("right", "sky", "sky")
    estimate = planted_correlation({"right": trajectory}, features=["sky", "texture"])
    one, other = planted_groups(trajectory.dataset, "sky")
    changes = trajectory.changes.values
    assert estimate.value == pytest.approx(np.corrcoef(changes[:, one].mean(1), changes[:, other].mean(1))[0, 1])
    assert estimate.value < -0.99
    assert estimate.interval[0] <= estimate.value <= estimate.interval[1]
    nothing = {"nothing": run("nothing", "nothing", "sky")}
    assert why(planted_correlation, nothing, features=["sky"]) == "no opposing pair was found"
    assert planted_match(nothing, features=["sky"]).value == 0


def test_planted_groups_are_the_bearers_by_class(run):
    dataset = run("one", "sky", "sky").dataset
    planes, birds = planted_groups(dataset, "sky")
    assert sorted([*planes, *birds]) == np.flatnonzero(dataset.truth["sky"]).tolist()
    assert set(dataset.targets[planes].tolist()) == {0}
    assert set(dataset.targets[birds].tolist()) == {1}


def test_the_found_pair_is_drawn_above_the_planted_one_the_same_way_round(run):
    trajectory = run("right", "sky", "sky")
    planes, birds = planted_groups(trajectory.dataset, "sky")
    figure = planted_pair({"right": trajectory}, features=["sky", "texture"], thumbnails=8)
    found, *sheets = figure.axes[:3]
    truth = figure.axes[3]
    assert "F1 1.00" in found.get_title(loc="left")
    for axes in (found, truth):
        for group, line in zip((planes, birds), axes.lines, strict=False):
            steps = line.get_xdata().astype(int)
            expected = [trajectory.losses.at(int(step))[group].mean() for step in steps]
            np.testing.assert_allclose(line.get_ydata(), expected, rtol=1e-6)
    assert [axes.get_title(loc="left") for axes in sheets] == [
        f"{len(planes)} with sky: {len(planes)} plane",
        f"{len(birds)} with sky: {len(birds)} bird",
    ]
    nothing = planted_pair({"nothing": run("nothing", "nothing", "sky")}, features=["sky"])
    assert "no opposing pair" in nothing.get_suptitle()
