"""Train a composed configuration into a record, whole or killed on the way."""

from pathlib import Path

import pytest
import torch

from opposing_signals.configuration import decisive
from opposing_signals.record import Record
from opposing_signals.training.job import train


def trained(folder: Path, config) -> Record:
    with Record.writing(folder, decisive(config)) as record:
        train(config, record, None)
    return Record(folder)


def stopped(folder: Path, config, step: int, monkeypatch, quantity: str = "train_loss") -> None:
    """A run that ends without a word while it writes what it measured at ``step``."""

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


def weights(record: Record):
    return torch.load(record.checkpoint, weights_only=True)["state_dict"]
