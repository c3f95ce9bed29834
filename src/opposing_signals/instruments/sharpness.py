"""Sharpness: the largest eigenvalue of the training loss's Hessian."""

from __future__ import annotations

from typing import Any

from opposing_signals.curvature import TopEigenpair
from opposing_signals.instruments.instrument import Instrument
from opposing_signals.record import Record
from opposing_signals.risk import EmpiricalRisk, flatten
from opposing_signals.training.module import TrainingModule


class Sharpness(Instrument):
    """Writes ``sharpness`` λ(θ_t), ``sharpness_residual`` ‖Hv − λv‖ and ``sharpness_products`` (products spent).

    Args:
        risk: What is being trained.
        record: Where rows go.
        every: See `Instrument`.
        consecutive: See `Instrument`.
        tolerance: See `TopEigenpair`.
        max_products: See `TopEigenpair`.
    """

    def __init__(
        self,
        risk: EmpiricalRisk,
        record: Record,
        every: int = 1,
        consecutive: int = 1,
        tolerance: float = 0.03,
        max_products: int = 40,
    ) -> None:
        super().__init__(risk, record, every, consecutive)
        self.solver = TopEigenpair(tolerance, max_products)

    def before_step(self, module: TrainingModule, step: int) -> None:
        """Find the top eigenpair, starting from the last two."""
        like = flatten([parameter.detach() for parameter in self.risk.parameters])
        pair = self.solver(lambda vectors: self.risk.hessian_products(vectors).products, like)
        self.write(module, step, "sharpness", pair.value)
        self.write(module, step, "sharpness_residual", pair.residual)
        self.write(module, step, "sharpness_products", pair.products)

    def state_dict(self) -> dict[str, Any]:
        """The solver's warm start."""
        return self.solver.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        self.solver.load_state_dict(state_dict)
