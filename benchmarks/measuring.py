"""Shared by the curvature benchmarks: the networks and their runs, clocks, and tables."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import peers
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor, nn

from opposing_signals.choices import composed
from opposing_signals.curvature.risk import EmpiricalRisk, Precision
from opposing_signals.errors import InputError
from opposing_signals.training.job import training_module

LAYOUTS = {"": torch.contiguous_format, ", channels_last": torch.channels_last}
"""Suffix of a tool's name in a table ↦ memory layout."""


@dataclass
class Case:
    """A network, its images, and the run of gradient descent on which it is measured.

    Attributes:
        warm_up: Steps before the first measurement.
        settle: Steps that are measured but not counted, because trackers start cold.
        steps: Steps that count; they lead past break-even.
        references: Number of these at which λ is compared with a converged value.
        values: Number of these at which other tools compute λ.
        repetitions: Repetitions of what is timed by itself.
        bounds: Targets that differ between networks: cost of a run with λ at every step and with a stride of 5, time
            of a product over a gradient's, of others' products over ours, of all gradient norms over a gradient's.
    """

    title: str
    model: str
    fields: dict[str, Any]
    bounds: dict[str, float]
    images: int
    chunk: int
    channels_last: bool
    warm_up: int
    steps: int
    references: int
    values: int
    repetitions: int
    settle: int = 20
    lr: float = 0.05
    data: str = "cifar10"

    def configuration(self, steps: int) -> DictConfig:
        overrides = [f"data={self.data}", f"data.images={self.images}", f"risk.chunk={self.chunk}", f"steps={steps}"]
        overrides += [f"risk.channels_last={self.channels_last}", f"optimizer.lr={self.lr}"]
        overrides += [f"model={self.model}", "experiment=fig01_group_losses", "scale=smoke", "logger=none"]
        config = composed(*overrides)
        config.model = {**config.model, **self.fields}
        config.checkpoint_seconds = 1e9  # no checkpoint during timing
        return config

    def risk(self, checkpoint: Path) -> EmpiricalRisk:
        """The training risk at the checkpoint's θ, in training mode."""
        config = self.configuration(1)
        module = training_module(config, instantiate(config.data))
        module.load_state_dict(torch.load(checkpoint, weights_only=True)["state_dict"])
        module.risk.model.train()
        return module.risk

    @property
    def layouts(self) -> dict[str, torch.memory_format]:
        """The layouts in which other tools are tried; the faster one counts."""
        return LAYOUTS if self.channels_last else {"": torch.contiguous_format}

    def look_for_images(self) -> None:
        """Fall back to planted images if CIFAR-10 is not available."""
        try:
            instantiate(self.configuration(1).data)
        except InstantiationException as error:
            if not isinstance(error.__cause__, InputError):
                raise
            print(f"without real images: {error.__cause__}")
            self.data = "planted"


CASES = {
    "mlp": Case(
        title="MLP 3072-200-200-10",
        model="mlp",
        fields={"hidden": [200, 200]},
        bounds={"every step": 3.4, "stride": 1.6, "norms": 1.5},
        images=5000,
        chunk=1000,
        channels_last=False,
        lr=0.1,
        warm_up=1,
        steps=121,
        references=48,
        values=5,
        repetitions=15,
    ),
    "resnet18": Case(
        title="ResNet-18 of width 16",
        model="resnet18",
        fields={"width": 16},
        bounds={"every step": 6.0, "stride": 2.2, "product": 2.5, "others' product": 1.8},
        images=2000,
        chunk=250,
        channels_last=True,
        lr=0.006,
        warm_up=1,
        settle=10,
        steps=88,
        references=14,
        values=1,
        repetitions=5,
    ),
}


# -- the same product for everybody -----------------------------------------------------------------------------


def plain(risk: EmpiricalRisk, layout: torch.memory_format) -> tuple[nn.Module, peers.Chunks]:
    """Model and chunks in the form for other tools."""
    inputs = risk.inputs.contiguous(memory_format=layout)
    return peers.without_statistics(risk.model, layout), peers.Chunks(inputs, risk.targets, risk.chunk)


def products(case: Case, risk: EmpiricalRisk) -> dict[str, Callable[[Tensor], Tensor]]:
    """v ↦ ∇²L v by our code first, then by other tools in every layout."""
    found = {"ours: gradient and 1 product": lambda v: risk.hessian_products(v[None]).products[0]}
    for name, build in peers.PRODUCTS.items():
        found |= {name + suffix: build(*plain(risk, layout)) for suffix, layout in case.layouts.items()}
    return found


def fastest(tools: Mapping[str, Any], seconds: Mapping[str, np.ndarray]) -> dict[str, str]:
    """The suffix of the layout in which each of ``tools`` took the least time."""
    suffixes = {tool: [suffix for suffix in LAYOUTS if tool + suffix in seconds] for tool in tools}
    return {
        tool: min(of_tool, key=lambda suffix: np.median(seconds[tool + suffix])) for tool, of_tool in suffixes.items()
    }


def first(examples: int, case: Case, risk: EmpiricalRisk, precision: Precision = "float32") -> EmpiricalRisk:
    """The risk of the first examples as one chunk, with a copy of the model."""
    return EmpiricalRisk(
        copy.deepcopy(risk.model),
        risk.loss,
        risk.inputs[:examples],
        risk.targets[:examples],
        chunk=examples,
        precision=precision,
        channels_last=case.channels_last,
    )


def in_float64(case: Case, risk: EmpiricalRisk) -> EmpiricalRisk:
    """The first chunk in float64, where rounding errors do not matter."""
    return first(risk.chunk, case, risk, "float64")


# -- clocks -----------------------------------------------------------------------------------------------------


def interleaved(candidates: Mapping[str, Callable[[], Any]], repetitions: int) -> dict[str, np.ndarray]:
    """CPU seconds of each candidate, ``[repetitions]``, called in turn after one warm-up round."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(repetitions + 1):
        for name, candidate in candidates.items():
            started = time.process_time()
            candidate()
            seconds[name].append(time.process_time() - started)
    return {name: np.array(times[1:]) for name, times in seconds.items()}


# -- tables -----------------------------------------------------------------------------------------------------


def milliseconds(seconds: float | np.ndarray) -> str:
    """Milliseconds; the median of several times."""
    return f"{1e3 * np.median(seconds):.1f}"


def spread(ratios: np.ndarray) -> str:
    """Median and quartiles."""
    low, middle, high = np.percentile(ratios, [25, 50, 75])
    return f"{middle:.2f} [{low:.2f}, {high:.2f}]"


def target(value: float, relation: str, bound: float, of: str = "") -> str:
    met = {"<=": value <= bound, "<": value < bound, ">=": value >= bound}[relation]
    return f"{of} {value:.3g} {relation} {bound:.3g} {'met' if met else 'MISSED'}".strip()


def table(title: str, head: tuple[str, ...], rows: list[dict[str, str]]) -> None:
    """Print the rows by column; a column that a row lacks stays empty."""
    cells = [list(head), *([row.get(column, "") for column in head] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    print(f"\n{title}")
    for line in cells:
        print(
            "  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip(), flush=True
        )
