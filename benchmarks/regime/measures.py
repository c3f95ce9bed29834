"""Measures of the regime: one row of the table per run, and how classes relate to the Hessian's eigenvectors."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from grid import Point
from omegaconf import OmegaConf

from opposing_signals.curvature import EigenTracker
from opposing_signals.curvature.risk import flatten
from opposing_signals.data import Dataset
from opposing_signals.record import Record, Series
from opposing_signals.signals import (
    OpposingPair,
    Trajectory,
    class_r2,
    class_r2_by_chance,
    directions,
    fallers,
    modal_share,
    modal_share_by_chance,
    risers,
)
from opposing_signals.signals.steps import reversals
from opposing_signals.studies.claim import CannotTellError, Statistic
from opposing_signals.studies.curvature.metrics import gap_changes
from opposing_signals.studies.groups.claims import group_amplitude_ratio, spike_concentration
from opposing_signals.training.job import training_module

FEWEST_STEPS = 10
"""A number from fewer steps than this is not given."""

PARTS = 4
"""Number of equal parts of the steps from break-even on, to show how the numbers change."""


def measured(point: Point, record: Record) -> dict[str, Any]:
    """One row of the table. A number that the run cannot give is None.

    "Late" are the steps from break-even on, where λ was first measured at 2/η or above; all numbers on changes and
    pairs are from these steps. ``coherence`` is the fraction of the modal true class in the more uniform group of a
    pair, the median over the pairs.
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
    late_from = np.inf if trajectory.break_even is None else trajectory.break_even
    trajectory.pairs = [pair for pair in trajectory.pairs if pair.step >= late_from]  # only those of the late steps
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
        "loss_first": rounded(loss[0]),
        "loss_last": rounded(loss[-1]),
        "accuracy_last": rounded(record["train_accuracy"].values[-1]),
        "break_even": trajectory.break_even,
        "loss_at_break_even": None if trajectory.break_even is None else rounded(loss[trajectory.break_even]),
        "sharpness_steps": [int(step) for step in trajectory.sharpness.steps],
        "sharpness_over_edge": [rounded(ratio) for ratio in ratios],
        "sharpness_over_edge_late": rounded(np.median(late_ratios)) if len(late_ratios) else None,
        "class_r2": _over(class_r2, late, classes),
        "class_r2_before": _over(class_r2, Series(changes.steps[:begin], changes.values[:begin]), classes),
        "parts": [_part(trajectory, part, classes) for part in np.array_split(late.steps, PARTS)],
        "class_r2_by_chance": rounded(class_r2_by_chance(classes)),
        "directions": _over(directions, late),
        "share_rising": rounded(np.mean(late.values.mean(1) > 0)) if len(late) >= FEWEST_STEPS else None,
        "largest_rise": rounded(np.max(loss[1:] / loss[:-1])),
        "spike_concentration": _value(spike_concentration, trajectory),
        "amplitude": _value(group_amplitude_ratio, trajectory),
        "correlation": median([pair["correlation"] for pair in pairs]),
        "coherence": median(shares),
        "coherence_smallest": min(shares, default=None),
        "alternating_share": median([pair["alternating_share"] for pair in pairs]),
        "pairs": pairs,
        "widest": _widest(late, dataset),
    }


def rounded(value: float) -> float | None:
    """Four significant digits; None for a non-finite value."""
    return float(f"{value:.4g}") if math.isfinite(value) else None


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else math.nan


def median(values: list[float]) -> float | None:
    return rounded(np.median(values)) if values else None


def _over(statistic: Callable[..., float], changes: Series, *others: np.ndarray) -> float | None:
    return rounded(statistic(changes.values, *others)) if len(changes) >= FEWEST_STEPS else None


def _part(trajectory: Trajectory, steps: np.ndarray, classes: np.ndarray) -> dict[str, Any]:
    """Part of the late steps: the variance explained by classes, and the loss."""
    changes, mean_loss = trajectory.changes, trajectory.mean_loss
    part = Series(steps, changes.values[np.isin(changes.steps, steps)])
    losses = mean_loss.values[np.isin(mean_loss.steps, steps)]
    return {
        "steps": [int(step) for step in steps[[0, -1]]] if len(steps) else [],
        "loss": rounded(np.median(losses)) if len(steps) else None,
        "class_r2": _over(class_r2, part, classes),
        "directions": _over(directions, part),
    }


def _pair(trajectory: Trajectory, pair: OpposingPair, chunks: np.ndarray) -> dict[str, Any]:
    return {
        "step": pair.step,
        "window": list(pair.window),
        "correlation": rounded(pair.correlation),
        "gap": rounded(pair.amplitude),
        "alternating_share": rounded(_mean(reversals(gap_changes(trajectory, pair)).values)),
        "groups": [_group(group, trajectory.dataset, chunks) for group in pair.groups],
    }


def _group(group: np.ndarray, dataset: Dataset, chunks: np.ndarray) -> dict[str, Any]:
    classes = dataset.targets.numpy()
    return {
        "size": len(group),
        "classes": _counts(dataset, group),
        "share": rounded(modal_share(classes[group])),
        "share_by_chance": rounded(modal_share_by_chance(classes, len(group))),
        "chunk_share": rounded(modal_share(chunks[group])),
        "chunk_share_by_chance": rounded(modal_share_by_chance(chunks, len(group))),
    }


def _counts(dataset: Dataset, points: np.ndarray) -> dict[str, int]:
    """Class name ↦ number of points, the most frequent first."""
    names = [dataset.class_names[name] for name in dataset.targets[points].tolist()]
    return dict(Counter(names).most_common())


def _widest(changes: Series, dataset: Dataset) -> dict[str, Any] | None:
    """Classes of the 20 points that rise and the 20 that fall most, at the step at which they are furthest apart."""
    if not len(changes):
        return None
    gaps = [row[risers(row)].mean() - row[fallers(row)].mean() for row in changes.values]
    best, step = changes.values[np.argmax(gaps)], int(changes.steps[np.argmax(gaps)])
    return {"step": step, "rising": _counts(dataset, risers(best)), "falling": _counts(dataset, fallers(best))}


def eigenvectors(point: Point, record: Record, count: int, max_products: int) -> dict[str, Any]:
    """Leading eigenvectors v_k of the Hessian at a run's last θ, and how much classes explain of the slopes ∇ℓ_i·v_k.

    An oscillation along v_k sets points whose slopes along v_k have opposite signs against each other.
    """
    dataset = Trajectory(record).dataset
    risk = training_module(OmegaConf.create(record.configuration), dataset).risk
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
        "loss": rounded(float(record["train_loss"].values[-1])),
        "eigenvectors": [
            {
                "eigenvalue": rounded(float(value)),
                "residual": rounded(float(residual)),
                "class_r2": rounded(class_r2(slope[None], classes)),
                "rising": _counts(dataset, risers(slope)),
                "falling": _counts(dataset, fallers(slope)),
            }
            for value, residual, slope in zip(pairs.values, pairs.residuals, slopes, strict=True)
        ],
    }


def _value(statistic: Statistic, trajectory: Trajectory) -> float | None:
    """The statistic's value; None if the run cannot decide."""
    try:
        return rounded(statistic({"run": trajectory}).value)
    except CannotTellError:
        return None
