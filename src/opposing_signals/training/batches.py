"""Which examples each step uses."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from opposing_signals.curvature.chunks import Batch
from opposing_signals.errors import InputError


class Batches:
    """The batch of every step, as a function of the step: a resumed run needs no sampler state.

    Args:
        examples: N.
        size: Examples per batch; None for full-batch training.
        seed: Of the order. Epoch e is a permutation drawn only from (seed, e).

    Raises:
        InputError: The batch is larger than the data or not positive.
    """

    def __init__(self, examples: int, size: int | None, seed: int = 0) -> None:
        if size is not None and not 1 <= size <= examples:
            raise InputError(
                f"batch={size}: expected 1 to {examples}, the number of training examples, or null for all"
            )
        self.examples = examples
        self.size = size
        self.seed = seed
        self._first_step: Callable[[], int] = lambda: 0

    def begin_at(self, first_step: Callable[[], int]) -> None:
        """Call ``first_step`` for the first step whenever an iteration starts."""
        self._first_step = first_step

    @property
    def is_full(self) -> bool:
        """Whether every step uses the whole training set."""
        return self.size is None

    def __iter__(self) -> Iterator[Batch]:
        """Batches from the first step on, without end."""
        if self.size is None:
            while True:
                yield slice(0, self.examples)
        steps_per_epoch = -(-self.examples // self.size)
        epoch, position = divmod(self._first_step(), steps_per_epoch)
        while True:
            yield from self._epoch(epoch)[position:]
            epoch, position = epoch + 1, 0

    def _epoch(self, epoch: int) -> tuple[torch.Tensor, ...]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        return torch.randperm(self.examples, generator=generator).split(self.size or self.examples)
