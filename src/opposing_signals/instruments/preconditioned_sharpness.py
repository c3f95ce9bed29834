"""Sharpness in the geometry of Adam."""

from __future__ import annotations

from typing import Any

from opposing_signals.curvature import EigenTracker, adam_preconditioner, preconditioned
from opposing_signals.curvature.risk import EmpiricalRisk
from opposing_signals.instruments.instrument import Instrument, announcing
from opposing_signals.instruments.sharpness import calls_between_looks
from opposing_signals.record import Record
from opposing_signals.record.quantities import (
    PRECONDITIONED_SHARPNESS,
    PRECONDITIONED_SHARPNESS_BOUND,
    PRECONDITIONED_SHARPNESS_PRODUCTS,
    PRECONDITIONED_SHARPNESS_QUOTIENT,
    PRECONDITIONED_SHARPNESS_RESIDUAL,
)
from opposing_signals.training.module import TrainingModule
from opposing_signals.values import Count, NotNegative


class PreconditionedSharpness(Instrument):
    """Writes ``preconditioned_sharpness``, the largest eigenvalue of P⁻¹∇²L(θ_t), with quotient, residual and products.

    P is the preconditioner of Adam's step to θ_t (see `opposing_signals.curvature.adam_preconditioner`), so nothing is
    written at step 0. ``preconditioned_sharpness_quotient``, ``_residual`` and ``_bound`` are those of P^(-1/2) H
    P^(-1/2), which is symmetric and has the same eigenvalues (see `EigenTracker`);
    ``preconditioned_sharpness_products`` are the products spent.
    """

    needs_training = True

    def __init__(
        self,
        risk: EmpiricalRisk,
        record: Record,
        every: Count = 1,
        consecutive: Count = 1,
        tolerance: NotNegative = 0.03,
        max_products: Count = 40,
    ) -> None:
        super().__init__(risk, record, every, consecutive)
        look = calls_between_looks(every, consecutive)
        self.tracker = EigenTracker(1, "largest", tolerance, max_products, look=look)

    def before_step(self, module: TrainingModule, step: int) -> None:
        if step == 0:
            return
        optimizer: Any = module.optimizers()
        preconditioner = adam_preconditioner(optimizer.optimizer, self.risk.parameters)
        products = preconditioned(lambda vectors: self.risk.hessian_products(vectors).products, preconditioner)
        pairs = self.tracker(announcing(products, module, self.tracker.budget), preconditioner)
        self.write(module, step, PRECONDITIONED_SHARPNESS, pairs.value)
        self.write(module, step, PRECONDITIONED_SHARPNESS_QUOTIENT, pairs.quotient)
        self.write(module, step, PRECONDITIONED_SHARPNESS_RESIDUAL, pairs.residual)
        self.write(module, step, PRECONDITIONED_SHARPNESS_BOUND, pairs.bound)
        self.write(module, step, PRECONDITIONED_SHARPNESS_PRODUCTS, pairs.products)

    def state_dict(self) -> dict[str, Any]:
        """The tracker's warm start."""
        return self.tracker.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.tracker.load_state_dict(state_dict)
