"""Groups of vectors that point the same way."""

from __future__ import annotations

import numpy as np
import scipy

ALIKE = 0.5
"""Minimum cosine of a member with its group; two groups oppose each other if their cosine is below the negative."""

TINY = float(np.finfo(np.float32).tiny)
"""Lower bound on what is divided by, because the loss of an interpolated point does not change at all."""


def lengths_of(vectors: np.ndarray) -> np.ndarray:
    """``[n]`` Euclidean lengths of the columns of ``vectors`` ``[m, n]``."""
    return np.sqrt(np.einsum("mn,mn->n", vectors, vectors))


def unit(vector: np.ndarray) -> np.ndarray:
    """``vector`` with length 1; zero stays zero."""
    length = float(np.linalg.norm(vector))
    return vector / length if length > 0 else vector


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Pearson's correlation; 0 if one of them never varies."""
    return float(unit(one - one.mean()) @ unit(other - other.mean()))


def clusters(units: np.ndarray, smallest: int, alike: float = ALIKE) -> list[np.ndarray]:
    """Column indices of each cluster (average linkage of cosines), the largest cluster first."""
    if units.shape[1] < 2 * smallest:
        return []
    distance = np.clip(1 - units.T @ units, 0, 2)
    np.fill_diagonal(distance, 0)
    tree = scipy.cluster.hierarchy.linkage(scipy.spatial.distance.squareform(distance, checks=False), "average")
    labels = scipy.cluster.hierarchy.fcluster(tree, 1 - alike, "distance")
    clusters = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    return sorted((cluster for cluster in clusters if len(cluster) >= smallest), key=lambda cluster: -len(cluster))
