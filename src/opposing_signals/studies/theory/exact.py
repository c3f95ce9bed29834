"""The two-layer model in closed form: balance, end of the flow, its two phases, and the step sizes that are stable.

The paper proves lower bounds; these are equalities, and inequalities without conditions on α. `docs/theory.md` compares
them with theorems 3.1 and 3.2.

**Balance.** The loss depends on ``cb`` and ``cb_o`` only, so ``(b, b_o, c) → (e^{−s}b, e^{−s}b_o, e^s c)`` leaves it
unchanged. Its derivative in ``s`` is 0: ``c ∂_cL = bᵀ∇_bL + b_oᵀ∇_{b_o}L``. Hence ``Q = c² − ‖b‖² − ‖b_o‖²`` is
constant along gradient flow, as in every linear network, whatever α is; the initialization of §3.3 has ``Q = 0``.

**End of the flow.** ``Q = 0`` bounds the trajectory, since ``c⁴ = ‖cb‖² + ‖cb_o‖²`` and the loss bounds the right-hand
side. A gradient flow of a polynomial that stays bounded converges to a stationary point; these are the origin and the
minima ``cb = β, b_o = 0``. ``cε`` never crosses ‖β‖ (there, ``(cε)' = −εc(δ² + αo) ≤ 0``), so ``ε' = c(‖β‖ − cε) > 0``
and ε, which starts above 0, excludes the origin. At the minimum ``c² − ‖β‖²/c² = Q``; for ``Q = 0``, ``c² = ‖β‖``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from opposing_signals.errors import InputError
from opposing_signals.studies.theory.model import Real, ReducedState


def balance(state: ReducedState) -> Real:
    """``Q = c² − ‖b‖² − ‖b_o‖²``, constant along gradient flow and 0 at the initialization of §3.3.

    Gradient descent changes it by ``η²(g_c² − ‖g_b‖² − ‖g_{b_o}‖²)`` a step, exactly.
    """
    return np.square(state.c) - state.b_squared - state.o


def final_c_squared(beta_norm: Real, balance: Real = 0.0) -> Real:
    """``c²`` at the end of the flow: ``c² = (Q + √(Q² + 4‖β‖²))/2``, which is ‖β‖ for the initialization of §3.3."""
    root = np.hypot(balance, 2 * np.asarray(beta_norm, dtype=float))
    # The second form is the same number without cancellation.
    return np.where(np.asarray(balance) >= 0, (root + balance) / 2, 2 * np.square(beta_norm) / (root + np.abs(balance)))


def sharpness_at_minimum(c_squared: Real, alpha: Real, beta_norm: Real) -> Real:
    """Top Hessian eigenvalue at the global minimum with second layer ``c``: ``max(αc², c² + ‖β‖²/c²)``.

    There ``b_o = 0`` and ``b = β/c``. ``αc²`` belongs to ``b_o``; the block of (ε, c) is
    ``[[c², ‖β‖], [‖β‖, ‖β‖²/c²]]``, of rank 1.
    """
    return np.maximum(alpha * c_squared, c_squared + np.square(beta_norm) / c_squared)


def final_sharpness(alpha: Real, beta_norm: Real, balance: Real = 0.0) -> Real:
    """Sharpness at the end of the flow: ``max(α, 2) ‖β‖`` for the initialization of §3.3; the paper has ⅝ α‖β‖."""
    return sharpness_at_minimum(final_c_squared(beta_norm, balance), alpha, beta_norm)


def flattest_minimum(alpha: Real, beta_norm: Real) -> tuple[Real, Real]:
    """``c²`` and sharpness of the flattest of the global minima ``cb = β``, ``b_o = 0`` (one for every ``c``).

    For α > 2 the two eigenvalues of `sharpness_at_minimum` cross at ``c² = ‖β‖/√(α−1)``, with value ``α‖β‖/√(α−1)``;
    for α ≤ 2 the second has its minimum 2‖β‖ at ``c² = ‖β‖`` and is the larger there.
    """
    ratio = np.sqrt(np.maximum(np.asarray(alpha, dtype=float), 2.0) - 1)
    c_squared = beta_norm / ratio
    return c_squared, sharpness_at_minimum(c_squared, alpha, beta_norm)


@dataclass(frozen=True)
class StepSizes:
    """The step sizes of gradient descent at which something changes, smallest first for α ≥ 5.

    Attributes:
        edge: ``2/(max(α, 2)‖β‖)``. Up to here the minimum that gradient flow reaches is linearly stable; above it
            progressive sharpening crosses 2/η and ``b_o`` alternates with growing size.
        catapult: ``4/(max(α, 2)‖β‖)``. Between ``edge`` and about here the growth of ``b_o`` pulls ``c`` down until
            ``αc² < 2/η``, and gradient descent returns; measured, the last step size that returns from the
            initialization of §3.3 is 0.93 to 1.03 of it (α from 5 to 1,000). In the pair (c, b_o) alone, loss
            ``½α(c b_o)²``, this is exact: ``c² + b_o²`` changes by ``ηα(c b_o)²(ηα(c² + b_o²) − 4)`` a step
            (Lewkowycz et al., 2020).
        no_minimum: ``2√(α−1)/(α‖β‖)``. Above it no global minimum is linearly stable, so gradient descent converges
            to one from almost no start.
    """

    edge: Real
    catapult: Real
    no_minimum: Real


def step_sizes(alpha: Real, beta_norm: Real) -> StepSizes:
    """The step sizes at which the behaviour of gradient descent changes."""
    edge = 2 / final_sharpness(alpha, beta_norm)
    return StepSizes(edge=edge, catapult=2 * edge, no_minimum=2 / flattest_minimum(alpha, beta_norm)[1])


@dataclass(frozen=True)
class Oscillation:
    """What gradient descent does just above the edge, to leading order in the excess ``μ = ηαc² − 2 > 0``.

    Attributes:
        excess: μ.
        largest_o: Largest ``‖b_o‖²`` of the oscillation.
        final_excess: ``ηαc² − 2`` after it.
    """

    excess: Real
    largest_o: Real
    final_excess: Real


def oscillation(c_squared: Real, alpha: Real, beta_norm: Real, step_size: Real) -> Oscillation:
    """Growth and return of ``b_o`` from a minimum just past the edge, for ``0 < μ ≪ 2/α``.

    A step multiplies ``b_o`` by ``1 − ηαc² = −(1 + μ)``: it alternates, and ``o' = 2μo`` a step. Meanwhile ``c² − ε²``
    falls by ``2ηαc²o ≈ 4o``. The valley ``cε = ‖β‖`` is followed at once when μ is small against its own rate
    ``η(c² + ‖β‖²/c²)``, which is 4/α at ``c² = ‖β‖``; then ``c²`` falls by ``4o/(1 + ‖β‖²/c⁴)``, hence ``μ' = −Ko``
    with ``K = 8c²/(c⁴ + ‖β‖²)``. So ``μ² + Ko`` is constant: ``b_o`` grows until ``o = μ²/K``, which is ``μ²‖β‖/4`` at
    ``c² = ‖β‖``, and is gone again at ``−μ``: the return ends as far below the edge as it began above. For μ large
    against 4/α the valley cannot follow, ``K = 8/c²``, the peak halves, and the end lies between ``−μ`` and 0.
    """
    excess = step_size * alpha * c_squared - 2
    K = 8 * c_squared / (np.square(c_squared) + np.square(beta_norm))
    return Oscillation(excess, np.square(excess) / K, -excess)


def initial_sharpness_floor(k: Real) -> Real:
    """A number ``g(k)`` in (2.186, 3) with ``λ(0) > g(k) α`` for every α and ‖β‖; the paper has 1.

    ``g`` is the top eigenvalue of the (b_o, c) block over α, ``[[1, 2√o], [2√o, o]]`` with ``o = k/(1+k)``; it is
    ``(3 + √33)/4`` at k = 1.
    """
    o = k / (1 + np.asarray(k, dtype=float))
    return (1 + o + np.sqrt(np.square(1 - o) + 16 * o)) / 2


def alpha_for_three_alpha(d1: Real, d2: Real, beta_norm: Real) -> Real:
    """The α above which ``λ(0) < 3α`` holds, and at or below which it fails: ``α = (1 + ρ√(1+k))/3``.

    ``ρ² = ‖2b − β‖² = ‖β‖² − 4ε(0)‖β‖ + 4m``. The leading minors of ``3α − ∇²L(0)`` are positive if and only if
    ``3α > 1`` and ``(3α − 1) m > ρ²/(3α − 1)``. The paper states ``λ(0) < 3α`` without a condition on α.
    """
    total = np.asarray(d1, dtype=float) + d2
    rho_squared = np.square(beta_norm) - 4 * beta_norm / np.sqrt(total) + 4 * d1 / total
    return (1 + np.sqrt(rho_squared * total / d1)) / 3


def fast_phase(t: Real, alpha: Real, k: Real) -> tuple[Real, Real]:
    """Lower bound on ``c²`` and upper bound on ``o``, equations (50) and (51), at every time ``t ≥ 0``.

    The solution of ``c' = −αoc``, ``o' = −2αc²o``: ``c² = m/(1 − (1−m)e^{−2αmt})``, ``o = c² − m``. The paper shows it
    up to ``t = ln(‖β‖/2)/(2‖β‖)`` and for large α. It holds for all times, every α and every ‖β‖ ≥ d1/√(d1+d2): that
    condition says that ``q := ε‖β‖ − c(ε² + δ²) ≥ 0`` at t = 0, and q cannot return to 0, because at ``q = 0``, where
    ``cδ² = ε(‖β‖ − cε)``, it has ``q' = c‖β‖(‖β‖ − cε) + αoc(ε² + δ²) > 0``. So ``c' = q − αoc ≥ −αoc``, and
    ``(‖b‖²)' = 2cq ≥ 0``: ‖b‖² rises from m to ‖β‖, hence ``c² = ‖b‖² + o > m`` at all times.
    """
    m = 1 / (1 + np.asarray(k, dtype=float))
    decay = np.exp(-2 * alpha * m * t)
    c_squared = m / (1 - (1 - m) * decay)
    # o = c² − m, written to keep its relative accuracy when it is tiny.
    return c_squared, m * (1 - m) * decay / (1 - (1 - m) * decay)


def slow_phase(t: Real, epsilon: Real, delta: Real, beta_norm: Real) -> ReducedState:
    """Closed-form gradient flow from ``(ε, δ, 0, c)`` with ``c² = ε² + δ²``: the sharpening after ``b_o`` has decayed.

    Let C and E solve ``C' = ‖β‖E``, ``E' = ‖β‖C`` from c and ε, and ``D = 1 + 2∫C²``. Then ``c = C/√D``, ``ε = E/√D``,
    ``δ = δ(0)/√D`` solve the flow, since ``D'/(2D) = c² = ε² + δ²``. So while ``c² ≪ ‖β‖`` the sharpness ``αc²`` grows
    as ``αm cosh²(‖β‖t)``, at a rate 2‖β‖ in its logarithm, and then saturates at α‖β‖.

    Raises:
        InputError: A time is below 0, or too late for cosh(‖β‖t) in float64.
    """
    growth = beta_norm * np.asarray(t, dtype=float)
    if np.any(growth < 0) or np.any(growth > 300):
        raise InputError("slow_phase: expected times with 0 ≤ ‖β‖t ≤ 300; later the flow has converged")
    c = np.hypot(epsilon, delta)
    cosh, sinh = np.cosh(growth), np.sinh(growth)
    C, E = c * cosh + epsilon * sinh, epsilon * cosh + c * sinh
    D = 1 + np.square(delta) * t + (C * E - c * epsilon) / beta_norm
    root = np.sqrt(D)
    return ReducedState(E / root, delta / root, np.zeros_like(root), C / root)
