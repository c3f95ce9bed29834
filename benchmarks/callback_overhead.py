"""The cost of following a training in each framework: the reported overhead, and the time with and without it.

    python benchmarks/callback_overhead.py
    python benchmarks/callback_overhead.py --only steps
    python benchmarks/callback_overhead.py --only large --steps 4000 --rounds 1

A perceptron on 5,000 random examples of 3,072 numbers in minibatches of 128, with every default of the follower; for
transformers a small GPT-2. Trainings with and without it alternate, so that a slow machine slows both. Ratios are of
CPU time, which other processes disturb less; set OMP_NUM_THREADS=1. ``large`` is a plain loop on a data set of
1,000,000 examples, with a small network and 20 ms of matrix products per step; its memory peaks are those of the
process so far. ``steps`` alternates an observed step with a bare one, for perceptrons of about 1, 5 and 20 ms per step
on one core.
"""

from __future__ import annotations

import argparse
import logging
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

from opposing_signals import Follower, OpposingSignals
from opposing_signals.record import Record

from lightning.fabric import Fabric  # isort: skip  (last: see docs/own_model.md, "Imports")
from lightning.pytorch import LightningModule, Trainer  # isort: skip


def network(width: int = 400) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3072, width), nn.ReLU(), nn.Linear(width, 10))


def per_sample_loss(model: Any, batch: Any) -> torch.Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


class Perceptron(LightningModule):
    """A two-layer perceptron."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = network()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def in_lightning(data: Dataset, steps: int, folder: Path | None) -> Any:
    signals = OpposingSignals(data, per_sample_loss, folder=folder) if folder else None
    trainer = Trainer(
        max_steps=steps,
        max_epochs=-1,
        callbacks=[signals] if signals else [],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Perceptron(), DataLoader(data, batch_size=128, shuffle=True))
    return signals and signals.follower


def in_a_plain_loop(
    data: Dataset, steps: int, folder: Path | None, fabric: Fabric | None = None, width: int = 400, busy: float = 0.0
) -> Any:
    model = network(width)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    backward: Callable[[torch.Tensor], Any] = torch.Tensor.backward
    if fabric is not None:
        model, optimizer = fabric.setup(model, optimizer)
        backward = fabric.backward
    left, right = torch.randn(2, 512, 512)

    def step(x: torch.Tensor, y: torch.Tensor) -> None:
        began = time.process_time()
        while time.process_time() - began < busy:
            left @ right
        optimizer.zero_grad()
        backward(F.cross_entropy(model(x), y))
        optimizer.step()

    follower = Follower(data, per_sample_loss, folder=folder, steps=steps) if folder else None
    loader = DataLoader(data, batch_size=128, shuffle=True)
    done = 0
    while done < steps:
        for x, y in loader if follower is None else follower.batches(loader):
            if follower is None:
                step(x, y)
            else:
                with follower.step(model, optimizer, batch=(x, y)):
                    step(x, y)
            done += 1
            if done == steps:
                break
    if follower is not None:
        follower.close()
    return follower


def watching() -> None:
    """The cost of recording each step: rows, indices, gradient norm, learning rate, without any measurement."""
    for width, steps in ((16, 2000), (80, 1000), (400, 500)):
        x, y = torch.randn(5000, 3072), torch.randint(10, (5000,))
        models = [network(width) for _ in range(2)]
        optimizers = [torch.optim.SGD(model.parameters(), lr=0.01) for model in models]

        def step(turn: int, x: Any, y: Any, models: Any = models, optimizers: Any = optimizers) -> None:
            optimizers[turn].zero_grad()
            F.cross_entropy(models[turn](x), y).backward()
            optimizers[turn].step()

        took = np.empty((steps, 2))
        with tempfile.TemporaryDirectory() as scratch:
            follower = Follower(
                TensorDataset(x, y), per_sample_loss, folder=Path(scratch) / "run", steps=steps, track=8, every=10**9
            )
            for number in range(steps):
                rows = torch.randint(5000, (128,))
                for turn in (0, 1) if number % 2 else (1, 0):
                    began = time.thread_time()
                    batch = x[rows], y[rows]
                    if turn:
                        with follower.step(models[turn], optimizers[turn], batch=batch, batch_indices=rows):
                            step(turn, *batch)
                    else:
                        step(turn, *batch)
                    took[number, turn] = time.thread_time() - began
            follower.close()
        bare, watched = took[20:].T
        low, middle, high = np.percentile(watched - bare, [25, 50, 75])
        print(
            f"steps of {1e3 * np.median(bare):.2f} ms ({3072 * width / 1e6:.2f} million weights): watching adds "
            f"{1e6 * middle:.0f} [{1e6 * low:.0f}, {1e6 * high:.0f}] us, {100 * middle / np.median(bare):.1f}%; of all "
            f"steps {100 * (watched.sum() / bare.sum() - 1):.1f}%",
            flush=True,
        )


def in_fabric(data: Dataset, steps: int, folder: Path | None) -> Any:
    return in_a_plain_loop(data, steps, folder, Fabric(accelerator="cpu", devices=1))


def in_transformers(_: Dataset, steps: int, folder: Path | None) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel, TrainingArguments
    from transformers import Trainer as HuggingFaceTrainer

    from opposing_signals.follow.transformers import OpposingSignals as Signals

    rows = torch.randint(64, (5000, 32), generator=torch.Generator().manual_seed(0))
    sequences = [{"input_ids": row, "labels": row} for row in rows]

    def losses(model: Any, batch: Any) -> torch.Tensor:
        logits = model(**batch).logits[:, :-1]
        return F.cross_entropy(logits.transpose(1, 2), batch["labels"][:, 1:], reduction="none").mean(1)

    signals = Signals(sequences, losses, folder=folder) if folder else None
    torch.manual_seed(0)
    configuration = GPT2Config(
        vocab_size=64, n_positions=32, n_embd=64, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    with tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            scratch, max_steps=steps, per_device_train_batch_size=16, report_to=[], save_strategy="no", use_cpu=True,
            disable_tqdm=True, logging_strategy="no",
        )  # fmt: skip
        trainer = HuggingFaceTrainer(
            GPT2LMHeadModel(configuration), arguments, train_dataset=sequences, callbacks=[signals] if signals else []
        )
        trainer.train()
    return signals and signals.follower


class Many(Dataset):
    """1,000,000 examples, each made from its number on access."""

    def __init__(self) -> None:
        self.shared = torch.randn(3072)

    def __len__(self) -> int:
        return 1_000_000

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.shared.roll(index), index % 10


def in_a_large_run(_: Dataset, steps: int, folder: Path | None) -> Any:
    return in_a_plain_loop(Many(), steps, folder, width=4, busy=0.02)


KINDS = {
    "plain": in_a_plain_loop,
    "lightning": in_lightning,
    "fabric": in_fabric,
    "transformers": in_transformers,
    "large": in_a_large_run,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--only", choices=[*KINDS, "steps"], action="append", help="(default: all but large)")
    arguments = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    data = TensorDataset(torch.randn(5000, 3072), torch.randint(10, (5000,)))
    for kind in arguments.only or ["steps", *(kind for kind in KINDS if kind != "large")]:
        if kind == "steps":
            watching()
            continue
        compare(kind, data, arguments.steps, arguments.rounds)


def compare(kind: str, data: Dataset, steps: int, rounds: int) -> None:
    try:
        KINDS[kind](data, max(8, steps // 20), None)  # warm-up: one-time costs of a process
    except ImportError as error:
        print(f"{kind}: not measured: {error}")
        return
    ratios = []
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(rounds):
            took: dict[bool, tuple[float, float]] = {}
            memory: dict[bool, int] = {}
            folder = Path(scratch) / str(number)
            for is_watched in (True, False) if number % 2 else (False, True):
                began = time.process_time(), time.perf_counter()
                result = KINDS[kind](data, steps, folder if is_watched else None)
                took[is_watched] = time.process_time() - began[0], time.perf_counter() - began[1]
                memory[is_watched] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                follower = result or locals().get("follower")
            ratios.append(took[True][0] / took[False][0])
            size = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
            print(
                f"{kind}: with {took[True][0]:.1f} s, without {took[False][0]:.1f} s, ratio {ratios[-1]:.3f} (elapsed: "
                f"{took[True][1]:.1f} s, {took[False][1]:.1f} s); own account {follower.budget.overhead:.3f}, watching "
                f"{follower.budget.watched / (follower.budget.seconds - follower.budget.spent):.3f}; "
                f"{len(Record(folder)['sample_loss'])} of {steps} steps measured, {len(follower.examples)} examples; "
                f"record {size:.1f} MB"
                + (f"; memory +{(memory[True] - memory[False]) / 1024:.0f} MB" if number == 0 else ""),
                flush=True,
            )
    low, middle, high = np.percentile(ratios, [25, 50, 75])
    print(f"{kind}: ratio {middle:.3f} [{low:.3f}, {high:.3f}]", flush=True)


if __name__ == "__main__":
    main()
