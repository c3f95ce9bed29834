"""Compiled and recorded passes: fewer kernels, and fewer launches of them.

Hessian-vector products are traced through this library's derivatives (`ChunkPass`) into one graph of kernels, which
`torch.compile` then fuses. `torch.compile` alone refuses double backward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from opposing_signals.curvature.double_backward import ChunkPass
from opposing_signals.curvature.refusals import check_losses
from opposing_signals.errors import InputError

if TYPE_CHECKING:
    from opposing_signals.curvature.risk import EmpiricalRisk

Result = TypeVar("Result")
_Gradient = tuple[Tensor, Tensor, Sequence[Tensor | None]]
"""Losses, outputs and gradient of a chunk."""

BACKEND = "inductor"
_WARM_UP = 3
"""Warm-up passes before a recording, in which libraries choose kernels and allocate memory."""


def compiled(function: Callable[..., Result], field: str) -> Callable[..., Result]:
    """``function``, compiled at its first call.

    Args:
        function: Of tensors whose shapes do not change.
        field: The setting of ``risk`` that asks for it.

    Raises:
        InputError: At the first call, if the machine has no compiler or the function cannot be compiled.
    """
    whole: Callable[..., Result] = torch.compile(function, backend=BACKEND)

    def call(*arguments: Any) -> Result:
        from torch._dynamo.exc import TorchDynamoException

        try:
            return whole(*arguments)
        except TorchDynamoException as error:
            said = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise InputError(f"risk.{field}=true: {said.strip()}; expected a compiler, or false") from error

    return call


class CompiledProducts:
    """Gradient, products and slopes of a chunk by one compiled graph; equal to `ChunkPass` up to rounding.

    There is one graph for each number of vectors, chunk shape and mode of the model. Whatever else the forward pass
    depends on, besides parameters, buffers and inputs, must not change.

    Args:
        risk: Evaluated at its θ, within `EmpiricalRisk.probe`.
    """

    def __init__(self, risk: EmpiricalRisk) -> None:
        self._risk = risk
        self._graphs: dict[Any, Callable[..., Any]] = {}

    def __call__(
        self, inputs: Tensor, targets: Tensor, weights: Tensor, directions: list[list[Tensor]]
    ) -> tuple[Tensor, Tensor, list[Tensor | None], list[Tensor], list[list[Tensor]]]:
        """Losses, outputs, gradient, and slopes and product along each of ``directions``; see `ChunkPass`."""
        model = self._risk.model
        arguments = self._risk.parameters, list(model.buffers()), inputs, targets, weights, directions
        mode = tuple(module.training for module in model.modules())
        key = len(directions), inputs.shape, targets.shape, inputs.stride(), inputs.dtype, mode
        if key not in self._graphs:
            from torch.fx.experimental.proxy_tensor import make_fx

            graph = make_fx(lambda *given: self._pass(*given))(*arguments)  # make_fx cannot take a bound method
            graph.graph.eliminate_dead_code()
            graph.recompile()
            self._graphs[key] = compiled(graph, "compile_products")
        with torch.no_grad():
            return self._graphs[key](*arguments)

    def _pass(
        self,
        parameters: list[Tensor],
        buffers: list[Tensor],
        inputs: Tensor,
        targets: Tensor,
        weights: Tensor,
        directions: list[list[Tensor]],
    ) -> Any:
        copies = {id(buffer): copy.clone() for buffer, copy in zip(self._risk.model.buffers(), buffers, strict=True)}
        for module in self._risk.model.modules():  # `EmpiricalRisk.probe` restores them
            module._buffers.update({name: copies[id(own)] for name, own in module._buffers.items() if own is not None})
        with self._risk.at([parameter.detach().requires_grad_() for parameter in parameters]):
            seen = ChunkPass(self._risk, inputs, targets, weights, is_twice=True)
            products = [[torch.zeros_like(part) for part in direction] for direction in directions]
            slopes = [
                seen.add_product(direction, product, keep_graph=True)
                for direction, product in zip(directions, products, strict=True)
            ]
        gradient = [None if part is None else part.detach() for part in seen.gradient]
        return seen.losses.detach(), seen.outputs, gradient, slopes, products


class RecordedGradient:
    """The training pass of a chunk, recorded as a CUDA graph at its first call and replayed without launch gaps.

    A replay runs the recorded kernels, so results are bit-identical. Hooks in the model are not called again.

    Args:
        risk: Gradients are added to its parameters' ``.grad``. A recording leaves its state unchanged.
        forward: Inputs and targets ↦ losses and outputs.
    """

    def __init__(self, risk: EmpiricalRisk, forward: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> None:
        self._risk, self._forward = risk, forward
        self._recordings: dict[Any, tuple[list[Tensor], Callable[[], _Gradient]]] = {}

    def __call__(self, *given: Tensor) -> tuple[Tensor, Tensor]:
        """Losses and outputs of a chunk, given its inputs, targets and loss weights."""
        mode = tuple(module.training for module in self._risk.model.modules())
        key = *((tensor.shape, tensor.stride()) for tensor in given), mode
        if key not in self._recordings:
            held = [tensor.clone() for tensor in given]
            with self._risk.probe():
                self._recordings[key] = held, recorded(partial(self._pass, *held), given[0].device)
        held, replay = self._recordings[key]
        for tensor, value in zip(held, given, strict=True):
            tensor.copy_(value)
        losses, outputs, gradient = replay()
        for parameter, piece in zip(self._risk.parameters, gradient, strict=True):
            if piece is None:
                continue
            if parameter.grad is None:
                parameter.grad = torch.empty_like(parameter).copy_(piece)
            else:
                parameter.grad += piece
        return losses.clone(), outputs.clone()

    def _pass(self, inputs: Tensor, targets: Tensor, weights: Tensor) -> _Gradient:
        losses, outputs = self._forward(inputs, targets)
        check_losses(losses, inputs)
        weighted = (losses * weights.to(losses)).sum()
        return losses.detach(), outputs, torch.autograd.grad(weighted, self._risk.parameters, allow_unused=True)


def recorded(run: Callable[[], Result], device: torch.device) -> Callable[[], Result]:
    """A function that replays the kernels of ``run`` on ``device`` and returns the same tensors, overwritten.

    Raises:
        InputError: The kernels cannot be recorded.
    """
    if device.type != "cuda":
        raise InputError(f"risk.cuda_graphs=true on {device.type}: expected a GPU, or false")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UP):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            result = run()
    except RuntimeError as error:
        raise InputError(
            f"risk.cuda_graphs=true: the training pass cannot be recorded ({str(error).splitlines()[0]}): expected one "
            "that never waits for the GPU, or false"
        ) from error

    def replay() -> Result:
        graph.replay()
        return result

    return replay
