"""The empirical risk L(θ) = (1/N) Σ ℓ_i(θ): the only place that turns model, loss and data into numbers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call

import opposing_signals.curvature.convolution  # noqa: F401  # mends a gradient that torch gets wrong on some CPUs
from opposing_signals.curvature.any_order import AnyOrder, GradientWatch
from opposing_signals.curvature.finite_differences import check, of_products
from opposing_signals.curvature.second_order import (
    TwiceDifferentiable,
    check_graph,
    check_layers,
    refusing_checkpoints,
    refusing_missing_derivatives,
)
from opposing_signals.curvature.untouched import ModelState
from opposing_signals.errors import InputError
from opposing_signals.processes import agreed, count, rank, summed

Precision = Literal["float32", "tf32", "float64", "bfloat16", "unchanged"]
Batch = slice | Tensor
"""Which examples a step uses: ``slice(0, N)`` for the whole set (no copy is made), else an index tensor."""

WHOLE = slice(None)
Result = TypeVar("Result")


@dataclass(frozen=True)
class ForwardPass:
    """What one pass over a batch shows of θ_t.

    Attributes:
        losses: ``[n]`` ℓ_i(θ_t), in the batch's order.
        outputs: ``[n, C]`` f(x_i; θ_t): logits, or a regression's values; ``[n, 0]`` where they are not kept.
    """

    losses: Tensor
    outputs: Tensor


@dataclass(frozen=True)
class CurvaturePass(ForwardPass):
    """What one pass with Hessian-vector products shows of θ_t beside that.

    Attributes:
        gradient: ``[P]`` ∇L(θ_t), L the batch's mean loss, weighted where the risk has weights.
        products: ``[k, P]`` ∇²L(θ_t) v_j.
        slopes: ``[k, n]`` ∇ℓ_i(θ_t)·v_j; their mean over i, weighted as L is, is ∇L·v_j.
    """

    gradient: Tensor
    products: Tensor
    slopes: Tensor


class _ChunkPass(NamedTuple):
    losses: Tensor
    outputs: Tensor
    slopes: list[Tensor]
    gradient: list[Tensor | None]


class EmpiricalRisk:
    """θ ↦ ℓ(θ) ∈ R^N over data that rest on the device, evaluated in chunks.

    Every sum is weighted 1/N per sample, so an uneven last chunk counts as it should. A model with batch norm in
    training mode normalizes by the statistics of each chunk ("ghost" batch norm, Hoffer et al. 2017): then the chunk
    size is part of what L *is*, and everything here uses the same chunks.

    Attributes:
        weights: ``[N]``, how much each example counts in L, in the training pass and in Hessian products: then
            L = Σ w_i ℓ_i / Σ w_i over the batch. None: all count the same.
        checked: The measures that have been held against finite differences
            (`opposing_signals.curvature.finite_differences`); None: none is to be.

    Args:
        model: Maps ``[n, ...]`` inputs to ``[n, C]`` outputs; its parameters with ``requires_grad`` are θ.
        loss: Per-sample loss, (outputs, targets) ↦ ``[n]``.
        inputs: ``[N, ...]``; whole numbers, such as tokens, keep their type.
        targets: ``[N]`` or ``[N, C]``.
        chunk: Examples per forward pass.
        precision: Of weights, data and arithmetic. ``"tf32"`` is float32 of which a GPU may round the factors of
            products to 10 bits (the job sets that, see `opposing_signals.training.job`), ``"bfloat16"`` keeps float32
            weights and runs under autocast, ``"unchanged"`` takes weights and data as they are.
        channels_last: Memory layout of images and convolutions; faster on most CPUs and on GPUs with tensor cores. It
            is safe on every CPU, for what torch gets wrong in it on some is mended
            (`opposing_signals.curvature.convolution`).
        compile_training: `torch.compile` the forward pass of `backward`. Curvature stays eager: a compiled module
            has no double backward.
        keep_outputs: Whether a pass returns the outputs of its whole batch. Those of text, V logits a token, are far
            larger than everything else in the pass; False holds no more than a chunk's.

    Raises:
        InputError: The chunk is larger than the data or not positive, or the precision is none of these.
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
        keep_outputs: bool = True,
    ) -> None:
        if not isinstance(chunk, int) or not 1 <= chunk <= len(inputs):
            raise InputError(f"risk.chunk={chunk}: expected 1 to {len(inputs)}, the number of training examples")
        if precision not in get_args(Precision):
            raise InputError(f"risk.precision={precision}: expected {', '.join(get_args(Precision))}")
        dtype = torch.float64 if precision == "float64" else torch.float32
        layout = torch.channels_last if channels_last and inputs.ndim == 4 else torch.preserve_format
        self.model = model.to(dtype=dtype) if precision != "unchanged" else model
        if layout is torch.channels_last:
            self.model = model.to(memory_format=layout)  # type: ignore[call-overload]  # torch documents it
        kept = precision == "unchanged"
        self.inputs = (
            inputs.to(dtype=dtype, memory_format=layout) if inputs.is_floating_point() and not kept else inputs
        )
        self.targets = targets.to(dtype=dtype) if targets.is_floating_point() and not kept else targets
        self.chunk = chunk
        self.precision = precision
        self.loss = loss
        self.keep_outputs = keep_outputs
        self.weights: Tensor | None = None
        self._compiled = compile_training
        self._training_forward = torch.compile(self.evaluate) if compile_training else self.evaluate
        self._seen: tuple[Batch, Tensor] | None = None
        self._takes_gradients: bool | None = None
        self._state = ModelState()
        self.checked: set[str] | None = set()

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
        self.weights = None if self.weights is None else self.weights.to(device)
        return self

    def losses_at(self, parameters: Sequence[Tensor], batch: Batch = WHOLE, may_idle: bool = False) -> Iterator[Tensor]:
        """ℓ_i of each of the batch's `parts` at other parameters than θ, one tensor for each of `parameters`.

        They may be of any kind that the model can compute with. Call it within `probe`.
        """
        names = [name for name, p in self.model.named_parameters() if p.requires_grad]
        state = dict(zip(names, parameters, strict=True))
        for inputs, targets in self.chunks(batch, may_idle):
            yield self.loss(functional_call(self.model, state, (inputs,)), targets)

    def evaluate(self, inputs: Tensor, targets: Tensor, autocast: bool = True) -> tuple[Tensor, Tensor]:
        """Per-sample losses ``[n]`` and outputs ``[n, C]`` at θ; only the former carry a graph.

        Args:
            inputs: ``[n, ...]``.
            targets: ``[n]`` or ``[n, C]``.
            autocast: Whether to compute as training does under ``precision="bfloat16"``, or in the weights' precision.
        """
        autocast = autocast and self.precision == "bfloat16"
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=autocast):
            outputs = self.model(inputs)
        if not isinstance(outputs, Tensor):
            raise InputError(
                f"the model returns a {type(outputs).__name__}: expected a tensor, such as logits [n, C]; wrap it in a "
                "module that picks it out"
            )
        if autocast:
            outputs = outputs.float()
        return self.loss(outputs, targets), outputs.detach()

    def parts(self, batch: Batch = WHOLE, may_idle: bool = False) -> list[slice]:
        """Positions in ``batch`` of the chunks that this process evaluates.

        Alone it evaluates all; of several processes (`opposing_signals.processes`) the r-th takes every world-th, and
        what they find is put together by `assembled` and `summed`.

        Args:
            batch: Which examples.
            may_idle: Whether a process may have none.

        Raises:
            InputError: There are fewer chunks than processes, and none may idle.
        """
        size, processes = self._size(batch), count()
        parts = [slice(first, min(first + self.chunk, size)) for first in range(0, size, self.chunk)]
        if self._some_idle(batch) and not may_idle:
            raise InputError(
                f"risk.chunk={self.chunk}: {size} examples are {len(parts)} chunks, fewer than the {processes} "
                f"processes; expected at most {size // processes}"
            )
        return parts[rank() :: processes]

    def assembled(self, pieces: Sequence[Tensor], batch: Batch = WHOLE, axis: int = 0) -> Tensor:
        """One tensor out of one piece for each of `parts`, in the batch's order along ``axis``, on every process."""
        if count() == 1:
            return torch.cat(list(pieces), axis)
        if self._some_idle(batch):  # which do not know
            shape, dtype = agreed(lambda: (list(pieces[0].shape), pieces[0].dtype))
        else:
            shape, dtype = list(pieces[0].shape), pieces[0].dtype
        shape[axis] = self._size(batch)
        whole = torch.zeros(shape, dtype=dtype, device=self.inputs.device)
        for part, piece in zip(self.parts(batch, may_idle=True), pieces, strict=True):
            whole.narrow(axis, part.start, part.stop - part.start).copy_(piece)
        return summed(whole)

    def chunks(self, batch: Batch = WHOLE, may_idle: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and targets of each of `parts`."""
        seen = self._seen[1] if self._seen is not None and self._seen[0] is batch else None
        for part in self.parts(batch, may_idle):
            if isinstance(batch, slice):
                first = batch.indices(len(self))[0]
                rows: Batch = slice(first + part.start, first + part.stop)
            else:
                rows = batch[part]
            yield (self.inputs[rows] if seen is None else seen[part]), self.targets[rows]

    @contextmanager
    def seen_as(self, inputs: Tensor, batch: Tensor) -> Iterator[None]:
        """Inside, every pass over ``batch`` sees ``inputs`` ``[n, ...]``, its augmented examples, in their place.

        Passes over other examples, the whole set among them, see those as they are.
        """
        self._seen = batch, inputs
        try:
            yield
        finally:
            self._seen = None

    def shares(self, batch: Batch = WHOLE) -> Iterator[Tensor]:
        """How much each example of each of `parts` counts in L: 1/n, or w_i / Σ w_i."""
        size = self._size(batch)
        equal = torch.tensor(1 / size, dtype=torch.float64, device=self.inputs.device).expand(size)
        shares = equal if self.weights is None else self.weights[batch] / self.weights[batch].sum()
        for part in self.parts(batch, may_idle=True):
            yield shares[part]

    def _training_chunks(self, batch: Batch) -> Iterator[tuple[Tensor, Tensor]]:
        """`chunks`; what the model draws in one, such as dropout's masks, follows from its place in the batch.

        So several processes draw what one alone would, and have one random state behind the pass.
        """
        is_cuda, device = self.inputs.is_cuda, self.inputs.device
        generators = [torch.default_generator, *([torch.cuda.default_generators[device.index]] if is_cuda else [])]
        seed = int(torch.randint(2**62, ()))
        with torch.random.fork_rng([device] if is_cuda else []):
            for part, chunk in zip(self.parts(batch, may_idle=True), self.chunks(batch, may_idle=True), strict=True):
                for generator in generators:
                    generator.manual_seed(seed + part.start)
                yield chunk

    def _some_idle(self, batch: Batch) -> bool:
        """Whether there are fewer chunks than processes: the first process has one in any case."""
        return self._size(batch) <= self.chunk * (count() - 1)

    def _size(self, batch: Batch) -> int:
        return len(range(*batch.indices(len(self)))) if isinstance(batch, slice) else len(batch)

    def backward(self, batch: Batch = WHOLE) -> ForwardPass:
        """The training pass: add the batch's mean gradient to ``.grad`` and return what its forward showed.

        Of several processes each must find ``.grad`` empty, for all of it is added up over them. Running statistics of
        batch norm move, as in any training step.

        Raises:
            InputError: The loss is not one number an example.
        """
        losses, outputs = [], []
        for (inputs, targets), shares in zip(self._training_chunks(batch), self.shares(batch), strict=True):
            sample_losses, output = self._training_forward(inputs, targets)
            check_losses(sample_losses, inputs)
            (sample_losses * shares.to(sample_losses)).sum().backward()
            losses.append(sample_losses.detach())
            outputs.append(self._kept(output))
        used = self._used_by_any([parameter.grad is not None for parameter in self.parameters])
        for parameter in itertools.compress(self.parameters, used):
            parameter.grad = summed(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
        self._agree_on_buffers()
        return ForwardPass(self.assembled(losses, batch), self.assembled(outputs, batch))

    def _used_by_any(self, used: list[bool]) -> list[bool]:
        """Which parameters have a gradient: those that the chunks of any process use."""
        if count() == 1:
            return used
        return summed(torch.tensor(used, dtype=torch.int32, device=self.inputs.device)).bool().tolist()

    def _agree_on_buffers(self) -> None:
        """Of several processes each has moved batch norm's running statistics by its own chunks: take the mean."""
        if count() > 1:
            for buffer in self.model.buffers():
                if buffer.is_floating_point():
                    summed(buffer.div_(count()))

    def backward_with_products(self, vectors: Tensor, batch: Batch = WHOLE) -> CurvaturePass:
        """`backward`, and ∇²L v_j of the same batch from the same graph.

        ``.grad`` gets the bits that `backward` would give it. Where the training pass is compiled, runs in bfloat16
        or takes gradients of its own, another graph is built for the products, in the weights' precision.
        """
        self.check_vectors(vectors)
        self.check_products()
        if self.precision == "bfloat16" or self._compiled or self.takes_gradients:
            forward_pass = self.backward(batch)
            curvature = self.hessian_products(vectors, batch)
            return replace(curvature, losses=forward_pass.losses, outputs=forward_pass.outputs)
        result, gradients = self._curvature_pass(vectors, batch)
        self._agree_on_buffers()
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        return result

    @property
    def is_compiled(self) -> bool:
        """Whether the training pass is one compiled graph, into which no hook sees."""
        return self._compiled

    @property
    def takes_gradients(self) -> bool:
        """Whether model or loss take a gradient of their own, as a force field does; looked for once, on a chunk.

        Then passes without a graph are none for the model, and a Hessian-vector product has third derivatives.
        """
        if self._takes_gradients is None:
            # Where that cannot be evaluated, the measurement itself says so.
            with self.probe(), torch.enable_grad(), suppress(RuntimeError), GradientWatch() as watch:
                self.evaluate(self.inputs[: self.chunk], self.targets[: self.chunk])
            self._takes_gradients = watch.has_seen
        return self._takes_gradients

    def without_graph(self) -> AbstractContextManager:
        """`torch.no_grad`, unless the model takes gradients of its own, which it could not inside that."""
        return torch.set_grad_enabled(self.takes_gradients)

    def _without_graph(self, evaluate: Callable[[], Result]) -> Result:
        """``evaluate()`` so; that the model takes gradients is only looked for where it does not work without."""
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
        """Let what is evaluated inside have a second derivative in θ that is right."""
        with torch.enable_grad(), AnyOrder() if self.takes_gradients else TwiceDifferentiable():
            yield

    def outputs(self, inputs: Tensor) -> Tensor:
        """``[n, C]`` f(x; θ) of inputs that need not be training data, without a trace: see `probe`.

        Args:
            inputs: ``[n, ...]``, normalized as the training data are.
        """
        autocast = torch.autocast(self.inputs.device.type, torch.bfloat16, enabled=self.precision == "bfloat16")
        with self.probe(), autocast:
            outputs = self._without_graph(lambda: self.model(inputs.to(self.inputs))).detach()
        return outputs.float() if self.precision == "bfloat16" else outputs

    def sample_losses(self, batch: Batch = WHOLE) -> ForwardPass:
        """ℓ_i(θ) without a gradient and without a trace: see `probe`."""
        with self.probe(), torch.no_grad():
            losses, outputs = [], []
            for chunk in self.chunks(batch, may_idle=True):
                sample_losses, output = self._without_graph(partial(self.evaluate, *chunk))
                check_losses(sample_losses, chunk[0], are_single=False)
                losses.append(sample_losses.detach())
                outputs.append(self._kept(output))
        return ForwardPass(self.assembled(losses, batch), self.assembled(outputs, batch))

    def _kept(self, outputs: Tensor) -> Tensor:
        return outputs if self.keep_outputs else outputs.new_empty(len(outputs), 0)

    def hessian_products(self, vectors: Tensor, batch: Batch = WHOLE) -> CurvaturePass:
        """∇²L v for several v in one pass, with gradient, losses and per-sample slopes as by-products, and no trace.

        Double backward (Pearlmutter 1994) over layers whose second derivatives are cheap (`TwiceDifferentiable`):
        the gradient's graph is built once a chunk and shared by all products.

        Args:
            vectors: ``[k, P]``; k = 0 gives the by-products alone.
            batch: Examples over which L is the mean.

        Raises:
            InputError: The vectors have another length than θ, the loss is not one number an example, the model has a
                layer without second derivative or draws random numbers, or the products are not its derivatives.
        """
        self.check_vectors(vectors)
        if len(vectors):
            self.check_products()
        with self.probe():
            return self._curvature_pass(vectors, batch)[0]

    def check_products(self) -> None:
        """Hold `hessian_products` against finite differences, if that has not been done; it does so itself, too.

        Raises:
            InputError: They disagree.
        """
        check(self, "hessian_products", of_products)

    def _curvature_pass(self, vectors: Tensor, batch: Batch) -> tuple[CurvaturePass, list[Tensor | None]]:
        """The pass and its gradient in the parameters' shapes and layouts, with the bits of `backward`.

        A parameter that L does not depend on has None, as after `backward`: an optimizer leaves it alone.
        """
        directions = [self.unflatten(v) for v in vectors]
        products = torch.zeros_like(vectors)
        pieces_of = [self.unflatten(product) for product in products]  # views
        gradients: list[Tensor | None] = [None] * len(self.parameters)
        losses: list[Tensor] = []
        outputs: list[Tensor] = []
        slopes: list[list[Tensor]] = [[] for _ in directions]
        with self.deterministic():
            for (inputs, targets), shares in zip(self.chunks(batch, may_idle=True), self.shares(batch), strict=True):
                seen = self._curvature_of_chunk(inputs, targets, shares, directions, pieces_of, is_first=not losses)
                gradients = [_sum(*pair) for pair in zip(gradients, seen.gradient, strict=True)]
                losses.append(seen.losses)
                outputs.append(self._kept(seen.outputs))
                for row, slope in zip(slopes, seen.slopes, strict=True):
                    row.append(slope)
                del seen  # its gradient is as large as θ
        used = self._used_by_any([piece is not None for piece in gradients])
        dense = [torch.zeros_like(p) if g is None else g for p, g in zip(self.parameters, gradients, strict=True)]
        gradients = [summed(piece) if is_used else None for piece, is_used in zip(dense, used, strict=True)]
        result = CurvaturePass(
            self.assembled(losses, batch),
            self.assembled(outputs, batch),
            flatten(dense),
            summed(products),
            torch.stack([self.assembled(row, batch) for row in slopes])
            if slopes
            else vectors.new_zeros(0, self._size(batch)),
        )
        return result, gradients

    def _curvature_of_chunk(
        self,
        inputs: Tensor,
        targets: Tensor,
        weights: Tensor,
        directions: list[list[Tensor]],
        products: list[list[Tensor]],
        is_first: bool,
    ) -> _ChunkPass:
        """The pass over one chunk, whose share of L is Σ w_i ℓ_i; adds its share of each product to ``products``.

        What is needed for one product alone ends with it: a pass holds as few tensors of θ's size as it can.
        """
        parameters = self.parameters
        with self.differentiable():
            losses, outputs = self.evaluate(inputs, targets, autocast=False)
            check_losses(losses, inputs)
            weights = weights.to(losses).detach().clone().requires_grad_()
            mean = (losses * weights).sum()
        is_curved = len(directions) > 0
        gradient = torch.autograd.grad(mean, parameters, create_graph=is_curved, allow_unused=True)
        used = [piece for piece in gradient if piece is not None]
        if is_curved and is_first:
            check_graph(used)

        def add_product(j: int) -> Tensor:
            with refusing_missing_derivatives():
                *rows, slope = torch.autograd.grad(
                    used,
                    [*parameters, weights],
                    [part for part, piece in zip(directions[j], gradient, strict=True) if piece is not None],
                    retain_graph=j + 1 < len(directions),
                    materialize_grads=True,
                )
            torch._foreach_add_(products[j], rows)
            return slope

        slopes = [add_product(j) for j in range(len(directions))]
        return _ChunkPass(losses.detach(), outputs, slopes, [None if g is None else g.detach() for g in gradient])

    def check_vectors(self, vectors: Tensor) -> None:
        """Refuse ``vectors`` that are not ``[k, P]``.

        Raises:
            InputError: They belong to another model.
        """
        size = sum(p.numel() for p in self.parameters)
        if vectors.ndim != 2 or vectors.shape[1] != size:
            raise InputError(
                f"vectors of shape {list(vectors.shape)}: expected [k, {size}], one entry a parameter of this model; "
                "a vector of another model cannot be used"
            )

    def unflatten(self, vector: Tensor) -> list[Tensor]:
        """A ``[P]`` vector as one tensor a parameter, in the parameters' shapes."""
        pieces = vector.split([p.numel() for p in self.parameters])
        return [piece.view_as(p) for piece, p in zip(pieces, self.parameters, strict=True)]

    @contextmanager
    def deterministic(self) -> Iterator[None]:
        """Refuse layers of which the derivatives would be wrong (`check_layers`), and random numbers drawn inside.

        Raises:
            InputError: There is such a layer, or the model has drawn.
        """
        check_layers(self.model)
        before = self._random_state()
        with refusing_checkpoints():
            yield
        if not torch.equal(before, self._random_state()):
            raise InputError(
                "the model draws random numbers, as dropout does: its loss is random and has no derivatives of its "
                "own; set the probability to 0, or put the model in evaluation mode"
            )

    def _random_state(self) -> Tensor:
        return torch.cuda.get_rng_state(self.inputs.device) if self.inputs.is_cuda else torch.get_rng_state()

    @contextmanager
    def probe(self) -> Iterator[None]:
        """Leave no trace: the model's state (`ModelState`), gradients and random state are afterwards what they were.

        The model stays in the mode that it is in, so that a probe during training sees the normalization that
        training sees.
        """
        gradients = [p.grad for p in self.parameters]
        devices = [self.inputs.device] if self.inputs.is_cuda else []
        try:
            with self._state.kept(self.model), torch.random.fork_rng(devices):
                yield
        finally:
            for parameter, gradient in zip(self.parameters, gradients, strict=True):
                parameter.grad = gradient


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    if one is None or other is None:
        return other if one is None else one
    return one + other


def check_losses(losses: Any, inputs: Tensor, are_single: bool = True) -> None:
    """Refuse losses ``[n, 1]`` and the like, which would broadcast against the weights of the n examples.

    Args:
        losses: What the loss gave.
        inputs: ``[n, ...]``.
        are_single: Whether an example has one number; several, as a sequence's tokens, have no mean loss here.

    Raises:
        InputError: They are not ``[n]``, or a gradient is wanted and they have none.
    """
    shape = list(losses.shape) if isinstance(losses, Tensor) else None
    if not shape or shape[0] != len(inputs) or (are_single and len(shape) > 1):
        given = f"shape {shape}" if shape is not None else f"type {type(losses).__name__}"
        raise InputError(
            f"a loss of {given} for {len(inputs)} examples: expected [{len(inputs)}], one number an example; a loss of "
            "torch.nn needs reduction='none', and .flatten(1).mean(1) where it has several numbers"
        )
    if torch.is_grad_enabled() and not losses.requires_grad:
        raise InputError(
            "the loss does not depend on the parameters: expected some with requires_grad, and no detach or no_grad "
            "between them and the loss"
        )


def flatten(tensors: Iterable[Tensor]) -> Tensor:
    """One ``[P]`` vector out of one tensor a parameter; the inverse of `EmpiricalRisk.unflatten`."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])
