"""The empirical risk L(θ) = (1/N) Σ ℓ_i(θ): the only place that turns model, loss and data into numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from opposing_signals.errors import InputError

Precision = Literal["float32", "float64", "bfloat16"]
Batch = slice | Tensor
"""Which examples a step uses: ``slice(0, N)`` for the whole set (no copy is made), else an index tensor."""

WHOLE = slice(None)


@dataclass(frozen=True)
class ForwardPass:
    """What one pass over a batch shows of θ_t.

    Attributes:
        losses: ``[n]`` ℓ_i(θ_t), in the batch's order.
        outputs: ``[n, C]`` f(x_i; θ_t): logits, or a regression's values.
    """

    losses: Tensor
    outputs: Tensor


@dataclass(frozen=True)
class HessianProducts:
    """What one curvature pass shows of θ_t.

    Attributes:
        losses: ``[N]`` ℓ_i(θ_t).
        gradient: ``[P]`` ∇L(θ_t).
        products: ``[k, P]`` ∇²L(θ_t) v_j.
    """

    losses: Tensor
    gradient: Tensor
    products: Tensor


class EmpiricalRisk:
    """θ ↦ ℓ(θ) ∈ R^N over data that rest on the device, evaluated in chunks.

    Every sum is weighted 1/N per sample, so an uneven last chunk counts as it should. A model with batch norm in
    training mode normalizes by the statistics of each chunk ("ghost" batch norm, Hoffer et al. 2017): then the chunk
    size is part of what L *is*, and everything here uses the same chunks.

    Args:
        model: Maps ``[n, ...]`` inputs to ``[n, C]`` outputs; its parameters with ``requires_grad`` are θ.
        loss: Per-sample loss, (outputs, targets) ↦ ``[n]``.
        inputs: ``[N, ...]``.
        targets: ``[N]`` or ``[N, C]``.
        chunk: Examples per forward pass.
        precision: Of weights, data and arithmetic. ``"bfloat16"`` keeps float32 weights and runs under autocast.
        channels_last: Memory layout of images and convolutions; faster on most CPUs and on GPUs with tensor cores.
        compile_training: `torch.compile` the forward pass of `backward`. Curvature stays eager: a compiled module
            has no double backward.

    Raises:
        InputError: The chunk is larger than the data or not positive.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor],
        inputs: Tensor,
        targets: Tensor,
        *,
        chunk: int,
        precision: Precision = "float32",
        channels_last: bool = True,
        compile_training: bool = False,
    ) -> None:
        if not 1 <= chunk <= len(inputs):
            raise InputError(f"risk.chunk={chunk}: expected 1 to {len(inputs)}, the number of training examples")
        dtype = torch.float64 if precision == "float64" else torch.float32
        layout = torch.channels_last if channels_last and inputs.ndim == 4 else torch.preserve_format
        self.model = model.to(dtype=dtype)
        if layout is torch.channels_last:
            self.model = model.to(memory_format=layout)  # type: ignore[call-overload]  # torch documents it
        self.inputs = inputs.to(dtype=dtype, memory_format=layout)
        self.targets = targets.to(dtype=dtype) if targets.is_floating_point() else targets
        self.chunk = chunk
        self.precision = precision
        self._loss = loss
        self._training_forward = torch.compile(self._forward) if compile_training else self._forward

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """θ, tensor by tensor, in the model's order."""
        return [p for p in self.model.parameters() if p.requires_grad]

    def to(self, device: torch.device) -> EmpiricalRisk:
        """Move data and model; returns itself."""
        self.model.to(device)
        self.inputs, self.targets = self.inputs.to(device), self.targets.to(device)
        return self

    def _forward(
        self, inputs: Tensor, targets: Tensor, state: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Per-sample losses and outputs, of the model as it is or with another ``state`` of parameters and buffers."""
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            outputs = self.model(inputs) if state is None else functional_call(self.model, state, (inputs,))
        if self.precision == "bfloat16":
            outputs = outputs.float()
        return self._loss(outputs, targets), outputs.detach()

    def _chunks(self, batch: Batch) -> Iterator[tuple[Tensor, Tensor]]:
        if isinstance(batch, slice):
            start, stop, _ = batch.indices(len(self))
            for first in range(start, stop, self.chunk):
                part = slice(first, min(first + self.chunk, stop))
                yield self.inputs[part], self.targets[part]
        else:
            for part in batch.split(self.chunk):
                yield self.inputs[part], self.targets[part]

    def _size(self, batch: Batch) -> int:
        return len(range(*batch.indices(len(self)))) if isinstance(batch, slice) else len(batch)

    def backward(self, batch: Batch = WHOLE) -> ForwardPass:
        """The training pass: add the batch's mean gradient to ``.grad`` and return what its forward showed.

        Running statistics of batch norm move, as in any training step.
        """
        losses, outputs = [], []
        weight = 1 / self._size(batch)
        for inputs, targets in self._chunks(batch):
            sample_losses, output = self._training_forward(inputs, targets)
            (sample_losses.sum() * weight).backward()
            losses.append(sample_losses.detach())
            outputs.append(output)
        return ForwardPass(torch.cat(losses), torch.cat(outputs))

    def sample_losses(self, batch: Batch = WHOLE) -> ForwardPass:
        """ℓ_i(θ) without a gradient and without a trace: see `probe`."""
        with self.probe(), torch.no_grad():
            results = [self._forward(*chunk) for chunk in self._chunks(batch)]
        return ForwardPass(torch.cat([r[0] for r in results]), torch.cat([r[1] for r in results]))

    def hessian_products(self, vectors: Tensor) -> HessianProducts:
        """∇²L v for several v in one pass, with the gradient and the losses as by-products.

        Double backward (Pearlmutter 1994): the gradient's graph is built once a chunk and shared by all products.

        Args:
            vectors: ``[k, P]``; k = 0 gives losses and gradient alone.
        """
        names = [name for name, p in self.model.named_parameters() if p.requires_grad]
        # Copies in the default layout: the second derivative of batch norm is 2.5 times slower in channels_last.
        theta = [p.detach().clone(memory_format=torch.contiguous_format).requires_grad_() for p in self.parameters]
        directions = [self.unflatten(v) for v in vectors]
        gradient = vectors.new_zeros(vectors.shape[1])
        products = torch.zeros_like(vectors)
        losses = []
        with self.probe(), torch.enable_grad():
            for inputs, targets in self._chunks(WHOLE):
                state = dict(zip(names, theta, strict=True))
                sample_losses, _ = self._forward(inputs.contiguous(), targets, state)
                mean = sample_losses.sum() / len(self)
                slopes = torch.autograd.grad(mean, theta, create_graph=len(vectors) > 0)
                for j, direction in enumerate(directions):
                    rows = torch.autograd.grad(
                        slopes, theta, direction, retain_graph=j + 1 < len(vectors), materialize_grads=True
                    )
                    products[j] += flatten(rows)
                gradient += flatten([slope.detach() for slope in slopes])
                losses.append(sample_losses.detach())
        return HessianProducts(torch.cat(losses), gradient, products)

    def unflatten(self, vector: Tensor) -> list[Tensor]:
        """A ``[P]`` vector as one tensor a parameter, in the parameters' shapes."""
        pieces = vector.split([p.numel() for p in self.parameters])
        return [piece.view_as(p) for piece, p in zip(pieces, self.parameters, strict=True)]

    @contextmanager
    def probe(self) -> Iterator[None]:
        """Leave no trace: mode, buffers, gradients and random state are afterwards what they were before.

        The model stays in the mode that it is in, so that a probe during training sees the normalization that
        training sees.
        """
        modes = {module: module.training for module in self.model.modules()}
        buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        gradients = [p.grad for p in self.parameters]
        devices = [self.inputs.device] if self.inputs.is_cuda else []
        try:
            with torch.random.fork_rng(devices):
                yield
        finally:
            for module, mode in modes.items():
                module.training = mode
            with torch.no_grad():
                for name, buffer in self.model.named_buffers():
                    buffer.copy_(buffers[name])
            for parameter, gradient in zip(self.parameters, gradients, strict=True):
                parameter.grad = gradient


def flatten(tensors: Iterable[Tensor]) -> Tensor:
    """One ``[P]`` vector out of one tensor a parameter; the inverse of `EmpiricalRisk.unflatten`."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])
