"""The toy valley of figure 4: two groups with opposing signals along one direction of weight space.

One weight ``w`` reads the feature "sky" of magnitude ``s`` as evidence for "plane": the logit is ``sw``. Under
cross-entropy images of planes lose ``softplus(−sw)``, those of anything else ``softplus(sw)``. With a share ``q`` of
planes

    L(w) = q softplus(−sw) + (1−q) softplus(sw),   L'(w) = s(σ(sw) − q),   L''(w) = s² σ(sw)(1 − σ(sw)).

The groups pull with opposite signs, and at the minimum ``σ(sw) = q`` they balance. The curvature there is
``s² q(1−q)``: as the network amplifies the feature, the valley sharpens, and gradient descent with step size η is
stable in it only while ``s < √(2/(η q(1−q)))``. Above, the iterates alternate between the walls, each group's loss high
when the other's is low. The walls of this loss are straight, so the growth ends in a cycle of period 2.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy

from opposing_signals.errors import InputError
from opposing_signals.studies.theory.model import Real


@dataclass(frozen=True)
class GroupLosses:
    """Losses of the planes, of the other group, and their average weighted by share; arrays of one shape."""

    plane: np.ndarray
    other: np.ndarray
    average: np.ndarray


@dataclass(frozen=True)
class ValleyPath:
    """Gradient descent on the toy valley.

    Attributes:
        w: Iterates w_0 … w_T, ``[T + 1]``.
        magnitudes: Feature magnitude s_t with which step t is taken, ``[T]``.
        losses: Losses at w_0 … w_{T−1} under s_0 … s_{T−1}, every field ``[T]``.
    """

    w: np.ndarray
    magnitudes: np.ndarray
    losses: GroupLosses


def group_losses(w: Real, magnitude: Real, share: float = 0.5) -> GroupLosses:
    """Losses of both groups and their average at ``w`` (broadcast against ``magnitude``).

    Raises:
        InputError: The share is outside (0, 1) or a magnitude is not positive.
    """
    _check(magnitude, share)
    logit = np.asarray(magnitude, dtype=float) * w
    plane, other = np.logaddexp(0, -logit), np.logaddexp(0, logit)
    return GroupLosses(plane, other, share * plane + (1 - share) * other)


def slope(w: Real, magnitude: Real, share: float = 0.5) -> Real:
    """``L'(w) = s(σ(sw) − q)``, of full relative accuracy near the minimum.

    The plain difference is 0 within 1e-17 of the minimum, and an iterate that came so close would stay there however
    sharp the valley became.
    """
    _check(magnitude, share)
    excess = magnitude * np.asarray(w) - np.log(share / (1 - share))
    decay = np.exp(-np.abs(excess))
    near, far = np.where(excess >= 0, share, 1 - share), np.where(excess >= 0, 1 - share, share)
    return -magnitude * share * (1 - share) * np.sign(excess) * np.expm1(-np.abs(excess)) / (near + far * decay)


def minimum(magnitude: Real, share: float = 0.5) -> Real:
    """The weight at which the groups balance: ``ln(q/(1−q))/s``."""
    _check(magnitude, share)
    return np.log(share / (1 - share)) / magnitude


def curvature(magnitude: Real, share: float = 0.5) -> Real:
    """Curvature of the average loss at its minimum, ``s² q(1−q)``, which is largest for q = ½."""
    _check(magnitude, share)
    return np.square(magnitude) * share * (1 - share)


def break_even_magnitude(step_size: float, share: float = 0.5) -> float:
    """The feature magnitude at which the curvature at the minimum reaches 2/η: ``√(2/(η q(1−q)))``."""
    _check(1.0, share)
    if not step_size > 0:
        raise InputError(f"step_size = {step_size!r}: expected a number above 0")
    return float(np.sqrt(2 / (step_size * share * (1 - share))))


def two_cycle(magnitude: float, step_size: float) -> float:
    """The ``w > 0`` for which gradient descent alternates between w and −w (q = ½); 0 while the minimum is stable.

    A step from w to −w says ``2w = ηs(σ(sw) − ½)``; the right side is concave in w > 0 with slope ``ηs²/4`` at 0, so
    there is one solution if and only if ``ηs²/4 > 2``, the same threshold as for stability. Far above it the walls are
    straight where the iterates land, and every pair ``ηs/2`` apart across the valley is a cycle as good as this one.
    """
    if magnitude <= break_even_magnitude(step_size):
        return 0.0
    edge = step_size * magnitude**2 / 4

    def excess(logit: float) -> float:
        return edge * float(np.tanh(logit / 2)) / logit - 1  # 2(σ − ½) = tanh

    # tanh x ≥ x − x³/3 puts the logit sw above √(12(1 − 2/edge)), and tanh < 1 below the edge.
    lowest = 0.9 * float(np.sqrt(12 * (1 - 2 / edge)))
    return float(scipy.optimize.brentq(excess, lowest, edge, xtol=1e-15, rtol=1e-14)) / magnitude


def descend(w: float, step_size: float, magnitudes: np.ndarray, share: float = 0.5) -> ValleyPath:
    """Gradient descent on the average loss while the feature magnitude follows a schedule.

    Args:
        w: First iterate.
        step_size: η.
        magnitudes: s_t for every step, ``[T]``: constant for one valley, growing for progressive sharpening.
        share: q, the share of planes among the points that have the feature.

    Raises:
        InputError: An argument is outside its range.
    """
    _check(magnitudes, share)
    if not step_size > 0:
        raise InputError(f"step_size = {step_size!r}: expected a number above 0")
    magnitudes = np.asarray(magnitudes, dtype=float)
    path = np.empty(magnitudes.size + 1)
    path[0] = w
    for step, magnitude in enumerate(magnitudes):
        path[step + 1] = path[step] - step_size * slope(path[step], magnitude, share)
    return ValleyPath(path, magnitudes, group_losses(path[:-1], magnitudes, share))


def _check(magnitude: Real, share: float) -> None:
    if not 0 < share < 1:
        raise InputError(f"share = {share!r}: expected the share of planes, in (0, 1)")
    if not np.all(np.asarray(magnitude) > 0):
        raise InputError(f"magnitude = {magnitude!r}: expected numbers above 0")
