import math

import numpy as np
import pytest

from opposing_signals.signals import (
    class_r2,
    class_r2_by_chance,
    directions,
    modal_share,
    modal_share_by_chance,
)

CLASSES = np.repeat(np.arange(10), 60)


def centred_noise(generator, steps, classes):
    """Noise with zero class means at every step, so that classes explain nothing of it."""
    noise = generator.normal(size=(steps, len(classes)))
    for name in np.unique(classes):
        noise[:, classes == name] -= noise[:, classes == name].mean(1, keepdims=True)
    return noise


@pytest.mark.parametrize("share", [0.0, 0.05, 0.25, 0.75, 1.0])
@pytest.mark.parametrize("common", [0.0, 1000.0])
def test_class_r2_is_the_share_that_was_planted_whatever_all_points_have_in_common(share, common):
    generator = np.random.default_rng(1)
    by_class = generator.normal(size=(40, 10))
    by_class = (by_class - by_class.mean(1, keepdims=True))[:, CLASSES]
    noise = centred_noise(generator, 40, CLASSES)
    scale = np.sqrt(np.square(by_class).sum() / np.square(noise).sum())
    changes = math.sqrt(share) * by_class + math.sqrt(1 - share) * scale * noise
    changes += common * generator.normal(size=(40, 1))
    assert class_r2(changes, CLASSES) == pytest.approx(share, abs=1e-9)


def test_class_r2_does_not_depend_on_names_order_or_unit():
    generator = np.random.default_rng(2)
    changes = generator.normal(size=(20, 600)) + generator.normal(size=(20, 10))[:, CLASSES]
    order = generator.permutation(600)
    names = np.array([f"class {9 - name}" for name in CLASSES])
    assert class_r2(-7 * changes[:, order], names[order]) == pytest.approx(class_r2(changes, CLASSES))


@pytest.mark.parametrize("sizes", [[60] * 10, [500, 50, 30, 20], [5, 5]])
def test_class_r2_of_classes_dealt_at_random_is_chance(sizes):
    generator = np.random.default_rng(3)
    changes = generator.standard_t(3, size=(50, sum(sizes)))
    classes = np.repeat(np.arange(len(sizes)), sizes)
    dealt = [class_r2(changes, generator.permutation(classes)) for _ in range(200)]
    assert np.mean(dealt) == pytest.approx(class_r2_by_chance(classes), rel=0.03)


def test_class_r2_of_changes_that_do_not_differ_is_unknown():
    assert math.isnan(class_r2(np.ones((4, 600)), CLASSES))
    assert math.isnan(class_r2(np.ones((0, 600)), CLASSES))


@pytest.mark.parametrize("count", [1, 3, 12])
def test_directions_counts_those_of_equal_size_whatever_all_points_have_in_common(count):
    generator = np.random.default_rng(6)
    points = np.column_stack([np.ones(600), generator.normal(size=(600, count))])
    vectors = np.linalg.qr(points)[0][:, 1:]  # orthogonal to the common part, and to each other
    sizes = np.linalg.qr(generator.normal(size=(50, count)))[0]
    changes = 3 * sizes @ vectors.T + 10 * generator.normal(size=(50, 1))
    assert directions(changes) == pytest.approx(count)


def test_directions_of_noise_are_about_as_many_as_there_are_steps():
    assert directions(np.random.default_rng(7).normal(size=(20, 50_000)).astype(np.float32)) > 19.9
    assert math.isnan(directions(np.ones((4, 600))))


def test_modal_share_counts_the_most_frequent_label():
    assert modal_share(np.array(["ship", "frog", "ship", "ship", "deer"])) == 0.6
    assert modal_share(np.array([3])) == 1


@pytest.mark.parametrize(("sizes", "members"), [([60] * 10, 20), ([25, 25, 50], 12), ([7, 1], 3), ([30] * 4, 1)])
def test_the_expected_modal_share_is_the_mean_over_draws(sizes, members):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    generator = np.random.default_rng(4)
    draws = [modal_share(generator.choice(labels, members, replace=False)) for _ in range(20_000)]
    assert modal_share_by_chance(labels, members) == pytest.approx(np.mean(draws), abs=0.004)


def test_twenty_points_of_ten_classes_share_one_by_chance_in_a_fifth():
    assert modal_share_by_chance(np.repeat(np.arange(10), 5000), 20) == pytest.approx(0.22, abs=0.005)
    assert modal_share_by_chance(np.zeros(50), 20) == 1
