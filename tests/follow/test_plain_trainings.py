# ruff: noqa: ARG005  (per_sample_loss gets a model that a row may not need)
"""Plain loops of many kinds, with and without a follower.

They end with the same bits, and the record gives the reason for its end.

A row of the table is a training and the expected content of its record; see `check`.
"""

import copy
import io
import threading
from collections import namedtuple
from contextlib import nullcontext, suppress
from functools import partial

import pytest
import torch
from following import BATCH, EXAMPLES, STEPS, Data, check, loop, losses_of, network, plain, quiet, sgd
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, IterableDataset

from opposing_signals.errors import InputError


def closure(model, optimizer, batch):
    def again():
        optimizer.zero_grad()
        loss = losses_of(model, batch).mean()
        loss.backward()
        return loss

    optimizer.step(again)


def lbfgs(run):
    model = quiet()
    return loop(run, model, closure, optimizer=torch.optim.LBFGS(model.parameters(), 0.1, max_iter=3))


def scaled(run, skip=()):
    scaler, count = torch.amp.GradScaler("cpu", init_scale=8.0), iter(range(100))

    def step(model, optimizer, batch):
        optimizer.zero_grad()
        loss = losses_of(model, batch).mean() * (torch.inf if next(count) in skip else 1)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        scaler.step(optimizer)
        scaler.update()

    return loop(run, step=step)


def accumulated(run):
    count = iter(range(100))

    def step(model, optimizer, batch):
        (losses_of(model, batch).mean() / 3).backward()
        if next(count) % 3 == 2:
            optimizer.step()
            optimizer.zero_grad()

    return loop(run, step=step, epochs=3)


def adversarial(run):
    model = nn.ModuleDict({"maker": nn.Linear(6, 6), "judge": quiet()})
    optimizers = [sgd(part, 0.1) for part in model.values()]

    def loss(model, batch):
        return F.cross_entropy(model["judge"](batch[0]), batch[1], reduction="none")

    def step(model, optimizers, batch):
        for sign, optimizer in zip((-1, 1), optimizers, strict=True):
            optimizer.zero_grad()
            fake = model["judge"](model["maker"](batch[0] + torch.randn_like(batch[0])))
            (loss(model, batch).mean() + sign * F.cross_entropy(fake, batch[1])).backward()
            optimizer.step()

    return loop(run, model, step, loss=loss, optimizer=optimizers)


def two_backward_passes(model, optimizer, batch):
    optimizer.zero_grad()
    losses = losses_of(model, batch)
    losses.mean().backward(retain_graph=True)
    (0.1 * losses.square().mean()).backward()
    optimizer.step()


def sharpness_aware(model, optimizer, batch):
    optimizer.zero_grad()
    losses_of(model, batch).mean().backward()
    moves = [0.05 * p.grad / p.grad.norm() for p in model.parameters()]
    with torch.no_grad():
        for p, move in zip(model.parameters(), moves, strict=True):
            p.add_(move)
    optimizer.zero_grad()
    losses_of(model, batch).mean().backward()
    with torch.no_grad():
        for p, move in zip(model.parameters(), moves, strict=True):
            p.sub_(move)
    optimizer.step()


def functional(model, optimizer, batch):
    def risk(parameters):
        return F.cross_entropy(torch.func.functional_call(model, parameters, (batch[0],)), batch[1])

    gradients = torch.func.grad(risk)(dict(model.named_parameters()))
    for name, parameter in model.named_parameters():
        parameter.grad = gradients[name].detach()
    optimizer.step()


def gradient_per_sample(model, optimizer, batch):
    def risk(parameters, x, y):
        return F.cross_entropy(torch.func.functional_call(model, parameters, (x[None],)), y[None])

    each = torch.func.vmap(torch.func.grad(risk), (None, 0, 0))(dict(model.named_parameters()), *batch)
    for name, parameter in model.named_parameters():
        parameter.grad = each[name].clamp(-0.1, 0.1).mean(0).detach()
    optimizer.step()


def in_place(model, optimizer, batch):
    optimizer.zero_grad()
    outputs = model(batch[0])
    outputs.mul_(2.0)
    F.cross_entropy(outputs, batch[1]).backward()
    optimizer.step()


def copied(model, optimizer, batch):
    optimizer.zero_grad()
    average = copy.deepcopy(model)
    torch.save(model, io.BytesIO())
    (losses_of(model, batch).mean() + 0.1 * losses_of(average, batch).mean().detach()).backward()
    optimizer.step()


def evaluated_within(model, optimizer, batch):
    model.eval()
    with torch.inference_mode():
        losses_of(model, batch).mean()
    model.train()
    plain(model, optimizer, batch)


def twice(model, optimizer, batch):
    for _ in range(2):
        plain(model, optimizer, batch)


def with_anomaly_detection(model, optimizer, batch):
    with torch.autograd.detect_anomaly(check_nan=True):
        plain(model, optimizer, batch)


def compiled_step(run):
    torch._dynamo.reset()
    model = quiet()
    whole = torch.compile(lambda x, y: F.cross_entropy(model(x), y), backend="aot_eager")

    def step(model, optimizer, batch):
        optimizer.zero_grad()
        whole(*batch).backward()
        optimizer.step()

    return loop(run, model, step)


def compiled_optimizer(run):
    torch._dynamo.reset()
    model = quiet()
    optimizer = sgd(model)
    optimizer.step = torch.compile(optimizer.step, backend="eager")
    return loop(run, model, optimizer=optimizer)


def steps_in_backward(run):
    """An optimizer for each parameter, which steps as soon as the gradient of the parameter is complete."""
    model = quiet()
    optimizers = {p: torch.optim.SGD([p], 0.1) for p in model.parameters()}

    def now(p):
        optimizers[p].step()
        optimizers[p].zero_grad()

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(now)
    return loop(
        run, model, lambda model, _, batch: losses_of(model, batch).mean().backward(), optimizer=optimizers.values()
    )


def another_optimizer(run):
    """A new optimizer replaces the first one during training."""
    model, follower = network(), run.follower()
    for number, batch in enumerate(follower.batches(DataLoader(Data(), 4))):
        if number in (0, 3):
            optimizer = [sgd, partial(torch.optim.Adam, lr=0.01)][number // 3](model.parameters() if number else model)
        with follower.step(model, optimizer, batch=batch):
            plain(model, optimizer, batch)
    follower.close()
    return model


def unfrozen(run):
    model, count = quiet(), iter(range(100))
    model[0].requires_grad_(False)

    def step(model, optimizer, batch):
        if next(count) == 2:
            model[0].requires_grad_(True)
            optimizer.add_param_group({"params": list(model[0].parameters())})
        plain(model, optimizer, batch)

    return loop(run, model, step, optimizer=sgd(model[2]), settings={"sharpness_every": 1})


class Checkpointed(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.3)), nn.Linear(8, 3)

    def forward(self, x):
        return self.last(checkpoint(self.first, x, use_reentrant=False))


class Twins(nn.Module):
    """One module, called twice per forward pass."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.body(torch.tanh(self.body(x)))))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.LSTM(2, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x):
        outputs, (hidden, _) = self.cell(x.view(len(x), 3, 2))
        return self.head(hidden[0]), outputs


Output = namedtuple("Output", "logits extra")


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = quiet()

    def forward(self, x, mask=None):
        return Output(self.layers(x if mask is None else x * mask), {"x": [x, None]})


class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 3, dtype=torch.complex64))

    def forward(self, x):
        return (x.to(torch.complex64) @ self.weight).abs()


class Sparse(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(EXAMPLES, 3, sparse=True)

    def forward(self, x):
        return self.table(x)


def sparse(run):
    data, model = Data(lambda x, y, i: (i, y)), Sparse()
    return loop(run, model, data=data, optimizer=torch.optim.SparseAdam(model.parameters(), 0.1))


def scripted(run):
    return loop(run, torch.jit.script(quiet()))


def parallel(run):
    return loop(run, nn.DataParallel(network()))


def dictionaries(run):
    data = Data(lambda x, y, i: {"x": x, "y": y, "name": f"example {i}", "extra": {"mask": torch.ones(6)}})
    return loop(run, Named(), data=data, loss=lambda m, b: F.cross_entropy(
        m(b["x"], mask=b["extra"]["mask"]).logits, b["y"], reduction="none"))  # fmt: skip


def with_none(run):
    data = Data(lambda x, y, i: (x, y, None))

    def collate(examples):
        x, y, _ = zip(*examples, strict=True)
        return torch.stack(x), torch.tensor(y), None

    loader = DataLoader(data, BATCH, shuffle=True, collate_fn=collate)
    return loop(run, Named(), data=data, loader=loader, loss=lambda m, b: F.cross_entropy(
        m(b[0], mask=b[2]).logits, b[1], reduction="none"))  # fmt: skip


class Stream(IterableDataset):
    def __iter__(self):
        return iter([Data()[i] for i in range(EXAMPLES)])


def stream(run):
    return loop(
        run, data=Stream(), loader=DataLoader(Stream(), BATCH), settings={"ids": lambda e: int(e[1]), "track": 9}
    )


def workers(run):
    return loop(run, loader=DataLoader(Data(), BATCH, shuffle=True, num_workers=2, persistent_workers=True), epochs=2)


def in_a_thread(run):
    made = []
    thread = threading.Thread(target=lambda: made.append(loop(run)))
    thread.start()
    thread.join()
    return made[0]


def raising(run, error):
    count, model = iter(range(100)), network()

    def step(model, optimizer, batch):
        if next(count) == 2:
            raise error
        plain(model, optimizer, batch)

    with suppress(type(error)):
        loop(run, model, step, state=None)
    return model


def stopped_early(run):
    """A break out of the loop, and a batch whose step is skipped by continue."""
    model, follower = network(), run.follower()
    optimizer = sgd(model)
    for number, batch in enumerate(follower.batches(DataLoader(Data(), 3, shuffle=True))):
        with follower.step(model, optimizer, batch=batch):
            optimizer.zero_grad()
            loss = losses_of(model, batch).mean()
            if number == 1:
                continue
            loss.backward()
            optimizer.step()
        if number == 4:
            break
    follower.close()
    return model


def fit_twice(run):
    model, follower = network(), run.follower()
    for _ in range(2):
        optimizer = sgd(model)
        for batch in follower.batches(DataLoader(Data(), BATCH, shuffle=True)):
            with follower.step(model, optimizer, batch=batch):
                plain(model, optimizer, batch)
        follower.close()
    return model


def two_followers(run):
    model, followers = network(), [run.follower(folder=name, track=5) for name in ("other", "run")]
    optimizer = sgd(model)
    for batch in followers[0].batches(DataLoader(Data(), BATCH, shuffle=True)):
        with followers[0].step(model, optimizer, batch=batch), followers[1].step(model, optimizer, batch=batch):
            plain(model, optimizer, batch)
    for follower in followers:
        follower.close()
    return model


def broken_row(run):
    data = Data()
    data.x[13] = torch.nan
    return loop(run, quiet(), data=data, epochs=2, settings={"track": list(range(10))})


def unreadable(run):
    """An example that cannot be read is refused before the first step; training then goes on without the follower."""
    loader = DataLoader(Data(broken=21), BATCH, sampler=list(range(18)))
    with pytest.raises(InputError, match=r"train_dataset\[21\] fails \(OSError") if run.folder else nullcontext():
        model = loop(run, data=Data(broken=21), loader=loader)
    return loop(run, loader=loader) if run.folder else model


def with_full_disk(run):
    """Every write from the third step on fails."""
    count = iter(range(100))
    follower = []

    def step(model, optimizer, batch):
        plain(model, optimizer, batch)
        if run.folder and next(count) == 2:
            follower[0].record.append = lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))

    given = run.follower

    def keep(*arguments, **settings):
        follower.append(given(*arguments, **settings))
        return follower[0]

    run.follower = keep
    return loop(run, step=step)


def deterministic(run):
    torch.use_deterministic_algorithms(True)
    try:
        return loop(run)
    finally:
        torch.use_deterministic_algorithms(False)


def in_float64_by_default(run):
    torch.set_default_dtype(torch.float64)
    try:
        data = Data(lambda x, y, i: (x.double(), y))
        return loop(run, data=data)
    finally:
        torch.set_default_dtype(torch.float32)


def in_bfloat16(run):
    return loop(run, quiet().bfloat16(), data=Data(lambda x, y, i: (x.bfloat16(), y)))


def with_a_hook(run):
    model = network()
    model.register_forward_hook(lambda module, _, outputs: outputs * torch.rand(()) if module.training else None)
    model[0].weight.register_hook(lambda gradient: gradient * torch.rand(()))
    return loop(run, model)


def in_evaluation_mode(run):
    return loop(run, network().eval())


def of_one_class(run):
    return loop(run, quiet(), loader=DataLoader(Data(), 1, shuffle=True))


def averaged(run):
    model = network()
    average = torch.optim.swa_utils.AveragedModel(model)

    def step(model, optimizer, batch):
        plain(model, optimizer, batch)
        average.update_parameters(model)

    loop(run, model, step)
    torch.optim.swa_utils.update_bn(DataLoader(Data(), BATCH), average)
    return average


PLAIN = {
    "dropout and batch norm": (partial(loop, settings={"sharpness_every": 2}), STEPS),
    "LBFGS": (lbfgs, STEPS),
    "GradScaler": (scaled, STEPS),
    "GradScaler that skips a step": (partial(scaled, skip=(1,)), STEPS - 1),
    "accumulation across epochs": (accumulated, STEPS),
    "two networks against each other": (adversarial, STEPS),
    "two backward passes": (partial(loop, step=two_backward_passes), STEPS),
    "SAM by hand": (partial(loop, step=sharpness_aware), STEPS),
    "torch.func.grad": (lambda run: loop(run, quiet(), functional), STEPS),
    "gradients per sample by vmap": (lambda run: loop(run, quiet(), gradient_per_sample), None),
    "outputs changed in place": (partial(loop, step=in_place), STEPS),
    "model copied and saved in the step": (partial(loop, step=copied), STEPS),
    "evaluation within the step": (partial(loop, step=evaluated_within), STEPS),
    "two steps a batch": (partial(loop, step=twice), STEPS),
    "anomaly detection": (partial(loop, step=with_anomaly_detection), STEPS),
    "compiled step": (compiled_step, None),
    "compiled optimizer": (compiled_optimizer, STEPS),
    "steps in backward": (steps_in_backward, STEPS),
    "another optimizer": (another_optimizer, EXAMPLES // 4),
    "unfrozen in the middle": (unfrozen, STEPS),
    "activation checkpoints": (lambda run: loop(run, Checkpointed()), STEPS),
    "module called twice": (lambda run: loop(run, Twins()), STEPS),
    "LSTM": (
        lambda run: loop(run, Recurrent(), loss=lambda m, b: F.cross_entropy(m(b[0])[0], b[1], reduction="none")),
        STEPS,
    ),
    "complex weights": (lambda run: loop(run, Complex(), settings={"sharpness_every": 1}), STEPS),
    "sparse gradients": (sparse, STEPS),
    "TorchScript": (scripted, STEPS),
    "DataParallel": (parallel, STEPS),
    "dictionaries": (dictionaries, STEPS),
    "None in a batch": (with_none, STEPS),
    "stream": (stream, STEPS),
    "forked workers": (workers, 2 * STEPS),
    "in a thread": (in_a_thread, STEPS),
    "exception": (partial(raising, error=RuntimeError("bug")), 2, "running"),
    "KeyboardInterrupt": (partial(raising, error=KeyboardInterrupt()), 2, "running"),
    "break and continue": (stopped_early, 4),
    "fit twice": (fit_twice, STEPS),
    "two followers": (two_followers, STEPS),
    "row that is not finite": (broken_row, 2 * STEPS, "stopped: the loss of train_dataset[0] is not finite"),
    "unreadable example": (unreadable, 3),
    "full disk": (with_full_disk, 3, "stopped: measuring failed"),
    "deterministic algorithms": (deterministic, STEPS),
    "float64 by default": (in_float64_by_default, STEPS),
    "bfloat16": (in_bfloat16, STEPS),
    "hooks that draw": (with_a_hook, STEPS),
    "evaluation mode": (in_evaluation_mode, STEPS),
    "batches of one": (of_one_class, EXAMPLES),
    "averaged weights": (averaged, STEPS),
}


@pytest.mark.parametrize("kind", PLAIN)
def test_a_training_ends_with_the_same_bits_and_its_record_with_a_reason(tmp_path, kind):
    check(PLAIN[kind], tmp_path)
