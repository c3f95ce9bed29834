"""A run seen along one fixed direction v: the top eigenvector of its reference at break-even (figures 6b and 38a)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from opposing_signals.curvature.risk import flatten
from opposing_signals.data import Dataset
from opposing_signals.errors import InputError
from opposing_signals.instruments.break_even import break_even_direction
from opposing_signals.instruments.instrument import Instrument
from opposing_signals.record.quantities import EFFECTIVE_STEP_SIZE, FLOOR_DISTANCE, PROJECTION
from opposing_signals.training.module import TrainingModule


class _AlongBreakEven(Instrument):
    """Measures along the direction that the run's reference has written."""

    _direction: Tensor

    def prepare(self, dataset: Dataset) -> None:
        """Take the direction.

        Raises:
            InputError: The run has no reference, or see `break_even_direction`.
        """
        if self.reference is None:
            raise InputError(
                f"{type(self).__name__}: the run has no reference to take a direction from: expected the field "
                "reference (conf/reference)"
            )
        self._direction = break_even_direction(self.reference, sum(p.numel() for p in self.risk.parameters))

    @property
    def direction(self) -> Tensor:
        """``[P]``, of unit length, on the weights' device."""
        return self._direction.to(self.risk.parameters[0])


class Projection(_AlongBreakEven):
    """Writes ``projection`` θ_t·v."""

    def before_step(self, module: TrainingModule, step: int) -> None:
        """Summed in float64, because successive values differ little."""
        theta = flatten([parameter.detach() for parameter in self.risk.parameters])
        self.write(module, step, PROJECTION, float(theta.double() @ self.direction.double()))


class FloorDistance(_AlongBreakEven):
    """Writes ``floor_distance`` (∇L·v) / (vᵀ∇²L v): the signed distance of θ_t from the valley floor along v.

    The floor is the minimum of the second-order expansion of the full training loss along v. Where the curvature along
    v is not positive there is none, and the value is NaN.
    """

    def before_step(self, module: TrainingModule, step: int) -> None:
        """One Hessian-vector product."""
        direction = self.direction
        seen = self.risk.hessian_products(direction[None])
        slope, curvature = float(seen.gradient @ direction), float(seen.products[0] @ direction)
        self.write(module, step, FLOOR_DISTANCE, slope / curvature if curvature > 0 else float("nan"))


class EffectiveStepSize(_AlongBreakEven):
    """Writes ``effective_step_size`` abs(Σ_j v_j η/(√v̂_j + ε)): Adam's parameter-wise step sizes along v (figure 6b).

    v̂_t is the bias-corrected second moment used in the step from θ_t.

    Raises:
        InputError: The optimizer is not Adam.
    """

    needs_training = True

    def after_step(self, module: TrainingModule, step: int) -> None:
        """Measured here because the optimizer's state is that of the step just taken."""
        optimizer = self.required_optimizer(module, torch.optim.Adam, "effective_step_size")
        group_of = {parameter: group for group in optimizer.param_groups for parameter in group["params"]}
        sizes = [_step_sizes(optimizer.state[parameter], group_of[parameter]) for parameter in self.risk.parameters]
        along = flatten(sizes) @ self.direction
        self.write(module, step, EFFECTIVE_STEP_SIZE, abs(float(along)))


def _step_sizes(state: dict[str, Tensor], group: dict[str, Any]) -> Tensor:
    """η/(√v̂ + ε) of one parameter tensor."""
    second_moment = state.get("max_exp_avg_sq", state["exp_avg_sq"])
    corrected = second_moment / (1 - group["betas"][1] ** float(state["step"]))
    return group["lr"] / (corrected.sqrt() + group["eps"])
