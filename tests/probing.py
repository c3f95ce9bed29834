"""Records of runs with probes, made from arrays."""

from pathlib import Path

import numpy as np
from recording import made

from opposing_signals.signals import Trajectory

SGD = {"_target_": "torch.optim.SGD", "lr": 0.1}
ADAM = {"_target_": "torch.optim.Adam", "lr": 0.001}
CROSS_ENTROPY = "torch.nn.CrossEntropyLoss"


def probed(
    folder: Path,
    norms: dict[str, np.ndarray],
    logits: dict[str, np.ndarray] | None = None,
    mean: np.ndarray | float = 1.0,
    optimizer: dict = SGD,
    loss: str = CROSS_ENTROPY,
    **quantities,
) -> Trajectory:
    """A run whose probes have the feature norms ``[T]`` and, with two classes, zero logits unless others are given.

    ``quantities``: further quantities, one row per step.
    """
    names, steps = list(norms), len(next(iter(norms.values())))
    logits = logits or {}
    configuration = {
        "run": {"name": folder.name},
        "optimizer": optimizer,
        "loss": {"_target_": loss},
        "data": {"_target_": "opposing_signals.data.planted", "images": 12},
        "instruments": {"block_probe": {"probes": names}},
    }
    rows = {
        "probe_logits": np.stack([logits.get(name, np.zeros((steps, 2))) for name in names], axis=1),
        "probe_feature_norm": np.stack([norms[name] for name in names], axis=1),
        "mean_feature_norm": np.broadcast_to(mean, steps),
        **quantities,
    }
    return made(folder, configuration, probe_image=np.full((1, len(names), 4, 4, 3), 128, np.uint8), **rows)


def two_class_logits(probability: np.ndarray) -> np.ndarray:
    """``[T, 2]`` logits whose softmax gives the first class ``probability``."""
    return np.stack([np.log(probability / (1 - probability)), np.zeros_like(probability)], axis=1)
