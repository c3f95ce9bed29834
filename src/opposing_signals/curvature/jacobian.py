"""Sensitivity of the network to its inputs: the input-output Jacobian (talk, §3.1)."""

from __future__ import annotations

from collections.abc import Generator

import torch
from torch import Tensor

from opposing_signals.curvature.examples import by_chunk, check_independence, independent_examples
from opposing_signals.curvature.finite_differences import Claim, check
from opposing_signals.curvature.risk import EmpiricalRisk
from opposing_signals.errors import InputError

_NO_DERIVATIVE = (
    "the outputs have no derivative in the inputs, as where these are tokens: expected a model of images or vectors; "
    "leave jacobian out of instruments"
)


def jacobian_norms(risk: EmpiricalRisk, indices: Tensor) -> Tensor:
    """Spectral norm of ∂f(x_i; θ)/∂x for chosen training points i.

    One backward pass per output gives the Jacobian ``[C, D]``; its singular values are exact. Under batch norm in
    training mode f is the point's own output with the mean and variance of its chunk held constant (see
    `opposing_signals.curvature.normalization`).

    Args:
        risk: Evaluated with its model in its current mode.
        indices: ``[m]`` positions in the training set.

    Returns:
        ``[m]`` float64, in the units of outputs over those of (normalized) inputs.

    Raises:
        InputError: An index outside the training set, a random layer or one that couples examples, outputs without a
            derivative in the inputs, or a first measurement that disagrees with differences of the outputs.
    """
    indices = indices.cpu()
    norms = torch.zeros(len(indices), dtype=torch.float64)
    check_independence(risk)
    check(risk, "jacobian_norms", _claims)
    for chunk, positions in by_chunk(risk, indices):
        with independent_examples(risk, chunk):
            jacobians = _jacobians(risk, risk.inputs[indices[positions]]).double()
        gram = torch.bmm(jacobians, jacobians.transpose(1, 2))
        norms[positions] = torch.linalg.eigvalsh(gram)[:, -1].clamp(min=0).sqrt().cpu()
    return norms


def _jacobians(risk: EmpiricalRisk, inputs: Tensor) -> Tensor:
    """``[n, C, D]``"""
    if not inputs.is_floating_point():
        raise InputError(_NO_DERIVATIVE)
    with torch.enable_grad():
        columns = risk.model(inputs.requires_grad_()).unbind(1)
        rows = [
            torch.autograd.grad(column.sum(), inputs, retain_graph=True, allow_unused=True)[0] for column in columns
        ]
    if any(row is None for row in rows):
        raise InputError(_NO_DERIVATIVE)
    return torch.stack(rows, 1).flatten(2)


def _claims(few: EmpiricalRisk, _: Tensor) -> Generator[Claim]:
    """Differences of the outputs along one direction of each input."""
    inputs = few.inputs[: few.chunk]
    # So short that hardly any activation crosses a kink within it; rounding is then about 1e-7 of a change.
    step = 1e-9 if inputs.dtype is torch.float64 else 1e-3
    with independent_examples(few, slice(0, few.chunk)):
        jacobians = _jacobians(few, inputs.clone())
        direction = torch.randn(inputs.shape, generator=torch.Generator().manual_seed(0)).to(inputs)
        change = torch.bmm(jacobians, direction.flatten(1)[..., None])[..., 0]

        def difference(_: bool) -> Tensor:
            ends = (few.model(inputs + shift * direction).detach() for shift in (step, -step))
            return (next(ends) - next(ends)) / (2 * step)

        against = "finite differences of the outputs"
        yield Claim("change of outputs with inputs", change, difference, is_derivative=False, against=against)
