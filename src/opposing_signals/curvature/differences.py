"""Hessian-vector products by differences of the training pass's own gradient, without a second derivative.

For a unit vector v, (∇L(θ + hv) − ∇L(θ)) / h is ∇²L v with the truncation error h/2 ∇³L[v, v] and the gradient's
rounding error divided by h. The h that balances the two is the square root of the unit roundoff (Nocedal and Wright
2006, §8.1), in units of ‖θ‖ (Knoll and Keyes 2004, §2.2). float64 takes this h. Other precisions take one 8 to 70 times
smaller, as measured: the rounding of many terms cancels, and at the edge of stability the Hessian changes within η‖∇L‖,
a hundredth of ‖θ‖.

The loss has to be smooth. ReLUs and max-pooling make the gradient jump. The sum of the jumps within h, divided by h,
grows as 1/√h, and differences then measure another curvature than double backward, which sees no jumps. In float64
hardly any jump lies within h. Measurements: docs/curvature.md.
"""

from __future__ import annotations

import torch
from torch import Tensor

from opposing_signals.curvature.chunks import WHOLE, Batch
from opposing_signals.curvature.finite_differences import check, of_gradient
from opposing_signals.curvature.risk import EmpiricalRisk, flatten
from opposing_signals.curvature.subspace import norms
from opposing_signals.errors import InputError

_STEPS = {"float64": 1.5e-8, "float32": 3e-5, "tf32": 3e-4, "float16": 3e-4, "bfloat16": 1e-3}
"""h / ‖θ‖ for each precision of the training pass."""


class GradientDifferences:
    """∇²L of a batch at θ, from the gradients of `EmpiricalRisk.backward`, be they compiled, recorded or in 16 bits.

    Gradients leave no trace, as in `EmpiricalRisk.probe`, and the weights are restored to θ to the bit.

    Attributes:
        theta: ``[P]`` θ.
        gradient: ``[P]`` ∇L(θ).

    Args:
        risk: Its weights are θ and must not change while this is in use.
        batch: Examples over which L is the mean.
        gradient: ``[P]`` ∇L(θ), if known; None computes it.

    Raises:
        InputError: Weights are neither float32 nor float64, the model has a layer that `check_layers` refuses or draws
            random numbers, or training does not compute the gradient of its loss.
    """

    def __init__(self, risk: EmpiricalRisk, batch: Batch = WHOLE, gradient: Tensor | None = None) -> None:
        for parameter in risk.parameters:
            if parameter.dtype not in (torch.float32, torch.float64):
                raise InputError(
                    f"products by differences of gradients, weights in {str(parameter.dtype).removeprefix('torch.')}: "
                    "expected float32 or float64, in which a small step is not rounded away; train under autocast "
                    "(risk.precision), or use exact products"
                )
        check(risk, "differences", of_gradient)
        self._risk, self._batch = risk, batch
        self.theta = flatten([parameter.detach() for parameter in risk.parameters])
        of_weights = str(self.theta.dtype).removeprefix("torch.")
        step = _STEPS[of_weights if risk.precision == "unchanged" else risk.precision]
        self._length = step * (float(norms(self.theta[None])) or 1.0)
        self.gradient = self._gradient_at(None) if gradient is None else gradient

    def __call__(self, vectors: Tensor) -> Tensor:
        """``[k, P]`` products with ``[k, P]`` vectors by one-sided differences: one gradient per product."""
        self._risk.check_vectors(vectors)
        rows, sizes = self._normalized(vectors)
        return sizes * torch.stack([self._slope(row, 1) for row in rows])

    def both_sides(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """``[k, P]`` products by central differences, two gradients each, and ``[k]`` error estimates for v / ‖v‖.

        The error of a product is h²/6 ∇⁴L[v, v, v] and rounding. The estimate is half the distance between the two
        one-sided products: 1.7 times the error from independent rounding of the three gradients, and more where the
        one-sided products err by more than rounding.
        """
        self._risk.check_vectors(vectors)
        rows, sizes = self._normalized(vectors)
        sides = [torch.stack([self._slope(row, sign) for row in rows]) for sign in (1, -1)]
        return sizes * (sides[0] + sides[1]) / 2, norms(sides[0] - sides[1]).cpu() / 2

    @staticmethod
    def _normalized(vectors: Tensor) -> tuple[Tensor, Tensor]:
        sizes = norms(vectors)[:, None].to(vectors)
        return vectors / torch.where(sizes > 0, sizes, 1), sizes

    def _slope(self, row: Tensor, sign: int) -> Tensor:
        """(∇L(θ + shv) − ∇L(θ)) / sh for the unit vector v, s the sign."""
        shift = sign * self._length
        return (self._gradient_at(shift * row) - self.gradient) / shift

    def _gradient_at(self, shift: Tensor | None) -> Tensor:
        """``[P]`` ∇L(θ + shift). Weights are written in place: a recorded pass reads them at fixed addresses."""
        risk = self._risk
        try:
            if shift is not None:
                self._place(self.theta + shift)
            with risk.probe(), torch.enable_grad():
                for parameter in risk.parameters:
                    parameter.grad = None
                risk.backward(self._batch)
                return stored_gradient(risk)
        finally:
            if shift is not None:
                self._place(self.theta)

    def _place(self, theta: Tensor) -> None:
        for parameter, piece in zip(self._risk.parameters, self._risk.unflatten(theta), strict=True):
            parameter.data.copy_(piece)


def stored_gradient(risk: EmpiricalRisk) -> Tensor:
    """``[P]``, the gradient that a backward pass has left in ``.grad``; 0 where there is none."""
    return flatten([torch.zeros_like(p) if p.grad is None else p.grad for p in risk.parameters])
