"""Gradient flow θ' = −∇L(θ) by an explicit stabilized integrator (figures 22 to 27).

The paper approximates the flow by gradient descent with η 0.0005. That is Euler's method, which is of first order and
stable only for steps up to 2/λ. The sharp directions of L decay at once and then hardly move, so the flow is stiff,
with real eigenvalues; Runge-Kutta-Chebyshev methods are made for this. With s stages they are stable for steps up to
0.65 s²/λ at second order, where s Euler steps reach 2s/λ.

A ReLU network's gradient jumps at kinks. A substep across a kink has an error of the jump times its length, so there
every explicit method is of first order; the error estimate sees the jump and shortens the substep.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from opposing_signals.errors import InputError
from opposing_signals.values import Positive, expect

Slope = Callable[[Tensor], Tensor]
"""``[P]`` θ ↦ ``[P]`` −∇L(θ)."""
HORIZON = 100
"""Limits the tolerated error, in lengths of the last step; see `GradientFlow`."""
Coefficients = tuple[float, list[tuple[float, float, float, float]]]
"""μ̃_1, and (μ_j, ν_j, μ̃_j, γ̃_j) for j = 2 to s."""

_HEUN: Coefficients = (1.0, [(0.5, 0.0, 0.5, 0.0)])
_SAFETY = 1.2  # on the measured spectral radius
_AGREEMENT = 0.05  # relative change at which its power iteration has converged
_ITERATIONS, _ITERATIONS_AGAIN = 20, 4  # at most: the first time, and from the last direction
_REMEASURE = 25  # substeps after which it is measured again, as after each refused one
_FIRST = 1 / 16  # first substep, as a fraction of the interval
_TINY = 1e-300
_SHORTEST = 1e-6  # shortest substep, as a fraction of the interval


class GradientFlow(torch.optim.Optimizer):
    """Follows the flow for a time ``lr`` at each step, the time of one step of gradient descent with η = ``lr``.

    A substep uses Heun's method if it is shorter than 2 over the Hessian's spectral radius, otherwise RKC2 (Sommeijer,
    Shampine and Verwer 1997, "RKC: an explicit solver for parabolic PDEs") with as many stages as that radius needs.
    RKC2's error estimate accepts or refuses the substep and sets the length of the next one. The radius is measured by
    power iteration on differences of gradients, started from the last direction.

    ``closure`` puts ∇L at the current weights into ``.grad``; each stage calls it once. Each call updates batch norm's
    running statistics. These have no effect, because training normalizes by the chunk. The batch has to be the whole
    training set: a minibatch loss would have a different flow at every step.

    Attributes:
        evaluations: Gradients that the last step took.
        error: Sum of the norms of its substeps' estimated errors.

    Args:
        params: As for any torch optimizer.
        lr: Time that a step covers.
        tolerance: Largest estimated error of a substep, as a fraction of the distance from the first θ, or of `HORIZON`
            times the length of the last step or of this one so far, whichever is less. (Noise lengthens the path, and
            where the flow slows down the distance stays large: either alone would allow too much.) Rounding error is
            always allowed.

    Raises:
        InputError: ``lr`` or ``tolerance`` is not positive; in `step`, no substep is short enough.
    """

    def __init__(self, params: Iterable[Tensor], lr: Positive, tolerance: Positive = 0.001) -> None:
        for name, value in (("lr", lr), ("tolerance", tolerance)):
            expect(f"optimizer.{name}", value, Positive)
        super().__init__(params, {"lr": lr, "tolerance": tolerance})
        (group,) = self.param_groups
        self._parameters: list[Tensor] = group["params"]
        self.evaluations = 0
        self.error = 0.0

    @torch.no_grad()
    def step(self, closure: Callable[[], float]) -> float:  # type: ignore[override]  # the closure is needed
        """Move θ along the flow for a time ``lr``; returns the loss before."""
        (group,) = self.param_groups
        memory = self.state[self._parameters[0]]
        start = _flat(self._parameters)
        memory.setdefault("origin", start)
        moved, rounding = memory.get("moved", 0.0), torch.finfo(start.dtype).eps * float(start.norm())
        losses: list[float] = []

        def slope(theta: Tensor) -> Tensor:
            self._move_to(theta)
            return evaluate()

        def evaluate() -> Tensor:
            with torch.enable_grad():
                losses.append(float(closure()))
            return -_flat([p.grad if p.grad is not None else torch.zeros_like(p) for p in self._parameters])

        here = evaluate()
        displacement = torch.zeros_like(start)
        remaining, self.error = group["lr"], 0.0
        while remaining > 0:
            if memory.get("age", _REMEASURE) >= _REMEASURE:
                _measure_radius(slope, start + displacement, here, memory)
            pieces = math.ceil(remaining / memory.get("substep", _FIRST * group["lr"]))
            time = remaining / pieces
            substep = _substep(slope, start + displacement, here, time, _SAFETY * memory["radius"])
            there = displacement + substep.displacement
            reach = max(moved, float(there.norm()))
            distance = min(float((start - memory["origin"] + there).norm()), HORIZON * reach)
            allowed = max(group["tolerance"] * distance, rounding, _TINY)
            excess = substep.error / allowed if math.isfinite(substep.error) else math.inf
            memory["substep"] = time * min(max(0.8 * max(excess, _TINY) ** (-1 / 3), 0.2), 2.0)
            if excess <= 1:
                displacement, here, moved = there, substep.slope, reach
                memory["age"] += 1
                self.error += substep.error
                remaining = remaining - time if pieces > 1 else 0.0
            elif memory["substep"] < _SHORTEST * group["lr"]:
                raise InputError(
                    f"optimizer.lr={group['lr']}: no flow even in steps of {memory['substep']:.1e}; "
                    "expected a larger optimizer.tolerance, or an initialization with smaller gradients"
                )
            else:
                memory["age"] = _REMEASURE
        self.evaluations = len(losses)
        memory["moved"] = float(displacement.norm())
        self._move_to(start + displacement)
        return losses[0]

    def _move_to(self, theta: Tensor) -> None:
        pieces = theta.split([p.numel() for p in self._parameters])
        for parameter, piece in zip(self._parameters, pieces, strict=True):
            parameter.copy_(piece.view_as(parameter))


@dataclass(frozen=True)
class _Substep:
    """Displacement ``[P]``, the slope at its end, and its estimated error."""

    displacement: Tensor
    slope: Tensor
    error: float


def _substep(slope: Slope, position: Tensor, here: Tensor, time: float, radius: float) -> _Substep:
    """One step of Heun's method or of RKC2 with as many stages as are stable for ``radius``.

    Stages are kept as displacements from ``position``, so that their differences lose no digits.
    """
    stages = 1 + int(math.sqrt(1 + 1.54 * time * radius))
    first, rest = _coefficients(stages) if time * radius > 2 else _HEUN
    before, now = torch.zeros_like(here), first * time * here
    for mu, nu, mu_slope, gamma in rest:
        there = slope(position + now)
        before, now = now, mu * now + nu * before + (mu_slope * time) * there + (gamma * time) * here
    there = slope(position + now)
    error = 0.4 * time * (here + there) - 0.8 * now
    return _Substep(now, there, float(error.norm()))


def _coefficients(stages: int) -> Coefficients:
    """Coefficients of RKC2 (Sommeijer et al. 1997, equations 2.3 to 2.6)."""
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
        if length == 0:  # a stationary point
            break
        direction = slope(position + direction * (distance / length)) - here
        previous, radius = radius, float(direction.norm()) / distance
        if abs(radius - previous) <= _AGREEMENT * radius:
            break
    if not math.isfinite(radius):
        raise InputError("optimizer GradientFlow: the gradient is not finite in the neighbourhood of the weights")
    memory.update(direction=direction, radius=radius, age=0)


def _flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])
