"""Cost of our step on a GPT, against a plain PyTorch loop with nanoGPT's shapes, optimizer, clipping and schedule.

Both run in one process, alternating step by step, from the same weights, with the same batches of tokens and the same
chunks for gradient accumulation. Ours is the whole step of `opposing-signals`: Lightning, the record on disk, the
progress bar. Times vary on a shared machine, so look at the ratio.

    python benchmarks/gpt_step.py [--case cpu|character|gpt2] [--steps 30] [--compile]

Target: a ratio of at most 1.05.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from opposing_signals.choices import composed
from opposing_signals.configuration import decisive
from opposing_signals.curvature.risk import EmpiricalRisk
from opposing_signals.instruments.instrument import Instrument
from opposing_signals.record import Record
from opposing_signals.training.job import train
from opposing_signals.training.module import TrainingModule
from opposing_signals.training.schedule import WarmUpAndDecay

WARM_UP = 3
BOUND = 1.05
LEARNING_RATE, BETAS, NORM = 6e-4, (0.9, 0.95), 1.0


@dataclass(frozen=True)
class Case:
    """Shapes: vocabulary V, context T, sequences per step and per chunk, and the network's."""

    vocabulary: int
    block: int
    batch: int
    chunk: int
    width: int
    depth: int
    heads: int
    precision: str


CASES = {
    "cpu": Case(4096, 128, 16, 4, 128, 2, 4, "float32"),  # gpt2_adam at scale=cpu
    "character": Case(65, 256, 64, 64, 384, 6, 6, "float32"),  # nanoGPT's config/train_shakespeare_char.py, no dropout
    "gpt2": Case(50304, 1024, 48, 12, 768, 12, 12, "bfloat16"),  # nanoGPT's train.py, 4 of its 40 chunks
}


class PlainLoop(Instrument):
    """Before each of our steps, takes and times a step of its own on a copy of the network."""

    def __init__(self, risk: EmpiricalRisk, record: Record, autocast: bool, compiled: bool) -> None:
        super().__init__(risk, record)
        self.model = copy.deepcopy(risk.model)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=LEARNING_RATE, betas=BETAS)
        self.schedule = WarmUpAndDecay(2000, 600_000, 0.1)
        self.autocast = autocast
        self.forward = torch.compile(self._loss) if compiled else self._loss
        self.plain: list[float] = []
        self.ours: list[float] = []
        self.losses: list[float] = []
        self._ended: float | None = None
        INSTANCES.append(self)

    def _loss(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=self.autocast):
            logits = self.model(inputs)
            return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        started = self._now()
        if self._ended is not None:
            self.ours.append(started - self._ended)
        self._step(batch, trainer.global_step)
        self._ended = self._now()
        self.plain.append(self._ended - started)

    def _step(self, batch: torch.Tensor, step: int) -> None:
        self.model.to(self.risk.inputs.device)
        for group in self.optimizer.param_groups:
            group["lr"] = LEARNING_RATE * self.schedule.factor(step)
        total = 0.0
        for rows in batch.split(self.risk.chunk):
            loss = self.forward(self.risk.inputs[rows], self.risk.targets[rows]) * (len(rows) / len(batch))
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), NORM)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.losses.append(total)

    def after_step(self, module: TrainingModule, step: int) -> None:
        assert abs(module.loss - self.losses[step]) < 0.05 * abs(module.loss), "the two loops do not train alike"

    def _now(self) -> float:
        if self.risk.inputs.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter()


INSTANCES: list[PlainLoop] = []


def measure(case: Case, steps: int, compiled: bool, folder: Path) -> PlainLoop:
    """Train ``steps`` steps with the train loss recorded and the plain loop in between."""
    text = folder / "text.txt"
    generator = np.random.default_rng(0)
    characters = [chr(0x100 + i) for i in range(case.vocabulary)]
    drawn = generator.integers(case.vocabulary, size=case.block * (2 * case.batch) + 1)
    text.write_text("".join([*characters, *(characters[i] for i in drawn)]), encoding="utf-8")
    overrides = [
        "data=openwebtext", "data.tokenizer=characters", "data.vocabulary=null", f"data.path={text}",
        f"data.block={case.block}", f"batch={case.batch}", f"risk.chunk={case.chunk}",
        f"risk.precision={case.precision}", f"risk.compile_training={compiled}", f"model.width={case.width}",
        f"model.depth={case.depth}", f"model.heads={case.heads}", f"optimizer.lr={LEARNING_RATE}",
        "before_update.schedule.warm_up=2000", f"steps={steps + WARM_UP}",
    ]  # fmt: skip
    config = composed("experiment=fig35_curvature_share_gpt", "scale=cpu", "logger=none", *overrides)
    loop = {"_target_": "__main__.PlainLoop", "autocast": case.precision == "bfloat16", "compiled": compiled}
    config.instruments = {"plain": loop, "train_loss": config.instruments.train_loss}
    config.checkpoint_seconds = 1e9  # no checkpoint during timing
    with Record.writing(folder / "run", decisive(config)) as record:
        train(config, record, None)
    (plain,) = INSTANCES
    INSTANCES.clear()
    return plain


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, default="cpu")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--compile", action="store_true")
    arguments = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {arguments.steps} steps in turn")
    case = CASES[arguments.case]
    with tempfile.TemporaryDirectory() as folder:
        timed = measure(case, arguments.steps, arguments.compile, Path(folder))
    ours, plain = np.array(timed.ours[WARM_UP:]), np.array(timed.plain[WARM_UP : len(timed.ours)])
    low, ratio, high = np.percentile(ours / plain, [25, 50, 75])
    tokens = case.batch * case.block / np.median(ours)
    print(f"{arguments.case}: {case}")
    medians = [f"{1e3 * np.median(times):.1f} ms" for times in (ours, plain)]
    print(f"ours {medians[0]}, plain {medians[1]} a step, {tokens:.0f} tokens a second")
    print(f"ratio {ratio:.3f} [{low:.3f}, {high:.3f}] <= {BOUND} {'met' if ratio <= BOUND else 'MISSED'}")


if __name__ == "__main__":
    main()
