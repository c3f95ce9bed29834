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

COLD_PRODUCTS = 10
"""What a cold start may spend: λ before the first step matters least, and the warm starts that follow improve on it."""
_HELD = 10  # vectors of a basis beyond which a large problem restarts from its best half
_FLOATS_HELD = 2**25  # a smaller problem goes on without a restart as long as its basis has no more numbers than this
_COLUMNS = 2**20  # entries of vectors that are worked on at once in float64
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
    exactly the Krylov space, so a cold start is the Lanczos method with full reorthogonalization (Saad 2011, §6.3). A
    basis that has grown to 10 vectors (to 2^25 numbers, where those are more) goes on from the better half of its Ritz
    vectors, whose products are known: a thick restart (Wu and Simon 2000), so that memory does not grow with products.

    Between calls there are two starts of 2k vectors in half of the precision, 2k P numbers of the operator's. Rounding
    turns a start by some 1e-4 in float32, and changes a quotient by the square of it.

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
            calm and there may be more than 2k.
        cold_products: A cold start may spend this many instead (at least k), the call behind it at most twice as many,
            and so on: what a cold start has not found comes over several steps.
        seed: Of the random vectors of the cold start.

    Raises:
        InputError: A setting that cannot work.
    """

    def __init__(
        self,
        k: int = 1,
        which: Which = "largest",
        tolerance: float = 0.03,
        max_products: int = 40,
        cold_products: int = COLD_PRODUCTS,
        seed: int = 0,
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
        self._cold_products = max(k, cold_products)
        self._seed = seed
        self._starts: list[Tensor] = []  # [2k, P] each, the latest first, of the last two calls
        self._alternates: bool | None = None  # whether the earlier start is of the phase that is coming
        self._calm = 0  # how many starts in succession were good enough by far
        self._calls = 0  # since the cold start
        self._subspace: _Subspace

    @property
    def budget(self) -> int:
        """How many products the coming `update` may spend, those with `directions` among them."""
        if not self._starts:
            return self._cold_products
        return min(self.max_products, self._cold_products * (self._calls + 1))

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
            self._starts = [start.to(like.device) for start in self._starts]  # a checkpoint brings them to another
            starts = self._in_order()
        else:
            generator = torch.Generator().manual_seed(self._seed)
            starts = [torch.randn(self.k, len(like), generator=generator, dtype=torch.float64)]
        held = max(_HELD, 4 * self.k, _FLOATS_HELD // len(like))
        self._subspace = _Subspace(like, min(self.budget, held, len(like)))
        return self._subspace.extended((vector for start in starts for vector in start.to(like)), self._width)

    @property
    def _width(self) -> int:
        if self.max_products <= 2 * self.k:
            return self.max_products
        return self.k if self._calm >= 2 and self._calm % _REFRESHED else 2 * self.k

    def _in_order(self) -> list[Tensor]:
        """The start of the phase that is coming, then the other; where that is not known, the best of each first."""
        if self._alternates is None:
            return [start[: self.k] for start in self._starts] + [start[self.k :] for start in self._starts]
        return self._starts[::-1] if self._alternates else self._starts

    def update(self, images: Tensor, products: Products) -> Eigenpairs:
        """Find the pairs of the operator as it is now.

        Args:
            images: ``[m, P]``, its products with `directions`.
            products: The operator, for what is wanted beyond.
        """
        space, k = self._subspace, self.k
        space.know(images)
        first = spent = len(images)
        while True:
            quotients, vectors, vector_images = space.ritz_pairs(k, self.which)
            residual_vectors = vector_images - quotients[:, None].to(images) * vectors
            residuals = _norms(residual_vectors).cpu()
            allowed = self.tolerance * quotients.abs().max()
            unsure = residuals > allowed
            if spent == first:
                is_calm = bool((residuals <= _CALM * allowed).all())
            # A basis as large as the space is exact; its residual is rounding and must not be widened by.
            room = min(self.budget - spent, images.shape[1] - space.size)
            if room < 1 or not unsure.any():
                break
            if space.size == space.most:
                space.restart(max(2 * k, space.most // 2), self.which)
            widened = space.extended(residual_vectors[unsure.to(images.device)], space.size + room)
            if not len(widened):  # the residuals lie in the basis: nothing new to learn
                break
            space.know(products(widened))
            spent += len(widened)
        quotients, vectors, vector_images = space.ritz_pairs(2 * k, self.which)
        del self._subspace
        if not torch.isfinite(quotients).all():  # nothing to lean on; the next call starts from what was good
            return Eigenpairs(quotients[:k], quotients[:k], vectors[:k], residuals, spent)
        signs = self._steady_signs(vectors)
        vectors, vector_images = signs * vectors, signs * vector_images
        self._remember(quotients, vectors, vector_images, min(len(vectors), first))
        self._calm = self._calm + 1 if is_calm else 0
        self._calls += 1
        values = quotients[:k] + self._missing(quotients[:k], residuals)
        order = _ranked(values, self.which)
        found = vectors[order.to(vectors.device)]
        return Eigenpairs(values[order], quotients[order], found, residuals[order], spent)

    def _remember(self, quotients: Tensor, vectors: Tensor, images: Tensor, held: int) -> None:
        """Keep what the next calls start from; ``held`` vectors of it are new."""
        if self.which == "smallest":  # H shrinks what belongs to a small eigenvalue; vectors and images span a step
            start = torch.cat([vectors[: self.k], images[: self.k]])
        else:
            images = torch.where(quotients[:, None] < 0, -1.0, 1.0).to(images) * images  # with the vectors' signs
            start = torch.where(_norms(images)[:, None] == 0, vectors, images)
        if self._starts and held < 2 * self.k:  # a narrow start, widened or not, knows nothing of the second pair
            nearest = self._starts[int(bool(self._alternates))]
            start = torch.cat([start[:held], nearest[held:].to(start)])
        if len(self._starts) == 2:
            last, before = (earlier.to(start) for earlier in self._starts)
            self._alternates = bool(_share(start[0], before) > _share(start[0], last))
        self._starts = [_halved(start), *self._starts][:2]

    def _missing(self, quotients: Tensor, residuals: Tensor) -> Tensor:
        """λ − q, λ the larger eigenvalue of the 2 x 2 matrix with q and 0.3 q on the diagonal and ‖r‖ beside it."""
        half_gap = (1 - _REST) / 2 * quotients
        missing = (half_gap.square() + residuals.square()).sqrt() - half_gap
        return torch.where((quotients > 0) & (self.which != "smallest"), missing, 0)

    def __call__(self, products: Products, like: Tensor) -> Eigenpairs:
        """Both halves at once. See `directions` for ``like``."""
        directions = self.directions(like)
        return self.update(products(directions), products)

    def _steady_signs(self, vectors: Tensor) -> Tensor:
        """``[m, 1]``: the sign with which each vector overlaps with the nearest of the last ones."""
        if not self._starts:
            return vectors.new_ones(len(vectors), 1)
        overlaps = vectors @ self._starts[0][: self.k].to(vectors).T
        nearest = overlaps.gather(1, overlaps.abs().argmax(1, keepdim=True))
        return torch.where(nearest < 0, -1.0, 1.0).to(vectors)

    def state_dict(self) -> dict[str, Any]:
        """The warm start, so that a resumed run measures what an uninterrupted one would."""
        return {
            "starts": list(self._starts),
            "alternates": self._alternates,
            "calm": self._calm,
            "calls": self._calls,
        }

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
        self._starts, self._alternates = list(state["starts"]), state["alternates"]
        self._calm, self._calls = state["calm"], state["calls"]


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


class _Subspace:
    """Orthonormal vectors, their images, and the operator between them, in memory that is taken once.

    Args:
        like: A ``[P]`` tensor whose length, dtype and device the vectors take.
        most: How many vectors there may be.

    Attributes:
        size: How many there are.
    """

    def __init__(self, like: Tensor, most: int) -> None:
        self.most, self.size = most, 0
        self._vectors = like.new_empty(most, len(like))
        self._images = like.new_empty(most, len(like))
        self._operator = torch.zeros(most, most, dtype=torch.float64)
        self._known = 0  # of how many the images are known

    def extended(self, vectors: Iterable[Tensor], most: int) -> Tensor:
        """Add what ``vectors`` add to the basis, up to ``most`` vectors in all; returns the new ones."""
        before, self.size = self.size, _append(self._vectors, self.size, vectors, min(most, self.most))
        return self._vectors[before : self.size]

    def know(self, images: Tensor) -> None:
        """Take the images of the vectors that were added last."""
        known, self._known = self._known, self.size
        self._images[known : self.size] = images
        inner = _inner(self._vectors[: self.size], self._images[known : self.size]).cpu()
        self._operator[: self.size, known : self.size] = inner
        self._operator[known : self.size, : self.size] = inner.T
        square = self._operator[known : self.size, known : self.size]
        square.copy_((inner[known:] + inner[known:].T) / 2)

    def ritz_pairs(self, k: int, which: Which) -> tuple[Tensor, Tensor, Tensor]:
        """Values ``[k]``, vectors and their images of the k wanted Ritz pairs, the most wanted first.

        With fewer basis vectors than k there are fewer pairs.
        """
        if not torch.isfinite(self._operator[: self.size, : self.size]).all():
            return torch.full((k,), torch.nan, dtype=torch.float64), self._vectors[:k], self._images[:k]
        values, weights = self._eigh(k, which)
        weights = weights.to(self._vectors)
        vectors, images = weights @ self._vectors[: self.size], weights @ self._images[: self.size]
        norms = _norms(vectors)[:, None].to(vectors)
        return values, vectors / norms, images / norms

    def _eigh(self, k: int, which: Which) -> tuple[Tensor, Tensor]:
        """Values ``[k]`` and weights ``[k, size]`` of the wanted Ritz vectors."""
        values, coefficients = torch.linalg.eigh(self._operator[: self.size, : self.size])
        chosen = _ranked(values, which)[:k]
        return values[chosen], coefficients[:, chosen].T

    def restart(self, kept: int, which: Which) -> None:
        """Keep the ``kept`` most wanted Ritz vectors, in the memory of the basis."""
        values, weights = self._eigh(kept, which)
        for rows in (self._vectors, self._images):
            for columns in rows.split(_COLUMNS, 1):
                columns[:kept] = weights.to(columns) @ columns[: self.size]
        self.size = self._known = kept
        self._operator[:kept, :kept] = values.diag()


def _append(rows: Tensor, size: int, vectors: Iterable[Tensor], most: int) -> int:
    """Write what ``vectors`` add to the orthonormal ``rows[:size]`` behind them, up to ``most``; the new size.

    Gram-Schmidt, twice (Giraud et al. 2005: twice is enough). Vectors that nearly depend on earlier ones are left out.
    """
    for vector in vectors:
        if size >= most:
            break
        basis, remainder = rows[:size], _normalized(vector[None])
        for _ in range(2):
            remainder = remainder - (remainder @ basis.T) @ basis
        if remainder.norm() > 1e-3:
            rows[size] = _normalized(remainder)[0]
            size += 1
    return size


def _share(vector: Tensor, others: Tensor) -> Tensor:
    """Length of what lies of ``vector`` in the span of ``others``, comparable for one vector."""
    basis = torch.empty_like(others)
    return (basis[: _append(basis, 0, others, len(basis))] @ vector).norm()


def _halved(vectors: Tensor) -> Tensor:
    """Rows in a floating-point type of half the size, each scaled to a largest entry of 1, so that none overflows."""
    half = {torch.float64: torch.float32, torch.float32: torch.float16}.get(vectors.dtype, vectors.dtype)
    largest = vectors.abs().amax(1, keepdim=True)
    return (vectors / torch.where(largest == 0, 1, largest)).to(half)


def _inner(vectors: Tensor, others: Tensor) -> Tensor:
    """``[m, n]`` inner products, summed in float64."""
    pieces = zip(vectors.split(_COLUMNS, 1), others.split(_COLUMNS, 1), strict=True)
    return torch.stack([a.double() @ b.double().T for a, b in pieces]).sum(0)


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
