"""Sharpness of single training points: those whose loss changes most, and some others."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from opposing_signals.curvature import sample_sharpness
from opposing_signals.curvature.risk import EmpiricalRisk
from opposing_signals.errors import InputError
from opposing_signals.instruments.instrument import Instrument
from opposing_signals.record import Record
from opposing_signals.record.quantities import SAMPLE_SHARPNESS, SAMPLE_SHARPNESS_POINTS, SAMPLE_SHARPNESS_RESIDUAL
from opposing_signals.training.module import TrainingModule
from opposing_signals.values import Count, NotNegative, Seed


class SampleSharpness(Instrument):
    """Writes the largest eigenvalue of chosen training points' own Hessians ∇²ℓ_i(θ_t) (figure 2).

    The points are the ``count`` whose loss rose most in the last step, from θ_{t-1} to θ_t, the ``count`` whose loss
    fell most, and ``count`` random ones, the same at every step. ``sample_sharpness_points`` ``[3 count]`` has their
    positions in the training set, in this order, ``sample_sharpness`` the eigenvalues λ_i and
    ``sample_sharpness_residual`` ‖Hu − λu‖. At step 0 there is no last step, and nothing is written.

    Args:
        count: Points of each kind.
        tolerance: See `opposing_signals.curvature.sample_sharpness`.
        max_products: See `opposing_signals.curvature.sample_sharpness`.
        seed: Of the random points.

    Raises:
        InputError: ``count`` is not from 1 to N.
    """

    needs_training = True

    def __init__(
        self,
        risk: EmpiricalRisk,
        record: Record,
        every: Count = 1,
        consecutive: Count = 1,
        count: Count = 20,
        tolerance: NotNegative = 0.03,
        max_products: Count = 20,
        seed: Seed = 0,
    ) -> None:
        super().__init__(risk, record, every, consecutive)
        if not 1 <= count <= len(risk):
            raise InputError(f"SampleSharpness: count={count}: expected 1 to {len(risk)}, the number of examples")
        self.count = count
        self.tolerance = tolerance
        self.max_products = max_products
        self._random = torch.randperm(len(risk), generator=torch.Generator().manual_seed(seed))[:count]
        self._losses: Tensor | None = None  # of the last step

    def before_step(self, module: TrainingModule, step: int) -> None:
        """Refuse minibatch training."""
        if not module.batches.is_full:
            raise InputError(
                f"SampleSharpness: batch={module.batches.size}: expected full-batch training (batch=null), whose steps "
                "show every loss; leave sample_sharpness out of instruments"
            )

    def at_gradient(self, module: TrainingModule, step: int) -> None:
        """Measured here because ℓ(θ_t) comes from the step's own pass."""
        if self._losses is None:
            return
        changes = module.forward_pass.losses - self._losses.to(module.forward_pass.losses)
        rising, falling = (change.topk(self.count).indices.cpu() for change in (changes, -changes))
        points = torch.cat([rising, falling, self._random])
        measured, where = points.unique(return_inverse=True)
        values, residuals = sample_sharpness(self.risk, measured, self.tolerance, self.max_products)
        self.write(module, step, SAMPLE_SHARPNESS_POINTS, points.numpy())
        self.write(module, step, SAMPLE_SHARPNESS, values[where].numpy())
        self.write(module, step, SAMPLE_SHARPNESS_RESIDUAL, residuals[where].numpy())

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep ℓ(θ_t) if the next step is measured."""
        assert isinstance(pl_module, TrainingModule)
        self._losses = pl_module.forward_pass.losses if self.is_due(pl_module.step + 1) else None

    def state_dict(self) -> dict[str, Any]:
        """The losses of the last step, if the next one needs them."""
        return {"losses": self._losses}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._losses = state_dict["losses"]
