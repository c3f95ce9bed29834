"""Cost of recording every per-sample loss: our full-batch step against a bare PyTorch loop that records nothing.

Both run in one process, alternating step by step, from the same weights, with the same chunks, layout and dtype. Ours
is the whole step of `opposing-signals`: Lightning, the record on disk, the progress bar. Times vary on a shared
machine, so look at the ratio.

    python benchmarks/step_overhead.py [--steps 30]
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.errors import InstantiationException
from torch.nn import functional as F

from opposing_signals.choices import composed
from opposing_signals.configuration import decisive
from opposing_signals.curvature.risk import EmpiricalRisk
from opposing_signals.errors import InputError
from opposing_signals.instruments.instrument import Instrument
from opposing_signals.record import Record
from opposing_signals.training.job import train
from opposing_signals.training.module import TrainingModule

WARM_UP = 3
CASES = {
    "MLP 3072-200-200-10, 5,000 images": ("mlp", {"hidden": [200, 200]}, 5000, 1000),
    "ResNet-18 of width 16, 1,000 images": ("resnet18", {"width": 16}, 1000, 250),
}


class BareLoop(Instrument):
    """Before each of our steps, takes and times a step of its own on a copy of the network."""

    def __init__(self, risk: EmpiricalRisk, record: Record, lr: float) -> None:
        super().__init__(risk, record)
        self.model = copy.deepcopy(risk.model)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=lr)
        self.bare: list[float] = []
        self.ours: list[float] = []
        self.losses: list[float] = []
        self._ended: float | None = None
        INSTANCES.append(self)

    def before_step(self, module: TrainingModule, step: int) -> None:
        started = time.perf_counter()
        if self._ended is not None:
            self.ours.append(started - self._ended)
            self.losses.append(module.loss)
        self.optimizer.zero_grad(set_to_none=True)
        for inputs, targets in zip(
            self.risk.inputs.split(self.risk.chunk), self.risk.targets.split(self.risk.chunk), strict=True
        ):
            loss = F.cross_entropy(self.model(inputs), targets, reduction="sum") / len(self.risk)
            loss.backward()
        self.optimizer.step()
        self._ended = time.perf_counter()
        self.bare.append(self._ended - started)


INSTANCES: list[BareLoop] = []


def measure(case: tuple[str, dict[str, Any], int, int], data: str, steps: int, folder: Path) -> BareLoop:
    """Train ``steps`` steps with all per-sample losses recorded and the bare loop in between."""
    model, fields, images, chunk = case
    overrides = [f"data={data}", f"data.images={images}", f"risk.chunk={chunk}", f"steps={steps + WARM_UP}"]
    config = composed("experiment=fig01_group_losses", "scale=smoke", "logger=none", f"model={model}", *overrides)
    config.model = {**config.model, **fields}
    config.instruments = {
        "bare": {"_target_": "__main__.BareLoop", "lr": config.optimizer.lr},
        **{name: config.instruments[name] for name in ("sample_losses", "train_loss")},
    }
    with Record.writing(folder, decisive(config)) as record:
        train(config, record, None)
    (bare,) = INSTANCES
    INSTANCES.clear()
    assert len(Record(folder)["sample_loss"]) == steps + WARM_UP
    return bare


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30)
    steps = parser.parse_args().steps
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {steps} steps in turn; median [quartiles]")
    for name, case in CASES.items():
        for data in ("cifar10", "planted"):
            try:
                with tempfile.TemporaryDirectory() as folder:
                    timed = measure(case, data, steps, Path(folder))
                break
            except InstantiationException as error:
                if not isinstance(error.__cause__, InputError):
                    raise
                print(f"without real images: {error.__cause__}")
        ours, bare = np.array(timed.ours[WARM_UP:]), np.array(timed.bare[WARM_UP : len(timed.ours)])
        low, ratio, high = np.percentile(ours / bare, [25, 50, 75])
        print(
            f"{name} ({data}): ours {1e3 * np.median(ours):.1f} ms, bare {1e3 * np.median(bare):.1f} ms a step, "
            f"ratio {ratio:.3f} [{low:.3f}, {high:.3f}], ratio of medians {np.median(ours) / np.median(bare):.3f}, "
            f"final loss {timed.losses[-1]:.6f}"
        )


if __name__ == "__main__":
    main()
