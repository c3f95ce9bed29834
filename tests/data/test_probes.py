from dataclasses import replace

import numpy as np
import pytest
import torch
from composing import composed
from PIL import Image

from opposing_signals.configuration import decisive
from opposing_signals.data.images import image_dataset
from opposing_signals.data.probes import (
    COLOURS,
    block,
    colour_in_data,
    grass_image,
    known_probes,
    named_colour,
    nearest_to_colour,
    probe_images,
)
from opposing_signals.errors import InputError
from opposing_signals.record import Record
from opposing_signals.studies.probes.measure import colour_neighbours

SIZE = (32, 32)


def data_of(*pictures: np.ndarray):
    images = np.stack(pictures).astype(np.uint8)
    labels = np.zeros(len(images), np.int64)
    return image_dataset("made up", ("one", "other"), (images, labels), (images, labels))


def noisy(colour, spread, seed=0) -> np.ndarray:
    noise = np.random.default_rng(seed).uniform(-spread, spread, (*SIZE, 3))
    return np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)


def test_blocks_have_one_colour_and_the_order_of_their_names():
    images = probe_images(["black", "red", "sky"], data_of(noisy((9, 9, 9), 5)))
    assert images.shape == (3, *SIZE, 3)
    for image, name in zip(images, ("black", "red", "sky"), strict=True):
        assert (image == COLOURS[name]).all()


def test_the_colour_in_the_data_is_the_mean_of_the_most_uniform_images_of_its_hue():
    data = data_of(
        noisy((60, 120, 200), 2),
        noisy((80, 140, 220), 2, seed=1),
        noisy((100, 150, 250), 60),  # not uniform
        noisy((200, 30, 30), 0),  # another hue
        noisy((118, 120, 124), 0),  # the hue of the sky, but grey
    )
    np.testing.assert_allclose(colour_in_data(data, "sky", images=2), (70, 130, 210), atol=2)
    assert named_colour("sky_in_data", data) == colour_in_data(data, "sky")
    with pytest.raises(InputError, match=r"green_in_data: no image of made up .* use the probe green"):
        probe_images(["green_in_data"], data)


def test_red_hues_meet_on_both_sides_of_zero():
    data = data_of(noisy((200, 20, 60), 0), noisy((200, 60, 20), 0))
    assert colour_in_data(data, "red", images=2) == (200, 40, 40)


def test_grass_is_green_and_textured():
    half = noisy((60, 160, 40), 40)
    half[:20] = (200, 200, 200)
    cut = noisy((120, 60, 40), 40)  # textured, but brown, with grass in a corner
    cut[16:, 12:28] = noisy((60, 160, 40), 40)[:16, :16]
    frog = noisy((60, 160, 40), 40)
    tested = np.stack([noisy((60, 160, 40), 0), half, noisy((120, 60, 40), 40), cut, frog])
    data = data_of(noisy((60, 160, 40), 40))  # pure grass, but trained on
    names, labels = ("deer", "frog"), torch.tensor([0, 0, 0, 0, 1])
    data = replace(data, class_names=names, test_images=tested, test_targets=labels)
    enlarged = np.asarray(Image.fromarray(cut[16:, 12:28]).resize(SIZE, Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(grass_image(data), enlarged)
    np.testing.assert_array_equal(probe_images(["grass"], data)[0], enlarged)


def test_without_a_test_set_there_is_no_grass():
    with pytest.raises(InputError, match=r"probe 'grass' is cut from the test set's pictures, and made up has none"):
        grass_image(replace(data_of(noisy((60, 160, 40), 40)), test_images=None))


def test_the_images_nearest_to_a_colour_come_in_order():
    data = data_of(block((0, 0, 0), SIZE), block((0, 250, 0), SIZE), block((3, 255, 4), SIZE))
    nearest, distances = nearest_to_colour(data, (0, 255, 0), 2)
    assert nearest.tolist() == [1, 2]  # equally near
    np.testing.assert_allclose(distances, [5, 5])
    farther, distances = nearest_to_colour(data, (0, 255, 0), 3)
    assert (farther[2], distances[2]) == (0, 255)


def test_an_image_of_ones_own(tmp_path):
    picture = noisy((50, 100, 150), 40)
    Image.fromarray(picture).save(tmp_path / "mine.png")
    np.testing.assert_array_equal(probe_images([str(tmp_path / "mine.png")], data_of(picture))[0], picture)


def test_images_that_cannot_be_probes(tmp_path):
    data = data_of(noisy((9, 9, 9), 5))
    Image.new("RGB", (40, 30)).save(tmp_path / "large.png")
    (tmp_path / "text.png").write_text("no image")
    for path, message in (
        (tmp_path / "large.png", r"large.png: 40x30 pixels; expected 32x32, the size of the training images"),
        (tmp_path / "text.png", r"text.png: not an image; expected a file such as PNG of 32x32 pixels"),
        (tmp_path / "missing.png", r"missing.png: No such file"),
        (tmp_path, r"Is a directory; expected an image file"),
    ):
        with pytest.raises(InputError, match=message):
            probe_images([str(path)], data)


def test_an_unknown_name_is_answered_with_those_known():
    with pytest.raises(InputError) as refusal:
        probe_images(["blue"], data_of(noisy((9, 9, 9), 5)))
    for name in ("'blue'", *known_probes(), "./blue.png"):
        assert name in str(refusal.value)


def neighbours(folder, **changes) -> Record:
    config = composed("fig12_green_images", "data.images=30")
    config.neighbours.update(changes)
    with Record.writing(folder, decisive(config)) as record:
        colour_neighbours(config, record, None)
    return Record(folder)


def test_neighbours_of_colours_are_recorded(tmp_path):
    record = neighbours(tmp_path, count=4)
    assert record.is_complete
    assert record["colour"].values[0].tolist() == list(COLOURS["green"])
    assert record["neighbour"].values.shape == (4, 4)
    assert (np.diff(record["neighbour_distance"].values, axis=1) >= 0).all()
    # The green of the data is nearer to them than the paper's.
    assert record["neighbour_distance"].values[1, 0] < record["neighbour_distance"].values[0, 0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colours": ["blue"]}, r"colour 'blue': unknown; there are sky, red, green"),
        ({"colours": []}, r"neighbours.colours=\[\]: expected a list of one or more, such as \[green\]"),
        ({"colours": "green"}, r"neighbours.colours=green: expected a list"),
        ({"count": 31}, "neighbours.count=31: expected 1 to 30"),
        ({"count": 0}, "neighbours.count=0: expected 1 to 30"),
    ],
)
def test_neighbours_that_cannot_be_found_are_refused(changes, message, tmp_path):
    with pytest.raises(InputError, match=message):
        neighbours(tmp_path, **changes)
