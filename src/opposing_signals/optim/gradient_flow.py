"""Gradient flow θ' = −∇L(θ) by an explicit stabilized integrator (figures 22 to 27).

The paper takes gradient descent with η 0.0005 for the flow. That is Euler's method: its error is of first order, and
it is stable only for steps up to 2/λ. The sharp directions of L decay at once and then hardly move, so the flow is
stiff, with real eigenvalues; a Runge-Kutta-Chebyshev method is made for that. Its s stages are stable for steps up to
0.65 s²/λ at second order, where s Euler steps reach 2s/λ.

A network of ReLUs has a gradient that jumps at kinks. Where these decide the error, as they do with few training
examples, every explicit method is of first order, and what counts is how finely the interval is cut.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from opposing_signals.errors import InputError

Slope = Callable[[Tensor], Tensor]
"""``[P]`` θ ↦ ``[P]`` −∇L(θ)."""
Coefficients = tuple[float, list[tuple[float, float, float, float]]]
"""μ̃_1, and (μ_j, ν_j, μ̃_j, γ̃_j) for j = 2 to s."""

_HEUN: Coefficients = (1.0, [(0.5, 0.0, 0.5, 0.0)])
_SAFETY = 1.2  # on the measured spectral radius
_AGREEMENT = 0.05  # relative change at which its power iteration has converged
_ITERATIONS, _ITERATIONS_AGAIN = 20, 4  # at most: at first, and from the direction of last time
_REMEASURE = 10  # intervals after which it is measured again
_MOST = 32  # substeps of an interval for the sake of the tolerance
_FAILED = 1024  # substeps at which an interval along which the loss still rises is given up
_REPEAT = 4.0  # times the allowed error from which on an interval is repeated
_ROUNDING = 1e-3  # relative rise of the loss that rounding may cause


class GradientFlow(torch.optim.Optimizer):
    """Follows the flow for a time ``lr`` at each step: one recorded step of the run is the interval that one step of
    gradient descent with η = ``lr`` covers.

    An interval is cut into equal substeps. Where they are short against 1/λ they are Heun's, otherwise those of RKC2
    (Sommeijer, Shampine and Verwer 1997, "RKC: an explicit solver for parabolic PDEs") with as many stages as the
    spectral radius of the Hessian asks for; the error estimate is RKC2's. The radius is measured by a power iteration
    on differences of gradients, which starts from the direction of last time.

    The estimate sets the number of substeps of the *next* interval; the same one is repeated only if it is far off.
    To repeat every substep whose error is too large, as is usual for smooth problems, would be wrong at kinks: the
    substeps that happen to miss a kink would be kept and those that see it would not, which favours one side of it.

    ``closure`` puts ∇L at the weights of the moment into ``.grad``; each stage calls it once. Running statistics of
    batch norm move at each call. They decide nothing, because training normalizes by the chunk. The batch has to be
    the whole training set: the flow of a minibatch loss is another one at every step.

    Attributes:
        evaluations: Gradients that the last step took.
        error: Sum of the estimated errors ‖·‖ of its substeps.

    Args:
        params: As for any torch optimizer.
        lr: Time that a step covers.
        tolerance: Estimated error of an interval, as a share of the mean way Σ‖Δθ‖ of an interval so far. At most 32
            substeps are spent on it.

    Raises:
        InputError: ``lr`` or ``tolerance`` is not positive; in `step`, the loss rises however short the substeps.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, tolerance: float = 0.01) -> None:
        for name, value in (("lr", lr), ("tolerance", tolerance)):
            if not value > 0:
                raise InputError(f"optimizer.{name}={value}: expected a number larger than 0")
        super().__init__(params, {"lr": lr, "tolerance": tolerance})
        (group,) = self.param_groups
        self._parameters: list[Tensor] = group["params"]
        self.evaluations = 0
        self.error = 0.0

    @torch.no_grad()
    def step(self, closure: Callable[[], float]) -> float:  # type: ignore[override]  # the closure is needed
        """Move θ by the flow over a time ``lr``; the loss at its beginning."""
        (group,) = self.param_groups
        memory = self.state[self._parameters[0]]
        start = _flat(self._parameters)
        losses: list[float] = []

        def slope(theta: Tensor) -> Tensor:
            self._move_to(theta)
            return evaluate()

        def evaluate() -> Tensor:
            with torch.enable_grad():
                losses.append(float(closure()))
            return -_flat([p.grad if p.grad is not None else torch.zeros_like(p) for p in self._parameters])

        slope_at_start = evaluate()
        if memory.get("age", _REMEASURE) >= _REMEASURE:
            _measure_radius(slope, start, slope_at_start, memory)
        while True:
            pieces = memory.get("pieces", 4)
            path = _follow(slope, start, slope_at_start, group["lr"], pieces, _SAFETY * memory["radius"])
            way, intervals = memory.get("way", 0.0) + path.length, memory.get("intervals", 0) + 1
            allowed = group["tolerance"] * way / intervals
            excess = path.error / allowed if allowed > 0 else 0.0
            falls = math.isfinite(excess) and losses[-1] <= losses[0] + _ROUNDING * abs(losses[0])
            if falls and (excess <= _REPEAT or pieces >= _MOST):
                break
            if pieces >= _FAILED:
                raise InputError(
                    f"optimizer.lr={group['lr']}: the loss rises along the flow even in {pieces} substeps; expected a "
                    "smaller interval, or an initialization with smaller gradients"
                )
            memory["pieces"] = 2 * pieces
            if not falls:
                _measure_radius(slope, start, slope_at_start, memory)
        factor = min(max(math.sqrt(excess), 0.5), 2.0)
        memory.update(
            way=way, intervals=intervals, pieces=min(math.ceil(factor * pieces), _MOST), age=memory["age"] + 1
        )
        self.evaluations, self.error = len(losses), path.error
        self._move_to(start + path.displacement)
        return losses[0]

    def _move_to(self, theta: Tensor) -> None:
        pieces = theta.split([p.numel() for p in self._parameters])
        for parameter, piece in zip(self._parameters, pieces, strict=True):
            parameter.copy_(piece.view_as(parameter))


@dataclass(frozen=True)
class _Path:
    """Displacement ``[P]``, the slope at its end, the length of the way, and the estimated error."""

    displacement: Tensor
    slope: Tensor
    length: float
    error: float


def _follow(slope: Slope, start: Tensor, slope_at_start: Tensor, time: float, pieces: int, radius: float) -> _Path:
    """Equal substeps over ``time``; it ends early where a number is no longer finite."""
    displacement, here, length, error = torch.zeros_like(start), slope_at_start, 0.0, 0.0
    for _ in range(pieces):
        substep = _substep(slope, start + displacement, here, time / pieces, radius)
        displacement, here = displacement + substep.displacement, substep.slope
        length, error = length + substep.length, error + substep.error
        if not math.isfinite(error):
            break
    return _Path(displacement, here, length, error)


def _substep(slope: Slope, position: Tensor, here: Tensor, time: float, radius: float) -> _Path:
    """One step of Heun's method or of RKC2 with as many stages as are stable for ``radius``.

    Stages are kept as displacements from ``position``, so that no digits are lost in their differences.
    """
    stages = 1 + int(math.sqrt(1 + 1.54 * time * radius))
    first, rest = _coefficients(stages) if time * radius > 2 else _HEUN
    before, now = torch.zeros_like(here), first * time * here
    for mu, nu, mu_slope, gamma in rest:
        there = slope(position + now)
        before, now = now, mu * now + nu * before + (mu_slope * time) * there + (gamma * time) * here
    there = slope(position + now)
    error = 0.4 * time * (here + there) - 0.8 * now
    return _Path(now, there, float(now.norm()), float(error.norm()))


def _coefficients(stages: int) -> Coefficients:
    """Those of RKC2 (Sommeijer et al. 1997, equations 2.3 to 2.6)."""
    w0 = 1 + 2 / 13 / stages**2
    value, first, second = [1.0, w0], [0.0, 1.0], [0.0, 0.0]  # Chebyshev polynomials and their derivatives at w0
    for j in range(2, stages + 1):
        value.append(2 * w0 * value[j - 1] - value[j - 2])
        first.append(2 * value[j - 1] + 2 * w0 * first[j - 1] - first[j - 2])
        second.append(4 * first[j - 1] + 2 * w0 * second[j - 1] - second[j - 2])
    w1 = first[stages] / second[stages]
    b = [second[j] / first[j] ** 2 for j in range(2, stages + 1)]
    b = [b[0], b[0], *b]
    rest = []
    for j in range(2, stages + 1):
        mu_slope = 2 * b[j] * w1 / b[j - 1]
        a = 1 - b[j - 1] * value[j - 1]
        rest.append((2 * b[j] * w0 / b[j - 1], -b[j] / b[j - 2], mu_slope, -a * mu_slope))
    return b[1] * w1, rest


def _measure_radius(slope: Slope, position: Tensor, here: Tensor, memory: dict[str, Any]) -> None:
    """The Hessian's spectral radius at ``position``: power iteration on differences of gradients."""
    distance = math.sqrt(torch.finfo(position.dtype).eps) * max(1.0, float(position.norm()))
    direction = memory.get("direction", here)
    radius = memory.get("radius", 0.0)
    for _ in range(_ITERATIONS_AGAIN if "direction" in memory else _ITERATIONS):
        length = float(direction.norm())
        if length == 0:  # at a stationary point nothing moves
            break
        direction = slope(position + direction * (distance / length)) - here
        previous, radius = radius, float(direction.norm()) / distance
        if abs(radius - previous) <= _AGREEMENT * radius:
            break
    memory.update(direction=direction, radius=radius, age=0)


def _flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])
