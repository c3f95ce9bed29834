"""Checks of every curvature measure against finite differences of gradients, once per run, at first use.

Some of PyTorch's derivatives are wrong, a model may hide a part of itself from them (`detach`, `torch.no_grad`, a
straight-through estimator), and this library has many of its own. All of them should be derivatives of the gradients
that training computes, so they are compared with finite differences of those: on a few examples, along one random
direction, in float64, at weights slightly perturbed from θ, where nothing is zero by initialization.

The steps are so small that hardly any ReLU changes its state; where one does, or where a part of the model computes in
float32 anyway, two step lengths disagree, and another is tried. Where the model cannot run in float64, PyTorch's own
double backward in the weights' precision replaces the differences.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from logging import getLogger
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from opposing_signals.curvature.refusals import check_layers, is_of_checkpoints, naming_causes
from opposing_signals.errors import InputError
from opposing_signals.processes import alone

if TYPE_CHECKING:
    from opposing_signals.curvature.risk import EmpiricalRisk

log = getLogger(__name__)

FEWEST, _MOST, _SHARE = 8, 64, 80
"""Examples on which measures are checked: an eightieth of all, so that a check takes less than one pass over them."""
_STEPS = 1e-7, 1e-8, 1e-6
"""Step lengths, in units of each parameter's root mean square."""
_ALLOWED = 1e-4
"""Allowed relative error in float64; wrong derivatives err by more."""


class Claim(NamedTuple):
    """What a measure finds on the few examples, and what that should be.

    Attributes:
        name: Of the quantity, for the error message.
        measured: Of any shape.
        truth: Whether to keep a graph in θ ↦ what ``measured`` should equal, or what it should be the derivative of.
        is_derivative: Whether it is the latter.
        against: Name of ``truth`` in the error message; empty takes the default of `_refuse`.
    """

    name: str
    measured: Tensor
    truth: Callable[[bool], Tensor]
    is_derivative: bool = True
    against: str = ""


Claims = Callable[["EmpiricalRisk", Tensor], Generator[Claim]]
"""(risk of the few examples, direction ``[P]``) ↦ what the measure claims there."""


def check(risk: EmpiricalRisk, measure: str, claims: Claims) -> None:
    """Check a measure against finite differences, once per ``risk``.

    Args:
        risk: Evaluated at its θ, and left unchanged.
        measure: Its name.
        claims: See `Claims`.

    Raises:
        InputError: It disagrees.
    """
    if risk.checked is None or measure in risk.checked:
        return
    check_layers(risk.model)
    with naming_causes():
        _ = risk.takes_gradients  # of which the few examples need not find out
        _hold(risk, measure, claims)
    risk.checked.add(measure)


def _hold(risk: EmpiricalRisk, measure: str, claims: Claims) -> None:
    for attempt, step in enumerate(_STEPS):
        is_true = _hold_in_float64(risk, claims, attempt, step)
        if is_true:
            return
        if is_true is None:
            break
    try:
        with (
            _few_examples(risk, 0, in_float64=False) as (few, v),
            sdpa_kernel(SDPBackend.MATH),
            closing(claims(few, v)) as made,
        ):
            for claim in made:
                _compare_in_own_precision(few, v, claim)
    except (RuntimeError, TypeError, ValueError) as error:
        if is_of_checkpoints(error):
            raise
        log.warning("%s could not be checked: %s", measure, str(error).splitlines()[0])


def _hold_in_float64(risk: EmpiricalRisk, claims: Claims, attempt: int, step: float) -> bool | None:
    """Whether all claims are true; False if undecided, None if the model cannot compute in float64."""
    try:
        with _few_examples(risk, attempt, in_float64=True) as (few, v), closing(claims(few, v)) as made:
            return all(_holds(few, v, claim, step) for claim in made)
    except (RuntimeError, TypeError, ValueError) as error:
        if is_of_checkpoints(error):
            raise
        return None


@contextmanager
def _few_examples(risk: EmpiricalRisk, seed: int, in_float64: bool) -> Iterator[tuple[EmpiricalRisk, Tensor]]:
    """The risk of a few examples a little away from θ, and a direction ``[P]`` of about θ's size, tensor by tensor."""
    few = copy.copy(risk)
    few.checked = few.compiled_products = None
    examples = slice(min(len(risk), max(FEWEST, min(_MOST, len(risk) // _SHARE))))
    few.inputs, few.targets = risk.inputs[examples], risk.targets[examples]
    few.weights = None if risk.weights is None else risk.weights[examples]
    few.chunk = min(risk.chunk, len(few))
    dtype = torch.get_default_dtype()
    generator = torch.Generator().manual_seed(seed)
    with risk.probe(), alone():
        kept = {parameter: parameter.data for parameter in risk.model.parameters()}
        try:
            if in_float64:
                torch.set_default_dtype(torch.float64)
                few.inputs, few.targets = _exact(few.inputs), _exact(few.targets)
                few.precision = "float64"
                _make_exact(risk.model)
            elif risk.is_halved:
                few.precision = "float32"
            direction = []
            padding = {
                id(module.weight): module.padding_idx
                for module in risk.model.modules()
                if isinstance(module, nn.Embedding) and module.padding_idx is not None
            }
            for parameter in few.parameters:
                parameter.grad = None
                size = parameter.data.square().mean().sqrt()
                scale = torch.where(size > 0, size, 0.02)
                away, along = (
                    scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float32).to(parameter.data)
                    for _ in range(2)
                )
                parameter.data = parameter.data + 0.01 * away
                if id(parameter) in padding:  # a row that training never moves
                    along[padding[id(parameter)]] = 0
                direction.append(along.reshape(-1))
            if risk.state.moves:  # the weights of the loss are those that its forward pass leaves
                with few.without_graph():
                    for chunk in few.chunks():
                        few.evaluate(*chunk, autocast=False)
            yield few, torch.cat(direction)
        finally:
            torch.set_default_dtype(dtype)
            for parameter, data in kept.items():
                parameter.data = data


def _exact(values: Tensor) -> Tensor:
    return values.double() if values.is_floating_point() else values


def _make_exact(model: nn.Module) -> None:
    """Parameters, buffers and plain attributes in float64; `EmpiricalRisk.probe` restores the latter two."""
    for parameter in model.parameters():
        parameter.grad = None
        parameter.data = _exact(parameter.data)
    for module in model.modules():
        for table in (module._buffers, vars(module)):
            for name, value in table.items() if isinstance(table, dict) else ():
                if isinstance(value, Tensor):
                    table[name] = _exact(value)


def _holds(few: EmpiricalRisk, v: Tensor, claim: Claim, step: float) -> bool:
    """Whether a claim is true; False if undecided.

    Raises:
        InputError: It is not.
    """
    if not claim.is_derivative:
        truth = claim.truth(False)
        if not truth.isfinite().all():
            return False
        return _off(claim.measured - truth, truth) <= _ALLOWED or _refuse(few, claim, truth)
    truth, size = _difference(few, v, claim, step)
    if not truth.isfinite().all() or not claim.measured.isfinite().all():
        return False
    rounding = 1e3 * torch.finfo(torch.float64).eps * size / step
    error = (claim.measured - truth).norm()
    if error <= _ALLOWED * truth.norm() + rounding:
        return True
    other, _ = _difference(few, v, claim, step / 4)
    if not error > 4 * (other - truth).norm():
        return False
    return _refuse(few, claim, truth)


def _difference(few: EmpiricalRisk, v: Tensor, claim: Claim, step: float) -> tuple[Tensor, Tensor]:
    """The derivative of ``claim.truth`` along v, and the size of what was subtracted."""
    theta = [parameter.data for parameter in few.parameters]
    ends = []
    try:
        for shift in (step, -step):
            for parameter, data, piece in zip(few.parameters, theta, few.unflatten(v), strict=True):
                parameter.data = data + shift * piece
            with few.probe():  # so that state kept between calls is the same at both ends
                ends.append(claim.truth(False))
    finally:
        for parameter, data in zip(few.parameters, theta, strict=True):
            parameter.data = data
    return (ends[0] - ends[1]) / (2 * step), ends[0].norm()


def _compare_in_own_precision(few: EmpiricalRisk, v: Tensor, claim: Claim) -> None:
    """By PyTorch's derivatives, without this library's; rounding may be large."""
    truth = claim.truth(claim.is_derivative)
    if claim.is_derivative and not truth.requires_grad:  # it is constant
        truth = torch.zeros_like(truth)
    elif claim.is_derivative:
        weights = torch.zeros_like(truth, requires_grad=True)
        pulled = torch.autograd.grad(truth, few.parameters, weights, create_graph=True, materialize_grads=True)
        along = sum((row * piece).sum() for row, piece in zip(pulled, few.unflatten(v), strict=True))
        (truth,) = torch.autograd.grad(along, weights, materialize_grads=True)  # type: ignore[arg-type]
    if truth.isfinite().all() and _off(claim.measured - truth, truth) > 4 * torch.finfo(v.dtype).eps ** (1 / 3):
        _refuse(few, claim, truth)


def _off(difference: Tensor, truth: Tensor) -> float:
    size = truth.norm()
    return float(difference.norm() / torch.where(size > 0, size, 1.0))


def _refuse(few: EmpiricalRisk, claim: Claim, truth: Tensor) -> bool:
    other = "finite differences of training's own gradients" if claim.is_derivative else "that of plain autograd"
    other = claim.against or other
    raise InputError(
        f"the {claim.name} of this model is {_off(claim.measured - truth, truth):.1g} of its size away from {other}, "
        f"on {len(few)} examples: {_culprit(few)} has other derivatives than its values (detach, torch.no_grad, a "
        "straight-through estimator, or a fault of PyTorch); write it out of simpler functions, or leave out the "
        "instruments that measure this"
    )


def _culprit(few: EmpiricalRisk) -> str:
    """The first layer whose own second derivatives disagree with differences of its first; children come first."""
    with few.probe(), few.without_graph():
        chunk = few.inputs[: few.chunk], few.targets[: few.chunk]
        calls = calls_of(few.model, lambda: few.evaluate(*chunk, autocast=False))
    for call in calls:
        if call.name and not _agrees_with_itself(few, call.module, call.given, call.named):
            return f"layer {call.name!r}, {type(call.module).__name__},"
    return "a function in it"


class Call(NamedTuple):
    """One call of a module: its name, the module, copies of its arguments and of its output."""

    name: str
    module: nn.Module
    given: list[Any]
    named: dict[str, Any]
    output: Any


def calls_of(model: nn.Module, run: Callable[[], Any]) -> list[Call]:
    """Every call of a module in ``run``, in order of completion: children come first."""
    calls: list[Call] = []

    def copied(part: Any) -> Any:
        return part.detach().clone() if isinstance(part, Tensor) else part

    def note(name: str, module: nn.Module, given: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        calls.append(Call(name, module, [copied(part) for part in given], named, copied(output)))

    with ExitStack() as hooks:
        for name, module in model.named_modules():
            hooks.callback(module.register_forward_hook(partial(note, name), with_kwargs=True).remove)
        run()
    return calls


def _agrees_with_itself(few: EmpiricalRisk, module: nn.Module, given: list[Any], named: dict[str, Any]) -> bool:
    """Whether ∇²(w·module) v agrees with differences of ∇(w·module), in the layer's inputs and parameters."""
    generator = torch.Generator().manual_seed(0)
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    kept = [parameter.data for parameter in parameters]

    def like(tensor: Tensor) -> Tensor:
        return torch.randn(tensor.shape, generator=generator).to(tensor)

    inputs = [isinstance(part, Tensor) and part.is_floating_point() for part in given]
    directions = [like(part) for part, varies in zip(given, inputs, strict=True) if varies]
    directions += [like(parameter) * parameter.data.square().mean().sqrt() for parameter in parameters]

    def slopes(shift: float, twice: bool) -> tuple[tuple[Tensor, ...], list[Tensor]]:
        along = iter(directions)
        points = [
            (part + shift * next(along)).requires_grad_() if varies else part
            for part, varies in zip(given, inputs, strict=True)
        ]
        arguments = [part.clone() if varies else part for part, varies in zip(points, inputs, strict=True)]
        for parameter, data in zip(parameters, kept, strict=True):
            parameter.data = data + shift * next(along)
        leaves = [*itertools.compress(points, inputs), *parameters]
        with few.differentiable() if twice else torch.enable_grad():
            output = module(*arguments, **named)
        value = (output * torch.arange(1, output.numel() + 1).view_as(output).to(output).cos()).sum()
        return torch.autograd.grad(value, leaves, create_graph=twice, materialize_grads=True), leaves

    with few.probe():
        try:
            measured, leaves = slopes(0, twice=True)
            along = sum((slope * part).sum() for slope, part in zip(measured, directions, strict=True))
            product = torch.autograd.grad(along, leaves, materialize_grads=True)  # type: ignore[arg-type]
            ends = [slopes(shift, twice=False)[0] for shift in (_STEPS[0], -_STEPS[0])]
        except (RuntimeError, TypeError, ValueError, AttributeError):  # not one tensor, or not differentiable
            return True
        finally:
            for parameter, data in zip(parameters, kept, strict=True):
                parameter.data = data
    truth = [(one - other) / (2 * _STEPS[0]) for one, other in zip(*ends, strict=True)]
    size = max(float(part.detach().norm()) for part in (*truth, *measured))
    return all(float((a - b).norm()) <= _ALLOWED * size for a, b in zip(product, truth, strict=True))


def gradient(few: EmpiricalRisk, graph: bool) -> Tensor:
    """``[P]`` ∇L as training computes it."""
    with torch.enable_grad():
        return flat_gradient(losses(few, True) @ all_shares(few), few, graph)


def losses(few: EmpiricalRisk, graph: bool) -> Tensor:
    """``[n]`` ℓ_i."""
    with torch.enable_grad():
        values = torch.cat([few.evaluate(*chunk, autocast=False)[0] for chunk in few.chunks()])
    return values if graph else values.detach()


def all_shares(few: EmpiricalRisk) -> Tensor:
    """``[n]``, the weight of each loss in L."""
    return torch.cat(list(few.shares())).to(few.parameters[0])


def flat_gradient(value: Tensor, few: EmpiricalRisk, graph: bool) -> Tensor:
    """``[P]``"""
    pieces = torch.autograd.grad(value, few.parameters, create_graph=graph, materialize_grads=True)
    return torch.cat([piece.reshape(-1) for piece in pieces])


def of_loss(few: EmpiricalRisk, v: Tensor) -> Claim:
    """Training's gradient is that of the loss, else there is no Hessian: hooks and layers may change it."""
    along = (gradient(few, False) @ v)[None]
    against = "differences of its loss"
    return Claim("gradient", along, lambda graph: (losses(few, graph) @ all_shares(few))[None], against=against)


def of_gradient(few: EmpiricalRisk, v: Tensor) -> Generator[Claim]:
    """What differences of gradients (`opposing_signals.curvature.differences`) assume."""
    with few.deterministic():
        claim = of_loss(few, v)
    yield claim


def of_products(few: EmpiricalRisk, v: Tensor) -> Generator[Claim]:
    """What `EmpiricalRisk.hessian_products` claims."""
    measured = few.hessian_products(v[None])
    yield Claim("gradient", measured.gradient, lambda graph: gradient(few, graph), is_derivative=False)
    yield Claim("Hessian-vector product", measured.products[0], lambda graph: gradient(few, graph))
    yield Claim("slope of each loss", measured.slopes[0], lambda graph: losses(few, graph))
    yield of_loss(few, v)
