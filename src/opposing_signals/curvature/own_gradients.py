"""Readings of per-example gradients, for all examples of a chunk at once."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import CheckpointError, set_checkpoint_early_stop

from opposing_signals.curvature.any_order import DERIVATIVES
from opposing_signals.curvature.examples import independent_examples
from opposing_signals.curvature.finite_differences import FEWEST, flat_gradient
from opposing_signals.curvature.ghost_norms import SquaredNorm
from opposing_signals.curvature.graphs import graph_nodes
from opposing_signals.curvature.layer_rules import BLOCK, LINEAR, NoRuleError, Reading
from opposing_signals.curvature.normalization import BatchNorm, by_statistics, with_constant_statistics
from opposing_signals.curvature.refusals import check_losses, naming_causes
from opposing_signals.curvature.risk import EmpiricalRisk
from opposing_signals.errors import InputError


def read_off(risk: EmpiricalRisk, reading: Reading) -> Tensor:
    """``reading`` of the gradient of every training point.

    From one backward pass per chunk if every use of a parameter has a rule, else from the gradients themselves.

    Returns:
        ``[N, *width]``.
    """
    try:
        shapes = _shapes_behind_examples(risk)
        return risk.assembled([_summed_over_uses(risk, chunk, shapes, reading) for chunk in risk.parts()])
    except NoRuleError:
        return risk.assembled([_from_gradients(risk, chunk, reading) for chunk in risk.parts()])


def _from_gradients(risk: EmpiricalRisk, chunk: slice, reading: Reading) -> Tensor:
    rows = []
    for gradients in _gradients(risk, chunk):
        pairs = zip(risk.parameters, gradients, strict=True)
        rows.append(torch.stack([reading.of_entries(parameter, own) for parameter, own in pairs]).sum(0))
    return torch.cat(rows)


def _shapes_behind_examples(risk: EmpiricalRisk) -> list[torch.Size]:
    """Output shape of each use of parameters, without the first axis.

    Raises:
        NoRuleError: A parameter is used without a rule, or the first axis of an output is not the example. An axis's
            size alone does not tell: a table of positions can be as long as a chunk.
    """
    try:
        (two, losses), (three, _) = (_watched(risk, slice(0, examples), SquaredNorm()) for examples in (2, 3))
    except RuntimeError:  # a model that takes a fixed number of examples
        raise NoRuleError from None
    shapes = [shape[1:] for shape in two.shapes]
    for examples, uses in ((2, two), (3, three)):
        if uses.shapes != [torch.Size([examples, *shape]) for shape in shapes]:
            raise NoRuleError
    variables = {id(getattr(node, "variable", None)) for node in graph_nodes([losses])}
    if any(id(parameter) in variables for parameter in risk.parameters):
        raise NoRuleError
    return shapes


def _summed_over_uses(risk: EmpiricalRisk, chunk: slice, shapes: list[torch.Size], reading: Reading) -> Tensor:
    """``reading`` of each example's gradient, summed over the uses of parameters.

    Args:
        risk: Evaluated at its θ, and left unchanged.
        chunk: Positions of the chunk's examples.
        shapes: See `_shapes_behind_examples`.
        reading: Gives ``[n, *width]``.

    Raises:
        NoRuleError: A parameter is shared, or used in a way for which there is no rule.
    """
    uses, losses = _watched(risk, chunk, reading)
    if uses.shapes != [torch.Size([len(losses), *shape]) for shape in shapes]:
        raise NoRuleError
    with naming_causes():
        try:
            torch.autograd.grad(losses.sum(), uses.first, allow_unused=True)
        except CheckpointError:  # the recomputed pass uses parameters, not the constants in their place
            raise NoRuleError from None
    return uses.total


def _gradients(risk: EmpiricalRisk, chunk: slice) -> Iterator[list[Tensor]]:
    """∇ℓ_i of a few examples of the chunk at a time, one ``[n, ...]`` tensor for each of ``risk.parameters``.

    Together if `torch.func.vmap` can handle the model, else one after another.
    """
    part = max(1, BLOCK[risk.inputs.device.type] // sum(p.numel() for p in risk.parameters))
    pieces = list(zip(risk.inputs[chunk].split(part), risk.targets[chunk].split(part), strict=True))
    gradients = _one_after_another if risk.takes_gradients else _together
    with independent_examples(risk, chunk):
        for inputs, targets in pieces:
            try:
                rows = gradients(risk, inputs, targets)
            except RuntimeError:  # a layer without a rule for vmap, such as a recurrent one
                gradients = _one_after_another
                rows = gradients(risk, inputs, targets)
            yield rows


def _together(risk: EmpiricalRisk, inputs: Tensor, targets: Tensor) -> list[Tensor]:
    """By ∇ℓ_i = J_iᵀ ∂ℓ_i/∂f, so that `vmap`, which cannot handle every loss, sees only the network."""

    def pulled_back(theta: list[Tensor], inputs: Tensor, slope: Tensor) -> Tensor:
        with risk.at(theta):
            return (risk.model(inputs[None])[0] * slope).sum()

    with sdpa_kernel(SDPBackend.MATH):  # the others have no rule for vmap
        with torch.no_grad():
            outputs = risk.model(inputs)
        with torch.enable_grad():
            losses = risk.loss(outputs.requires_grad_(), targets)
        check_losses(losses, inputs)
        (slopes,) = torch.autograd.grad(losses.sum(), outputs)
        theta = [p.detach() for p in risk.parameters]
        return vmap(grad(pulled_back), in_dims=(None, 0, 0))(theta, inputs, slopes)


def _one_after_another(risk: EmpiricalRisk, inputs: Tensor, targets: Tensor) -> list[Tensor]:
    rows = []
    for example in zip(inputs.split(1), targets.split(1), strict=True):
        try:
            with torch.enable_grad():
                losses, _ = risk.evaluate(*example)
        except RuntimeError as error:
            raise InputError(
                f"the model cannot be evaluated on a single example ({str(error).splitlines()[0]}): expected one that "
                "takes inputs of any length; or leave out the instruments that look at single examples"
            ) from error
        check_losses(losses, example[0])
        rows.append(torch.autograd.grad(losses.sum(), risk.parameters, materialize_grads=True))
    return [torch.stack(column) for column in zip(*rows, strict=True)]


def gradients_by_plain_autograd(risk: EmpiricalRisk) -> Tensor:
    """``[m, P]`` ∇ℓ_i of the first few examples, by plain autograd, with batch norm's statistics held constant."""
    rows = []
    with independent_examples(risk, slice(0, risk.chunk)), torch.enable_grad():
        for i in range(min(FEWEST, risk.chunk)):
            losses, _ = risk.evaluate(risk.inputs[i : i + 1], risk.targets[i : i + 1], autocast=False)
            rows.append(flat_gradient(losses.sum(), risk, graph=False))
    return torch.stack(rows)


def _watched(risk: EmpiricalRisk, chunk: slice, reading: Reading) -> tuple[_Uses, Tensor]:
    inputs, targets = risk.inputs[chunk], risk.targets[chunk]
    with risk.probe(), risk.deterministic(), torch.enable_grad(), set_checkpoint_early_stop(False):
        with _Uses(risk.parameters, len(inputs), reading) as uses:
            losses, _ = risk.evaluate(inputs, targets)
        check_losses(losses, inputs)
    return uses, losses


class _Uses(TorchFunctionMode):
    """Watches a forward pass for uses of parameters, and takes readings in the backward pass after it.

    A parameter that is used by a rule enters the graph as a constant, so the backward pass computes derivatives in
    activations only. Batch norm in training mode is replaced by batch norm with constant statistics.

    Attributes:
        shapes: Of the output of each use, with the example axis first.
        first: The outputs at which the graph begins; a backward pass to all of them passes every use.
        total: ``[n, *width]`` the sum over all uses after the backward pass.
    """

    def __init__(self, parameters: list[nn.Parameter], examples: int, reading: Reading) -> None:
        super().__init__()
        self.shapes: list[torch.Size] = []
        self.first: list[Tensor] = []
        self.total = parameters[0].new_zeros(examples, *reading.width)
        self._rules = reading.rules()
        self._is_used = {id(parameter): False for parameter in parameters}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call the function; if it uses a parameter, register a backward hook on its output."""
        kwargs = kwargs or {}
        if func in DERIVATIVES:  # would trigger the hooks that take readings
            raise NoRuleError
        if func is F.batch_norm:
            func, args, kwargs = by_statistics, with_constant_statistics(BatchNorm(*args, **kwargs)), {}
        if func is F.multi_head_attention_forward:
            return self._attend(*args, **kwargs)
        return self._use(func, args, kwargs) if func in self._rules else func(*args, **kwargs)

    def _use(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], axis: int = 0) -> Tensor:
        """Call ``func`` with parameters as constants; ``axis`` of its input and output is the example."""
        parameters = [argument for argument in (*args, *kwargs.values()) if id(argument) in self._is_used]
        if not parameters:
            return func(*args, **kwargs)
        if any(self._is_used[id(parameter)] for parameter in parameters):
            raise NoRuleError
        self._is_used.update((id(parameter), True) for parameter in parameters)
        constants = [self._constant(argument) for argument in args]
        output = func(*constants, **{name: self._constant(argument) for name, argument in kwargs.items()})
        try:
            call = inspect.signature(self._rules[func]).bind(*args, **kwargs)
        except TypeError:
            raise NoRuleError from None
        if axis:
            call.arguments["values"] = call.arguments["values"].movedim(axis, 0)
        rules = {id(parameter): rule for parameter, rule in self._rules[func](*call.args, **call.kwargs)}
        if any(id(parameter) not in rules for parameter in parameters):
            raise NoRuleError
        self.shapes.append(output.movedim(axis, 0).shape)
        if not output.requires_grad:
            self.first.append(output.requires_grad_())
            output = output.clone()  # the graph's first tensors must not be changed in place, as ReLU may do
        for parameter in parameters:
            output.register_hook(partial(self._add, rules[id(parameter)], axis))
        return output

    def _constant(self, argument: Any) -> Any:
        return argument.detach() if id(argument) in self._is_used else argument

    def _add(self, rule: Callable[[Tensor], Tensor], axis: int, slope: Tensor) -> None:
        self.total += rule(slope.movedim(axis, 0).to(self.total.dtype))

    def _attend(self, query: Tensor, *args: Any, **kwargs: Any) -> Any:
        """`nn.MultiheadAttention`'s function, whose linear maps do not reach a function mode.

        Its tokens have the layout ``[T, n, E]``, or ``[T n, E]``.
        """

        def linear(values: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
            tokens = values.unflatten(0, (-1, query.shape[1])) if values.ndim == 2 else values
            return self._use(LINEAR, (tokens, weight, bias), {}, axis=1).view(*values.shape[:-1], -1)

        if query.ndim != 3:
            raise NoRuleError
        with patch.object(F, "linear", linear):
            return F.multi_head_attention_forward(query, *args, **kwargs)
