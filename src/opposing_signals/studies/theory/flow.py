"""Gradient flow and gradient descent of the two-layer model of §3.3.

The reduced flow, equations (17) to (20), is stiff in (ε, δ, o, c): ``b_o`` decays at rate αc², everything else at rate
‖β‖. With ``S(t) = ∫c²dt`` it is not: ``δ = δ(0)e^{−S}`` and ``b_o = b_o(0)e^{−αS}`` hold exactly, so three equations
remain, for (ε, c, S), and an explicit method of order 8 takes about a hundred steps at tight tolerance for any d1, d2
and α ≥ 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy

from opposing_signals.errors import InputError
from opposing_signals.studies.theory.exact import balance, final_c_squared
from opposing_signals.studies.theory.model import (
    Real,
    ReducedState,
    TwoLayerModel,
    gradient,
    initial_state,
    loss,
    sharpness,
    sharpness_velocity,
    velocity,
)

_RTOL = 1e-11
_CONVERGED = 1e-8  # relative to ‖β‖, the residual of f = 0
_CHUNK = 256  # grid points integrated together; more share their step sizes with ever stiffer neighbours


class IntegrationError(InputError):
    """An integration failed for these parameters; the message says at which time and in which state."""


@dataclass(frozen=True)
class FlowPath:
    """A solution of the reduced gradient flow.

    Attributes:
        t: Times of the solver's own steps, ``[T]``.
        states: The states at ``t``, every field ``[T]``.
        sharpness: λ at ``t``, ``[T]``.
        turn_time: First time from which ``c`` grows: t1 in the proof of theorem 3.1. 0 if it grows from the start;
            None if it never does.
        minimum_sharpness_time: Time of the smallest λ: where the decrease of theorem 3.1 ends.
        at: Dense output: the state at any times in ``[0, t[-1]]``.
    """

    t: np.ndarray
    states: ReducedState
    sharpness: np.ndarray
    turn_time: float | None
    minimum_sharpness_time: float
    at: Callable[[Real], ReducedState]


@dataclass(frozen=True)
class FlowGrid:
    """Gradient flow over a grid of models, sampled at times that are evenly spaced in log(1 + t/t₀), t₀ per model.

    Attributes:
        t: ``[*grid, T]``, from 0 to far beyond convergence.
        states: Every field ``[*grid, T]``.
    """

    t: np.ndarray
    states: ReducedState


@dataclass(frozen=True)
class DescentPath:
    """Gradient descent in the reduced coordinates, for one step size or an array of them.

    Attributes:
        states: θ_0 … θ_T, every field ``[T + 1, ...]``.
        log_b_o: ``ln|b_o|``, ``[T + 1, ...]``: the size also where the field ``b_o`` has underflowed to 0.
        loss: Population loss, ``[T + 1, ...]``.
        sharpness: λ, ``[T + 1, ...]``; NaN where the iterate is not finite.
        diverged: Whether the last iterate is not finite, ``[...]``.
    """

    states: ReducedState
    log_b_o: np.ndarray
    loss: np.ndarray
    sharpness: np.ndarray
    diverged: np.ndarray


@np.errstate(over="ignore", invalid="ignore", under="ignore")  # what overflows ends in an IntegrationError
def gradient_flow(model: TwoLayerModel, initial: ReducedState | None = None, horizon: float | None = None) -> FlowPath:
    """Integrate the reduced flow, equations (17) to (20).

    It has converged when the residual ``√(2L − α)`` falls below 1e-8 ‖β‖; a small gradient would not distinguish the
    minimum from the saddle at 0.

    Args:
        model: The model; only α, ‖β‖ and, without ``initial``, d1 and d2 matter.
        initial: State at t = 0; that of §3.3 if None.
        horizon: Last time; None stops at convergence. From starts with ``‖b_o‖ > c``, unlike §3.3's, that may take
            long: c falls to about ``ε‖β‖/(αo)``, where b_o hardly decays, and the equations become stiff.

    Raises:
        InputError: The horizon is not positive.
        IntegrationError: The solver fails, or does not converge although no horizon was given.
    """
    if horizon is not None and not horizon > 0:
        raise InputError(f"horizon = {horizon!r}: expected a number above 0")
    alpha, beta_norm = model.alpha, model.beta_norm
    start = initial_state(model) if initial is None else initial

    def state(y: np.ndarray) -> ReducedState:
        return _state(y[0], y[1], y[2], start, alpha)

    def right_hand_side(_: float, y: np.ndarray) -> np.ndarray:
        v = velocity(state(y), alpha, beta_norm)
        return np.array([v.epsilon, v.c, y[1] * y[1]])

    def turn(_: float, y: np.ndarray) -> Real:
        return velocity(state(y), alpha, beta_norm).c

    def flattest(_: float, y: np.ndarray) -> float:
        return sharpness_velocity(state(y), alpha, beta_norm)

    def converged(_: float, y: np.ndarray) -> float:
        return _residual(state(y), alpha, beta_norm) - _CONVERGED * beta_norm

    stops = horizon is None
    events = [_event(turn), _event(flattest), _event(converged, direction=-1, terminal=stops)]
    y0 = np.array([start.epsilon, start.c, 0.0], dtype=float)
    starts_converged = converged(0.0, y0) <= 0
    if horizon is None:
        # Convergence ends the integration, so a late horizon costs nothing.
        horizon = 1 / beta_norm if starts_converged else 20 * float(_horizon(alpha, beta_norm, start, 40.0))
    atol = np.array([1e-14, 1e-14, 1e-14 / max(alpha, 1.0)])
    max_step = 2 / float(_final_rates(alpha, beta_norm, start)[1])
    solution = _solve(right_hand_side, horizon, y0, atol, events=events, dense_output=True, max_step=max_step)
    turns, minima, convergence = solution.t_events
    if stops and convergence.size == 0 and not starts_converged:
        raise IntegrationError(
            f"gradient flow has not converged at t = {solution.t[-1]:.6g}, in state {state(solution.y[:, -1])}; "
            "give a horizon to integrate up to there"
        )
    t, states = solution.t, state(solution.y)
    values = sharpness(states, alpha, beta_norm)
    lowest = np.concatenate([minima, t[[values.argmin()]]])
    lowest_values = sharpness(state(solution.sol(lowest)), alpha, beta_norm)
    starts_growing = float(velocity(start, alpha, beta_norm).c) >= 0
    return FlowPath(
        t=t,
        states=states,
        sharpness=values,
        turn_time=0.0 if starts_growing else float(turns[0]) if turns.size else None,
        minimum_sharpness_time=float(lowest[lowest_values.argmin()]),
        at=lambda times: state(solution.sol(times)),
    )


def gradient_flow_grid(alpha: Real, beta_norm: Real, initial: ReducedState, samples: int = 600) -> FlowGrid:
    """Integrate many reduced flows at once; ``alpha``, ``beta_norm`` and the initial state broadcast to the grid.

    Points are stacked and integrated together, each in its own logarithmic time, in which the fast decay of ``b_o`` and
    the slow sharpening take comparable shares.

    Raises:
        InputError: Fewer than 2 samples.
        IntegrationError: The solver fails at some point of the grid.
    """
    if samples < 2:
        raise InputError(f"samples = {samples}: expected 2 or more times on each trajectory")
    parts = np.broadcast_arrays(alpha, beta_norm, initial.epsilon, initial.delta, initial.b_o, initial.c)
    shape = parts[0].shape
    flat = np.stack([np.asarray(part, dtype=float).reshape(-1) for part in parts])
    chunks = [
        _integrate_chunk(flat[:, first : first + _CHUNK], samples) for first in range(0, max(flat.shape[1], 1), _CHUNK)
    ]
    t, epsilon, delta, b_o, c = (
        np.concatenate(columns).reshape(*shape, samples) for columns in zip(*chunks, strict=True)
    )
    return FlowGrid(t, ReducedState(epsilon, delta, b_o, c))


def gradient_descent(alpha: Real, beta_norm: Real, initial: ReducedState, step_size: Real, steps: int) -> DescentPath:
    """Gradient descent in the reduced coordinates; all arguments but ``steps`` broadcast, one run for each entry.

    ``b_o`` is carried as sign and logarithm. Before sharpening it shrinks by a factor at each step, for large α below
    the smallest float64; at the edge of stability it grows back from there. As a float it would be stuck at 0 and
    gradient descent would appear to converge to an unstable minimum.

    Raises:
        InputError: The step size is not positive or ``steps`` is below 0.
    """
    if steps < 0:
        raise InputError(f"steps = {steps}: expected 0 or more")
    if not np.all(np.asarray(step_size) > 0):
        raise InputError(f"step_size = {step_size!r}: expected numbers above 0")
    parts = np.broadcast_arrays(alpha, beta_norm, step_size, initial.epsilon, initial.delta, initial.b_o, initial.c)
    alpha, beta_norm, eta, epsilon, delta, b_o, c = (np.array(part, dtype=float) for part in parts)
    path = np.empty((5, steps + 1, *c.shape))
    with np.errstate(all="ignore"):  # divergence to infinity is a result here
        sign, log = np.sign(b_o), np.log(np.abs(b_o))
        for step in range(steps + 1):
            b_o = sign * np.exp(log)
            path[:, step] = epsilon, delta, b_o, c, log
            v = velocity(ReducedState(epsilon, delta, b_o, c), alpha, beta_norm)
            factor = 1 - eta * alpha * c * c
            sign, log = sign * np.sign(factor), log + np.log(np.abs(factor))
            epsilon, delta, c = epsilon + eta * v.epsilon, delta + eta * v.delta, c + eta * v.c
        states = ReducedState(*path[:4])
        losses = loss(states, alpha, beta_norm)
        values = sharpness(states, alpha, beta_norm)
    return DescentPath(states, path[4], np.asarray(losses), values, np.asarray(~np.isfinite(path[:4, -1]).all(axis=0)))


def full_gradient_flow(model: TwoLayerModel, theta: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Gradient flow of the full vectors from ``θ`` ``[D]`` at increasing times ``t`` ``[T]``, the first 0: ``[T, D]``.

    The reference for `gradient_flow`; it shares no code with it but the gradient, and suits small dimensions.

    Raises:
        IntegrationError: The solver fails.
    """
    solution = scipy.integrate.solve_ivp(
        lambda _, y: -gradient(y, model), (0.0, float(t[-1])), theta, "DOP853", t_eval=t, rtol=1e-10, atol=1e-13
    )
    if not solution.success:
        reached = solution.t[-1] if solution.t.size else 0.0
        raise IntegrationError(f"full gradient flow stopped after t = {reached:.6g}: {solution.message}")
    return solution.y.T


def _state(epsilon: Real, c: Real, S: Real, start: ReducedState, alpha: Real) -> ReducedState:
    return ReducedState(epsilon, start.delta * np.exp(-S), start.b_o * np.exp(-alpha * S), c)


def _residual(state: ReducedState, alpha: float, beta_norm: float) -> float:
    s = state
    return float(np.sqrt((beta_norm - s.c * s.epsilon) ** 2 + (s.c * s.delta) ** 2 + alpha * (s.c * s.b_o) ** 2))


def _final_rates(alpha: Real, beta_norm: Real, start: ReducedState) -> tuple[Real, Real]:
    """The slowest and the fastest decay rate of (ε, δ, c), and of ``b_o`` if α < 1, at the end of the flow."""
    c_squared = final_c_squared(beta_norm, balance(start))
    return np.minimum(alpha, 1.0) * c_squared, c_squared + np.square(beta_norm) / c_squared


def _horizon(alpha: Real, beta_norm: Real, start: ReducedState, decay_times: float) -> Real:
    """A time by which the flow has converged: time to leave the saddle at 0, and then for the rest to decay.

    ``decay_times`` is the length of the decay in units of the slowest decay time.
    """
    size = np.maximum(np.hypot(start.epsilon, start.c), 1e-12)
    slowest, _ = _final_rates(alpha, beta_norm, start)
    return np.log1p(beta_norm / size / size) / beta_norm + decay_times / slowest


def _event(
    function: Callable[[float, np.ndarray], Real], direction: int = 1, terminal: bool = False
) -> Callable[[float, np.ndarray], Real]:
    function.direction = direction  # type: ignore[attr-defined]
    function.terminal = terminal  # type: ignore[attr-defined]
    return function


def _solve(
    right_hand_side: Callable[[float, np.ndarray], np.ndarray],
    end: float,
    y0: np.ndarray,
    atol: np.ndarray,
    **options: Any,
) -> Any:
    """SciPy's `solve_ivp` with DOP853 at tight tolerance that raises IntegrationError with time and state.

    The callers bound ``max_step`` by twice the fastest decay time at the end of the flow (1/‖β‖ for the initialization
    of §3.3). Near the minimum the method would otherwise take steps at its stability limit, where its interpolant errs
    by up to 1e-5 although the steps themselves are right.
    """

    def checked(t: float, y: np.ndarray) -> np.ndarray:
        # A non-finite derivative makes the step-size control loop forever.
        derivative = right_hand_side(t, y)
        if not np.isfinite(derivative).all():
            raise IntegrationError(_failure(t, y, "the derivative is not finite"))
        return derivative

    checked(0.0, y0)  # before SciPy sees options that are not finite either
    solution = scipy.integrate.solve_ivp(checked, (0.0, end), y0, "DOP853", rtol=_RTOL, atol=atol, **options)
    if not solution.success:
        t, y = (solution.t[-1], solution.y[:, -1]) if solution.t.size else (0.0, y0)
        raise IntegrationError(_failure(t, y, solution.message))
    return solution


def _failure(t: float, y: np.ndarray, reason: str) -> str:
    epsilon, c, S = (_one_line(part) for part in np.split(y, 3))
    return f"gradient flow stopped at t = {t:.6g} with epsilon = {epsilon}, c = {c}, integral of c^2 = {S}: {reason}"


def _one_line(values: np.ndarray) -> str:
    """One number as it is; of many the first and the last three."""
    if values.size == 1:
        return f"{values[0]:.6g}"
    return np.array2string(values, precision=6, threshold=6, max_line_width=10**6)


@np.errstate(over="ignore", invalid="ignore", under="ignore")
def _integrate_chunk(parts: np.ndarray, samples: int) -> tuple[np.ndarray, ...]:
    """Times and state fields, each ``[n, samples]``; ``parts`` ``[6, n]`` holds α, ‖β‖ and the initial ε, δ, b_o, c."""
    alpha, beta_norm, *fields = parts
    n = alpha.size
    start = ReducedState(*fields)
    scale = 0.1 / (alpha + beta_norm)
    horizon = _horizon(alpha, beta_norm, start, 20.0)
    stretch = np.log1p(horizon / scale)
    tau = np.linspace(0.0, 1.0, samples)

    def right_hand_side(time: float, y: np.ndarray) -> np.ndarray:
        epsilon, c, S = y.reshape(3, n)
        v = velocity(_state(epsilon, c, S, start, alpha), alpha, beta_norm)
        return (scale * stretch * np.exp(stretch * time) * np.stack([v.epsilon, v.c, c * c])).reshape(-1)

    y0 = np.concatenate([start.epsilon, start.c, np.zeros(n)])
    atol = np.concatenate([np.full(2 * n, 1e-14), 1e-14 / np.maximum(alpha, 1.0)])
    fastest = _final_rates(alpha, beta_norm, start)[1]
    max_step = float(np.min(2 / (fastest * horizon * stretch)))  # in the stretched time, at its end
    solution = _solve(right_hand_side, 1.0, y0, atol, t_eval=tau, max_step=max_step)
    epsilon, c, S = solution.y.reshape(3, n, samples)
    column = ReducedState(*(field[:, None] for field in fields))
    states = _state(epsilon, c, S, column, alpha[:, None])
    t = scale[:, None] * np.expm1(stretch[:, None] * tau)
    return t, epsilon, np.asarray(states.delta), np.asarray(states.b_o), c
