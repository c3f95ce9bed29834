"""Hessian-vector products by double backward (Pearlmutter 1994): a gradient's graph, differentiated once more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from opposing_signals.curvature.chunks import Batch
from opposing_signals.curvature.refusals import check_graph, check_losses
from opposing_signals.processes import summed, summed_together

if TYPE_CHECKING:
    from opposing_signals.curvature.risk import EmpiricalRisk


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


def curvature_pass(risk: EmpiricalRisk, vectors: Tensor, batch: Batch) -> tuple[CurvaturePass, list[Tensor | None]]:
    """The pass and its gradient in the parameters' shapes and layouts, with the bits of `backward`.

    A parameter that L does not depend on has None, as after `backward`: an optimizer leaves it alone.
    """
    directions = [risk.unflatten(v) for v in vectors]
    products = torch.zeros_like(vectors)
    pieces_of = [risk.unflatten(product) for product in products]  # views
    gradients: list[Tensor | None] = [None] * len(risk.parameters)
    losses: list[Tensor] = []
    outputs: list[Tensor] = []
    slopes: list[list[Tensor]] = [[] for _ in directions]
    with risk.deterministic():
        for (inputs, targets), shares in zip(risk.chunks(batch, may_idle=True), risk.shares(batch), strict=True):
            seen = _curvature_of_chunk(risk, inputs, targets, shares, directions, pieces_of, is_first=not losses)
            gradients = [_sum(*pair) for pair in zip(gradients, seen.gradient, strict=True)]
            losses.append(seen.losses)
            outputs.append(risk.kept(seen.outputs))
            for row, slope in zip(slopes, seen.slopes, strict=True):
                row.append(slope)
            del seen  # its gradient is as large as θ
    used = risk.used_by_any([piece is not None for piece in gradients])
    dense = [torch.zeros_like(p) if g is None else g for p, g in zip(risk.parameters, gradients, strict=True)]
    summed_together([piece for piece, is_used in zip(dense, used, strict=True) if is_used])
    gradients = [piece if is_used else None for piece, is_used in zip(dense, used, strict=True)]
    result = CurvaturePass(
        risk.assembled(losses, batch),
        risk.assembled(outputs, batch),
        torch.cat([piece.reshape(-1) for piece in dense]),
        summed(products),
        torch.stack([risk.assembled(row, batch) for row in slopes])
        if slopes
        else vectors.new_zeros(0, risk.size(batch)),
    )
    return result, gradients


def _curvature_of_chunk(
    risk: EmpiricalRisk,
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
    parameters = risk.parameters
    with risk.differentiable():
        losses, outputs = risk.evaluate(inputs, targets, autocast=False)
        check_losses(losses, inputs)
        weights = weights.to(losses).detach().clone().requires_grad_()
        mean = (losses * weights).sum()
    gradient = torch.autograd.grad(mean, parameters, create_graph=len(directions) > 0, allow_unused=True)
    if is_first:
        check_graph(gradient, risk.model)
    used = [piece for piece in gradient if piece is not None]

    def add_product(j: int) -> Tensor:
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


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    if one is None or other is None:
        return other if one is None else one
    return one + other
