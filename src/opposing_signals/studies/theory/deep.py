"""The model of §3.3 on sampled points, with any number of scalar layers above the first and with another loss.

The network is ``f(z) = c_1 ⋯ c_{L−1} wᵀz`` with ``z = [x, x_o]`` and ``w = [b, b_o]``; L = 2 is the model of §3.3.
Parameters are flat arrays ``θ = [w (D), c (L − 1)]``. With ``C = c_1 ⋯ c_{L−1}`` and ``a = wᵀz``,

    ∂f/∂w = C z;   ∂f/∂c_i = (C/c_i) a;   ∂²f/∂w∂c_i = (C/c_i) z;   ∂²f/∂c_i∂c_j = C/(c_i c_j) a  (i ≠ j),

and all others are 0. Products without one or two factors are formed without division, so that a layer may be 0.

**Depth.** The loss depends on ``Cw`` only, so ``c_i² − c_j²`` and ``c_i² − ‖w‖²`` are constant along gradient flow, for
every loss. From ``c_i = ‖w‖ = 1`` all layers stay balanced, and under square loss the flow ends at ``Cw = [β, 0]``,
that is ``c_i² = ‖β‖^{2/L}``. There the curvature in ``b_o`` is ``αC² = α‖β‖^{2(L−1)/L}``: α‖β‖ for two layers, and
towards α‖β‖² with depth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy

from opposing_signals.errors import InputError
from opposing_signals.studies.theory.flow import IntegrationError
from opposing_signals.studies.theory.model import Real, TwoLayerModel, embed, initial_state, sample_data

Loss = Literal["square", "logistic"]
LossJet = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class DeepProblem:
    """Points to fit, and the loss and depth of the model.

    Attributes:
        z: Inputs ``[n, D]``: ``x`` and ``x_o`` concatenated.
        y: Targets ``[n]``; labels 0 or 1 under logistic loss.
        signs: Sign of the opposing signal, 0 where there is none, ``[n]``.
        direction: Unit vector ``[D]`` of weight space along which the outliers oppose each other.
        loss: ``"square"``: ``½(f − y)²``; ``"logistic"``: ``ln(1 + e^f) − yf``, the cross-entropy of two classes.
        layers: L, 2 or more.
    """

    z: np.ndarray
    y: np.ndarray
    signs: np.ndarray
    direction: np.ndarray
    loss: Loss
    layers: int


@dataclass(frozen=True)
class Evaluation:
    """Per-sample losses ``[n]``, and gradient ``[P]`` and Hessian ``[P, P]`` of their mean, P = D + L − 1."""

    losses: np.ndarray
    gradient: np.ndarray
    hessian: np.ndarray


def sample_problem(
    model: TwoLayerModel, points: int, rng: np.random.Generator, loss: Loss = "square", layers: int = 2
) -> DeepProblem:
    """Points drawn from the model of §3.3.

    Under logistic loss the label is 1 with probability ``σ(βᵀx + (1/√d2) 1ᵀ|x_o|)``: the target of §3.3 as a logit. So
    outliers of both signs nearly always have label 1, and pull ``b_o`` in opposite directions.

    Raises:
        InputError: An argument is outside its range, or the signal has more than one direction.
    """
    if loss not in ("square", "logistic"):
        raise InputError(f"loss = {loss!r}: expected square or logistic")
    if layers < 2:
        raise InputError(f"layers = {layers!r}: expected 2 or more")
    if model.signal != "ones":
        raise InputError(f"signal = {model.signal!r}: expected ones, whose outliers oppose along one direction")
    sample = sample_data(model, points, rng)
    target = sample.y if loss == "square" else (rng.random(points) < scipy.special.expit(sample.y)).astype(float)
    direction = np.concatenate([np.zeros(model.d1), np.full(model.d2, model.d2**-0.5)])
    return DeepProblem(
        z=np.concatenate([sample.x, sample.x_o], axis=1),
        y=target,
        signs=np.sign(sample.x_o[:, 0]),
        direction=direction,
        loss=loss,
        layers=layers,
    )


def initial_parameters(model: TwoLayerModel, layers: int) -> np.ndarray:
    """The initialization of §3.3 with every scalar layer 1, as its single one: ``[d1 + d2 + L − 1]``."""
    return np.concatenate([embed(initial_state(model), model), np.ones(layers - 2)])


def outputs(theta: np.ndarray, problem: DeepProblem) -> np.ndarray:
    """``f(z)`` at every point, ``[n]``."""
    w, c = _split(theta, problem)
    return np.prod(c) * (problem.z @ w)


def evaluate(theta: np.ndarray, problem: DeepProblem) -> Evaluation:
    """Losses, gradient and exact Hessian at ``θ``."""
    w, c = _split(theta, problem)
    z, n = problem.z, len(problem.y)
    a = z @ w
    C = np.prod(c)
    without = _products_without(c)
    losses, slope, curvature = _JETS[problem.loss](C * a, problem.y)
    jacobian = np.concatenate([C * z, np.outer(a, without)], axis=1)
    H = jacobian.T @ (curvature[:, None] * jacobian) / n
    pull, D = z.T @ slope / n, z.shape[1]
    H[:D, D:] += np.outer(pull, without)
    H[D:, :D] += np.outer(without, pull)
    H[D:, D:] += (pull @ w) * _products_without_two(c)
    return Evaluation(losses, jacobian.T @ slope / n, H)


def gradient(theta: np.ndarray, problem: DeepProblem) -> np.ndarray:
    """Gradient of the mean loss, ``[P]``, without the cost of the Hessian."""
    w, c = _split(theta, problem)
    C = np.prod(c)
    _, slope, _ = _JETS[problem.loss](C * (problem.z @ w), problem.y)
    pull = problem.z.T @ slope / len(problem.y)
    return np.concatenate([C * pull, (pull @ w) * _products_without(c)])


def descend(
    theta: np.ndarray, problem: DeepProblem, step_size: float, steps: int
) -> Iterator[tuple[np.ndarray, Evaluation]]:
    """Gradient descent: the iterates θ_0 … θ_steps with their evaluations; ends early if an iterate diverges.

    Raises:
        InputError: The step size is not positive or ``steps`` is below 1.
    """
    if not step_size > 0:
        raise InputError(f"step_size = {step_size!r}: expected a number above 0")
    if steps < 1:
        raise InputError(f"steps = {steps}: expected 1 or more")
    with np.errstate(over="ignore", invalid="ignore"):  # the caller sees that the iterates end
        for _ in range(steps + 1):
            at = evaluate(theta, problem)
            if not (np.isfinite(at.hessian).all() and np.isfinite(at.losses).all()):
                return
            yield theta, at
            theta = theta - step_size * at.gradient


def flow_end(theta: np.ndarray, problem: DeepProblem, horizon: float) -> np.ndarray:
    """The point ``[P]`` of gradient flow from ``θ`` at time ``horizon``.

    The solver switches to an implicit method once ``b_o`` has decayed, because its rate α is far above the other rates.

    Raises:
        IntegrationError: The solver fails; the message has time and state.
    """
    solution = scipy.integrate.solve_ivp(
        lambda _, y: -gradient(y, problem), (0.0, horizon), theta, "LSODA", rtol=1e-8, atol=1e-10
    )
    if not solution.success:
        t, c = solution.t[-1], solution.y[problem.z.shape[1] :, -1]
        raise IntegrationError(f"gradient flow stopped at t = {t:.6g} with scalar layers {c}: {solution.message}")
    return solution.y[:, -1]


def final_sharpness(alpha: Real, beta_norm: Real, layers: int) -> Real:
    """Curvature in ``b_o`` at the end of the flow under square loss, ``α‖β‖^{2(L−1)/L}``: λ itself where α is large.

    The other eigenvalue that can be the largest belongs to w along β and the scalar layers. Each of these L partial
    derivatives of f is ``‖β‖^{(L−1)/L}`` and the residual is 0, so it is ``L‖β‖^{2(L−1)/L}``, smaller for α > L.
    """
    return np.maximum(alpha, layers) * np.power(beta_norm, 2 * (layers - 1) / layers)


def _split(theta: np.ndarray, problem: DeepProblem) -> tuple[np.ndarray, np.ndarray]:
    D = problem.z.shape[1]
    if theta.size != D + problem.layers - 1:
        raise InputError(f"theta has {theta.size} entries: expected {D} weights and {problem.layers - 1} scalar layers")
    return theta[:D], theta[D:]


def _products_without(c: np.ndarray) -> np.ndarray:
    """``∏_{j ≠ i} c_j``, ``[L − 1]``."""
    return np.array([np.prod(np.delete(c, i)) for i in range(c.size)])


def _products_without_two(c: np.ndarray) -> np.ndarray:
    """``∏_{k ≠ i, j} c_k`` for i ≠ j and 0 on the diagonal, ``[L − 1, L − 1]``."""
    products = np.zeros((c.size, c.size))
    for i in range(c.size):
        for j in range(i):
            products[i, j] = products[j, i] = np.prod(np.delete(c, [i, j]))
    return products


def _square(f: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return 0.5 * np.square(f - y), f - y, np.ones_like(f)


def _logistic(f: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    probability = scipy.special.expit(f)
    return np.logaddexp(0, f) - y * f, probability - y, probability * scipy.special.expit(-f)


_JETS: dict[str, LossJet] = {"square": _square, "logistic": _logistic}
"""Loss, and its first and second derivatives with respect to f, at every point."""
