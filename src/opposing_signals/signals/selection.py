"""The selection of §2: the points whose loss changes most in one step."""

import numpy as np


def risers(changes: np.ndarray, k: int = 20) -> np.ndarray:
    """Indices of the ``k`` most positive one-step changes, the largest first.

    Args:
        changes: ``[N]`` Δ_i(t) = ℓ_i(θ_{t+1}) − ℓ_i(θ_t).
        k: Size of the group; 20 in §2, 24 in Appendix H.
    """
    k = min(k, len(changes))
    chosen = np.argpartition(-changes, k - 1)[:k]
    return chosen[np.argsort(-changes[chosen], kind="stable")]


def fallers(changes: np.ndarray, k: int = 20) -> np.ndarray:
    """Indices of the ``k`` most negative one-step changes, the most negative first; see `risers`."""
    return risers(-changes, k)
