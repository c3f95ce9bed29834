"""Hessian-vector products by double backward (Pearlmutter 1994): a gradient's graph, differentiated once more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.autograd.graph import Node, get_gradient_edge

from opposing_signals.curvature.chunks import Batch
from opposing_signals.curvature.eigen import Products
from opposing_signals.curvature.graphs import graph_nodes
from opposing_signals.curvature.refusals import check_graph, check_losses
from opposing_signals.errors import InputError
from opposing_signals.processes import count, summed, summed_together

if TYPE_CHECKING:
    from opposing_signals.curvature.risk import EmpiricalRisk


@dataclass(frozen=True)
class ForwardPass:
    """Results of one pass over a batch at θ_t.

    Attributes:
        losses: ``[n]`` ℓ_i(θ_t), in the batch's order.
        outputs: ``[n, C]`` f(x_i; θ_t): logits, or a regression's values; ``[n, 0]`` where they are not kept.
    """

    losses: Tensor
    outputs: Tensor


@dataclass(frozen=True)
class CurvaturePass(ForwardPass):
    """Results of one pass with Hessian-vector products at θ_t.

    Attributes:
        gradient: ``[P]`` ∇L(θ_t), L the batch's mean loss, weighted where the risk has weights.
        products: ``[k, P]`` ∇²L(θ_t) v_j.
        slopes: ``[k, n]`` ∇ℓ_i(θ_t)·v_j; their mean over i, weighted as L is, is ∇L·v_j.
        further: Other vectors ``[m, P]`` ↦ their products, from the graph of this pass, which it keeps in memory. Valid
            while the weights are θ_t. None if no graph was kept.
    """

    gradient: Tensor
    products: Tensor
    slopes: Tensor
    further: Products | None = None


def curvature_pass(
    risk: EmpiricalRisk, vectors: Tensor, batch: Batch, keep_graph: bool = False
) -> tuple[CurvaturePass, list[Tensor | None]]:
    """The pass, and its gradient in the parameters' shapes and layouts, bit-identical to that of `backward`.

    A parameter that L does not depend on has None, as after `backward`, so that optimizers leave it alone. A graph is
    kept only where one process evaluates the whole batch as one chunk: it is in memory then in any case.
    """
    directions = [risk.unflatten(v) for v in vectors]
    products = torch.zeros_like(vectors)
    pieces_of = [risk.unflatten(product) for product in products]  # views
    gradients: list[Tensor | None] = [None] * len(risk.parameters)
    losses: list[Tensor] = []
    outputs: list[Tensor] = []
    slopes: list[list[Tensor]] = [[] for _ in directions]
    keep_graph = keep_graph and count() == 1 and risk.size(batch) <= risk.chunk
    further = None
    with risk.deterministic(), risk.split(batch):
        for chunk, shares in zip(risk.chunks(batch), risk.shares(batch), strict=True):
            if risk.compiled_products and directions and len(chunk[0]) == risk.chunk:
                of_losses, output, detached, rows, pieces = risk.compiled_products(*chunk, shares, directions)
                for row, whole, product, piece in zip(rows, slopes, pieces_of, pieces, strict=True):
                    whole.append(row)
                    torch._foreach_add_(product, piece)
            else:
                seen = ChunkPass(risk, *chunk, shares, is_twice=len(directions) > 0)
                if not losses:
                    check_graph(seen.gradient, risk.model)
                for j, (direction, product) in enumerate(zip(directions, pieces_of, strict=True)):
                    is_last = j + 1 == len(directions)
                    slopes[j].append(seen.add_product(direction, product, keep_graph=keep_graph or not is_last))
                detached = [None if piece is None else piece.detach() for piece in seen.gradient]
                of_losses, output = seen.losses.detach(), seen.outputs
                if keep_graph and directions:
                    further = seen.products
                del seen  # its gradient is as large as θ
            gradients = [_sum(*pair) for pair in zip(gradients, detached, strict=True)]
            losses.append(of_losses)
            outputs.append(risk.kept(output))
    used = risk.used_by_any([piece is not None for piece in gradients])
    dense = [torch.zeros_like(p) if g is None else g for p, g in zip(risk.parameters, gradients, strict=True)]
    summed_together([piece for piece, is_used in zip(dense, used, strict=True) if is_used])
    gradients = [piece if is_used else None for piece, is_used in zip(dense, used, strict=True)]
    with risk.split(batch):
        row_of = [risk.assembled(pieces, batch) for pieces in (losses, outputs, *slopes)]
    result = CurvaturePass(
        row_of[0],
        row_of[1],
        torch.cat([piece.reshape(-1) for piece in dense]),
        summed(products),
        torch.stack(row_of[2:]) if slopes else vectors.new_zeros(0, risk.size(batch)),
        further,
    )
    return result, gradients


class ChunkPass:
    """The gradient of Σ w_i ℓ_i over a chunk, with its graph.

    What only one product needs is freed with it: a pass holds as few tensors of θ's size as it can.

    Attributes:
        losses: ``[n]`` ℓ_i.
        outputs: ``[n, C]``.
        gradient: One tensor per parameter; None where the losses do not depend on it.

    Args:
        risk: Evaluated at its θ.
        inputs: ``[n, ...]``.
        targets: ``[n]`` or ``[n, C]``.
        weights: ``[n]`` w_i.
        is_twice: Whether products will be taken.
    """

    def __init__(self, risk: EmpiricalRisk, inputs: Tensor, targets: Tensor, weights: Tensor, is_twice: bool) -> None:
        self._risk, self._parameters = risk, risk.parameters
        with risk.differentiable():
            self.losses, self.outputs = risk.evaluate(inputs, targets, autocast=False)
            check_losses(self.losses, inputs)
            self._weights = weights.to(self.losses).detach().clone().requires_grad_()
            share = (self.losses * self._weights).sum()
        self.gradient = torch.autograd.grad(share, self._parameters, create_graph=is_twice, allow_unused=True)
        self._takes_copies = is_twice and has_complex_views(self.gradient)
        self._ends = self._ends_now() if is_twice else []

    def _ends_now(self) -> list[Node]:
        """The nodes at which graphs end in the weights; a change of their dtype replaces them, even once undone."""
        return [get_gradient_edge(parameter).node for parameter in self._parameters]

    def add_product(self, direction: list[Tensor], product: list[Tensor], keep_graph: bool) -> Tensor:
        """Add the Hessian's product with ``direction`` to ``product``; returns ``[n]`` ∇ℓ_i·v."""
        if self._takes_copies:
            direction = [part.clone() for part in direction]
        *rows, slope = torch.autograd.grad(
            [piece for piece in self.gradient if piece is not None],
            [*self._parameters, self._weights],
            [part for part, piece in zip(direction, self.gradient, strict=True) if piece is not None],
            retain_graph=keep_graph,
            materialize_grads=True,
        )
        torch._foreach_add_(product, rows)
        return slope

    def products(self, vectors: Tensor) -> Tensor:
        """``[k, P]`` products with ``[k, P]`` vectors; the graph is kept.

        Raises:
            InputError: The weights have had another dtype since, after which autograd returns zeros from this graph.
        """
        if any(now is not then for now, then in zip(self._ends_now(), self._ends, strict=True)):
            raise InputError(
                "further products of a pass: the weights have had another dtype since, as while a measure is checked; "
                "take them by hessian_products"
            )
        products = torch.zeros_like(vectors)
        for vector, product in zip(vectors, products, strict=True):
            self.add_product(self._risk.unflatten(vector), self._risk.unflatten(product), keep_graph=True)
        return products


def has_complex_views(gradient: Sequence[Tensor | None]) -> bool:
    """Whether its derivative views the direction by `torch.view_as_complex`, which refuses odd offsets."""
    return any(node.name() == "ViewAsRealBackward0" for node in graph_nodes(gradient))


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    if one is None or other is None:
        return other if one is None else one
    return one + other
