"""One of two processes that train together; run by test_several_processes."""

import os
from contextlib import nullcontext

import torch
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from opposing_signals import Follower, OpposingSignals

from lightning.pytorch import LightningModule, Trainer  # isort: skip  (last: see docs/own_model.md, "Imports")

EXAMPLES, STEPS = 40, 12
HOW = ("ddp", "fsdp", "lightning")


def data():
    generator = torch.Generator().manual_seed(3)
    return torch.randn(EXAMPLES, 6, generator=generator), torch.arange(EXAMPLES) % 3


def per_sample_loss(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


class Module(LightningModule):
    def __init__(self, layers):
        super().__init__()
        self.layers = layers

    def forward(self, x):
        return self.layers(x)

    def training_step(self, batch, _):
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.3)


def train(how, folder, rank, processes, follow=True):
    """Each process takes its part of every batch of 8; returns the weights."""
    torch.manual_seed(1)
    x, y = data()
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    settings = {
        "budget": None, "every": 2, "consecutive": 2, "batch_size": 10, "sharpness_every": None if how == "fsdp" else 2
    }  # fmt: skip
    if how == "lightning":
        callbacks = [OpposingSignals(TensorDataset(x, y), per_sample_loss, folder=folder, **settings)] * follow
        trainer = Trainer(
            accelerator="cpu", strategy="ddp" if processes > 1 else "auto", devices=processes, max_steps=STEPS,
            callbacks=callbacks, logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False,
        )  # fmt: skip
        sampler = DistributedSampler(x, processes, rank, shuffle=False)
        trainer.fit(Module(model), DataLoader(TensorDataset(x, y), batch_size=8 // processes, sampler=sampler))
        return list(model.parameters())
    if how == "fsdp" and processes > 1:
        for layer in (model[0], model[2], model):
            fully_shard(layer)
    trained = DistributedDataParallel(model) if how == "ddp" and processes > 1 else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    follower = Follower(TensorDataset(x, y), per_sample_loss, folder=folder, **settings)
    for step in range(STEPS):
        rows = ((torch.arange(8) + 8 * step) % EXAMPLES)[rank * 8 // processes : (rank + 1) * 8 // processes]
        batch = x[rows], y[rows]
        with follower.step(trained, optimizer, batch=batch, batch_indices=rows) if follow else nullcontext():
            optimizer.zero_grad()
            F.cross_entropy(trained(x[rows]), y[rows]).backward()
            optimizer.step()
    follower.close()
    return [getattr(p, "full_tensor", lambda p=p: p)().detach() for p in model.parameters()]


def work(rank, folder, port):
    """Work of each of two processes: train with and without the follower, to the same bits."""
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "1",
    }  # fmt: skip
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    for how in HOW:
        watched = train(how, f"{folder}/{how}", rank, 2)
        alone = train(how, f"{folder}/{how}", rank, 2, follow=False)
        assert all(torch.equal(one, other) for one, other in zip(watched, alone, strict=True)), how
    distributed.destroy_process_group()


class FailingError(Exception):
    """Raised in one process only."""


def follow_where_one_fails(rank, folder, port, how):
    """The second of two processes fails in ``how``; each trains its own model, and so waits for nothing else."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2"}
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    torch.manual_seed(1)
    x, y = data()
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    calls = []

    def losses(model, batch):
        calls.append(model.training)
        if how == "measuring" and rank == 1 and len(calls) > 40 and not model.training:
            raise FailingError("out of luck")
        return per_sample_loss(model, batch)

    follower = Follower(TensorDataset(x, y), losses, folder=folder, budget=None, every=2, consecutive=2, batch_size=10)
    try:
        for step in range(40):
            if how == "watching" and rank == 1 and step == 20:
                follower._watch.open = None  # any failure in the follower
            if how == "loader" and rank == 1 and step == 20:
                raise FailingError("no more batches")
            with follower.step(model, optimizer, batch=(x, y)):
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
    except FailingError:
        assert how == "loader"
    finally:
        follower.close()
    distributed.barrier()
    distributed.destroy_process_group()
