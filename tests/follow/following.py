"""A training with and without a follower: shared by the tests of many trainings."""

from contextlib import nullcontext
from functools import partial

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from opposing_signals import Follower, OpposingSignals
from opposing_signals.follow.step import Step
from opposing_signals.record import Record

EXAMPLES, BATCH = 24, 6
STEPS = EXAMPLES // BATCH


class Data(Dataset):
    """Points of three classes; ``form`` of an example: pair, dictionary, or a tuple with None."""

    def __init__(self, form=lambda *example: example[:2], broken=None):
        generator = torch.Generator().manual_seed(3)
        self.x, self.form, self.broken = torch.randn(EXAMPLES, 6, generator=generator), form, broken

    def __len__(self):
        return EXAMPLES

    def __getitem__(self, i):
        if i == self.broken:
            raise OSError("no such file")
        return self.form(self.x[i], i % 3, i)


class Nobody:
    """Takes the follower's place and does nothing."""

    step = staticmethod(lambda *_, **__: nullcontext(Step()))
    batches = staticmethod(iter)
    close = staticmethod(lambda *_: None)


class Run:
    """Gives a training its follower, or `Nobody`."""

    def __init__(self, folder):
        self.folder = folder

    def follower(self, data=None, loss=None, folder="run", **settings):
        if self.folder is None:
            return Nobody()
        settings = {"every": 1, "consecutive": 1, "budget": None, **settings}
        return Follower(data or Data(), loss or losses_of, folder=self.folder / folder, **settings)

    def callbacks(self, data=None, loss=None, **settings):
        if self.folder is None:
            return []
        settings = {"every": 1, "consecutive": 1, "budget": None, **settings}
        return [OpposingSignals(data or Data(), loss or losses_of, folder=self.folder / "run", **settings)]


def losses_of(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def network():
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 3))


def quiet():
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def sgd(model, lr=0.2, **settings):
    return torch.optim.SGD(model.parameters(), lr, **settings)


def plain(model, optimizer, batch, loss=losses_of):
    optimizer.zero_grad()
    loss(model, batch).mean().backward()
    optimizer.step()


def loop(
    run,
    model=None,
    step=None,
    data=None,
    loss=None,
    optimizer=None,
    epochs=1,
    loader=None,
    settings=None,
    state="complete",
):
    """A loop of ``step(model, optimizer, batch)``."""
    model = network() if model is None else model
    optimizer = sgd(model, momentum=0.5) if optimizer is None else optimizer
    follower = run.follower(data, loss, **(settings or {}))
    loader = DataLoader(data or Data(), BATCH, shuffle=True) if loader is None else loader
    step = step or partial(plain, loss=loss or losses_of)
    try:
        for _ in range(epochs):
            for batch in follower.batches(loader):
                with follower.step(model, optimizer, batch=batch):
                    step(model, optimizer, batch)
    finally:
        follower.close(state)
    return model


def weights_of(training, folder):
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002  (frameworks draw from it)
    return training(Run(folder)).state_dict()


def check(kind, folder):
    """Check that the training of a table row ends with the same bits, and its record with the row's reason.

    Args:
        kind: The training; the number of steps at which its record should hold the losses of its rows, None for a
            record that says it has none; and its final state, if that is not "complete".
        folder: Folder of the record.
    """
    training, steps, *state = kind
    alone, watched = weights_of(training, None), weights_of(training, folder)
    for name, tensor in alone.items():
        assert torch.equal(tensor, watched[name]) or (tensor.isnan() == watched[name].isnan()).all(), name
    record = Record(folder / "run")
    assert record.state.startswith(*state or ["complete"]), record.state
    if steps is None:
        assert record.provenance["batch_rows"].startswith("not recorded: ")
    else:
        assert len(record["batch_loss"]) == steps
        assert np.isfinite(record["train_loss"].values).all() == ("not finite" not in record.state)
