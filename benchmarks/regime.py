"""The regime, measured: what oscillates under gradient descent, by network, images, batch norm's chunk and step size.

    python benchmarks/regime.py --list                          # the grid, what is trained, and the expected cost
    python benchmarks/regime.py --train --folder outputs/regime # goes on where it stopped; the most telling points first
    python benchmarks/regime.py --measure --folder outputs/regime --results results/regime
    python benchmarks/regime.py --draw --results results/regime

A point of the grid is one run of `run=regime_gd`, made by the command line in a process of its own, on one core. A
complete run is kept, a half-done one goes on from its checkpoint. ``--measure`` reads the records and writes
``regime.json``, one row a run; ``--draw`` needs that file alone. See docs/regime.md.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shlex
import subprocess
import sys
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from opposing_signals.configuration import configuration_folder, run_folder
from opposing_signals.record import Record, write_json

SECONDS = {"mlp": 3e-5, "vgg11": 2.5e-4, "vgg11bn": 3.5e-4, "resnet18": 8e-4, "vit": 4e-4}
"""CPU seconds of a gradient, for an image and a network of width 16 (ViT: 32), roughly; what the list is planned by."""


@dataclass(frozen=True)
class Point:
    """One run of the grid.

    Attributes:
        network: Name in ``conf/model``.
        width: Its first layer's channels, or the MLP's hidden units.
        images: N.
        chunk: Images over which batch norm takes its statistics; of networks without it only the speed depends on it.
        eta: Step size η.
        steps: Of gradient descent.
        seed: Of the initial weights.
    """

    network: str
    width: int
    images: int
    chunk: int
    eta: float
    steps: int
    seed: int = 1

    @property
    def overrides(self) -> list[str]:
        """The point as fields of the configuration."""
        size = {"mlp": f"model.hidden=[{self.width},{self.width}]", "vit": "model.depth=4"}
        return [
            "experiment=fig01_group_losses",  # any experiment: nothing is concluded
            "conclude=false",
            "run=regime_gd",
            f"model={self.network}",
            *([size[self.network]] if self.network in size else []),
            *([f"model.width={self.width}"] if self.network != "mlp" else []),
            *(["model.heads=2"] if self.network == "vit" else []),
            f"data.images={self.images}",
            f"risk.chunk={self.chunk}",
            f"risk.channels_last={str(self.network not in ('mlp', 'vit')).lower()}",
            f"optimizer.lr={self.eta}",
            f"steps={self.steps}",
            f"seed={self.seed}",
        ]

    @property
    def expected_seconds(self) -> float:
        """CPU time, λ included."""
        wider = self.width / (200 if self.network == "mlp" else 32 if self.network == "vit" else 16)
        return 1.4 * self.steps * self.images * SECONDS[self.network] * wider**1.5


def grid() -> list[Point]:
    """All points, the most telling first."""
    etas = (0.1, 0.03, 0.3)
    first = [
        *(Point("mlp", 200, 1000, 1000, eta, 300) for eta in etas),
        Point("vgg11", 16, 1000, 250, 0.1, 240),
        *(Point("resnet18", 16, 1000, chunk, 0.1, 90) for chunk in (1000, 250)),
        Point("vgg11", 16, 1000, 250, 0.03, 300),
        *(Point("resnet18", 16, 1000, 1000, eta, 90) for eta in (0.03, 0.3)),
        *(Point("vgg11bn", 16, 1000, chunk, 0.1, 90) for chunk in (1000, 250)),
        Point("vit", 32, 1000, 250, 0.1, 150),
        *(Point("mlp", 200, 5000, 2500, eta, 300) for eta in etas),
        Point("vgg11bn", 16, 1000, 1000, 0.03, 90),
        Point("vit", 32, 1000, 250, 0.03, 200),
        Point("resnet18", 16, 2500, 2500, 0.1, 90),
        Point("vgg11", 16, 2500, 250, 0.1, 240),
        *(Point("resnet18", width, 1000, 1000, 0.1, 90) for width in (8, 32)),
        Point("mlp", 200, 20000, 2500, 0.1, 200),
        Point("vgg11bn", 16, 1000, 1000, 0.3, 90),
        *(Point("resnet18", 16, 1000, 250, eta, 90) for eta in (0.03, 0.3)),
    ]
    later = [
        Point("mlp", 200, 5000, 2500, 0.01, 600),
        Point("mlp", 200, 1000, 1000, 0.01, 600),
        Point("vgg11", 16, 1000, 250, 0.01, 400),
        Point("vit", 32, 1000, 250, 0.01, 400),
        Point("resnet18", 16, 1000, 1000, 0.01, 200),
        *(Point("resnet18", 16, 5000, chunk, 0.1, 120) for chunk in (5000, 500)),
        Point("vit", 32, 5000, 250, 0.1, 200),
        Point("vgg11", 16, 5000, 250, 0.1, 300),
        Point("vgg11bn", 16, 2500, 2500, 0.1, 120),
        Point("vgg11bn", 16, 5000, 5000, 0.1, 120),
        Point("resnet18", 32, 2500, 2500, 0.1, 120),
        *(
            Point(network, 16, 1000, chunk, 0.1, steps, seed)
            for (network, chunk, steps), seed in product(
                (("vgg11", 250, 240), ("vgg11bn", 1000, 90), ("resnet18", 1000, 90)), (2, 3)
            )
        ),
        Point("resnet18", 16, 10000, 2500, 0.1, 200),
        Point("vgg11", 16, 10000, 250, 0.1, 400),
        Point("mlp", 200, 50000, 2500, 0.1, 300),
        Point("vgg11", 16, 50000, 250, 0.1, 300),
        Point("resnet18", 16, 50000, 2500, 0.1, 200),
    ]
    return first + later


def configuration(point: Point, folder: Path) -> DictConfig:
    """What the command line composes of ``point``."""
    with initialize_config_dir(str(configuration_folder()), version_base="1.3"):
        return compose("config", [*point.overrides, "logger=none", f"output_dir={folder}"])


def train(points: list[Point], folder: Path) -> None:
    """Train what is missing, each in its own process, whose CPU time is added to ``cpu_seconds.json`` of the run."""
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


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--folder", type=Path, default=Path("outputs/regime"))
    arguments = parser.parse_args()
    points = grid()
    if arguments.list:
        for point in points:
            print(f"{point.expected_seconds:7.0f} s  {shlex.join(point.overrides)}")
    if arguments.train:
        train(points, arguments.folder.absolute())


if __name__ == "__main__":
    main()
