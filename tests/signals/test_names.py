import dataclasses

import numpy as np
import pytest
import torch

from opposing_signals.data import chebyshev, planted
from opposing_signals.signals import name_group
from opposing_signals.signals.names import backgrounds

PICTURES = {
    "white": (240, 245, 250), "black": (10, 5, 20), "blue": (40, 90, 220), "green": (60, 160, 50),
    "red": (200, 30, 40), "yellow": (230, 200, 40), "": (128, 126, 130),
}  # fmt: skip
NAMES = ("airplane", "frog", "deer", "ship", "pony")


@pytest.fixture
def dataset():
    """200 pictures of five classes in turn on grey; the first eight of each class are on white."""
    images = np.full((200, 32, 32, 3), PICTURES[""], np.uint8)
    images[:40] = PICTURES["white"]
    images[:40, 8:24, 8:24] = PICTURES["red"]  # the middle is not background
    images[40:80, 8:24, 8:16] = PICTURES["red"]  # half of the middle
    targets = torch.arange(200) % 5
    return dataclasses.replace(planted(200), images=images, targets=targets, class_names=NAMES)


def of(dataset, name, count, start=0):
    return np.flatnonzero(np.asarray(dataset.targets) == NAMES.index(name))[start : start + count]


def test_a_group_is_named_by_its_classes_and_its_background(dataset):
    assert name_group(dataset, of(dataset, "airplane", 8)) == "airplanes on white"
    assert name_group(dataset, of(dataset, "airplane", 8, 8)) == "airplanes in red"
    assert name_group(dataset, of(dataset, "airplane", 8, 16)) == "airplanes"
    both = np.concatenate([of(dataset, "frog", 10, 16), of(dataset, "deer", 10, 16)])
    assert name_group(dataset, both) == "frogs and deer"
    three = np.concatenate([of(dataset, name, 20, 16) for name in ("frog", "deer", "pony")])
    assert name_group(dataset, three) == "frogs, deer and ponies"


def test_classes_that_are_few_beside_the_rest_name_nothing(dataset):
    everything = np.arange(80, 180)
    assert name_group(dataset, everything) == "mixed images"
    assert name_group(dataset, np.arange(30)) == "mixed images on white"
    one_of_each = np.arange(100, 105)
    assert name_group(dataset, one_of_each) == "mixed images"


def test_random_groups_are_seldom_named(dataset):
    generator = np.random.default_rng(0)
    names = [name_group(dataset, generator.choice(200, 20, replace=False)) for _ in range(200)]
    assert np.mean([name == "mixed images" for name in names]) > 0.95


def test_points_of_a_curve_are_named_by_their_place():
    assert name_group(chebyshev(points=21), np.array([0, 1, 2])) == "x in [−1, −0.8]"


@pytest.mark.parametrize("name", PICTURES)
def test_backgrounds(name):
    image = np.full((32, 32, 3), PICTURES[name], np.uint8)
    image[6:26, 6:26] = 77
    assert backgrounds(np.stack([image, np.full_like(image, 255)])) == [name, "white"]
    assert backgrounds(np.full((1, 8, 8), 255, np.uint8)) == ["white"]
