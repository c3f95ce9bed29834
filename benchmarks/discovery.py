"""Opposing pairs found in a record, compared with those that were planted; and the cost of finding them.

python benchmarks/discovery.py [--seeds 10 11 12] [--points 50000] [--steps 1000]

Two generators give data with known members: drawn images (`data=planted`, one feature at a time, and all together) for
a small MLP and a ResNet-18 with batch norm, and points of §3.3's model for its two-layer linear network. All are
trained by full-batch gradient descent, and the search sees only losses and gradient sketches. Baselines know the number
of members: random points, and the points of largest loss at the step that suits them best. They are assigned to the
two groups at random.

A planted feature need not become an opposing signal: a network that does not use it shows none. "contrast" is computed
from the true members: how far the weaker planted group stands out in the phase that shows the pair best. Below 3 there
is nothing to find, and the row does not count.

Targets: F1 of the dominant pair at least 0.8 and at least 0.3 above the better baseline, both in the mean over the
rows that count; 50,000 points x 1,000 steps in under 60 s and 4 GB on two cores, with linear cost.
"""

from __future__ import annotations

import argparse
import math
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from opposing_signals.curvature import gradient_sketch
from opposing_signals.curvature.risk import EmpiricalRisk
from opposing_signals.data import planted
from opposing_signals.losses import square_loss
from opposing_signals.models import mlp, resnet18
from opposing_signals.record import Record, Series
from opposing_signals.signals import (
    OpposingPair,
    Trajectory,
    agreement,
    find_pairs,
    find_pairs_by_gradients,
    match,
    match_pair,
)
from opposing_signals.signals.agreement import Groups
from opposing_signals.studies.theory.model import TwoLayerModel, sample_data

CLASSES = {"sky": ("plane", "bird"), "wheels": ("car", "truck"), "texture": ("frog", "cat")}
PREVALENCES = ((0.6, 0.15), (0.4, 0.4), (0.3, 0.1))
SKETCH_EVERY, DIMENSIONS = 10, 64

OUTSTANDING = 3.0
"""A planted group stands out if its median member moves this many times as much as the median point."""


@dataclass(frozen=True)
class Run:
    """A run and the pairs planted in its data."""

    name: str
    seed: int
    truth: list[Groups]
    losses: np.ndarray
    sketch_steps: np.ndarray
    sketches: np.ndarray

    @property
    def changes(self) -> np.ndarray:
        return np.diff(self.losses, axis=0)


@dataclass(frozen=True)
class Network:
    """A network that is trained on the drawn images.

    Attributes:
        build: Input shape and number of classes ↦ network.
        lr: Step size η, large enough to reach the edge of stability.
        steps: Number of steps, enough to fit most images.
    """

    name: str
    build: Callable[[tuple[int, ...], int], nn.Module]
    lr: float
    steps: int


MLP = Network("MLP", lambda shape, outputs: mlp(shape, outputs, (48, 48), "relu"), lr=0.03, steps=300)
RESNET = Network("ResNet", lambda shape, outputs: resnet18(shape, outputs, width=8), lr=0.05, steps=150)


def image_run(features: dict[str, tuple[float, float]], seed: int, network: Network = MLP) -> Run:
    prevalence = {}
    for feature, classes in CLASSES.items():
        for name, share in zip(classes, features.get(feature, (0.0, 0.0)), strict=True):
            prevalence[f"{feature}_in_{name}"] = share
    dataset = planted(480, seed=seed, **prevalence)
    torch.manual_seed(seed)
    model = network.build((3, 32, 32), 6)
    loss = nn.CrossEntropyLoss(reduction="none")
    truth = []
    for feature in features:
        labels = [dataset.class_names.index(name) for name in CLASSES[feature]]
        one, other = (np.flatnonzero(dataset.truth[feature] & (dataset.targets.numpy() == label)) for label in labels)
        truth.append((one, other))
    shares = [f"{feature} {one:g}/{other:g}" for feature, (one, other) in features.items()]
    name = f"{network.name}, {shares[0] if len(shares) == 1 else 'all three'}"
    risk = EmpiricalRisk(model, loss, dataset.inputs, dataset.targets, chunk=480)
    return trained(name, seed, truth, risk, network.lr, network.steps)


def model_run(share: float, seed: int) -> Run:
    """§3.3's model, with the step size of figure 38b: 1.2 times the largest that is stable at the end of the flow."""
    theory = TwoLayerModel(d1=30, d2=60, alpha=60.0, beta_norm=8.0, p=share, signal="ones")
    sample = sample_data(theory, 600, np.random.default_rng(seed))
    torch.manual_seed(seed)
    inputs = torch.tensor(np.hstack([sample.x, sample.x_o]), dtype=torch.float32)
    targets = torch.tensor(sample.y, dtype=torch.float32)[:, None]
    first, last = nn.Linear(90, 1, bias=False), nn.Linear(1, 1, bias=False)
    nn.init.normal_(first.weight, std=1 / math.sqrt(90))
    nn.init.ones_(last.weight)
    signs = np.sign(sample.x_o[:, 0])
    truth = [(np.flatnonzero(signs > 0), np.flatnonzero(signs < 0))]
    risk = EmpiricalRisk(nn.Sequential(first, last), square_loss, inputs, targets, chunk=600)
    return trained(f"§3.3, share {share:g}", seed, truth, risk, 0.005, 300)


def trained(name: str, seed: int, truth: list[Groups], risk: EmpiricalRisk, lr: float, steps: int) -> Run:
    optimizer = torch.optim.SGD(risk.parameters, lr)
    losses, sketches = [], []
    for step in range(steps):
        if step % SKETCH_EVERY == 0:
            sketches.append(gradient_sketch(risk, DIMENSIONS).numpy())
        optimizer.zero_grad()
        losses.append(risk.backward().losses.numpy().copy())
        optimizer.step()
    if not np.isfinite(losses[-1]).all():
        raise RuntimeError(f"{name}, seed {seed}: the losses are not finite")
    return Run(name, seed, truth, np.array(losses), np.arange(0, steps, SKETCH_EVERY), np.array(sketches))


def true_contrast(changes: np.ndarray, truth: Groups, window: int = 10) -> float:
    """Largest contrast of the planted groups over the windows in which they move against each other."""
    best = 0.0
    for first in range(0, len(changes) - window + 1, window // 2):
        part = changes[first : first + window]
        lengths = np.linalg.norm(part, axis=0)
        one, other = (part[:, group].mean(1) for group in truth)
        if one @ other < -0.5 * np.linalg.norm(one) * np.linalg.norm(other):
            best = max(best, min(float(np.median(lengths[group])) for group in truth) / float(np.median(lengths)))
    return best


def baselines(run: Run, draws: int = 50) -> tuple[float, float]:
    """Best F1, over the planted pairs, of equally many random points and of equally many points of largest loss."""
    generator = np.random.default_rng(run.seed)

    def split(points: np.ndarray, truth: Groups) -> float:
        """F1 of a random split into groups of the true sizes; mean over splits."""
        parts = [generator.permutation(points) for _ in range(draws)]
        return float(np.mean([match_pair((part[: len(truth[0])], part[len(truth[0]) :]), truth).f1 for part in parts]))

    random, largest = [], []
    for truth in run.truth:
        count = sum(map(len, truth))
        points = range(run.losses.shape[1])
        random.append(np.mean([split(generator.choice(points, count, replace=False), truth) for _ in range(draws)]))
        by_loss = [np.argsort(-row)[:count] for row in run.losses[:: max(1, len(run.losses) // 20)]]
        largest.append(max(split(chosen, truth) for chosen in by_loss))
    return float(max(random)), float(max(largest))


def runs(seeds: list[int]) -> Iterator[Run]:
    for seed in seeds:
        for feature in CLASSES:
            for shares in PREVALENCES:
                yield image_run({feature: shares}, seed)
        for network in (MLP, RESNET):
            yield image_run(dict.fromkeys(CLASSES, (0.4, 0.4)), seed, network)
        yield image_run({"sky": (0.4, 0.4)}, seed, RESNET)
        for share in (0.05, 0.1):
            yield model_run(share, seed)


HEAD = (
    f"  {'data':<24}{'seed':>4}{'contrast':>9} | {'members P':>9}{'R':>6}{'F1':>6} | {'pair P':>7}{'R':>6}{'F1':>6} |"
    f" {'pairs P':>8}{'R':>6} | {'random':>7}{'loss':>6} | {'gradients F1':>12}{'pairs R':>8}{'agreement':>10}"
)


def accuracy(seeds: list[int]) -> None:
    print(HEAD, flush=True)
    counted = []
    for run in runs(seeds):
        found = find_pairs(Series(np.arange(len(run.changes)), run.changes))
        by_gradients = find_pairs_by_gradients(Series(run.sketch_steps, run.sketches))
        contrast = max(true_contrast(run.changes, truth) for truth in run.truth)
        wanted = [truth for truth in run.truth if true_contrast(run.changes, truth) >= OUTSTANDING]
        random, largest = baselines(run)
        members, pair = dominant(found, run.truth)
        right = [max((match_pair(one.groups, truth).f1 for truth in run.truth), default=0) >= 0.5 for one in found]
        caught, caught_too = (
            [any(match_pair(one.groups, truth).f1 >= 0.5 for one in pairs) for truth in wanted]
            for pairs in (found, by_gradients)
        )
        agreed = agreement(found[:1], by_gradients)[0] if found else 0.0
        gradient_f1 = dominant(by_gradients, run.truth)[1][2]
        precision, recall, recall_too = (f"{np.mean(one):.2f}" if one else "-" for one in (right, caught, caught_too))
        print(
            f"  {run.name:<24}{run.seed:>4}{contrast:>9.1f} | {members[0]:>9.2f}{members[1]:>6.2f}{members[2]:>6.2f} | "
            f"{pair[0]:>7.2f}{pair[1]:>6.2f}{pair[2]:>6.2f} | {precision:>8}{recall:>6} | {random:>7.2f}{largest:>6.2f}"
            f" | {gradient_f1:>12.2f}{recall_too:>8}{agreed:>10.2f}",
            flush=True,
        )
        if wanted:
            counted.append((pair[2], pair[2] - max(random, largest), gradient_f1, agreed))
    f1, margin, gradient_f1, agreed = np.mean(counted, axis=0)
    worst = np.min(counted, axis=0)
    print(f"over the {len(counted)} rows with contrast >= {OUTSTANDING:g}:")
    print(f"  F1 of the dominant pair  mean {f1:.3f} >= 0.8 {verdict(f1 >= 0.8)}, smallest {worst[0]:.3f}")
    print(f"  above the better baseline  mean {margin:.3f} >= 0.3 {verdict(margin >= 0.3)}, smallest {worst[1]:.3f}")
    print(f"  by gradients: F1 mean {gradient_f1:.3f}; agreement of the two ways mean {agreed:.3f}")


def dominant(found: list[OpposingPair], truth: list[Groups]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Precision, recall and F1 of the first pair's members, and of its groups, against the most similar pair."""
    if not found:
        return (0.0, 0.0, 0.0), (0.0, 0.0, 0.0)
    best = max(truth, key=lambda pair: match_pair(found[0].groups, pair).f1)
    both = match(found[0].members, np.concatenate(best)), match_pair(found[0].groups, best)
    members, pair = ((one.precision, one.recall, one.f1) for one in both)
    return members, pair


def cost(points: int, steps: int) -> None:
    print(f"{steps} steps, analysed from a record on disk, one process:")
    print("  points  seconds  peak memory (MB)")
    seconds = []
    for count in (points // 4, points // 2, points):
        with tempfile.TemporaryDirectory() as folder:
            write_record(Path(folder), count, steps)
            started = time.perf_counter()
            found = Trajectory(Record(folder)).all_pairs
            seconds.append(time.perf_counter() - started)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        print(f"  {count:<8}{seconds[-1]:<9.1f}{memory:<9.0f}{len(found)} pairs found", flush=True)
    growth = seconds[-1] / seconds[0] / 4
    print(f"time   {seconds[-1]:.1f} s <= 60 {verdict(seconds[-1] <= 60)}")
    print(f"memory {memory / 1e3:.2f} GB <= 4 {verdict(memory <= 4e3)}")
    print(f"growth {growth:.2f} times linear from a quarter of the points <= 1.3 {verdict(growth <= 1.3)}")


def write_record(folder: Path, points: int, steps: int) -> None:
    """Write losses with four pairs, one after the other, in noise."""
    generator = np.random.default_rng(0)
    groups = generator.permutation(points)[: 8 * (points // 200)].reshape(8, -1)
    with Record.writing(folder, {}) as record:
        for step in range(steps):
            losses = 1 + 0.01 * generator.standard_normal(points, dtype=np.float32)
            pair = 4 * step // steps
            losses[groups[2 * pair + step % 2]] += 1
            record.append("sample_loss", step, losses)


def verdict(holds: bool) -> str:
    return "met" if holds else "MISSED"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[10, 11, 12])
    parser.add_argument("--points", type=int, default=50_000)
    parser.add_argument("--steps", type=int, default=1000)
    arguments = parser.parse_args()
    accuracy(arguments.seeds)
    cost(arguments.points, arguments.steps)


if __name__ == "__main__":
    main()
