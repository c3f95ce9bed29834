"""Colour images as a data set."""

from __future__ import annotations

import hashlib
from typing import TypeAlias

import numpy as np
import torch

from opposing_signals.data.dataset import Dataset

Examples: TypeAlias = tuple[np.ndarray, np.ndarray]
"""Images ``[n, height, width, 3]`` uint8 and labels ``[n]`` int64."""


def image_dataset(
    name: str,
    class_names: tuple[str, ...],
    train: Examples,
    test: Examples,
    truth: dict[str, np.ndarray] | None = None,
) -> Dataset:
    """Colour images as a `Dataset`, normalized per channel by the mean and standard deviation of ``train``."""
    images, labels = train
    # Integer counts make the statistics exact, hence equal on every machine, and are fastest.
    levels = np.arange(256)
    counts = np.stack([np.bincount(images[..., channel].ravel(), minlength=256) for channel in range(3)])
    mean = counts @ levels / counts.sum(axis=1)
    variance = counts @ levels**2 / counts.sum(axis=1) - mean**2

    def normalized(pictures: np.ndarray) -> torch.Tensor:
        height, width = pictures.shape[1:3]
        inputs = torch.empty(len(pictures), 3, height, width).copy_(torch.from_numpy(pictures).permute(0, 3, 1, 2))
        shift, scale = (torch.tensor(value, dtype=torch.float32).view(3, 1, 1) for value in (mean, np.sqrt(variance)))
        return inputs.sub_(shift).div_(scale)

    checksum = hashlib.sha256(images.tobytes())
    checksum.update(labels.astype("<i8").tobytes())
    return Dataset(
        name=name,
        inputs=normalized(images),
        targets=torch.from_numpy(labels),
        checksum=checksum.hexdigest(),
        class_names=class_names,
        images=images,
        test_inputs=normalized(test[0]),
        test_targets=torch.from_numpy(test[1]),
        test_images=test[0],
        normalize=normalized,
        truth=truth or {},
    )
