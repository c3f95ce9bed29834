"""The curvature that minibatch SGD sees: that of a batch's loss along the batch's own gradient."""

from __future__ import annotations

from opposing_signals.curvature.chunks import Batch
from opposing_signals.curvature.risk import EmpiricalRisk


def batch_sharpness(risk: EmpiricalRisk, batch: Batch) -> float:
    """gᵀHg/‖g‖² with the gradient g and the Hessian H of one batch's mean loss.

    Its expectation over batches stays at 2/η where SGD is at its edge of stability (Andreyev and Beneventano 2024). The
    batch is evaluated in the same chunks as in training, in two passes.

    Args:
        risk: Evaluated with its model in its current mode.
        batch: The examples of the batch.

    Returns:
        NaN where the gradient is 0.

    Raises:
        InputError: The model's second derivatives would be wrong or random.
    """
    size = sum(parameter.numel() for parameter in risk.parameters)
    gradient = risk.hessian_products(risk.parameters[0].new_empty(0, size), batch).gradient
    direction = gradient / gradient.norm()
    return float(risk.hessian_products(direction[None], batch).products[0] @ direction)
