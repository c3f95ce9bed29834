"""How well labels describe the oscillation: variance explained by classes, and what a group's members share."""

from __future__ import annotations

import math

import numpy as np


def class_r2(changes: np.ndarray, classes: np.ndarray) -> float:
    """Fraction of the variance of Δ_i(t) that class means explain, after the mean over all points is removed.

    With m(t) the mean over all points, m_c(t) that over the n_c points of class c,

        R² = Σ_t Σ_c n_c (m_c(t) − m(t))² / Σ_t Σ_i (Δ_i(t) − m(t))².

    Near 1, whole classes oscillate; near `class_r2_by_chance`, the oscillation is unrelated to classes. Steps are
    pooled, so those of the largest changes count most.

    Args:
        changes: ``[T, N]`` one-step changes Δ_i(t) of the chosen steps.
        classes: ``[N]`` class of each point.

    Returns:
        A number from 0 to 1; NaN if the changes of a step never differ between points, or there are no steps.
    """
    explained, total = class_variances(changes, classes)
    return float(explained.sum() / total.sum()) if total.sum() > 0 else math.nan


def class_variances(changes: np.ndarray, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Explained and total sum over points of `class_r2` at each step, ``[T]`` each."""
    names, members = np.unique(classes, return_inverse=True)
    sizes = np.bincount(members, minlength=len(names)).astype(np.float64)
    explained, total = np.zeros(len(changes)), np.zeros(len(changes))
    for step, row in enumerate(np.asarray(changes)):
        centred = row.astype(np.float64) - row.mean(dtype=np.float64)
        sums = np.bincount(members, weights=centred, minlength=len(names))
        explained[step], total[step] = (sums**2 / sizes).sum(), centred @ centred
    return explained, total


def class_r2_by_chance(classes: np.ndarray) -> float:
    """Mean of `class_r2` if classes are assigned to points at random: (C − 1) / (N − 1).

    Args:
        classes: ``[N]`` class of each point.
    """
    return (len(np.unique(classes)) - 1) / (len(classes) - 1)


def directions(changes: np.ndarray) -> float:
    """Effective number of directions in R^N of the one-step changes: participation ratio of their singular values.

    (Σ σ²)² / Σ σ⁴ over the singular values σ of Δ_i(t) − m(t), m(t) being the mean over the points: 1 if all changes
    are multiples of one vector, k if k orthogonal ones of equal size take turns.

    Args:
        changes: ``[T, N]`` one-step changes Δ_i(t) of the chosen steps.

    Returns:
        A number from 1 to T; NaN if the changes of a step never differ between points, or there are no steps.
    """
    centred = changes - changes.mean(1, keepdims=True, dtype=np.float64)
    products = centred @ centred.T
    squares = float(np.square(products).sum())
    return float(np.trace(products)) ** 2 / squares if squares > 0 else math.nan


def modal_share(labels: np.ndarray) -> float:
    """Fraction of a group's members that have its most common label.

    Args:
        labels: ``[k]`` label of each member: its class, or the chunk that it is normalized with.
    """
    return int(np.unique(labels, return_counts=True)[1].max()) / len(labels)


def modal_share_by_chance(labels: np.ndarray, members: int) -> float:
    """Mean of `modal_share` for a group of ``members`` points drawn without replacement.

    0.22 for 20 points of ten equal classes. Exact: a draw has at most m of each label with probability
    [x^k] Π_c Σ_{j≤m} C(n_c, j) x^j / C(N, k), and the mean of the largest count is Σ_m (1 − that).

    Args:
        labels: ``[N]`` label of every point.
        members: Size k of the group, 1 to N.
    """
    sizes = [int(size) for size in np.unique(labels, return_counts=True)[1]]
    draws = math.comb(sum(sizes), members)
    mean = 0.0
    for most in range(members):
        ways = [1] + [0] * members  # coefficients of x^0 to x^k in the product, as integers
        for size in sizes:
            factor = [math.comb(size, count) for count in range(most + 1)]
            ways = [
                sum(factor[count] * ways[total - count] for count in range(min(most, total) + 1))
                for total in range(members + 1)
            ]
        mean += 1 - ways[members] / draws
    return mean / members
