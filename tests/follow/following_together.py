"""One of two processes that train together, for test_several_processes."""

import os
from contextlib import nullcontext

import torch
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import TensorDataset

from opposing_signals import Follower

EXAMPLES, STEPS = 40, 12


def data():
    generator = torch.Generator().manual_seed(3)
    return torch.randn(EXAMPLES, 6, generator=generator), torch.arange(EXAMPLES) % 3


def per_sample_loss(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def train(how, folder, rank, processes, follow=True):
    """Each process takes its part of every batch of 8; returns the weights."""
    torch.manual_seed(1)
    x, y = data()
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    if how == "fsdp" and processes > 1:
        for layer in (model[0], model[2], model):
            fully_shard(layer)
    trained = DistributedDataParallel(model) if how == "ddp" and processes > 1 else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    follower = Follower(
        TensorDataset(x, y), per_sample_loss, folder=folder, budget=None, every=2, consecutive=2, batch_size=10,
        sharpness_every=2 if how == "ddp" else None,
    )  # fmt: skip
    for step in range(STEPS):
        rows = ((torch.arange(8) + 8 * step) % EXAMPLES)[rank * 8 // processes : (rank + 1) * 8 // processes]
        batch = x[rows], y[rows]
        with follower.step(trained, optimizer, batch=batch, batch_indices=rows) if follow else nullcontext():
            optimizer.zero_grad()
            F.cross_entropy(trained(x[rows]), y[rows]).backward()
            optimizer.step()
    follower.close()
    return [getattr(p, "full_tensor", lambda p=p: p)().detach() for p in model.parameters()]


def work(rank, how, folder, port):
    """What each of two processes does: train with the follower and without it, to the same bits."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", rank=rank, world_size=2)
    watched = train(how, folder, rank, 2)
    alone = train(how, folder, rank, 2, follow=False)
    assert all(torch.equal(one, other) for one, other in zip(watched, alone, strict=True))
    distributed.destroy_process_group()
