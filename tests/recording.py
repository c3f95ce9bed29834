"""Train a composed configuration into a record, completely or until it is killed, and compare two records."""

from pathlib import Path

import numpy as np
import pytest
import torch

from opposing_signals.configuration import decisive
from opposing_signals.record import Record
from opposing_signals.signals import Trajectory
from opposing_signals.studies.claim import CannotTellError
from opposing_signals.training.job import train


def trained(folder: Path, config, instruments: bool = True) -> Record:
    if not instruments:
        config.instruments = {}
    with Record.writing(folder, decisive(config)) as record:
        train(config, record, None)
    return Record(folder)


def stopped(folder: Path, config, step: int, monkeypatch, quantity: str = "train_loss") -> None:
    """A run that dies without a message while it writes what it measured at ``step``."""

    class KilledError(Exception):
        pass

    append = Record.append

    def append_until(record, written, at, value):
        if (written, at) == (quantity, step):
            raise KilledError
        append(record, written, at, value)

    config.checkpoint_seconds = 0.0
    with monkeypatch.context() as patched, Record.writing(folder, decisive(config)) as record:
        patched.setattr(Record, "append", append_until)
        with pytest.raises(KilledError):
            train(config, record, None)


def made(folder: Path, configuration=None, provenance=None, pairing=None, state="", **quantities) -> Trajectory:
    """A run made from arrays by quantity: one row per step, or (steps, rows)."""
    with Record.writing(folder, configuration or {}) as record:
        record.write_provenance(provenance or {"data": {"name": "made up"}})
        for quantity, rows in quantities.items():
            steps, rows = rows if isinstance(rows, tuple) else (range(len(rows)), rows)
            record.extend(quantity, np.asarray(steps), np.asarray(rows))
        if state:
            record.write_state(state)
    return Trajectory(Record(folder), pairing)


def why(statistic, *arguments, **keywords) -> str:
    """The reason why the runs cannot decide."""
    with pytest.raises(CannotTellError) as caught:
        statistic(*arguments, **keywords)
    return str(caught.value)


def weights(record: Record):
    return torch.load(record.checkpoint, weights_only=True)["state_dict"]


def assert_same_weights(one: Record, other: Record) -> None:
    theirs = weights(other)
    for name, tensor in weights(one).items():
        assert torch.equal(tensor, theirs[name]), name


def assert_same(one: Record, other: Record) -> None:
    assert set(one) == set(other)
    for quantity in one:
        np.testing.assert_array_equal(one[quantity].steps, other[quantity].steps, quantity)
        np.testing.assert_array_equal(one[quantity].values, other[quantity].values, quantity)
        assert one[quantity].values.dtype == other[quantity].values.dtype, quantity
    assert_same_weights(one, other)


def opposing(folder: Path, steps: int = 30, points: int = 96, name: str = "planted", **described) -> Record:
    """A complete record, with data of that name, in which two groups of five alternate against each other."""
    configuration = {
        "run": {"name": "mine"},
        "seed": 1,
        "data": {"_target_": "opposing_signals.data.planted", "images": points},
        "model": {"_target_": "script.Model"},
        "optimizer": {"_target_": "torch.optim.SGD", "lr": 0.5},
        **described,
    }
    generator = np.random.default_rng(0)
    with Record.writing(folder, configuration) as record:
        record.cut(0)
        for step in range(steps):
            losses = 1 + 0.01 * generator.standard_normal(points)
            losses[:5] += 0.2 * (-1) ** step
            losses[5:10] -= 0.2 * (-1) ** step
            record.append("sample_loss", step, losses.astype(np.float32))
        record.write_provenance({"data": {"name": name, "examples": points}, "training_seconds": 1.0})
        record.write_state("complete")
    return Record(folder)
