"""The two-layer linear model of §3.3: data, population loss, gradient, Hessian and its top eigenvalue.

The network is ``f(x, x_o) = c (bᵀx + b_oᵀx_o)`` with ``x ∈ R^{d1}`` of unit covariance; on a share ``p`` of the points
``x_o ∈ R^{d2}`` carries the opposing signal, elsewhere it is 0. The target is ``y = βᵀx + (1/√d2) 1ᵀ|x_o|``. With
``Σ_o = E[x_o x_oᵀ]`` and square loss,

    2L = ‖cb − β‖² + c² b_oᵀ Σ_o b_o + α.

There are two signals, because the paper's text and its equations describe different ones:

``"isotropic"``
    ``x_o = ±√(α d2/p) e_j`` with sign and ``j`` uniform, hence ``Σ_o = αI``. This is a distribution for which equations
    (4) to (8) of Appendix G hold for every ``b_o``.
``"ones"``
    ``x_o = ±√(α/(p d2)) 1``, the distribution of §3.3, hence ``Σ_o = α uuᵀ`` with ``u = 1/√d2``. Equation (3) replaces
    ``(uᵀb_o)²`` by ``‖b_o‖²``, which is right only for ``b_o`` along ``u``. Off that line the loss is flat.

For ``b_o`` along ``u`` both have the same loss, the same dynamics and the same top eigenvalue; they are then described
by four numbers, the `ReducedState`, and a computation on one costs no more for ``d1, d2 = 10⁶`` than for 2.

Full parameter vectors are flat arrays ``θ = [b (d1), b_o (d2), c]``. Without loss of generality ``β = ‖β‖ e_1``.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Annotated, Literal, get_type_hints

import numpy as np

from opposing_signals.errors import InputError
from opposing_signals.values import Count, Positive, Range, expect

Signal = Literal["isotropic", "ones"]
Real = float | np.ndarray
"""A number, or an array of numbers over a grid of models or times; the functions below broadcast."""


class TheoremConditionWarning(UserWarning):
    """A parameter lies outside the conditions of theorems 3.1 and 3.2; computation goes on."""


@dataclass(frozen=True)
class TwoLayerModel:
    """The parameters of the model.

    Attributes:
        d1: Dimension of ``x`` and ``b``.
        d2: Dimension of ``x_o`` and ``b_o``, more than ``d1``.
        alpha: Magnitude α of the opposing signal: the curvature of the loss in ``c b_o``.
        beta_norm: ‖β‖, the size of the useful signal.
        p: Share of points that carry the opposing signal, in (0, 1]. It changes the data, not the population loss.
        signal: Distribution of ``x_o`` on these points (see the module's docstring).

    Raises:
        InputError: A value is outside its range.

    Warns:
        TheoremConditionWarning: ‖β‖ < max(d1/√(d1+d2), 24/5), the bound that theorems 3.1 and 3.2 require.
    """

    d1: Count
    d2: Count
    alpha: Positive
    beta_norm: Positive
    p: Annotated[float, Range(0, 1, above=True)] = 0.01
    signal: Signal = "isotropic"

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self), include_extras=True).items():
            expect(name, getattr(self, name), hint)
        if self.d2 <= self.d1:
            raise InputError(f"d2={self.d2} with d1={self.d1}: §3.3 needs d2 > d1; raise d2 or lower d1")
        if self.beta_norm < self.smallest_beta_norm:
            warnings.warn(
                f"beta_norm = {self.beta_norm:g} is below max(d1/sqrt(d1+d2), 24/5) = {self.smallest_beta_norm:g}, "
                "the condition of theorems 3.1 and 3.2; their statements need not hold",
                TheoremConditionWarning,
                stacklevel=3,
            )

    @property
    def k(self) -> float:
        """``k = d2/d1 > 1``, equation (27)."""
        return self.d2 / self.d1

    @property
    def m(self) -> float:
        """``m = d1/(d1+d2) = 1/(1+k)``, equation (28): the initial ‖b‖²."""
        return self.d1 / (self.d1 + self.d2)

    @property
    def smallest_beta_norm(self) -> float:
        return max(self.d1 / math.sqrt(self.d1 + self.d2), 24 / 5)


@dataclass(frozen=True)
class ReducedState:
    """A point of the reduced dynamics; every field is a number or an array, all of one shape.

    Attributes:
        epsilon: ε, the coordinate of ``b`` along β.
        delta: δ, the coordinate of ``b`` along its initial direction orthogonal to β.
        b_o: The coordinate of ``b_o`` along its initial direction, *with its sign*: gradient descent carries it across
            0, which ``o = ‖b_o‖²``, the paper's scalar, cannot show.
        c: The second layer.
    """

    epsilon: Real
    delta: Real
    b_o: Real
    c: Real

    @property
    def o(self) -> Real:
        """``o = ‖b_o‖²``."""
        return np.square(self.b_o)

    @property
    def b_squared(self) -> Real:
        """``‖b‖² = ε² + δ²``."""
        return np.square(self.epsilon) + np.square(self.delta)


@dataclass(frozen=True)
class Sample:
    """Points drawn from the model: ``x`` ``[n, d1]``, ``x_o`` ``[n, d2]`` and ``y`` ``[n]``."""

    x: np.ndarray
    x_o: np.ndarray
    y: np.ndarray


def initial_state(model: TwoLayerModel) -> ReducedState:
    """The initialization of §3.3, equations (22) to (25): every quantity at its expected order of magnitude."""
    total = model.d1 + model.d2
    return ReducedState(
        epsilon=math.sqrt(1 / total),
        delta=math.sqrt((model.d1 - 1) / total),
        b_o=math.sqrt(model.d2 / total),
        c=1.0,
    )


def loss(state: ReducedState, alpha: Real, beta_norm: Real) -> Real:
    """Population loss, equation (4): ``L = ½[(cε − ‖β‖)² + c²δ² + α(c²o + 1)]``. Its minimum is α/2."""
    s = state
    return 0.5 * ((s.c * s.epsilon - beta_norm) ** 2 + (s.c * s.delta) ** 2 + alpha * ((s.c * s.b_o) ** 2 + 1))


def group_losses(state: ReducedState, model: TwoLayerModel) -> tuple[Real, Real, Real]:
    """Mean losses of the outliers with signal +, of those with signal −, and of all other points.

    Their averages with weights p/2, p/2 and 1 − p is `loss`. Holds for ``b_o`` along ``u`` under either signal.
    """
    rest = 0.5 * ((state.c * state.epsilon - model.beta_norm) ** 2 + (state.c * state.delta) ** 2)
    scale = 0.5 * model.alpha / model.p
    return rest + scale * (state.c * state.b_o - 1) ** 2, rest + scale * (state.c * state.b_o + 1) ** 2, rest


def velocity(state: ReducedState, alpha: Real, beta_norm: Real) -> ReducedState:
    """Gradient flow's right-hand side: minus the gradient in the coordinates (ε, δ, b_o, c), equations (17) to (20)."""
    s = state
    square = s.c * s.c
    return ReducedState(
        epsilon=s.c * (beta_norm - s.c * s.epsilon),
        delta=-square * s.delta,
        b_o=-alpha * square * s.b_o,
        c=s.epsilon * beta_norm - s.c * (s.b_squared + alpha * s.o),
    )


def reduced_hessian(state: ReducedState, alpha: Real, beta_norm: Real) -> np.ndarray:
    """Hessian of the loss in the coordinates (ε, δ, b_o, c), ``[..., 4, 4]``.

    The full Hessian, equation (8), is an arrow: diagonal blocks ``c²I`` and ``c²Σ_o`` and one dense row, that of ``c``,
    whose entries ``2cb − β`` and ``2αc b_o`` lie in the span of (β, v, b_o). So that span and ``c`` are invariant, this
    matrix is the restriction to them; on the complement the Hessian is diagonal, with entries c² and those of c²Σ_o.
    """
    s = state
    shape = np.broadcast_shapes(*(np.shape(value) for value in (s.epsilon, s.delta, s.b_o, s.c, alpha, beta_norm)))
    H = np.zeros((*shape, 4, 4))
    H[..., 0, 0] = H[..., 1, 1] = np.square(s.c)
    H[..., 2, 2] = alpha * np.square(s.c)
    H[..., 3, 3] = s.b_squared + alpha * s.o
    H[..., 0, 3] = H[..., 3, 0] = 2 * s.c * s.epsilon - beta_norm
    H[..., 1, 3] = H[..., 3, 1] = 2 * s.c * s.delta
    H[..., 2, 3] = H[..., 3, 2] = 2 * alpha * s.c * s.b_o
    return H


def sharpness(state: ReducedState, alpha: Real, beta_norm: Real) -> np.ndarray:
    """Top eigenvalue of the full Hessian, from the reduced state alone; NaN where the state is not finite.

    The eigenvalues on the complement, ``c²`` and ``αc²``, are diagonal entries of `reduced_hessian`, hence at most its
    top eigenvalue.
    """
    H = reduced_hessian(state, alpha, beta_norm)
    finite = np.isfinite(H).all(axis=(-2, -1))
    top = np.linalg.eigvalsh(np.where(finite[..., None, None], H, 0.0))[..., -1]
    return np.where(finite, top, np.nan)


def sharpness_velocity(state: ReducedState, alpha: float, beta_norm: float) -> float:
    """dλ/dt along gradient flow at one state: ``uᵀ(dH/dt)u`` for the top unit eigenvector ``u``."""
    u = np.linalg.eigh(reduced_hessian(state, alpha, beta_norm))[1][:, -1]
    s, v = state, velocity(state, alpha, beta_norm)
    square = 2 * s.c * v.c
    corner = 2 * (s.epsilon * v.epsilon + s.delta * v.delta + alpha * s.b_o * v.b_o)
    arrow = (
        u[0] * (v.c * s.epsilon + s.c * v.epsilon)
        + u[1] * (v.c * s.delta + s.c * v.delta)
        + u[2] * alpha * (v.c * s.b_o + s.c * v.b_o)
    )
    return float(square * (u[0] ** 2 + u[1] ** 2 + alpha * u[2] ** 2) + corner * u[3] ** 2 + 4 * u[3] * arrow)


def target_vector(model: TwoLayerModel) -> np.ndarray:
    """β, ``[d1]``."""
    beta = np.zeros(model.d1)
    beta[0] = model.beta_norm
    return beta


def embed(state: ReducedState, model: TwoLayerModel) -> np.ndarray:
    """The full parameters ``θ`` ``[d1 + d2 + 1]`` of a reduced state: δ along the second axis, ``b_o`` along ``1``."""
    theta = np.zeros(model.d1 + model.d2 + 1)
    theta[0] = state.epsilon
    if model.d1 > 1:
        theta[1] = state.delta
    theta[model.d1 : -1] = state.b_o / math.sqrt(model.d2)
    theta[-1] = state.c
    return theta


def reduce(theta: np.ndarray, model: TwoLayerModel) -> ReducedState:
    """The reduced coordinates of full parameters ``θ`` ``[..., d1 + d2 + 1]``.

    δ is taken as a length. For the signal along ``1``, ``b_o`` is the signed coordinate along ``u``, the only part on
    which the loss depends; for the isotropic signal it is the length ‖b_o‖, since all directions are equivalent.
    """
    b, b_o = theta[..., : model.d1], theta[..., model.d1 : -1]
    coordinate = b_o.sum(axis=-1) / math.sqrt(model.d2) if model.signal == "ones" else np.linalg.norm(b_o, axis=-1)
    return ReducedState(b[..., 0], np.linalg.norm(b[..., 1:], axis=-1), coordinate, theta[..., -1])


def sample_initial_parameters(model: TwoLayerModel, rng: np.random.Generator) -> np.ndarray:
    """The standard initialization that §3.3 idealizes: ``[b, b_o] ~ N(0, I/(d1+d2))``, ``c = 1``; ``[d1 + d2 + 1]``."""
    total = model.d1 + model.d2
    return np.append(rng.standard_normal(total) / math.sqrt(total), 1.0)


def sample_data(model: TwoLayerModel, n: int, rng: np.random.Generator) -> Sample:
    """``n`` independent points with ``x ~ N(0, I)``.

    Raises:
        InputError: ``n`` is not positive.
    """
    if n < 1:
        raise InputError(f"n = {n!r}: expected the number of points to draw, 1 or more")
    x = rng.standard_normal((n, model.d1))
    signs = np.where(rng.random(n) < model.p, rng.choice([-1.0, 1.0], size=n), 0.0)
    if model.signal == "ones":
        x_o = np.repeat(signs[:, None] * math.sqrt(model.alpha / (model.p * model.d2)), model.d2, axis=1)
    else:
        x_o = np.zeros((n, model.d2))
        x_o[np.arange(n), rng.integers(model.d2, size=n)] = signs * math.sqrt(model.alpha * model.d2 / model.p)
    return Sample(x, x_o, x @ target_vector(model) + np.abs(x_o).sum(axis=1) / math.sqrt(model.d2))


def sample_losses(theta: np.ndarray, sample: Sample) -> np.ndarray:
    """Loss ``½(f(x) − y)²`` of every point, ``[n]``, at full parameters ``θ``."""
    d1 = sample.x.shape[1]
    prediction = theta[-1] * (sample.x @ theta[:d1] + sample.x_o @ theta[d1:-1])
    return 0.5 * (prediction - sample.y) ** 2


def _signal_covariance(b_o: np.ndarray, model: TwoLayerModel) -> np.ndarray:
    """``Σ_o b_o``, ``[d2]``."""
    return model.alpha * (b_o if model.signal == "isotropic" else np.full_like(b_o, b_o.mean()))


def population_loss(theta: np.ndarray, model: TwoLayerModel) -> float:
    """``L(θ) = ½[‖cb − β‖² + c² b_oᵀΣ_o b_o + α]``, equation (4), at full parameters."""
    b, b_o, c = theta[: model.d1], theta[model.d1 : -1], theta[-1]
    residual = c * b - target_vector(model)
    return float(0.5 * (residual @ residual + c * c * (b_o @ _signal_covariance(b_o, model)) + model.alpha))


def gradient(theta: np.ndarray, model: TwoLayerModel) -> np.ndarray:
    """∇L(θ), equations (5) to (7), ``[d1 + d2 + 1]``."""
    b, b_o, c = theta[: model.d1], theta[model.d1 : -1], theta[-1]
    residual = c * b - target_vector(model)
    pull = _signal_covariance(b_o, model)
    return np.concatenate([c * residual, c * c * pull, [b @ residual + c * (b_o @ pull)]])
