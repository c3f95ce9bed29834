"""Records as runs write them, with losses of known risers, fallers and pairs."""

from pathlib import Path
from typing import Any

import numpy as np

from opposing_signals.record import Record

PLANTED = {"_target_": "opposing_signals.data.planted", "images": 300}
GROUPS = (slice(0, 15), slice(15, 30))
"""Two groups that alternate against each other."""


def alternating(steps: int = 60, points: int = 300, seed: int = 0) -> np.ndarray:
    """``[steps, points]`` float32 losses that fall slowly; `GROUPS` oscillate most in the middle of the run."""
    generator = np.random.default_rng(seed)
    time = np.arange(steps)
    losses = 2 * np.exp(-time / steps)[:, None] + 0.02 * generator.normal(size=(steps, points))
    swing = np.where(time % 2 == 0, 1, -1) * np.sin(np.pi * time / steps) ** 2
    for group, sign in zip(GROUPS, (1, -1), strict=True):
        losses[:, group] += sign * swing[:, None] * generator.uniform(0.4, 0.8, size=losses[:, group].shape[1])
    return losses.astype(np.float32)


def write_record(
    folder: Path,
    losses: np.ndarray | None,
    steps: Any = None,
    sharpness: bool = True,
    state: str | None = "complete",
    sha256: str | None = None,
    **configuration: Any,
) -> Path:
    """Write the record of a run; ``configuration`` replaces parts of it."""
    described = {
        "run": {"name": "planted_mlp"},
        "data": PLANTED,
        "optimizer": {"_target_": "torch.optim.SGD", "lr": 0.05, "momentum": 0.0},
        "batch": None,
        "steps": 60,
        "seed": 1,
        **configuration,
    }
    steps = range(0 if losses is None else len(losses)) if steps is None else steps
    with Record.writing(folder, described) as record:
        data = {"name": "planted (300 images)", "examples": 300, **({"sha256": sha256} if sha256 else {})}
        record.write_provenance({"data": data, "training_seconds": 1.0})
        for row, step in enumerate(steps):
            if losses is not None:
                record.append("sample_loss", step, losses[row])
                record.append("train_loss", step, float(losses[row].mean()))
            if sharpness and step % 7 == 0:
                record.append("sharpness", step, 20.0 + step)
        if state is not None:
            record.write_state(state)
    return folder
