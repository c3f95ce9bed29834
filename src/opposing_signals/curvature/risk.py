"""The empirical risk L(θ) = (1/N) Σ ℓ_i(θ): the only place that turns model, loss and data into numbers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor, nn

import opposing_signals.curvature.convolution  # noqa: F401  # mends a gradient that torch gets wrong on some CPUs
from opposing_signals.curvature.any_order import AnyOrder, GradientWatch
from opposing_signals.curvature.chunks import WHOLE, Batch, Chunks
from opposing_signals.curvature.compiled import CompiledProducts, RecordedGradient, compiled
from opposing_signals.curvature.double_backward import CurvaturePass, ForwardPass, curvature_pass
from opposing_signals.curvature.finite_differences import check, of_products
from opposing_signals.curvature.refusals import (
    check_data,
    check_layers,
    check_losses,
    check_real,
    check_shapes,
    check_trained,
    naming_causes,
)
from opposing_signals.curvature.second_order import TwiceDifferentiable
from opposing_signals.curvature.untouched import ModelState, random_states, random_states_kept, replaced
from opposing_signals.errors import InputError
from opposing_signals.processes import count, summed, summed_together
from opposing_signals.values import Count

Precision = Literal["float32", "tf32", "float64", "bfloat16", "float16", "unchanged"]
_HALVES: Mapping[str, torch.dtype] = {"bfloat16": torch.bfloat16, "float16": torch.float16}
Result = TypeVar("Result")


class EmpiricalRisk(Chunks):
    """θ ↦ ℓ(θ) ∈ R^N over data resident on the device, evaluated in chunks.

    Every sum is weighted 1/N per sample, so a smaller last chunk is weighted correctly. A model with batch norm in
    training mode normalizes by the statistics of each chunk ("ghost" batch norm, Hoffer et al. 2017): then the chunk
    size is part of what L *is*, and everything here uses the same chunks.

    Attributes:
        weights: See `Chunks`.
        checked: The measures already checked against finite differences
            (`opposing_signals.curvature.finite_differences`); None: check none.
        state: The model's state, as a measurement restores it.
        autotune: Whether cuDNN chooses its kernels by timing them.
        is_one_graph: Whether the training pass is compiled or recorded, so that no hook sees into it.

    Args:
        model: Maps ``[n, ...]`` inputs to ``[n, C]`` outputs; its parameters with ``requires_grad`` are θ.
        loss: Per-sample loss, (outputs, targets) ↦ ``[n]``.
        inputs: ``[N, ...]``; whole numbers, such as tokens, keep their type.
        targets: ``[N]`` or ``[N, C]``.
        chunk: Examples per forward pass.
        precision: Of weights, data and arithmetic. ``"tf32"`` is float32 with the factors of products rounded to 10
            bits on a GPU (set by the job, see `opposing_signals.training.job`), ``"bfloat16"`` and ``"float16"`` keep
            float32 weights and run under autocast, ``"unchanged"`` takes weights and data as they are. A float16
            gradient has half to a third of the error of a bfloat16 one, a loss a tenth. In float16 the loss is scaled
            by the number of examples, so that each one's share of the gradient does not underflow.
        channels_last: Memory layout of images and convolutions; faster on most CPUs and on GPUs with tensor cores. Safe
            on every CPU: a bug of some CPUs' kernels is fixed (`opposing_signals.curvature.convolution`).
        compile_training: `torch.compile` the training pass.
        compile_products: Trace and compile Hessian-vector products of all chunks of the full size.
        cuda_graphs: Record the training pass of a chunk as a CUDA graph: launching the kernels of a small batch takes
            longer than running them. Results are bit-identical.
        autotune: Let cuDNN choose its kernels by timing them. Another process may choose others, so a resumed run
            equals an uninterrupted one only up to rounding. Set by the job, like tf32.
        keep_outputs: Whether a pass returns the outputs of its whole batch. Those of text, V logits per token, are far
            larger than everything else in the pass; False holds at most one chunk's.

    Raises:
        InputError: See `Chunks`; or the precision is none of these, data are not tensors, or a weight is complex or has
            no shape yet.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor],
        inputs: Tensor,
        targets: Tensor,
        *,
        chunk: Count,
        precision: Precision = "float32",
        channels_last: bool = True,
        compile_training: bool = False,
        compile_products: bool = False,
        cuda_graphs: bool = False,
        autotune: bool = False,
        keep_outputs: bool = True,
    ) -> None:
        if precision not in get_args(Precision):
            raise InputError(f"risk.precision={precision}: expected {', '.join(get_args(Precision))}")
        check_data(inputs, targets)
        check_shapes(model)
        if precision != "unchanged":
            check_real(model)
        dtype = torch.float64 if precision == "float64" else torch.float32
        layout = torch.channels_last if channels_last and inputs.ndim == 4 else torch.preserve_format
        self.model = model.to(dtype=dtype) if precision != "unchanged" else model
        if layout is torch.channels_last:
            self.model = model.to(memory_format=layout)  # type: ignore[call-overload]  # torch documents it
        kept = precision == "unchanged"
        if inputs.is_floating_point() and not kept:
            inputs = inputs.to(dtype=dtype, memory_format=layout)
        if targets.is_floating_point() and not kept:
            targets = targets.to(dtype=dtype)
        super().__init__(inputs, targets, chunk)
        self.precision = precision
        self.loss = loss
        self.keep_outputs = keep_outputs
        self.autotune, self.is_one_graph = autotune, compile_training or cuda_graphs
        self._training_forward = compiled(self.evaluate, "compile_training") if compile_training else self.evaluate
        self._add_gradient = RecordedGradient(self, self._training_forward) if cuda_graphs else self._gradient_added
        self.compiled_products = CompiledProducts(self) if compile_products else None
        self._takes_gradients: bool | None = None
        self.state = ModelState()
        self.checked: set[str] | None = set()

    @property
    def parameters(self) -> list[nn.Parameter]:
        """θ, tensor by tensor, in the model's order."""
        return [p for p in self.model.parameters() if p.requires_grad]

    def to(self, device: torch.device) -> EmpiricalRisk:
        """Move data and model; returns itself."""
        self.model.to(device)
        self.inputs, self.targets = self.inputs.to(device), self.targets.to(device)
        self.weights = None if self.weights is None else self.weights.to(device)
        return self

    def losses_at(self, parameters: Sequence[Tensor], batch: Batch = WHOLE) -> Iterator[Tensor]:
        """ℓ_i of each of the batch's `parts` at parameters other than θ, one tensor for each of `parameters`.

        They may be any tensors that the model can compute with, such as jets. Call it within `probe`.
        """
        for inputs, targets in self.chunks(batch):
            with self.at(parameters):
                losses = self.loss(self.model(inputs), targets)
            yield losses

    def at(self, parameters: Sequence[Tensor]) -> AbstractContextManager[None]:
        """Inside, the model computes with these tensors instead of θ, one for each of `parameters`."""
        return replaced(self.model, self.parameters, parameters)

    def evaluate(self, inputs: Tensor, targets: Tensor, autocast: bool = True) -> tuple[Tensor, Tensor]:
        """Per-sample losses ``[n]`` and outputs ``[n, C]`` at θ; only the former carry a graph.

        Args:
            inputs: ``[n, ...]``.
            targets: ``[n]`` or ``[n, C]``.
            autocast: Whether to compute in 16 bits where training does, rather than in the weights' precision.
        """
        autocast = autocast and self.is_halved
        with self._autocast(autocast):
            outputs = self.model(inputs)
        if not isinstance(outputs, Tensor):
            raise InputError(
                f"the model returns a {type(outputs).__name__}: expected a tensor, such as logits [n, C]; wrap it in a "
                "module that picks it out"
            )
        if autocast:
            outputs = outputs.float()
        return self.loss(outputs, targets), outputs.detach()

    def _autocast(self, enabled: bool = True) -> AbstractContextManager[Any]:
        half = _HALVES.get(self.precision, torch.bfloat16)
        return torch.autocast(self.inputs.device.type, half, enabled=enabled and self.is_halved)

    def _loss_scale(self, batch: Batch) -> float:
        """Loss scale of the backward pass, a power of two, so that dividing by it is exact."""
        return 2.0 ** math.ceil(math.log2(self.size(batch))) if self.precision == "float16" else 1.0

    def backward(self, batch: Batch = WHOLE) -> ForwardPass:
        """The training pass: add the batch's mean gradient to ``.grad`` and return losses and outputs.

        With several processes, or in float16, ``.grad`` must be empty before, because all of it is summed over
        processes, or divided by the loss scale. Running statistics of batch norm are updated, as in any training step.

        Raises:
            InputError: The loss is not one number per example, or no parameter is trained.
        """
        check_trained(self.parameters)
        losses, outputs, scale = [], [], self._loss_scale(batch)
        with self.split(batch):
            for (inputs, targets), shares in zip(self.seeded_chunks(batch), self.shares(batch), strict=True):
                sample_losses, output = self._add_gradient(inputs, targets, scale * shares)
                losses.append(sample_losses)
                outputs.append(self.kept(output))
            seen = ForwardPass(self.assembled(losses, batch), self.assembled(outputs, batch))
        if scale != 1:
            torch._foreach_div_([parameter.grad for parameter in self.parameters if parameter.grad is not None], scale)
        used = self.used_by_any([parameter.grad is not None for parameter in self.parameters])
        together = list(itertools.compress(self.parameters, used))
        for parameter in together:
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        summed_together([parameter.grad for parameter in together if parameter.grad is not None])
        self._agree_on_buffers()
        return seen

    def _gradient_added(self, inputs: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        losses, outputs = self._training_forward(inputs, targets)
        check_losses(losses, inputs)
        (losses * weights.to(losses)).sum().backward()
        return losses.detach(), outputs

    def would_split(self, batch: Batch) -> bool:
        """See `Chunks.split`; not where the pass is one graph, or the model takes gradients of its own."""
        return super().would_split(batch) and not self.is_one_graph and not self.takes_gradients

    def used_by_any(self, used: list[bool]) -> list[bool]:
        """Which parameters have a gradient: those that the chunks of any process use."""
        if count() == 1:
            return used
        return summed(torch.tensor(used, dtype=torch.int32, device=self.inputs.device)).bool().tolist()

    def _agree_on_buffers(self) -> None:
        """Average batch norm's running statistics, which each process has updated from its own chunks."""
        if count() > 1:
            summed_together([buffer.div_(count()) for buffer in self.model.buffers() if buffer.is_floating_point()])

    def backward_with_products(self, vectors: Tensor, batch: Batch = WHOLE) -> CurvaturePass:
        """`backward`, and ∇²L v_j of the same batch from the same graph.

        ``.grad`` is bit-identical to that of `backward`. Products take a graph of their own, in the weights' precision,
        where either pass is compiled, or the training pass is recorded, runs in 16 bits or takes gradients of its own.
        Where the batch is one chunk, the pass keeps its graph for `CurvaturePass.further`.
        """
        self.check_vectors(vectors)
        self.check_products()
        if self.is_halved or self.is_one_graph or self.compiled_products or self.takes_gradients:
            forward_pass = self.backward(batch)
            curvature = self.hessian_products(vectors, batch)
            return replace(curvature, losses=forward_pass.losses, outputs=forward_pass.outputs)
        result, gradients = curvature_pass(self, vectors, batch, keep_graph=True)
        self._agree_on_buffers()
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        return result

    @property
    def is_halved(self) -> bool:
        """Whether the training pass runs in 16 bits, with float32 weights."""
        return self.precision in _HALVES

    @property
    def takes_gradients(self) -> bool:
        """Whether model or loss take a gradient of their own, as a force field does; determined once, on a chunk.

        Such a model cannot be evaluated within `torch.no_grad`, and its Hessian-vector product has third derivatives.
        """
        if self._takes_gradients is None:
            # If this fails, the measurement itself will say so.
            with self.probe(), torch.enable_grad(), suppress(RuntimeError), GradientWatch() as watch:
                self.evaluate(self.inputs[: self.chunk], self.targets[: self.chunk])
            self._takes_gradients = watch.has_seen
        return self._takes_gradients

    def without_graph(self) -> AbstractContextManager[Any]:
        """`torch.no_grad`, unless the model takes gradients of its own, which that would prevent."""
        return torch.set_grad_enabled(self.takes_gradients)

    def _without_graph(self, evaluate: Callable[[], Result]) -> Result:
        """``evaluate()`` without a graph; only if that fails, find out whether the model takes gradients."""
        try:
            with torch.set_grad_enabled(self._takes_gradients is True):
                return evaluate()
        except RuntimeError:
            if self._takes_gradients is not None or not self.takes_gradients:
                raise
        with torch.enable_grad():
            return evaluate()

    @contextmanager
    def differentiable(self) -> Iterator[None]:
        """Inside, evaluations have correct second derivatives in θ."""
        with torch.enable_grad(), AnyOrder() if self.takes_gradients else TwiceDifferentiable():
            yield

    def outputs(self, inputs: Tensor) -> Tensor:
        """``[n, C]`` f(x; θ) of inputs that need not be training data, without a trace: see `probe`.

        Args:
            inputs: ``[n, ...]``, normalized as the training data are.
        """
        with self.probe(), self._autocast():
            outputs = self._without_graph(lambda: self.model(inputs.to(self.inputs))).detach()
        return outputs.float() if self.is_halved else outputs

    def sample_losses(self, batch: Batch = WHOLE) -> ForwardPass:
        """ℓ_i(θ) without a gradient and without a trace: see `probe`."""
        with self.probe(), torch.no_grad():
            losses, outputs = [], []
            for chunk in self.chunks(batch):
                sample_losses, output = self._without_graph(partial(self.evaluate, *chunk))
                check_losses(sample_losses, chunk[0], are_single=False)
                losses.append(sample_losses.detach())
                outputs.append(self.kept(output))
        return ForwardPass(self.assembled(losses, batch), self.assembled(outputs, batch))

    def kept(self, outputs: Tensor) -> Tensor:
        """The part of a chunk's outputs that a pass returns."""
        return outputs if self.keep_outputs else outputs.new_empty(len(outputs), 0)

    def hessian_products(self, vectors: Tensor, batch: Batch = WHOLE) -> CurvaturePass:
        """∇²L v for several v in one pass, with gradient, losses and per-sample slopes as by-products, and no trace.

        Double backward (Pearlmutter 1994) over layers whose second derivatives are cheap (`TwiceDifferentiable`):
        the gradient's graph is built once per chunk and shared by all products.

        Args:
            vectors: ``[k, P]``; k = 0 gives only the by-products.
            batch: Examples over which L is the mean.

        Raises:
            InputError: The vectors have another length than θ, the loss is not one number per example, the model has a
                layer without second derivative or draws random numbers, or the products are not its derivatives.
        """
        self.check_vectors(vectors)
        if len(vectors):
            self.check_products()
        with self.probe():
            return curvature_pass(self, vectors, batch)[0]

    def check_products(self) -> None:
        """Check `hessian_products` against finite differences, once; it also does so itself.

        Raises:
            InputError: They disagree.
        """
        check(self, "hessian_products", of_products)

    def check_vectors(self, vectors: Tensor) -> None:
        """Refuse ``vectors`` that are not ``[k, P]``.

        Raises:
            InputError: Their length is not P, or no parameter is trained.
        """
        check_trained(self.parameters)
        size = sum(p.numel() for p in self.parameters)
        if vectors.ndim != 2 or vectors.shape[1] != size:
            raise InputError(
                f"vectors of shape {list(vectors.shape)}: expected [k, {size}], one entry a parameter of this model; "
                "a vector of another model cannot be used"
            )

    def unflatten(self, vector: Tensor) -> list[Tensor]:
        """A ``[P]`` vector as one tensor per parameter: views of it in the parameters' shapes."""
        pieces = vector.split([p.numel() for p in self.parameters])
        return [piece.view_as(p) for piece, p in zip(pieces, self.parameters, strict=True)]

    @contextmanager
    def deterministic(self) -> Iterator[None]:
        """Refuse layers whose derivatives would be wrong (`check_layers`), and random numbers drawn inside.

        Raises:
            InputError: There is such a layer, or the model drew random numbers.
        """
        check_layers(self.model)
        before = random_states(self.inputs.device)
        with naming_causes():
            yield
        if random_states(self.inputs.device) != before:
            raise InputError(
                "the model draws random numbers, as dropout does: its loss is random and has no derivatives of its "
                "own; set the probability to 0, or put the model in evaluation mode"
            )

    @contextmanager
    def probe(self) -> Iterator[None]:
        """Leave no trace: the model's state (`ModelState`), gradients and random state are restored.

        The model stays in its mode, so that a probe during training normalizes as training does.
        """
        gradients = [p.grad for p in self.parameters]
        try:
            with self.state.kept(self.model), random_states_kept(self.inputs.device):
                yield
        finally:
            for parameter, gradient in zip(self.parameters, gradients, strict=True):
                parameter.grad = gradient


def flatten(tensors: Iterable[Tensor]) -> Tensor:
    """One ``[P]`` vector out of one tensor per parameter; the inverse of `EmpiricalRisk.unflatten`."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])
