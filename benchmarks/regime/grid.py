"""The grid: which runs show the regime, how they are trained, and which finished runs are points of it."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, Self

from omegaconf import DictConfig

from opposing_signals.choices import composed
from opposing_signals.configuration import run_folder
from opposing_signals.files import write_json
from opposing_signals.record import Record

WITH_BATCH_NORM = ("vgg11bn", "resnet18")

SECONDS = {"mlp": 5e-5, "vgg11": 7e-4, "vgg11bn": 8e-4, "resnet18": 1.5e-3, "vit": 1e-3}
"""Approximate CPU seconds of a gradient, per image at width 16 (ViT: 32), for planning."""


@dataclass(frozen=True)
class Point:
    """One run.

    Attributes:
        network: Name in ``conf/model``.
        width: Its first layer's channels, or the MLP's hidden units.
        images: N.
        chunk: Images over which batch norm takes its statistics; without batch norm it affects only the speed.
        eta: Step size η.
        steps: Steps of gradient descent.
        seed: Seed of the initial weights.
    """

    network: str
    width: int
    images: int
    chunk: int
    eta: float
    steps: int
    seed: int = 1

    @classmethod
    def of(cls, configuration: Mapping[str, Any]) -> Self | None:
        """The point that a record's configuration describes; None if the run is not gradient descent on CIFAR-10."""
        model, optimizer = configuration.get("model", {}), configuration.get("optimizer", {})
        instruments = configuration.get("instruments", {})
        if (
            configuration.get("data", {}).get("_target_") != "opposing_signals.data.cifar10"
            or configuration.get("batch") is not None
            or optimizer.get("_target_") != "torch.optim.SGD"
            or optimizer.get("momentum")
            or not {"sample_losses", "predictions", "sharpness"} <= instruments.keys()
        ):
            return None
        images = configuration["data"]["images"]
        name = model["_target_"].rpartition(".")[2]
        return cls(
            network="vgg11bn" if name == "vgg11" and model["batch_norm"] else name,
            width=model["hidden"][0] if name == "mlp" else model["width"],
            images=images,
            chunk=min(configuration["risk"]["chunk"], images),
            eta=optimizer["lr"],
            steps=configuration["steps"],
            seed=configuration["seed"],
        )

    @property
    def has_batch_norm(self) -> bool:
        """Whether the network has batch norm, with which curvature is expensive."""
        return self.network in WITH_BATCH_NORM

    @property
    def overrides(self) -> list[str]:
        """The point as fields of the configuration."""
        sizes = {
            "mlp": [f"model.hidden=[{self.width},{self.width}]"],
            "vit": [f"model.width={self.width}", "model.depth=4", "model.heads=2"],
        }
        tolerance, products = (0.1, 4) if self.has_batch_norm else (0.05, 6)
        return [
            "experiment=fig01_group_losses",  # any experiment: its claims are not checked
            "conclude=false",
            "run=regime_gd",
            f"model={self.network}",
            *sizes.get(self.network, [f"model.width={self.width}"]),
            f"data.images={self.images}",
            f"risk.chunk={self.chunk}",
            f"risk.channels_last={str(self.network not in ('mlp', 'vit')).lower()}",
            f"optimizer.lr={self.eta}",
            f"instruments.sharpness.tolerance={tolerance}",
            f"instruments.sharpness.max_products={products}",
            f"steps={self.steps}",
            f"seed={self.seed}",
        ]

    @property
    def expected_seconds(self) -> float:
        """CPU time, λ included."""
        wider = self.width / (200 if self.network == "mlp" else 32 if self.network == "vit" else 16)
        return 1.4 * self.steps * self.images * SECONDS[self.network] * wider**1.5


def is_ghost(row: Mapping[str, Any]) -> bool:
    """Whether batch norm takes its statistics over fewer than all images; ``row`` has the fields of a `Point`."""
    return row["network"] in WITH_BATCH_NORM and row["chunk"] < row["images"]


def grid() -> list[Point]:
    """All points, the most informative first; those at the end take a night, and the last ones several."""
    return [
        *(Point("mlp", 200, 1000, 1000, eta, 300) for eta in (0.1, 0.3)),
        Point("vgg11", 16, 1000, 250, 0.1, 240),
        *(Point("resnet18", 8, 1000, chunk, 0.1, 60) for chunk in (1000, 250)),
        *(Point("resnet18", 8, 1000, 1000, eta, 60) for eta in (0.3, 0.03)),
        Point("mlp", 200, 1000, 1000, 0.03, 900),
        Point("vgg11bn", 8, 1000, 1000, 0.1, 60),
        Point("mlp", 200, 5000, 2500, 0.1, 150),
        *(Point("vgg11bn", 8, 1000, 1000, eta, 60) for eta in (0.03, 0.3)),
        Point("vgg11bn", 8, 1000, 250, 0.1, 60),
        Point("vit", 32, 1000, 250, 0.1, 100),
        *(Point("vgg11bn", width, 1000, 1000, 0.1, 60) for width in (16, 32)),
        *(Point("vgg11bn", 8, images, images, 0.1, 60) for images in (2500, 5000)),
        Point("resnet18", 8, 2500, 2500, 0.1, 60),
        *(Point("resnet18", 16, 1000, chunk, 0.1, 60) for chunk in (1000, 250)),
        Point("vgg11", 16, 1000, 250, 0.03, 360),
        *(Point("resnet18", 8, 1000, 250, eta, 60) for eta in (0.3, 0.03)),
        Point("vit", 32, 1000, 250, 0.03, 200),
        Point("mlp", 200, 20000, 2500, 0.1, 150),
        *(Point("resnet18", 16, 1000, 1000, eta, 60) for eta in (0.3, 0.03)),
        Point("vgg11", 16, 2500, 250, 0.1, 240),
        Point("resnet18", 8, 5000, 5000, 0.1, 60),
        Point("resnet18", 32, 1000, 1000, 0.1, 60),
        *(Point("mlp", 200, 5000, 2500, eta, steps) for eta, steps in ((0.3, 150), (0.03, 900))),
        Point("vgg11", 16, 1000, 250, 0.3, 120),
        Point("vit", 32, 1000, 250, 0.3, 120),
        *(Point("mlp", 200, images, min(images, 2500), 0.01, 2000) for images in (1000, 5000)),
        Point("resnet18", 8, 1000, 1000, 0.01, 300),
        *(Point("vgg11", 16, 1000, 250, 0.1, 240, seed) for seed in (2, 3)),
        *(Point("resnet18", 16, 1000, 1000, 0.1, 60, seed) for seed in (2, 3)),
        Point("vgg11bn", 8, 1000, 1000, 0.03, 240),
        *(Point(network, 8, 1000, 50, 0.1, 60) for network in ("vgg11bn", "resnet18")),
        Point("resnet18", 16, 2500, 2500, 0.1, 120),
        Point("vgg11bn", 16, 2500, 2500, 0.1, 120),
        *(Point("resnet18", 16, 5000, chunk, 0.1, 120) for chunk in (5000, 500)),
        Point("vgg11", 16, 5000, 250, 0.1, 300),
        Point("vit", 32, 5000, 250, 0.1, 200),
        Point("vgg11bn", 16, 5000, 5000, 0.1, 120),
        Point("resnet18", 32, 2500, 2500, 0.1, 120),
        Point("mlp", 200, 50000, 2500, 0.1, 300),
        Point("vgg11", 16, 10000, 250, 0.1, 400),
        Point("resnet18", 16, 10000, 2500, 0.1, 200),
        Point("vgg11", 16, 50000, 250, 0.1, 300),
        Point("resnet18", 16, 50000, 2500, 0.1, 200),
    ]


def configuration(point: Point, folder: Path) -> DictConfig:
    """The configuration that the command line composes for ``point``."""
    return composed(*point.overrides, "logger=none", f"output_dir={folder}")


def train(points: list[Point], folder: Path) -> None:
    """Train what is missing, each run in its own process; its CPU time is added to the run's ``cpu_seconds.json``."""
    for number, point in enumerate(points, 1):
        place = run_folder(configuration(point, folder))
        if _is_done(place):
            continue
        command = [sys.executable, "-m", "opposing_signals", *point.overrides, "logger=none", "threads=1"]
        print(f"{number}/{len(points)} {point}: about {point.expected_seconds:.0f} s", flush=True)
        before = _cpu_seconds()
        subprocess.run(
            [*command, f"output_dir={folder}"], env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL
        )
        spent = _cpu_seconds() - before
        if place.is_dir():
            cost = place / "cpu_seconds.json"
            earlier = json.loads(cost.read_text()) if cost.is_file() else 0.0
            write_json(cost, round(earlier + spent, 1))
        print(f"    {spent:.0f} s of CPU: {Record(place).state}", flush=True)


def _is_done(place: Path) -> bool:
    """Whether the run is complete, or was stopped because its loss is not finite."""
    return (place / "configuration.json").is_file() and Record(place).state != "running"


def finished(folders: Iterable[Path]) -> dict[Point, Record]:
    """The runs under ``folders`` that have ended and are points; the first of equal ones."""
    found: dict[Point, Record] = {}
    for place in sorted(path.parent for folder in folders for path in folder.glob("runs/*/configuration.json")):
        if _is_done(place) and (point := Point.of((record := Record(place)).configuration)) is not None:
            found.setdefault(point, record)
    return dict(sorted(found.items(), key=lambda item: astuple(item[0])))


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
