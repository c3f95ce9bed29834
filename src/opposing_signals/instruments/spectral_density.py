"""Spectral density of the Hessian."""

from __future__ import annotations

from opposing_signals.curvature import spectral_density
from opposing_signals.curvature.risk import EmpiricalRisk, flatten
from opposing_signals.instruments.instrument import Instrument
from opposing_signals.record import Record
from opposing_signals.record.quantities import DENSITY_NODES, DENSITY_WEIGHTS
from opposing_signals.training.module import TrainingModule
from opposing_signals.values import Count, Seed


class SpectralDensity(Instrument):
    """Writes ``density_nodes`` and ``density_weights`` ``[probes x steps]``: the spectrum of ∇²L(θ_t) as a quadrature.

    See `opposing_signals.curvature.spectral_density`. One measurement costs probes x steps products, so it is meant
    for a few steps of a run.

    Args:
        probes: Random vectors, the same at every step.
        steps: Lanczos steps of each.
        seed: Of the random vectors.
    """

    def __init__(
        self,
        risk: EmpiricalRisk,
        record: Record,
        every: Count = 100,
        consecutive: Count = 1,
        probes: Count = 1,
        steps: Count = 80,
        seed: Seed = 0,
    ) -> None:
        super().__init__(risk, record, every, consecutive)
        self.probes = probes
        self.steps = steps
        self.seed = seed

    def before_step(self, module: TrainingModule, step: int) -> None:
        like = flatten([parameter.detach() for parameter in self.risk.parameters])
        density = spectral_density(
            lambda vectors: self.risk.hessian_products(vectors).products, like, self.probes, self.steps, self.seed
        )
        self.write(module, step, DENSITY_NODES, density.nodes.numpy())
        self.write(module, step, DENSITY_WEIGHTS, density.weights.numpy())
