"""SGD on augmented images: resumed exactly, and unchanged by its instruments."""

import numpy as np
import pytest
import recording
import torch
from composing import composed
from torch.nn import functional as F

from opposing_signals.configuration import decisive
from opposing_signals.data import CropFlip, planted
from opposing_signals.errors import InputError
from opposing_signals.record import Record
from opposing_signals.training.batches import Batches
from opposing_signals.training.job import train, training_module

SMALL = ("data.images=24", "risk.chunk=5", "model.width=2", "batch=7", "steps=9", "threads=1")
WATCHED = "+instruments.sample_losses={_target_: opposing_signals.instruments.sample_losses.SampleLosses, every: 2}"

SIGNED_SHARE = "+instruments.signed_share={_target_: opposing_signals.instruments.signed_share.SignedShare}"


def configured(*overrides: str):
    return composed("fig39_sgd_grid", *SMALL, "instruments.test_accuracy.every=2", WATCHED, *overrides)


def trained(folder, *overrides: str, instruments: bool = True) -> Record:
    return recording.trained(folder, configured(*overrides), instruments)


def test_a_resumed_run_sees_the_images_of_an_uninterrupted_one(tmp_path, monkeypatch):
    uninterrupted = trained(tmp_path / "whole")
    recording.stopped(tmp_path / "cut", configured(), 6, monkeypatch)
    resumed = trained(tmp_path / "cut")
    assert set(resumed) == {"sample_loss", "signed_share", "test_accuracy", "train_accuracy", "train_loss"}
    recording.assert_same(resumed, uninterrupted)


def test_instruments_leave_the_run_as_it_is(tmp_path):
    recording.assert_same_weights(trained(tmp_path / "watched"), trained(tmp_path / "alone", instruments=False))


def test_a_step_sees_augmented_images_and_instruments_see_the_images_as_they_are(tmp_path):
    """With chunks as large as the batch, so that batch norm sees what a plain pass over the batch sees."""
    record = trained(tmp_path, "risk.chunk=24", "batch=24", "steps=1", "instruments.test_accuracy.every=1")
    config, data = configured("risk.chunk=24", "batch=24"), planted(24)
    model = training_module(config, data).model
    (order,) = [next(iter(Batches(24, 24, config.seed)))]
    seen = CropFlip(padding=4, seed=config.seed)(data.inputs[order], 0)
    with torch.no_grad():
        expected = F.cross_entropy(model(seen), data.targets[order])
        plain = F.cross_entropy(model(data.inputs), data.targets, reduction="none")
        model.eval()
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.reset_running_stats()
        accuracy = (model(data.test_inputs).argmax(1) == data.test_targets).double().mean()
    assert record["train_loss"].at(0) == pytest.approx(float(expected), rel=1e-5)
    np.testing.assert_allclose(record["sample_loss"].at(0), plain.numpy(), rtol=1e-4)
    assert abs(float(expected) - float(plain.mean())) > 1e-3
    assert record["test_accuracy"].at(0) == pytest.approx(float(accuracy))


def test_the_share_of_signed_steps_begins_with_the_quantile_of_the_threshold(tmp_path):
    record = trained(tmp_path, "optimizer.quantile=0.35")
    shares = np.asarray(record["signed_share"].values)
    assert record["signed_share"].steps.tolist() == list(range(9))
    assert shares[0] == pytest.approx(0.65, abs=0.002)
    assert ((shares > 0) & (shares < 1)).all()


def test_augmentation_can_be_left_out(tmp_path):
    plain = trained(tmp_path / "plain", "augmentation=none")
    augmented = trained(tmp_path / "augmented")
    assert not np.array_equal(plain["train_loss"].values, augmented["train_loss"].values)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["batch=null"], "augmentation with batch=null: expected a batch size"),
        (["run=resnet56_sgd", SIGNED_SHARE], "SignedShare: the optimizer is SGD: expected SplitSGD"),
        (["optimizer.sgd_lr=-0.1"], "optimizer.sgd_lr=-0.1: expected a number, at least 0"),
        (["optimizer.dampening=1"], "optimizer.dampening=1: expected a number, at least 0 and below 1"),
        (["optimizer.quantile=0"], "optimizer.quantile=0: expected a number, above 0 and below 1"),
        (["optimizer.quantile=1"], "optimizer.quantile=1: expected a number, above 0 and below 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(tmp_path, overrides, message):
    with pytest.raises(InputError, match=message):
        trained(tmp_path, *overrides)


def test_a_test_accuracy_without_a_test_set_is_refused(tmp_path):
    config = composed(
        "fig03_chebyshev",
        "+instruments.test_accuracy={_target_: opposing_signals.instruments.test_accuracy.TestAccuracy}",
        "steps=2",
        "threads=1",
    )
    with (
        Record.writing(tmp_path, decisive(config)) as record,
        pytest.raises(InputError, match=r"TestAccuracy: .*: expected a classification with a test set"),
    ):
        train(config, record, None)
