"""The regime, measured: what oscillates under gradient descent, by network, images, batch norm's chunk and step size.

    python benchmarks/regime.py --list                             # the grid, and what each point is expected to cost
    python benchmarks/regime.py --train --folder outputs/regime    # goes on where it stopped, the most telling first
    python benchmarks/regime.py --measure --folder outputs/regime --results results/regime
    python benchmarks/regime.py --eigenvectors --folder outputs/regime --results results/regime
    python benchmarks/regime.py --draw --results results/regime

A point of the grid is one run of `run=regime_gd`, made by the command line in a process of its own, on one core. A
complete run is kept, a half-done one goes on from its checkpoint. ``--measure`` reads the records and writes
``regime.json``, one row a run; ``--eigenvectors`` adds what the Hessian's leading eigenvectors mean to classes, in
``eigenvectors.json``; ``--draw`` needs ``regime.json`` alone. See docs/regime.md.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from omegaconf import DictConfig

from opposing_signals.choices import composed
from opposing_signals.configuration import run_folder
from opposing_signals.curvature import EigenTracker
from opposing_signals.curvature.risk import flatten
from opposing_signals.data import Dataset
from opposing_signals.files import write_json
from opposing_signals.record import Record, Series
from opposing_signals.signals import (
    OpposingPair,
    Trajectory,
    alternating_share,
    class_r2,
    class_r2_by_chance,
    directions,
    fallers,
    modal_share,
    modal_share_by_chance,
    risers,
)
from opposing_signals.studies import style
from opposing_signals.studies.curvature.metrics import gap_changes
from opposing_signals.studies.groups.claims import group_amplitude_ratio, spike_concentration
from opposing_signals.training.job import training_module

FEWEST_STEPS = 10
"""A number over fewer steps than this is not given."""

PARTS = 4
"""Parts of equal length into which the steps from break-even on are cut, to show how the numbers change."""

WITH_BATCH_NORM = ("vgg11bn", "resnet18")

SECONDS = {"mlp": 5e-5, "vgg11": 7e-4, "vgg11bn": 8e-4, "resnet18": 1.5e-3, "vit": 1e-3}
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
    def has_batch_norm(self) -> bool:
        """Whether the network has batch norm, behind which curvature is dear."""
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
            "experiment=fig01_group_losses",  # any experiment: nothing is concluded
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


def grid() -> list[Point]:
    """All points, the most telling first; those behind are a night's work, and the last ones several."""
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
    """What the command line composes of ``point``."""
    return composed(*point.overrides, "logger=none", f"output_dir={folder}")


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


# What a run shows ----------------------------------------------------------------------------------------------------


def measured(point: Point, record: Record) -> dict[str, Any]:
    """One row of the table. A number that the run cannot give is None.

    "Late" are the steps from break-even on, where λ was first seen at 2/η or above; all numbers of changes and pairs
    are of these steps. ``coherence`` is the share of the modal true class in the more uniform group of a pair, the
    median over the pairs.
    """
    trajectory = Trajectory(record)
    dataset = trajectory.dataset
    classes = dataset.targets.numpy()
    chunks = np.arange(point.images) // point.chunk
    changes = trajectory.changes
    late = trajectory.after_break_even(changes)
    ratios = np.asarray(trajectory.sharpness.values) * point.eta / 2
    late_ratios = trajectory.after_break_even(trajectory.sharpness).values * point.eta / 2
    loss = trajectory.mean_loss.values
    provenance = record.provenance
    cost = record.folder / "cpu_seconds.json"
    begin = len(changes) - len(late)
    trajectory.pairs = [pair for pair in trajectory.pairs if pair.change >= begin]  # those of the late steps count
    pairs = [_pair(trajectory, pair, chunks) for pair in trajectory.pairs]
    shares = [max(group["share"] for group in pair["groups"]) for pair in pairs]
    return {
        **asdict(point),
        "state": record.state,
        "parameters": provenance["parameters"],
        "cpu_seconds": json.loads(cost.read_text()) if cost.is_file() else None,
        "commit": provenance["commit"],
        "versions": provenance["versions"],
        "data": provenance["data"],
        "loss_first": _short(loss[0]),
        "loss_last": _short(loss[-1]),
        "accuracy_last": _short(record["train_accuracy"].values[-1]),
        "break_even": trajectory.break_even,
        "loss_at_break_even": None if trajectory.break_even is None else _short(loss[trajectory.break_even]),
        "sharpness_steps": [int(step) for step in trajectory.sharpness.steps],
        "sharpness_over_edge": [_short(ratio) for ratio in ratios],
        "sharpness_over_edge_late": _short(np.median(late_ratios)) if len(late_ratios) else None,
        "class_r2": _over(class_r2, late, classes),
        "class_r2_before": _over(class_r2, Series(changes.steps[:begin], changes.values[:begin]), classes),
        "parts": [_part(trajectory, part, classes) for part in np.array_split(late.steps, PARTS)],
        "class_r2_by_chance": _short(class_r2_by_chance(classes)),
        "directions": _over(directions, late),
        "share_rising": _short(np.mean(late.values.mean(1) > 0)) if len(late) >= FEWEST_STEPS else None,
        "largest_rise": _short(np.max(loss[1:] / loss[:-1])),
        "spike_concentration": _short(spike_concentration({"run": trajectory}).value),
        "amplitude": _short(group_amplitude_ratio({"run": trajectory}).value) if pairs else None,
        "correlation": _median([pair["correlation"] for pair in pairs]),
        "coherence": _median(shares),
        "coherence_smallest": min(shares, default=None),
        "alternating_share": _median([pair["alternating_share"] for pair in pairs]),
        "pairs": pairs,
        "widest": _widest(late, dataset),
    }


def _short(value: float) -> float | None:
    """Four significant digits, None for what is not finite."""
    return float(f"{value:.4g}") if math.isfinite(value) else None


def _median(values: list[float]) -> float | None:
    return _short(np.median(values)) if values else None


def _over(statistic: Callable[..., float], changes: Series, *others: np.ndarray) -> float | None:
    return _short(statistic(changes.values, *others)) if len(changes) >= FEWEST_STEPS else None


def _part(trajectory: Trajectory, steps: np.ndarray, classes: np.ndarray) -> dict[str, Any]:
    """Some of the late steps: what classes explain, and at which loss."""
    changes, mean_loss = trajectory.changes, trajectory.mean_loss
    part = Series(steps, changes.values[np.isin(changes.steps, steps)])
    losses = mean_loss.values[np.isin(mean_loss.steps, steps)]
    return {
        "steps": [int(step) for step in steps[[0, -1]]] if len(steps) else [],
        "loss": _short(np.median(losses)) if len(steps) else None,
        "class_r2": _over(class_r2, part, classes),
        "directions": _over(directions, part),
    }


def _pair(trajectory: Trajectory, pair: OpposingPair, chunks: np.ndarray) -> dict[str, Any]:
    steps = np.asarray(trajectory.changes.steps)
    return {
        "step": int(steps[pair.change]),
        "window": [int(steps[pair.window[0]]), int(steps[pair.window[1] - 1])],
        "correlation": _short(pair.correlation),
        "gap": _short(pair.amplitude),
        "alternating_share": _short(alternating_share(gap_changes(trajectory, pair))),
        "groups": [_group(group, trajectory.dataset, chunks) for group in pair.groups],
    }


def _group(group: np.ndarray, dataset: Dataset, chunks: np.ndarray) -> dict[str, Any]:
    classes = dataset.targets.numpy()
    return {
        "size": len(group),
        "classes": _counts(dataset, group),
        "share": _short(modal_share(classes[group])),
        "share_by_chance": _short(modal_share_by_chance(classes, len(group))),
        "chunk_share": _short(modal_share(chunks[group])),
        "chunk_share_by_chance": _short(modal_share_by_chance(chunks, len(group))),
    }


def _counts(dataset: Dataset, points: np.ndarray) -> dict[str, int]:
    """Class name ↦ how many of the points have it, the most frequent first."""
    names = [dataset.class_names[name] for name in dataset.targets[points].tolist()]
    return dict(Counter(names).most_common())


def _widest(changes: Series, dataset: Dataset) -> dict[str, Any] | None:
    """Classes of the 20 points that rise and the 20 that fall most, where the two are furthest apart."""
    if not len(changes):
        return None
    gaps = [row[risers(row)].mean() - row[fallers(row)].mean() for row in changes.values]
    best, step = changes.values[np.argmax(gaps)], int(changes.steps[np.argmax(gaps)])
    return {"step": step, "rising": _counts(dataset, risers(best)), "falling": _counts(dataset, fallers(best))}


def measure(points: list[Point], folder: Path, results: Path) -> list[dict[str, Any]]:
    """Rows of all runs that have ended, written to ``regime.json``."""
    rows = []
    for point in points:
        place = run_folder(configuration(point, folder))
        if _is_done(place):
            rows.append(measured(point, Record(place)))
    write_json(results / "regime.json", rows)
    return rows


# What the eigenvectors of the Hessian mean to classes ---------------------------------------------------------------


def eigenvectors(point: Point, folder: Path, count: int, max_products: int) -> dict[str, Any]:
    """Leading eigenvectors v_k of the Hessian at a run's last θ, and what classes explain of the slopes ∇ℓ_i·v_k.

    The points whose slopes along v_k have opposite signs are those that an oscillation along v_k sets against each
    other.
    """
    config = configuration(point, folder)
    record = Record(run_folder(config))
    dataset = Trajectory(record).dataset
    risk = training_module(config, dataset).risk
    checkpoint = torch.load(record.checkpoint, map_location="cpu", weights_only=True)
    weights = {name.removeprefix("model."): value for name, value in checkpoint["state_dict"].items()}
    risk.model.load_state_dict({name: weights[name] for name in risk.model.state_dict()})
    solve = EigenTracker(count, "largest", tolerance=0.05, max_products=max_products)
    with torch.no_grad():
        like = flatten([parameter.detach() for parameter in risk.parameters])
    pairs = solve(lambda vectors: risk.hessian_products(vectors).products, like)
    slopes = risk.hessian_products(pairs.vectors).slopes.cpu().numpy()
    classes = dataset.targets.numpy()
    return {
        **asdict(point),
        "step": int(checkpoint["global_step"]),
        "loss": _short(float(record["train_loss"].values[-1])),
        "eigenvectors": [
            {
                "eigenvalue": _short(float(value)),
                "residual": _short(float(residual)),
                "class_r2": _short(class_r2(slope[None], classes)),
                "rising": _counts(dataset, risers(slope)),
                "falling": _counts(dataset, fallers(slope)),
            }
            for value, residual, slope in zip(pairs.values, pairs.residuals, slopes, strict=True)
        ],
    }


def note_eigenvectors(points: list[Point], folder: Path, results: Path) -> None:
    """`eigenvectors` of the complete runs of 1,000 images, those that ``eigenvectors.json`` does not have yet."""
    path = results / "eigenvectors.json"
    rows = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    for point in points:
        fields = asdict(point)
        is_there = any({name: row[name] for name in fields} == fields for row in rows)
        if point.images > 1000 or point.seed > 1 or _is_ghost(fields) or is_there:
            continue
        if _is_done(run_folder(configuration(point, folder))):
            rows.append(eigenvectors(point, folder, count=6, max_products=36))
            write_json(path, rows)


def _eigenvector(vector: Mapping[str, Any], eta: float) -> str:
    value = vector["eigenvalue"]
    doubt = "~" if vector["residual"] > value / 5 else ""
    return f"{doubt}{_cell(value * eta / 2)}: {_cell(vector['class_r2'])}"


def eigenvector_table(rows: list[dict[str, Any]]) -> str:
    """The rows of ``eigenvectors.json`` as a table of Markdown, λ over 2/η; ~ where the residual is above λ/5."""
    head = "| network | η | step, loss | λ_k/(2/η): class R² of the slopes along v_k |"
    lines = [
        f"| {NETWORKS[row['network']].format(row['width'])} | {row['eta']:g} | {row['step']}, {_cell(row['loss'])} | "
        + ", ".join(_eigenvector(vector, row["eta"]) for vector in row["eigenvectors"])
        + " |"
        for row in rows
    ]
    return "\n".join([head, "|---|---|---|---|", *lines])


HEAD = (
    "| network | N, chunk | η | loss, accuracy at step | break-even | λ/(2/η) | class R² | coherence | corr | "
    "amplitude | alternates | in one chunk | 20 up / 20 down | CPU s |"
)


def as_table(rows: list[dict[str, Any]]) -> str:
    """The rows as a table of Markdown."""
    return "\n".join([HEAD, "|" + "---|" * (HEAD.count("|") - 1), *(_line(row) for row in rows)])


def _line(row: Mapping[str, Any]) -> str:
    cells = [
        NETWORKS[row["network"]].format(row["width"]) + (f", seed {row['seed']}" if row["seed"] > 1 else ""),
        f"{row['images']:,}, {row['chunk']:,}" if row["network"] in WITH_BATCH_NORM else f"{row['images']:,}",
        f"{row['eta']:g}",
        f"{_cell(row['loss_last'])}, {_cell(row['accuracy_last'])} at {row['steps'] - 1}",
        _cell(row["break_even"]),
        _cell(row["sharpness_over_edge_late"]),
        _cell(row["class_r2"]),
        _cell(row["coherence"]) + ("" if row["coherence"] is None else f" ({_cell(row['coherence_smallest'])})"),
        _cell(row["correlation"]),
        _cell(row["amplitude"]),
        _cell(row["alternating_share"]),
        _in_one_chunk(row) if _is_ghost(row) else "",
        _extremes(row["widest"]),
        _cell(row["cpu_seconds"]),
    ]
    return "| " + " | ".join(cells) + " |"


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}" if isinstance(value, float) and abs(value) < 10 else f"{value:.0f}"


def _in_one_chunk(row: Mapping[str, Any]) -> str:
    """Largest share of a group's members that batch norm normalizes together, beside chance; medians over groups."""
    groups = [group for pair in row["pairs"] for group in pair["groups"]]
    if not groups:
        return ""
    return " / ".join(
        _cell(_median([group[name] for group in groups])) for name in ("chunk_share", "chunk_share_by_chance")
    )


def _extremes(widest: Mapping[str, Any] | None) -> str:
    if widest is None:
        return ""
    first = [next(iter(widest[side].items())) for side in ("rising", "falling")]
    return " / ".join(f"{count} {name}" for name, count in first)


# Panels ------------------------------------------------------------------------------------------------------------

LOOK: dict[str, dict[str, Any]] = {
    "resnet18": {"color": style.RUNS[0], "marker": "o", "linestyle": "-"},
    "vgg11": {"color": style.RUNS[1], "marker": "s", "linestyle": "--"},
    "vgg11bn": {"color": style.RUNS[2], "marker": "D", "linestyle": "-."},
    "mlp": {"color": style.RUNS[3], "marker": "^", "linestyle": ":"},
    "vit": {"color": style.RUNS[4], "marker": "v", "linestyle": (0, (5, 1))},
}
"""Colour, marker and line of a network; narrow networks have hollow markers."""


def draw(rows: list[dict[str, Any]]) -> Figure:
    """What oscillates, against η, N and the stage of training, and what batch norm's chunk does to λ."""
    title = "Gradient descent on CIFAR-10: what oscillates, by step size, images and batch norm's chunk"
    figure = style.figure(12, 7.4, title)
    by_eta, coherence, many, by_images, by_loss, by_chunk = figure.subplots(2, 3).ravel()
    whole = [row for row in rows if row["seed"] == 1 and not _is_ghost(row)]
    of_thousand = [row for row in whole if row["images"] == 1000 and row["eta"] in ETAS]
    _draw_lines(by_eta, of_thousand, "eta", "class_r2")
    _draw_lines(coherence, of_thousand, "eta", "coherence")
    _draw_lines(many, of_thousand, "eta", "directions")
    _draw_lines(by_images, [row for row in whole if row["eta"] == 0.1], "images", "class_r2")
    for axes in (by_eta, coherence, many):
        axes.set(xlabel="step size η", xscale="log", xlim=(0.02, 0.4), xticks=ETAS, xticklabels=ETAS)
        axes.minorticks_off()
    by_eta.set(title="Class R² of the changes, N = 1,000", ylabel="class R²", ylim=(0, 1.03))
    by_eta.axhline(9 / 999, **CHANCE)
    coherence.set(title="Modal class in a pair's purer group, N = 1,000", ylabel="share", ylim=(0, 1.03))
    coherence.axhline(0.22, **CHANCE)
    many.set(title="Directions of the changes, N = 1,000", ylabel="participation ratio")
    many.set_ylim(0, None)
    by_images.set(title="Class R² of the changes, η = 0.1", xlabel="images N", xscale="log", ylabel="class R²")
    by_images.set(xlim=(700, 70_000), ylim=(0, 1.03))
    _draw_stages(by_loss, of_thousand)
    _draw_chunks(by_chunk, rows)
    handles, names = by_eta.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=max(1, len(names)))
    return figure


ETAS = (0.03, 0.1, 0.3)
CHANCE: dict[str, Any] = {"color": style.MUTED, "linewidth": 0.8, "linestyle": (0, (1, 3))}


def _is_ghost(row: Mapping[str, Any]) -> bool:
    """Whether batch norm takes its statistics over less than all images."""
    return row["network"] in WITH_BATCH_NORM and row["chunk"] < row["images"]


def _draw_lines(axes: Axes, rows: list[dict[str, Any]], by: str, quantity: str) -> None:
    for network, width in sorted({(row["network"], row["width"]) for row in rows}):
        ours = [row for row in rows if (row["network"], row["width"]) == (network, width) and row[quantity] is not None]
        points = sorted((row[by], row[quantity]) for row in ours)
        if points:
            axes.plot(*zip(*points, strict=True), label=NETWORKS[network].format(width), **_look(network, width))


def _look(network: str, width: int) -> dict[str, Any]:
    filled = {} if width in (16, 32, 200) else {"markerfacecolor": "white"}
    return {**LOOK[network], **filled, "markersize": 5}


def _draw_stages(axes: Axes, rows: list[dict[str, Any]]) -> None:
    """Class R² of each quarter of the late steps, against the loss of that quarter, a line for each η."""
    for row in rows:
        points = [(part["loss"], part["class_r2"]) for part in row["parts"] if part["class_r2"] is not None]
        if points:
            look = {**_look(row["network"], row["width"]), "markersize": 3 + 2 * ETAS.index(row["eta"])}
            axes.plot(*zip(*points, strict=True), **look)
    axes.set(title="Class R² along training; larger marks, larger η", xlabel="loss L", ylabel="class R²")
    axes.set(xscale="log", ylim=(0, 1.03))
    axes.invert_xaxis()


def _draw_chunks(axes: Axes, rows: list[dict[str, Any]]) -> None:
    """λ/(2/η) over steps with batch norm over all images, and over a part of them."""
    for row in rows:
        if row["network"] in WITH_BATCH_NORM and (row["images"], row["eta"], row["seed"]) == (1000, 0.1, 1):
            chunk = f"N/{row['images'] // row['chunk']}" if _is_ghost(row) else "N"
            look = {**_look(row["network"], row["width"]), "linestyle": ":" if _is_ghost(row) else "-"}
            label = f"{NETWORKS[row['network']].format(row['width'])}, chunk {chunk}"
            axes.plot(row["sharpness_steps"], row["sharpness_over_edge"], label=label, **look)
    axes.axhline(1, color=style.INK, linewidth=0.8)
    axes.set(title="Sharpness, N = 1,000, η = 0.1", xlabel="step", ylabel="λ / (2/η)", yscale="log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")
    if axes.lines[:-1]:
        axes.legend()


NETWORKS = {
    "mlp": "MLP 3072-{0}-{0}-10",
    "vgg11": "VGG-11 w{0}",
    "vgg11bn": "VGG-11-BN w{0}",
    "resnet18": "ResNet-18 w{0}",
    "vit": "ViT w{0}",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--eigenvectors", action="store_true")
    parser.add_argument("--draw", action="store_true")
    parser.add_argument("--results", type=Path, default=Path("results/regime"))
    parser.add_argument("--folder", type=Path, default=Path("outputs/regime"))
    arguments = parser.parse_args()
    points = grid()
    if arguments.list:
        for point in points:
            print(f"{point.expected_seconds:7.0f} s  {shlex.join(point.overrides)}")
    if arguments.train:
        train(points, arguments.folder.absolute())
    if arguments.measure:
        print(as_table(measure(points, arguments.folder.absolute(), arguments.results)))
    if arguments.eigenvectors:
        note_eigenvectors(points, arguments.folder.absolute(), arguments.results)
        print(eigenvector_table(json.loads((arguments.results / "eigenvectors.json").read_text(encoding="utf-8"))))
    if arguments.draw:
        rows = json.loads((arguments.results / "regime.json").read_text(encoding="utf-8"))
        draw(rows).savefig(arguments.results / "regime.png", dpi=90)


if __name__ == "__main__":
    main()
