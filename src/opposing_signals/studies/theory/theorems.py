"""Theorems 3.1 and 3.2 of the paper, and sharper statements, checked by integration at one model or over a grid.

Each `Statement` has the measured value, its bound, and where it holds, as arrays over the grid. The paper's Ω(·)
conditions have no constants; `sufficient_conditions` gives the inequalities that its proofs use, so that they can be
drawn beside a map of holds / fails.

Two interpretations had to be chosen.

- The time t1 at which the decrease ends is not defined in theorem 3.1; its proof takes a time at which ``dc/dt > 0``.
  Statements are made for that *turn* of c and for the *minimum* of λ, which comes later.
- "Decrease as O(e^{−αt})" on a bounded interval is meaningful only if one constant serves for all α. The measured
  value is the logarithm of the smallest constant; the statement counts as true if that is at most ``ln 10``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from opposing_signals.errors import InputError
from opposing_signals.studies.theory.exact import (
    alpha_for_three_alpha,
    balance,
    fast_phase,
    final_sharpness,
    initial_sharpness_floor,
)
from opposing_signals.studies.theory.flow import FlowGrid, gradient_flow_grid
from opposing_signals.studies.theory.model import Real, ReducedState, TwoLayerModel, sharpness, velocity

LARGEST_CONSTANT = 10.0
_TOLERANCE = 1e-6  # relative; integration errors stay below 1e-8


@dataclass(frozen=True)
class Statement:
    """One statement, over a grid.

    Attributes:
        source: Where it comes from: a theorem of the paper, its proof, or `opposing_signals.studies.theory.exact`.
        text: The statement in one line; says what ``measured`` and ``bound`` are.
        measured: The measured value, ``[*grid]``.
        bound: Its bound, ``[*grid]``.
        holds: Whether the statement holds, bool ``[*grid]``.
    """

    source: str
    text: str
    measured: np.ndarray
    bound: np.ndarray
    holds: np.ndarray


@dataclass(frozen=True)
class TheoremCheck:
    """The results for one model (0-dimensional arrays) or over a grid.

    Attributes:
        alpha: α, ``[*grid]``.
        k: d2/d1 after rounding d2 to a whole number, ``[*grid]``.
        beta_norm: ‖β‖, ``[*grid]``.
        statements: By name; see `check_grid`.
        conditions: Sufficient conditions by name, bool ``[*grid]``: `sufficient_conditions`.
    """

    alpha: np.ndarray
    k: np.ndarray
    beta_norm: np.ndarray
    statements: dict[str, Statement]
    conditions: dict[str, np.ndarray]


def check_model(model: TwoLayerModel, samples: int = 2000) -> TheoremCheck:
    """Which statements hold for one model, with the measured values."""
    return _check(model.d1, model.d2, model.alpha, model.beta_norm, samples)


def check_grid(alpha: Real, k: Real, beta_norm: Real, d1: int = 100, samples: int = 600) -> TheoremCheck:
    """Which statements hold over a grid; ``alpha``, ``k`` and ``beta_norm`` broadcast to it.

    Statements of theorem 3.1: ``initial_lower``, ``initial_upper``, ``turn_in_time``, ``minimum_in_time``,
    ``outlier_decay``, ``sharpness_decay``, ``sharpness_falls``. Of theorem 3.2: ``sharpness_grows``,
    ``sharpness_grows_from_turn``, ``final_sharpness``. Sharper: ``balance``, ``outlier_bound``, ``signal_grows``,
    ``sharpness_floor``, ``final_exact``, ``initial_floor``, ``initial_threshold``; of these ``outlier_bound`` and
    ``signal_grows`` assume ‖β‖ ≥ d1/√(d1+d2), the others nothing.

    Raises:
        InputError: A value is outside the model's range.
    """
    d2 = np.maximum(np.rint(np.asarray(k, dtype=float) * d1), d1 + 1)
    for name, value in (("alpha", alpha), ("beta_norm", beta_norm)):
        if not (np.all(np.asarray(value) > 0) and np.all(np.isfinite(value))):
            raise InputError(f"{name} from {np.min(value):g} to {np.max(value):g}: expected finite numbers above 0")
    if d1 < 1 or not np.all(np.asarray(k) > 1):
        raise InputError(
            f"d1 = {d1!r}, smallest k = {np.min(k):g}: expected d1 of 1 or more and every k = d2/d1 above 1"
        )
    return _check(d1, d2, alpha, beta_norm, samples)


def sufficient_conditions(d1: Real, d2: Real, alpha: Real, beta_norm: Real) -> dict[str, np.ndarray]:
    """Where the inequalities used by the proofs of Appendix G hold, and where an empirical one holds.

    - ``beta``: ``‖β‖ ≥ max(d1/√(d1+d2), 24/5)``.
    - ``theorem_3_1``: ``√α ≥ ‖β‖ (1+k) ln k / ln(‖β‖/2)``, which puts the proof's time ``ln k/(2√α m)`` before
      ``ln(‖β‖/2)/(2‖β‖)``.
    - ``measured``: ``α ≥ 4‖β‖(1+k)``. With ``beta`` it sufficed for ``initial_upper``, ``turn_in_time`` and
      ``minimum_in_time`` in all of 24,000 random models (d1 from 1 to 10⁷, k to 10⁵, ‖β‖ to 10⁴); not proved. The
      proofs' conditions grow with the square of this one, and vanish with ln k as k → 1, where they do not suffice.
    """
    d1, d2, alpha, beta_norm = (np.asarray(value, dtype=float) for value in (d1, d2, alpha, beta_norm))
    k, total, root = d2 / d1, d1 + d2, np.sqrt(alpha)
    spread = (1 + k) * np.log(k)
    room = np.log(beta_norm / 2)
    conditions = {
        "beta": beta_norm >= np.maximum(d1 / np.sqrt(total), 24 / 5),
        "theorem_3_1": (room > 0) & (root * room >= beta_norm * spread),
        "theorem_3_2": (root >= 1 + k * np.log(k)) & (1 / total + beta_norm**2 * spread / root <= 4 / 5),
        "measured": alpha >= 4 * beta_norm * (1 + k),
    }
    shape = np.broadcast_shapes(*(np.shape(condition) for condition in conditions.values()))
    return {name: np.broadcast_to(condition, shape) for name, condition in conditions.items()}


def _check(d1: Real, d2: Real, alpha: Real, beta_norm: Real, samples: int) -> TheoremCheck:
    d1, d2, alpha, beta_norm = np.broadcast_arrays(
        *(np.asarray(value, dtype=float) for value in (d1, d2, alpha, beta_norm))
    )
    total, k = d1 + d2, d2 / d1
    start = ReducedState(np.sqrt(1 / total), np.sqrt((d1 - 1) / total), np.sqrt(d2 / total), np.ones_like(total))
    flow = gradient_flow_grid(alpha, beta_norm, start, samples)
    return TheoremCheck(
        alpha=alpha,
        k=k,
        beta_norm=beta_norm,
        statements=_statements(d1, d2, alpha, beta_norm, flow),
        conditions=sufficient_conditions(d1, d2, alpha, beta_norm),
    )


def _statements(
    d1: np.ndarray, d2: np.ndarray, alpha: np.ndarray, beta_norm: np.ndarray, flow: FlowGrid
) -> dict[str, Statement]:
    t, states = flow.t, flow.states
    k = d2 / d1
    column, norm = alpha[..., None], beta_norm[..., None]
    values = sharpness(states, column, norm)
    turn = _first_upcrossing(t, np.asarray(velocity(states, column, norm).c))
    lowest = values.argmin(axis=-1)
    before_turn = t <= turn[..., None]
    deadline = np.log(beta_norm / 2) / (2 * beta_norm)
    largest = math.log(LARGEST_CONSTANT)
    threshold = np.asarray(alpha_for_three_alpha(d1, d2, beta_norm))
    _, o_bound = fast_phase(t, column, k[..., None])
    # Both sides underflow in the end; the smallest normal float64 keeps their quotient a number.
    o_excess = np.max((states.o + 1e-300) / (o_bound + 1e-300), axis=-1)

    def constant(y: np.ndarray) -> np.ndarray:
        """ln of the smallest K with ``y(t) ≤ K e^{−αt} y(0)`` up to the turn."""
        return np.max(np.where(before_turn, column * t + np.log(np.maximum(y / y[..., :1], 1e-300)), 0.0), axis=-1)

    def at_most(source: str, text: str, measured: np.ndarray, bound: Real) -> Statement:
        return Statement(source, text, measured, np.broadcast_to(bound, measured.shape), measured <= bound)

    def above(source: str, text: str, measured: np.ndarray, bound: Real) -> Statement:
        return Statement(source, text, measured, np.broadcast_to(bound, measured.shape), measured > bound)

    def in_time(text: str, time: np.ndarray) -> Statement:
        return Statement("theorem 3.1", text, time, deadline, (time > 0) & (time <= deadline))

    initial, final = values[..., 0] / alpha, values[..., -1] / alpha / beta_norm
    return {
        "initial_lower": above("theorem 3.1", "λ(0)/α is above 1", initial, 1.0),
        "initial_upper": Statement(
            "theorem 3.1", "λ(0)/α is below 3", initial, np.full_like(initial, 3.0), initial < 3
        ),
        "turn_in_time": in_time("the time from which c grows is above 0 and at most ln(‖β‖/2)/(2‖β‖)", turn),
        "minimum_in_time": in_time(
            "the time of the smallest λ is above 0 and at most ln(‖β‖/2)/(2‖β‖)", _lowest_time(t, values, lowest)
        ),
        "outlier_decay": at_most(
            "theorem 3.1",
            "ln of the smallest K with ‖b_o‖ ≤ K e^{−αt}‖b_o(0)‖ up to the turn",
            constant(np.asarray(states.b_o)),
            largest,
        ),
        "sharpness_decay": at_most(
            "theorem 3.1", "ln of the smallest K with λ ≤ K e^{−αt}λ(0) up to the turn", constant(values), largest
        ),
        "sharpness_falls": at_most(
            "theorem 3.1", "largest relative rise of λ up to the turn", _largest_rise(values, before_turn), _TOLERANCE
        ),
        "sharpness_grows": at_most(
            "theorem 3.2",
            "largest relative fall of λ after its minimum",
            _largest_fall(values, np.arange(t.shape[-1]) >= lowest[..., None]),
            _TOLERANCE,
        ),
        "sharpness_grows_from_turn": at_most(
            "theorem 3.2",
            "largest relative fall of λ after the turn of c, the t1 of the proof of theorem 3.1",
            _largest_fall(values, t >= turn[..., None]),
            _TOLERANCE,
        ),
        "final_sharpness": above("theorem 3.2", "λ(∞)/(α‖β‖) is at least 5/8", final, 5 / 8),
        "balance": at_most(
            "exact.balance",
            "largest |c² − ‖b‖² − ‖b_o‖²|/‖β‖",
            np.max(np.abs(balance(states)), axis=-1) / beta_norm,
            _TOLERANCE,
        ),
        "outlier_bound": at_most(
            "exact.fast_phase", "largest ‖b_o‖² over its bound (51), at all times", o_excess, 1 + _TOLERANCE
        ),
        "signal_grows": at_most(
            "exact.fast_phase",
            "largest relative fall of ‖b‖² at any time",
            _largest_fall(np.asarray(states.b_squared), np.ones_like(t, dtype=bool)),
            _TOLERANCE,
        ),
        "sharpness_floor": above(
            "exact.fast_phase",
            "smallest λ(t)/(α‖b(t)‖²)",
            np.min(values / (column * states.b_squared), axis=-1),
            1 - _TOLERANCE,
        ),
        "final_exact": at_most(
            "exact.final_sharpness",
            "|λ(∞)/(max(α, 2)‖β‖) − 1|",
            np.abs(values[..., -1] / final_sharpness(alpha, beta_norm) - 1),
            _TOLERANCE,
        ),
        "initial_floor": above(
            "exact.initial_sharpness_floor", "λ(0)/α is above g(k)", initial, initial_sharpness_floor(k)
        ),
        "initial_threshold": Statement(
            "exact.alpha_for_three_alpha",
            "λ(0) < 3α if and only if α is above its threshold",
            alpha,
            threshold,
            (initial < 3) == (alpha > threshold),
        ),
    }


def _first_upcrossing(t: np.ndarray, y: np.ndarray) -> np.ndarray:
    """First time at which ``y`` is at least 0, between samples by linear interpolation; infinite if there is none."""
    above = y >= 0
    index = above.argmax(axis=-1)[..., None]
    before = np.maximum(index - 1, 0)
    t0, t1, y0, y1 = (np.take_along_axis(*pair, axis=-1) for pair in ((t, before), (t, index), (y, before), (y, index)))
    with np.errstate(invalid="ignore", divide="ignore"):
        time = np.where(index == 0, t0, t0 + (t1 - t0) * y0 / (y0 - y1))
    return np.where(above.any(axis=-1), time[..., 0], np.inf)


def _lowest_time(t: np.ndarray, y: np.ndarray, lowest: np.ndarray) -> np.ndarray:
    """Time of the minimum of ``y``, from the parabola through its smallest sample and its two neighbours."""
    center = np.clip(lowest, 1, t.shape[-1] - 2)[..., None]
    (t0, y0), (t1, y1), (t2, y2) = (
        (np.take_along_axis(t, center + shift, axis=-1), np.take_along_axis(y, center + shift, axis=-1))
        for shift in (-1, 0, 1)
    )
    left, right = (y1 - y0) / (t1 - t0), (y2 - y1) / (t2 - t1)
    with np.errstate(invalid="ignore", divide="ignore"):
        vertex = 0.5 * (t0 + t1) - 0.5 * left * (t2 - t0) / (right - left)
    inside = (lowest > 0) & (lowest < t.shape[-1] - 1)
    return np.where(inside, vertex[..., 0], np.take_along_axis(t, lowest[..., None], axis=-1)[..., 0])


def _largest_rise(y: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Largest of ``y(t)/min_{s ≤ t} y(s) − 1`` over the times selected by ``where``, for positive ``y``."""
    return np.max(np.where(where, y / np.minimum.accumulate(y, axis=-1) - 1, 0.0), axis=-1)


def _largest_fall(y: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Largest of ``1 − y(t)/max_{s ≤ t} y(s)`` over the times selected by ``where``, for positive ``y``."""
    peak = np.maximum.accumulate(np.where(where, y, 0.0), axis=-1)
    return np.max(np.where(where, 1 - y / np.where(peak > 0, peak, 1.0), 0.0), axis=-1)
