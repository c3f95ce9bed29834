"""Sensitivity of the outputs to the inputs."""

from __future__ import annotations

import torch

from opposing_signals.curvature import jacobian_norms, layer_spectra
from opposing_signals.curvature.risk import EmpiricalRisk
from opposing_signals.errors import InputError
from opposing_signals.instruments.instrument import Instrument
from opposing_signals.record import Record
from opposing_signals.record.quantities import JACOBIAN_NORM, JACOBIAN_NORM_MAX, LAYER_ALIGNMENT, LAYER_NORMS
from opposing_signals.training.module import TrainingModule
from opposing_signals.values import Count, Seed


class Jacobian(Instrument):
    """Writes the network's sensitivity to its inputs, and the layers' part in it (talk, §3.1).

    ``jacobian_norm`` and ``jacobian_norm_max`` are mean and maximum of ‖∂f(x_i; θ_t)/∂x‖₂ over a fixed random subset of
    the training points. ``layer_norms`` ``[L]`` and ``layer_alignment`` ``[L - 1]`` are the largest singular values of
    the weights and the alignment of neighbours' singular vectors (see `opposing_signals.curvature.LayerSpectra`).

    Args:
        points: Size of the subset.
        seed: Of the subset.

    Raises:
        InputError: ``points`` is not from 1 to N.
    """

    def __init__(
        self,
        risk: EmpiricalRisk,
        record: Record,
        every: Count = 10,
        consecutive: Count = 1,
        points: Count = 64,
        seed: Seed = 0,
    ) -> None:
        super().__init__(risk, record, every, consecutive)
        if not 1 <= points <= len(risk):
            raise InputError(f"Jacobian: points={points}: expected 1 to {len(risk)}, the number of examples")
        self._points = torch.randperm(len(risk), generator=torch.Generator().manual_seed(seed))[:points]

    def before_step(self, module: TrainingModule, step: int) -> None:
        """One backward pass of the subset for each output."""
        norms = jacobian_norms(self.risk, self._points)
        layers = layer_spectra(self.risk.model)
        self.write(module, step, JACOBIAN_NORM, float(norms.mean()))
        self.write(module, step, JACOBIAN_NORM_MAX, float(norms.max()))
        self.write(module, step, LAYER_NORMS, layers.norms.cpu().numpy())
        self.write(module, step, LAYER_ALIGNMENT, layers.alignments.numpy())
