"""Where curvature comes from: the loss's curvature in the outputs, or the network's own in the weights."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import torch
from torch import Tensor

from opposing_signals.curvature.chunks import WHOLE, Batch
from opposing_signals.curvature.double_backward import has_complex_views
from opposing_signals.curvature.finite_differences import Claim, all_shares, check, flat_gradient, gradient
from opposing_signals.curvature.refusals import check_graph, check_losses
from opposing_signals.curvature.risk import EmpiricalRisk
from opposing_signals.processes import summed


@dataclass(frozen=True)
class CurvatureSplit:
    """vᵀ∇²L v in two parts.

    Attributes:
        gauss_newton: vᵀGv with G = (1/N) Σ J_iᵀ ∇²_f ℓ_i J_i, J_i the Jacobian of the outputs f(x_i; θ) in θ.
        functional: vᵀ(∇²L − G)v = (1/N) Σ_i Σ_c (∂ℓ_i/∂f_c) vᵀ∇²f_c(x_i; θ)v, which is 0 for a network linear in θ
            ("functional Hessian", Singh et al. 2021).

    Where the risk has weights, both means are weighted, as L is.
    """

    gauss_newton: float
    functional: float


def curvature_split(risk: EmpiricalRisk, vector: Tensor, batch: Batch = WHOLE) -> CurvatureSplit:
    """The Gauss-Newton part of vᵀ∇²L v and what remains.

    One double backward gives both. With w the loss's derivative in the outputs, the gradient is g(w, θ) = Jᵀw. The
    derivative of g·v in w is Jv; its derivative in θ, w held constant, is the functional part of the Hessian-vector
    product. Batch norm in training mode couples the examples of a chunk, here as in training.

    Args:
        risk: Evaluated with its model in its current mode.
        vector: ``[P]``, v.
        batch: Examples over which L is the mean.

    Raises:
        InputError: The vector has another length than θ, or the model's second derivatives would be wrong or random.
    """
    risk.check_vectors(vector[None])
    check(risk, "curvature_split", _claims)
    return _curvature_split(risk, vector, batch)


def _claims(few: EmpiricalRisk, v: Tensor) -> Generator[Claim]:
    """The sum of both parts, and the functional part: the derivative of Jᵀw·v, w held constant."""
    split = _curvature_split(few, v, WHOLE)
    total = torch.tensor([split.gauss_newton + split.functional]).to(v)
    yield Claim("curvature vᵀ∇²Lv as a sum of two parts", total, lambda graph: (gradient(few, graph) @ v)[None])

    def outputs() -> Tensor:
        with torch.enable_grad():
            return torch.cat([few.model(inputs) for inputs, _ in few.chunks()])

    fixed = outputs().detach().requires_grad_()
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(few.loss(fixed, few.targets) @ all_shares(few), fixed)

    def pulled_back(graph: bool) -> Tensor:
        return (flat_gradient((outputs() * slope).sum(), few, graph) @ v)[None]

    yield Claim("functional part of vᵀ∇²Lv", torch.tensor([split.functional]).to(v), pulled_back)


def _curvature_split(risk: EmpiricalRisk, vector: Tensor, batch: Batch) -> CurvatureSplit:
    parameters, direction = risk.parameters, risk.unflatten(vector)
    gauss_newton = functional = 0.0
    with risk.probe(), risk.deterministic():
        for (inputs, targets), shares in zip(risk.chunks(batch), risk.shares(batch), strict=True):
            with risk.differentiable():
                outputs = risk.model(inputs)
                detached = outputs.detach().requires_grad_()
                losses = risk.loss(detached, targets)
                check_losses(losses, inputs)
                loss = (losses * shares.to(losses)).sum()
            (slope,) = torch.autograd.grad(loss, detached, create_graph=True)
            weights = slope.detach().requires_grad_()
            slopes = torch.autograd.grad(outputs, parameters, weights, create_graph=True, materialize_grads=True)
            check_graph(slopes, risk.model)
            if has_complex_views(slopes):
                direction = [part.clone() for part in direction]
            *rows, tangent = torch.autograd.grad(slopes, [*parameters, weights], direction, materialize_grads=True)
            functional += sum(_dot(row, piece) for row, piece in zip(rows, direction, strict=True))
            if slope.requires_grad:  # the loss is not linear in the outputs
                gauss_newton += _dot(torch.autograd.grad(slope, detached, tangent)[0], tangent)
    both = summed(torch.tensor([gauss_newton, functional], dtype=torch.float64, device=vector.device))
    return CurvatureSplit(*both.tolist())


def _dot(one: Tensor, other: Tensor) -> float:
    return float((one.double() * other.double()).sum())
