"""Training is bit-identical with and without instruments, and a killed run ends as an uninterrupted one."""

import json
import multiprocessing
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import recording
import torch
from composing import composed
from recording import assert_same, assert_same_weights, stopped

from opposing_signals.choices import choices
from opposing_signals.configuration import decisive
from opposing_signals.data import planted
from opposing_signals.errors import DamagedError, InputError, TrainingStoppedError
from opposing_signals.record import Record
from opposing_signals.training.job import train

SMALL = (
    *("model=resnet56", "model.depth=8", "model.width=4", "data=planted", "data.images=24"),
    *("risk.chunk=14", "steps=6", "threads=1"),
    *(f"instruments.{name}.every=4" for name in ("sharpness", "sample_curvature", "gradient_norms")),
)
FULL_BATCH_ONLY = "~instruments.sample_sharpness"
MINIBATCH = ("batch=7", "instruments.sample_losses.every=2", "optimizer.momentum=0.9", FULL_BATCH_ONLY)


def trained(folder: Path, *overrides: str, instruments: bool = True) -> Record:
    return recording.trained(folder, composed("fig01_group_losses", *SMALL, *overrides), instruments)


@pytest.mark.parametrize("overrides", [(), MINIBATCH], ids=["full batch", "minibatch"])
def test_training_is_bit_identical_with_and_without_instruments(tmp_path, overrides):
    every_step = "instruments.sharpness.every=1", "instruments.sharpness.consecutive=1"
    watched = trained(tmp_path / "watched", *overrides, *every_step)
    alone = trained(tmp_path / "alone", *overrides, instruments=False)
    assert list(alone) == []
    assert {"sample_loss", "sharpness", "train_loss"} <= set(watched)
    assert_same_weights(watched, alone)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Record:
    """An uninterrupted run."""
    return trained(tmp_path_factory.mktemp("whole"))


def test_a_checkpoint_holds_no_more_than_two_vectors_of_the_tracker(whole):
    checkpoint = torch.load(whole.checkpoint, weights_only=True)
    (tracker,) = (state for state in checkpoint["callbacks"].values() if "starts" in state)
    held = sum(start.numel() * start.element_size() for start in tracker["starts"])
    assert held == 2 * whole.provenance["parameters"] * torch.float32.itemsize


def test_recorded_losses_are_those_before_the_step(whole):
    losses = np.asarray(whole["sample_loss"].values)
    assert losses.shape == (6, 24)
    np.testing.assert_allclose(losses.mean(1), whole["train_loss"].values, rtol=1e-6)
    assert losses[0].mean() > losses[-1].mean()
    assert whole["sample_loss"].steps.tolist() == [0, 1, 2, 3, 4, 5]
    assert whole.is_complete
    assert whole.provenance["data"]["examples"] == 24


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [(), MINIBATCH], ids=["full batch", "minibatch"])
def test_a_run_killed_at_any_moment_ends_with_the_same_bits(tmp_path, overrides):
    overrides = (*overrides, "steps=12")
    uninterrupted = trained(tmp_path / "whole", *overrides)
    folder = tmp_path / "killed"
    seconds = []
    for wanted in (3, 7):
        process = multiprocessing.get_context("forkserver").Process(
            target=trained, args=(folder, *overrides, "checkpoint_seconds=0.0")
        )
        process.start()
        deadline = time.monotonic() + 300
        while process.is_alive() and time.monotonic() < deadline:
            if (folder / "train_loss.npy").is_file() and len(Record(folder)["train_loss"]) >= wanted:
                break
            time.sleep(0.002)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, "the run ended before it could be killed"
        assert not Record(folder).is_complete
        seconds.append(Record(folder).provenance["training_seconds"])
    resumed = trained(folder, *overrides)
    assert resumed.is_complete
    assert_same(resumed, uninterrupted)
    seconds.append(resumed.provenance["training_seconds"])
    assert 0 < seconds[0] < seconds[1] < seconds[2], "the time of a killed process is lost"


def test_a_run_killed_between_two_checkpoints_cuts_its_record_back(tmp_path, whole, monkeypatch):
    folder = tmp_path / "cut"
    stopped_at = 4
    stopped(folder, composed("fig01_group_losses", *SMALL), stopped_at, monkeypatch)
    assert len(Record(folder)["sample_loss"]) == stopped_at + 1  # including the step that was interrupted
    assert_same(trained(folder), whole)


def test_a_run_does_not_go_on_with_other_data(tmp_path, monkeypatch):
    stopped(tmp_path, composed("fig01_group_losses", *SMALL), 4, monkeypatch)
    kept = (tmp_path / "train_loss.npy").read_bytes()
    monkeypatch.setattr("opposing_signals.data.planted", lambda **given: planted(**{**given, "seed": 7}))
    with pytest.raises(DamagedError, match=r"was begun with other data than planted.* has now"):
        trained(tmp_path)
    assert (tmp_path / "train_loss.npy").read_bytes() == kept


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_record(tmp_path):
    with pytest.raises(TrainingStoppedError, match=r"the training loss is (nan|inf) at step \d+"):
        trained(tmp_path, "optimizer.lr=1e30")
    record = Record(tmp_path)
    assert record.state.startswith("stopped: the training loss is")
    assert np.isfinite(record["train_loss"].values[0])
    assert not np.isfinite(record["train_loss"].values[-1])
    assert json.loads((tmp_path / "state.json").read_text())["state"] == record.state


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("risk.chunk=25", "risk.chunk=25: expected 1 to 24"),
        ("batch=25", "batch=25: expected 1 to 24"),
        ("instruments.sharpness.consecutive=5", "Sharpness: consecutive=5: expected 1 to every=4"),
        ("trainer.devices=2", "trainer.devices=2: expected 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(tmp_path, override, message):
    with pytest.raises(Exception, match=message) as caught:
        trained(tmp_path, override)
    error = caught.value
    assert isinstance(error, InputError) or isinstance(error.__cause__, InputError)


@pytest.mark.parametrize("rule", sorted({*choices("optimizer")} - {"sgd"}))
def test_other_rules_train_and_resume(tmp_path, rule):
    """With the closure that a run passes them, and their state in its checkpoint; for the rest see tests/optim."""

    def run(folder: Path, steps: int) -> Record:
        config = composed("fig03_chebyshev", f"optimizer={rule}", "optimizer.lr=0.001", "steps=6", "threads=1")
        config.instruments.sharpness.every = 2
        with Record.writing(folder, decisive(config)) as record:
            config.steps = steps
            train(config, record, None)
        return Record(folder)

    whole = run(tmp_path / "whole", 6)
    run(tmp_path / "halved", 3)
    assert_same(run(tmp_path / "halved", 6), whole)
    assert whole["train_loss"].values[-1] < whole["train_loss"].values[0]


def test_the_integrator_tells_what_it_spends(tmp_path):
    instrument = "+instruments.integration._target_=opposing_signals.instruments.integration.Integration"
    config = composed("fig03_chebyshev", "optimizer=gradient_flow", "optimizer.lr=0.01", "steps=3", instrument)
    with Record.writing(tmp_path / "flow", decisive(config)) as record:
        train(config, record, None)
    assert (Record(tmp_path / "flow")["flow_gradients"].values >= 2).all()
    with pytest.raises(InputError, match="the optimizer is SGD: expected GradientFlow"):
        trained(tmp_path / "sgd", instrument)


@pytest.mark.parametrize("precision", ["float64", "float16"])
def test_other_precisions_train(tmp_path, precision):
    record = trained(tmp_path, f"risk.precision={precision}", "steps=3")
    assert np.isfinite(record["sample_loss"].values).all()
    assert record["sharpness"].values[0] > 0
