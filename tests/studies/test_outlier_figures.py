"""Panels of outliers, the claims on them, and how they are drawn."""

from dataclasses import replace

import numpy as np
import pytest
from recording import made

from opposing_signals.data import planted
from opposing_signals.studies.outliers.claims import coherent_groups, modal_prediction, new_prediction
from opposing_signals.studies.outliers.figures import outlier_grids
from opposing_signals.studies.outliers.panels import outlier_panels, pair_panels

EXAMPLES, STEPS = 120, 40
RISING_AT_ODD, RISING_AT_EVEN = np.arange(24), np.arange(24, 48)


@pytest.fixture
def trajectory(tmp_path):
    """Points 0 to 23 oppose 24 to 47; after a rise, 18 of the former are predicted as 3, 18 of the latter as 6."""
    configuration = {
        "run": {"name": "made_up"},
        "optimizer": {"lr": 0.1},
        "steps": STEPS,
        "seed": 7,
        "data": {"_target_": "opposing_signals.data.planted", "images": EXAMPLES},
    }
    sizes = np.linspace(2, 1, 24)
    losses = np.ones((STEPS, EXAMPLES), np.float32)
    losses[1::2, RISING_AT_ODD] += sizes
    losses[::2, RISING_AT_EVEN] += sizes
    predicted = np.tile(np.arange(EXAMPLES, dtype=np.uint8) % 3, (STEPS, 1))
    predicted[::2, :18], predicted[1::2, :18] = 0, 3
    predicted[::2, 24:30], predicted[1::2, 24:30] = 4, 1
    return made(tmp_path, configuration, sample_loss=losses, prediction=predicted)


def test_panels_hold_the_outliers_and_both_predictions(trajectory):
    early, late = outlier_panels(trajectory, [0.25, 0.53])  # steps 10 and 21
    assert (early.step, late.step) == (10, 21)
    assert early.rising.tolist() == RISING_AT_ODD.tolist()
    assert early.falling.tolist() == RISING_AT_EVEN.tolist()
    assert late.rising.tolist() == RISING_AT_EVEN.tolist()
    predicted = trajectory.record["prediction"].values
    np.testing.assert_array_equal(early.before, predicted[10])
    np.testing.assert_array_equal(early.after, predicted[11])


def test_pairs_found_by_machine_get_panels_too(trajectory):
    (panel,) = pair_panels(trajectory)
    (pair,) = trajectory.pairs
    assert panel.step == pair.step
    assert panel.rising.tolist() == pair.rising.tolist()


def test_of_equally_frequent_predictions_claim_and_picture_name_the_same(trajectory):
    (panel,) = outlier_panels(trajectory, [0.25])
    tied = replace(panel, after=np.where(np.isin(np.arange(EXAMPLES), panel.rising[:12]), 7, 2))
    assert tied.modal_prediction(panel.rising) == (2, 12)


def test_share_of_panels_with_one_predicted_class(trajectory):
    def share(moments):
        return modal_prediction({"made_up": trajectory}, moments=moments, modal_share=0.5).value

    assert share([0.25, 0.5]) == 1  # 18 of 24 are called 3
    assert share([0.25, 0.53]) == 0.5  # of the others at most 11 of 24 have one prediction


def test_a_prediction_that_is_not_new_is_told_from_one_that_is(trajectory):
    """At step 10, 18 of the 24 risers change to one class; at step 21 six do."""

    def new(moments):
        return new_prediction({"made_up": trajectory}, moments=moments, modal_share=0.5).value

    assert new([0.25]) == 1
    assert new([0.25, 0.53]) == 0.5
    after = trajectory.record["prediction"].at(11)
    said = modal_prediction({"made_up": trajectory}, moments=[0.25], modal_share=0.5).reason
    name = trajectory.dataset.class_names[3]
    assert said == f"step 10: 18 of 24 called {name}, as are {np.mean(after == 3):.0%} of all, 18 newly"


def test_share_of_groups_with_one_true_class(trajectory):
    classes = planted(EXAMPLES).targets.numpy()
    (pair,) = trajectory.pairs
    largest = [np.bincount(classes[group]).max() / len(group) for group in pair.groups]
    for share in (min(largest), max(largest), 1.0):
        expected = np.mean([one >= share for one in largest])
        assert coherent_groups({"made_up": trajectory}, share).value == expected


def test_the_drawing_shows_images_labels_and_predictions(trajectory):
    figure = outlier_grids({"made_up": trajectory}, moments=[0.25])
    rising, _falling, *pair = figure.axes
    assert len(pair) == 2
    dataset, panel = planted(EXAMPLES), outlier_panels(trajectory, [0.25])[0]
    texts = [text.get_text() for text in rising.texts]
    for place, point in enumerate(panel.rising):
        expected = [
            dataset.class_names[dataset.targets[point]],
            dataset.class_names[panel.before[point]],
            "→ " + dataset.class_names[panel.after[point]],
        ]
        assert texts[3 * place : 3 * place + 3] == expected
    sheet = rising.images[0].get_array()
    left, top = (int(np.flatnonzero((sheet != 255).any((2, axis)))[0]) for axis in (0, 1))
    np.testing.assert_array_equal(sheet[top : top + 32, left : left + 32], dataset.images[panel.rising[0]])
    assert "18 of 24 called truck after the step" in rising.get_title(loc="left")
