from pathlib import Path

import numpy as np
import pytest
import recording
from composing import composed
from omegaconf import OmegaConf

from opposing_signals.choices import written
from opposing_signals.configuration import decisive
from opposing_signals.errors import InputError
from opposing_signals.record import Record
from opposing_signals.training.job import train

SIZES = ("data.images=20", "risk.chunk=8", "steps=3", "threads=1")
RUN = (
    "fig01_group_losses",
    "run=regime_gd",
    "model=resnet18",
    "data=planted",
    "~instruments.sharpness",
    "model.width=2",
    *SIZES,
)
EVERY = "+instruments.outputs={_target_: opposing_signals.instruments.outputs.Outputs}"


def trained(folder: Path, *overrides: str) -> Record:
    return recording.trained(folder, composed(*RUN, *overrides))


def test_the_class_of_the_largest_output_at_every_step(tmp_path):
    record = trained(tmp_path, EVERY)
    predicted = record["prediction"]
    assert predicted.steps.tolist() == [0, 1, 2]
    assert predicted.values.dtype == np.uint8
    np.testing.assert_array_equal(predicted.values, record["outputs"].values.argmax(2))


def test_under_minibatch_training_every_point_is_seen(tmp_path):
    predicted = trained(tmp_path, "batch=7", "instruments.predictions.every=2")["prediction"]
    assert predicted.steps.tolist() == [0, 2]
    assert predicted.values.shape == (2, 20)


def test_targets_that_are_no_classes_are_refused(tmp_path):
    config = composed("fig03_chebyshev", "steps=1", "threads=1")
    OmegaConf.set_struct(config, False)
    config.instruments = written("instruments", "predictions")
    with (
        Record.writing(tmp_path, decisive(config)) as record,
        pytest.raises(InputError, match="Predictions: chebyshev"),
    ):
        train(config, record, None)


@pytest.mark.parametrize(("name", "overrides"), [("predictions", ()), ("outputs", ("~instruments.predictions", EVERY))])
def test_a_run_that_keeps_no_outputs_is_refused(tmp_path, name, overrides):
    with pytest.raises(InputError, match=f"{name.title()}: risk.keep_outputs=false: expected true; leave {name} out"):
        trained(tmp_path, "+risk.keep_outputs=false", *overrides)
