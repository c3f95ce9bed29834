"""The common form of every data set in the package."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Dataset:
    """A training set, and a test set if there is one, in memory.

    Attributes:
        name: As verdicts show it, for instance ``"cifar10 (2500 of 50000 images)"``.
        inputs: ``[N, ...]`` float32, normalized.
        targets: ``[N]`` int64 class indices, or ``[N, C]`` float32 regression targets.
        checksum: sha256 over the raw training examples and targets; equal data give equal checksums on any machine.
        class_names: One name per class; empty for regression.
        images: ``[N, H, W, 3]`` uint8, a training example as figures show it; None if there are no pictures.
        test_inputs: ``[M, ...]`` float32, normalized with the training set's statistics; None without a test set.
        test_targets: ``[M]`` or ``[M, C]``; None without a test set.
        test_images: ``[M, H, W, 3]`` uint8, as ``images``; None without a test set.
        normalize: Pictures ``[n, H, W, 3]`` uint8 ↦ ``[n, ...]`` inputs, normalized as the training images; None if
            there are no pictures.
        truth: Ground truth per training example, one ``[N]`` array per property (``data=planted`` only).
    """

    name: str
    inputs: Tensor
    targets: Tensor
    checksum: str
    class_names: tuple[str, ...] = ()
    images: np.ndarray | None = None
    test_inputs: Tensor | None = None
    test_targets: Tensor | None = None
    test_images: np.ndarray | None = None
    normalize: Callable[[np.ndarray], Tensor] | None = None
    truth: dict[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def is_classification(self) -> bool:
        return not torch.is_floating_point(self.targets)

    @property
    def output_width(self) -> int:
        """Number of model outputs: classes, or regression targets."""
        return len(self.class_names) if self.is_classification else self.targets.shape[1]
