"""Extreme eigenpairs of a symmetric operator that changes a little from call to call."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from opposing_signals.errors import InputError

Products = Callable[[Tensor], Tensor]
"""``[k, P]`` vectors ↦ ``[k, P]`` products with a symmetric matrix."""

Which = Literal["largest", "smallest", "magnitude"]

COLD_PRODUCTS = 40
"""What a cold start may spend whatever the budget of a step: every later step leans on it."""
_MEMORY = 3  # calls whose products are kept: the last two, and the one that tells whether they alternate
_CALM = 0.4  # residual over tolerance below which half the directions are enough: the error grows as its square
_REFRESHED = 3  # in calm, every so many calls have all directions, for what may overtake; odd, to see both phases
_REST = 0.3  # Rayleigh quotient of a residual over q: the median along runs of an MLP and of a residual network


@dataclass(frozen=True)
class Eigenpairs:
    """Ritz pairs and how far to trust them, in the order that was asked for.

    Attributes:
        values: ``[k]`` float64, eigenvalues λ_j: Rayleigh quotients and what their residuals say is missing. The
            other fields stand in the order of these.
        quotients: ``[k]`` float64, Rayleigh quotients q_j = v_jᵀHv_j.
        vectors: ``[k, P]``, orthonormal.
        residuals: ``[k]`` float64, ‖Hv_j − q_j v_j‖; some eigenvalue of H lies within it of q_j.
        products: Matrix-vector products spent.
    """

    values: Tensor
    quotients: Tensor
    vectors: Tensor
    residuals: Tensor
    products: int

    @property
    def value(self) -> float:
        """λ of the first pair."""
        return float(self.values[0])

    @property
    def quotient(self) -> float:
        """vᵀHv of the first pair."""
        return float(self.quotients[0])

    @property
    def vector(self) -> Tensor:
        """``[P]``, v of the first pair."""
        return self.vectors[0]

    @property
    def residual(self) -> float:
        """‖Hv − qv‖ of the first pair."""
        return float(self.residuals[0])


class EigenTracker:
    """Warm-started block Rayleigh-Ritz, widened by residuals until they are small.

    A warm start takes the products {Hu_1, Hu_2} of the last two Ritz vectors (2k of them for k pairs), which are at
    hand and one step of power iteration ahead. The second pair is there because at the edge of stability several
    eigenvalues are near the edge and change places from step to step. The Hessian alternates there with period two;
    where u_1 of step t-1 is nearer to the start of t-3 than to that of t-2, the start is that of t-2, of the phase that
    is coming. Where the residuals that the last two starts left lie well within the tolerance, the first of the two
    vectors is enough at two of three calls; what calm steps save pays for wider bases in violent ones. All this is
    known *before* the operator is, so these products can ride on a pass that is made anyway: `directions` before it,
    `update` after it. Widening the basis by the residuals of the current Ritz vectors spans, from one start vector,
    exactly the Krylov space, so a cold start is the Lanczos method with full reorthogonalization (Saad 2011, §6.3).

    A Rayleigh quotient q falls short of the eigenvalue, by ‖r‖²/(q − μ) to leading order, where r is the residual and
    μ the Rayleigh quotient of r. q and r are known and μ, for which a product would be needed, is not; but most of a
    residual lies where the spectrum is dense, far below a large q. With 0.3 q for μ, all but a fraction of what is
    missing is added. Of the smallest eigenvalues, and of negative ones, a residual does not tell this: there λ is q.

    Args:
        k: How many pairs.
        which: The algebraically largest eigenvalues, the smallest, or the largest in absolute value.
        tolerance: Stop when every residual is at most ``tolerance`` x |q_1|. The relative error of q is then at most
            about tolerance² x |q| / gap.
        max_products: Stop after this many products a step; the first 2k are those of the start, k of them where it is
            calm and there may be more than 2k. A cold start may spend `COLD_PRODUCTS`.
        seed: Of the random vectors of the cold start.

    Raises:
        InputError: A setting that cannot work.
    """

    def __init__(
        self, k: int = 1, which: Which = "largest", tolerance: float = 0.03, max_products: int = 40, seed: int = 0
    ) -> None:
        if k < 1:
            raise InputError(f"k={k}: expected at least one eigenpair")
        if which not in ("largest", "smallest", "magnitude"):
            raise InputError(f"which={which}: expected largest, smallest or magnitude")
        if not isinstance(tolerance, int | float) or not tolerance >= 0:
            raise InputError(f"tolerance={tolerance}: expected a number, at least 0")
        if max_products < k:
            raise InputError(f"max_products={max_products}: expected at least k={k}")
        self.k, self.which = k, which
        self.tolerance = tolerance
        self.max_products = max_products
        self._seed = seed
        self._starts: list[Tensor] = []  # [2k, P] each, the latest first
        self._vectors: Tensor | None = None
        self._nearest = 0  # which of the starts is of the phase that is coming
        self._calm = 0  # how many starts in succession were good enough by far
        self._directions: Tensor

    def directions(self, like: Tensor) -> Tensor:
        """``[m, P]``, orthonormal: the vectors whose products `update` wants first.

        Args:
            like: A ``[P]`` tensor whose length, dtype and device the vectors take.

        Raises:
            InputError: k is larger than P.
        """
        if self.k > len(like):
            raise InputError(f"k={self.k}: expected at most {len(like)}, the number of parameters")
        if self._starts:
            self._starts = [start.to(like) for start in self._starts]  # a checkpoint brings them to another device
            self._nearest = int(self._alternates())
            starts = self._in_order()
        else:
            generator = torch.Generator().manual_seed(self._seed)
            starts = [torch.randn(self.k, len(like), generator=generator, dtype=torch.float64).to(like)]
        vectors = (vector for start in starts for vector in start)
        self._directions = _extended(like.new_empty(0, len(like)), vectors, self._width)
        return self._directions

    @property
    def _width(self) -> int:
        if self.max_products <= 2 * self.k:
            return self.max_products
        return self.k if self._calm >= 2 and self._calm % _REFRESHED else 2 * self.k

    def _alternates(self) -> bool:
        if len(self._starts) < _MEMORY:
            return False
        last, before, earlier = self._starts
        return bool(_share(last[0], earlier) > _share(last[0], before))

    def _in_order(self) -> list[Tensor]:
        """The start of the phase that is coming, then the other; where that is not known, the best of each first."""
        if len(self._starts) < _MEMORY:
            return [start[: self.k] for start in self._starts] + [start[self.k :] for start in self._starts]
        return [self._starts[self._nearest], self._starts[1 - self._nearest]]

    def update(self, images: Tensor, products: Products) -> Eigenpairs:
        """Find the pairs of the operator as it is now.

        Args:
            images: ``[m, P]``, its products with `directions`.
            products: The operator, for what is wanted beyond.
        """
        basis, k = self._directions, self.k
        budget = self.max_products if self._starts else max(self.max_products, COLD_PRODUCTS)
        while True:
            quotients, vectors, vector_images = _ritz_pairs(basis, images, 2 * k, self.which)
            residual_vectors = vector_images[:k] - quotients[:k, None].to(vectors) * vectors[:k]
            residuals = _norms(residual_vectors).cpu()
            # A basis as large as the space is exact; its residual is rounding and must not be widened by.
            room = min(budget, basis.shape[1]) - len(basis)
            allowed = self.tolerance * quotients[:k].abs().max()
            unsure = residuals > allowed
            if len(basis) == len(self._directions):
                is_calm = bool((residuals <= _CALM * allowed).all())
            if room < 1 or not unsure.any():
                break
            unsure_vectors = residual_vectors[unsure.to(residual_vectors.device)]
            widened = _extended(basis, unsure_vectors, len(basis) + room)
            if len(widened) == len(basis):  # the residuals lie in the basis: nothing new to learn
                break
            images = torch.cat([images, products(widened[len(basis) :])])
            basis = widened
        if not torch.isfinite(quotients).all():  # nothing to lean on; the next call starts from what was good
            return Eigenpairs(quotients[:k], quotients[:k], vectors[:k], residuals, len(basis))
        self._remember(vectors, vector_images, is_calm)
        values = quotients[:k] + self._missing(quotients[:k], residuals)
        order = _ranked(values, self.which)
        vectors = vectors[order.to(vectors.device)]
        self._vectors = self._with_steady_signs(vectors)
        return Eigenpairs(values[order], quotients[order], self._vectors, residuals[order], len(basis))

    def _remember(self, vectors: Tensor, images: Tensor, is_calm: bool) -> None:
        """Keep what the next calls start from."""
        if self.which == "smallest":  # H shrinks what belongs to a small eigenvalue; vectors and images span a step
            start = torch.cat([vectors[: self.k], images[: self.k]])
        else:
            start = torch.where(_norms(images)[:, None] == 0, vectors, images)
        held = min(len(start), len(self._directions))
        if self._starts and held < 2 * self.k:  # a narrow start, widened or not, knows nothing of the second pair
            start = torch.cat([start[:held], self._starts[self._nearest][held:]])
        self._starts = [start, *self._starts][:_MEMORY]
        self._calm = self._calm + 1 if is_calm else 0

    def _missing(self, quotients: Tensor, residuals: Tensor) -> Tensor:
        """λ − q, λ the larger eigenvalue of the 2 x 2 matrix with q and 0.3 q on the diagonal and ‖r‖ beside it."""
        half_gap = (1 - _REST) / 2 * quotients
        missing = (half_gap.square() + residuals.square()).sqrt() - half_gap
        return torch.where((quotients > 0) & (self.which != "smallest"), missing, 0)

    def __call__(self, products: Products, like: Tensor) -> Eigenpairs:
        """Both halves at once. See `directions` for ``like``."""
        directions = self.directions(like)
        return self.update(products(directions), products)

    def _with_steady_signs(self, vectors: Tensor) -> Tensor:
        """Each vector with the sign in which it overlaps with the nearest of the last ones."""
        if self._vectors is None:
            return vectors
        overlaps = vectors @ self._vectors.to(vectors).T
        nearest = overlaps.gather(1, overlaps.abs().argmax(1, keepdim=True))
        return vectors * torch.where(nearest < 0, -1.0, 1.0).to(vectors)

    def state_dict(self) -> dict[str, Any]:
        """The warm start, so that a resumed run measures what an uninterrupted one would."""
        return {"starts": list(self._starts), "vectors": self._vectors, "calm": self._calm}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`.

        Raises:
            InputError: Another version has written the state.
        """
        if state.keys() != self.state_dict().keys():
            raise InputError(
                f"the sharpness tracker's state holds {', '.join(state)}: expected {', '.join(self.state_dict())}; "
                "another version of opposing-signals began this run: delete its folder and train it again"
            )
        self._starts, self._vectors, self._calm = list(state["starts"]), state["vectors"], state["calm"]


def power_iteration(products: Products, start: Tensor, tolerance: float = 0.03, max_products: int = 100) -> Eigenpairs:
    """The eigenpair largest in absolute value by power iteration: the simple alternative, for comparison.

    It converges as the ratio of the two largest eigenvalues, has no memory of the Krylov space, and finds a negative
    eigenvalue where that is the larger in absolute value.

    Args:
        products: The operator.
        start: ``[P]``.
        tolerance: As in `EigenTracker`.
        max_products: Stop after this many.
    """
    vector = start / start.norm()
    for spent in range(1, max_products + 1):
        image = products(vector[None])[0]
        value = (vector @ image).double()
        residual = (image - value.to(image) * vector).norm().double()
        if residual <= tolerance * value.abs() or spent == max_products:
            break
        vector = image / image.norm()
    return Eigenpairs(value[None], value[None], vector[None], residual[None], spent)


def _extended(basis: Tensor, vectors: Iterable[Tensor], most: int) -> Tensor:
    """The orthonormal ``basis`` followed by what ``vectors`` add to it, orthonormalized, up to ``most`` rows.

    Gram-Schmidt, twice (Giraud et al. 2005: twice is enough). Vectors that nearly depend on earlier ones are left out.
    """
    for vector in vectors:
        if len(basis) >= most:
            break
        remainder = _normalized(vector[None])
        for _ in range(2):
            remainder = remainder - (remainder @ basis.T) @ basis
        if remainder.norm() > 1e-3:
            basis = torch.cat([basis, _normalized(remainder)])
    return basis


def _share(vector: Tensor, others: Tensor) -> Tensor:
    """Length of what lies of ``vector`` in the span of ``others``, comparable for one vector."""
    return (_extended(others[:0], others, len(others)) @ vector).norm()


def _normalized(vectors: Tensor) -> Tensor:
    """Rows divided by their norms, summed in float64.

    Where few entries hold nearly all of a vector, a float32 sum loses the many small ones: 1e-4 of its value.
    """
    return vectors / _norms(vectors)[:, None].to(vectors)


def _norms(vectors: Tensor) -> Tensor:
    return torch.linalg.vector_norm(vectors, dim=1, dtype=torch.float64)


def _ranked(values: Tensor, which: Which) -> Tensor:
    """Positions of the values, the most wanted first."""
    wanted = {"largest": values, "smallest": -values, "magnitude": values.abs()}[which]
    return wanted.argsort(descending=True)


def _ritz_pairs(basis: Tensor, images: Tensor, k: int, which: Which) -> tuple[Tensor, Tensor, Tensor]:
    """Values ``[k]``, vectors and their images of the k wanted Ritz pairs in span(basis), the most wanted first.

    With fewer basis vectors than k there are fewer pairs.
    """
    small = (basis.double() @ images.double().T).cpu()
    if not torch.isfinite(small).all():
        return torch.full((k,), torch.nan, dtype=torch.float64), basis[:k], images[:k]
    values, coefficients = torch.linalg.eigh((small + small.T) / 2)
    chosen = _ranked(values, which)[:k]
    weights = coefficients[:, chosen].T.to(basis)
    vectors, vector_images = weights @ basis, weights @ images
    norms = _norms(vectors)[:, None].to(vectors)
    return values[chosen], vectors / norms, vector_images / norms
