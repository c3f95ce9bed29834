"""Training examples, resident on the device and evaluated in chunks that processes divide among themselves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from opposing_signals.curvature.kernels.batch_norm import over_processes
from opposing_signals.errors import InputError
from opposing_signals.processes import agreed, count, rank, summed

Batch = slice | Tensor
"""Which examples a step uses: ``slice(0, N)`` for the whole set (no copy is made), else an index tensor."""

WHOLE = slice(None)


class Chunks:
    """The examples of an `EmpiricalRisk`.

    Attributes:
        weights: ``[N]``, how much each example counts in L, in the training pass and in Hessian products: then
            L = Σ w_i ℓ_i / Σ w_i over the batch. None: all count the same.

    Args:
        inputs: ``[N, ...]``.
        targets: ``[N]`` or ``[N, C]``.
        chunk: Examples per forward pass.

    Raises:
        InputError: The chunk is larger than the data or not positive.
    """

    def __init__(self, inputs: Tensor, targets: Tensor, chunk: int) -> None:
        if not isinstance(chunk, int) or not 1 <= chunk <= len(inputs):
            raise InputError(f"risk.chunk={chunk}: expected 1 to {len(inputs)}, the number of training examples")
        self.inputs, self.targets, self.chunk = inputs, targets, chunk
        self.weights: Tensor | None = None
        self._seen: tuple[Batch, Tensor] | None = None
        self._is_split = False

    def __len__(self) -> int:
        return len(self.inputs)

    def parts(self, batch: Batch = WHOLE) -> list[slice]:
        """Positions in ``batch`` of the chunks that this process evaluates.

        A single process evaluates all of them. Of several (`opposing_signals.processes`), rank r takes every world-th
        chunk from the r-th on, and `assembled` and `summed` combine the results. With fewer chunks than processes, some
        have none, except within `split`, where each has a piece of every chunk.
        """
        size, processes, own = self.size(batch), count(), rank()
        parts = [slice(first, min(first + self.chunk, size)) for first in range(0, size, self.chunk)]
        if not self._is_split:
            return parts[own::processes]
        return [
            slice(*(part.start + (part.stop - part.start) * end // processes for end in (own, own + 1)))
            for part in parts
        ]

    @contextmanager
    def split(self, batch: Batch) -> Iterator[None]:
        """Inside, every process evaluates a piece of every chunk of ``batch``, if it has fewer chunks than processes.

        Batch norm still takes its statistics over the whole chunk (`over_processes`). Measures that compute statistics
        of a chunk in another way must not use this. No chunk is split if one has fewer examples than there are
        processes.
        """
        self._is_split = self.would_split(batch)
        try:
            with over_processes(self._is_split):
                yield
        finally:
            self._is_split = False

    def would_split(self, batch: Batch) -> bool:
        """Whether `split` would split the chunks of ``batch``."""
        smallest = self.size(batch) % self.chunk or self.chunk
        return self.some_idle(batch) and smallest >= count()

    def assembled(self, pieces: Sequence[Tensor], batch: Batch = WHOLE, axis: int = 0) -> Tensor:
        """One tensor out of one piece for each of `parts`, in the batch's order along ``axis``, on every process."""
        if count() == 1:
            return torch.cat(list(pieces), axis)
        if self.some_idle(batch) and not self._is_split:  # idle processes have no piece to look at
            shape, dtype = agreed(lambda: (list(pieces[0].shape), pieces[0].dtype))
        else:
            shape, dtype = list(pieces[0].shape), pieces[0].dtype
        shape[axis] = self.size(batch)
        whole = torch.zeros(shape, dtype=dtype, device=self.inputs.device)
        for part, piece in zip(self.parts(batch), pieces, strict=True):
            whole.narrow(axis, part.start, part.stop - part.start).copy_(piece)
        return summed(whole)

    def chunks(self, batch: Batch = WHOLE) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and targets of each of `parts`."""
        seen = self._seen[1] if self._seen is not None and self._seen[0] is batch else None
        for part in self.parts(batch):
            if isinstance(batch, slice):
                first = batch.indices(len(self))[0]
                rows: Batch = slice(first + part.start, first + part.stop)
            else:
                rows = batch[part]
            yield (self.inputs[rows] if seen is None else seen[part]), self.targets[rows]

    @contextmanager
    def seen_as(self, inputs: Tensor, batch: Tensor) -> Iterator[None]:
        """Inside, passes over ``batch`` see ``inputs`` ``[n, ...]``, its augmented examples, instead of the originals.

        Passes over other batches, the whole set included, see the original examples.
        """
        self._seen = batch, inputs
        try:
            yield
        finally:
            self._seen = None

    def shares(self, batch: Batch = WHOLE) -> Iterator[Tensor]:
        """How much each example of each of `parts` counts in L: 1/n, or w_i / Σ w_i."""
        size = self.size(batch)
        equal = torch.tensor(1 / size, dtype=torch.float64, device=self.inputs.device).expand(size)
        shares = equal if self.weights is None else self.weights[batch] / self.weights[batch].sum()
        for part in self.parts(batch):
            yield shares[part]

    def seeded_chunks(self, batch: Batch) -> Iterator[tuple[Tensor, Tensor]]:
        """`chunks`; the random numbers that the model draws in one, such as dropout masks, are seeded by its position.

        Several processes thus draw what a single one would, and all have the same random state after the pass.
        """
        is_cuda, device = self.inputs.is_cuda, self.inputs.device
        generators = [torch.default_generator, *([torch.cuda.default_generators[device.index]] if is_cuda else [])]
        seed = int(torch.randint(2**62, ()))
        with torch.random.fork_rng([device] if is_cuda else []):
            for part, chunk in zip(self.parts(batch), self.chunks(batch), strict=True):
                for generator in generators:
                    generator.manual_seed(seed + part.start)
                yield chunk

    def some_idle(self, batch: Batch) -> bool:
        """Whether there are fewer chunks than processes; the first process always has one."""
        return self.size(batch) <= self.chunk * (count() - 1)

    def size(self, batch: Batch) -> int:
        """How many examples there are in ``batch``."""
        return len(range(*batch.indices(len(self)))) if isinstance(batch, slice) else len(batch)
