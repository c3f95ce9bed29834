"""Slope and curvature of every training point's loss along one direction, and what they make of a step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from weakref import WeakSet

import torch
from torch import Tensor

from opposing_signals.curvature.taylor import Jet, orders, refusing_torchscript
from opposing_signals.errors import InputError
from opposing_signals.risk import EmpiricalRisk, check_losses

_FOLLOWED: WeakSet[EmpiricalRisk] = WeakSet()
"""Those whose model Taylor arithmetic has been seen to follow."""
_CHECKED = 64
"""Examples on which that is looked for: a product over a whole chunk would take more memory than the measurement."""


@dataclass(frozen=True)
class AlongLine:
    """ℓ_i(θ + t v) to second order in t, for every training point.

    Attributes:
        losses: ``[N]`` ℓ_i(θ).
        slopes: ``[N]`` ∇ℓ_i·v; their mean, weighted where the risk has weights, is ∇L·v.
        curvatures: ``[N]`` vᵀ∇²ℓ_i v; likewise, it is vᵀ∇²L v.
    """

    losses: Tensor
    slopes: Tensor
    curvatures: Tensor


def sample_curvature(risk: EmpiricalRisk, vector: Tensor) -> AlongLine:
    """Slope and curvature of each ℓ_i along ``vector``, in one forward pass of Taylor arithmetic.

    Under batch norm in training mode ℓ_i is a function of θ through the statistics of its chunk as well, so that the
    means over i are exactly those of L.

    Args:
        risk: Evaluated at its θ, without a trace.
        vector: ``[P]``, of any length ‖v‖.

    Raises:
        InputError: The vector has another length than θ, the loss is not one number an example, a layer is random, the
            model writes in place or transforms functions where Taylor arithmetic cannot follow, or calls one without
            second derivatives in forward mode, or the first measurement disagrees with a Hessian-vector product.
    """
    risk.check_vectors(vector[None])
    along = _along_line(risk, vector)
    if risk not in _FOLLOWED:
        _check_first_examples(risk, vector, along.losses[:_CHECKED])
    return along


def _along_line(risk: EmpiricalRisk, vector: Tensor, first: int | None = None) -> AlongLine:
    """Over the ``first`` examples, of which several processes may have no chunk, or over all."""
    line = [Jet(p.detach(), v) for p, v in zip(risk.parameters, risk.unflatten(vector), strict=True)]
    batch, may_idle, chunks = slice(first), first is not None, []
    with risk.probe(), risk.deterministic(), torch.no_grad(), refusing_torchscript():
        for part, losses in zip(risk.parts(batch, may_idle), risk.losses_at(line, batch, may_idle), strict=True):
            check_losses(losses, risk.inputs[part])
            chunks.append(orders(losses))
    pieces_of = zip(*chunks, strict=True) if chunks else ([], [], [])
    losses, slopes, halves = (risk.assembled(pieces, batch) for pieces in pieces_of)
    return AlongLine(losses, slopes, 2 * halves)


def _check_first_examples(risk: EmpiricalRisk, vector: Tensor, losses: Tensor) -> None:
    """Refuse a model whose slopes or mean curvature on the first examples are not those of a Hessian-vector product.

    Of several processes all look at the same examples and find the same. Where their ``losses`` vanish, rounding is
    larger than what is to be compared: then the next measurement is checked.
    """
    examples = slice(len(losses))
    precision, height = torch.finfo(vector.dtype).eps, losses.abs().mean()
    if not height > precision**0.5:
        return
    with _unrounded() if vector.is_cuda else nullcontext():
        ours = _along_line(risk, vector, len(losses))
        measured = risk.hessian_products(vector[None], examples)
    product = measured.products[0]
    shares = risk.assembled(list(risk.shares(examples)), examples).to(ours.curvatures)
    mean, own = shares @ ours.curvatures, shares @ ours.curvatures.abs()
    differences = {
        # Of a product nearly orthogonal to v more is rounding.
        "curvature": (mean - product @ vector).abs() / (own + (own * product.norm() * vector.norm()).sqrt()),
        # Near a minimum slopes are differences of what is as large as the curvature.
        "slope": (ours.slopes - measured.slopes[0]).abs().mean() / (ours.slopes.abs().mean() + (own * height).sqrt()),
    }
    for name, difference in differences.items():
        if difference > 4 * precision ** (1 / 3):  # 0.02 in float32, ten times what rounding does to a ResNet-110
            raise InputError(
                f"Taylor arithmetic does not follow a layer of this model: the {name} along a line is "
                f"{difference:.1g} of its size away from that of a Hessian-vector product; write the layer out of "
                "simpler functions, or leave out the instruments that measure every point's curvature"
            )
    if own > 0:
        _FOLLOWED.add(risk)


@contextmanager
def _unrounded() -> Iterator[None]:
    """Let a GPU compute in float32, not in TF32, in which two ways to one number may differ by much."""
    convolutions, products = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    try:
        torch.backends.cudnn.allow_tf32 = False
        torch.set_float32_matmul_precision("highest")
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = convolutions
        torch.set_float32_matmul_precision(products)


@dataclass(frozen=True)
class StepExpansion:
    """The change of each ℓ_i in a gradient step θ ↦ θ − η ∇L, to second order.

    Δ_i ≈ first + second, and of that the share along the unit vector v is along_first + along_second.

    Attributes:
        first: ``[N]`` −η ∇ℓ_i·∇L.
        second: ``[N]`` ½ η² ∇Lᵀ∇²ℓ_i ∇L.
        along_first: ``[N]`` −η (∇L·v) ∇ℓ_i·v.
        along_second: ``[N]`` ½ η² (∇L·v)² vᵀ∇²ℓ_i v.
    """

    first: Tensor
    second: Tensor
    along_first: Tensor
    along_second: Tensor


def step_expansion(
    risk: EmpiricalRisk, gradient: Tensor, step_size: float, along: AlongLine, v: Tensor
) -> StepExpansion:
    """Expand a gradient step, and its part along v.

    Args:
        risk: Evaluated at its θ, without a trace.
        gradient: ``[P]`` ∇L.
        step_size: η.
        along: `sample_curvature` of ``v``.
        v: ``[P]``, a unit vector.

    Raises:
        InputError: As in `sample_curvature`.
    """
    whole = sample_curvature(risk, gradient)
    shift = -step_size * float(gradient @ v)
    return StepExpansion(
        -step_size * whole.slopes,
        step_size**2 / 2 * whole.curvatures,
        shift * along.slopes,
        shift**2 / 2 * along.curvatures,
    )
