"""Extreme eigenpairs of a symmetric operator that changes a little from call to call."""

from __future__ import annotations

import math
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
LOOK_PRODUCTS = 8  # products of a look: enough for a bound within some 10% of λ, see docs/curvature.md
_MISSED = 0.01  # probability with which a bound may be wrong
_SURPRISE, _PATIENCE = 0.2, 4  # a change of λ that calls for a look, and calls that must lie between two such looks
_NEARER = 1e-3  # what tells phases apart; a vector that is new to both, or the same in both, is followed from the last
_COLD = 0.1  # tolerance of a cold start over that of a warm one
_TINY = 1e-300
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
        bound: What no eigenvalue exceeds (in absolute value; of the smallest: what none falls below), with a
            probability of 99% where this call has looked from a random vector. Where not, it is what follows if what is
            not followed has stayed as far below the largest λ_1 since the last look as it was then. NaN before that.
    """

    values: Tensor
    quotients: Tensor
    vectors: Tensor
    residuals: Tensor
    products: int
    bound: float = math.nan

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

    No residual tells of an eigenvector that the basis does not touch. Where the pair behind the wanted ones, with its
    residual, reaches the wanted, the basis is widened by its residual as well. And every ``look`` calls, and when λ has
    changed by more than a fifth of the nearer of its last two values, the tracker looks from a fresh random vector: 8
    Lanczos steps in the space orthogonal to the Ritz vectors. What they find joins the basis. What they do not find is
    bounded: if p is the Lanczos polynomial and z the random vector, an eigenvector u of that space, eigenvalue x, has
    abs(p(x) u·z) <= ‖p(H) z‖, and u·z is a normal number, which is small with a small probability only (van Dorsselaer,
    Hochstenbach and van der Vorst 2000). The bound of the whole operator follows from this, the quotients and the
    residuals.

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
        max_products: Stop after this many products a step, looks apart; the first 2k are those of the start, k of them
            where it is calm and there may be more than 2k.
        cold_products: A cold start may spend this many instead (at least k), the call behind it at most twice as many,
            and so on: what a cold start has not found comes over several steps.
        seed: Of the random vectors.
        look: After how many calls the tracker looks again for what it does not follow.

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
        look: int = 6,
    ) -> None:
        if k < 1:
            raise InputError(f"k={k}: expected at least one eigenpair")
        if which not in ("largest", "smallest", "magnitude"):
            raise InputError(f"which={which}: expected largest, smallest or magnitude")
        if not isinstance(tolerance, int | float) or not tolerance >= 0:
            raise InputError(f"tolerance={tolerance}: expected a number, at least 0")
        if max_products < k:
            raise InputError(f"max_products={max_products}: expected at least k={k}")
        if look < 1:
            raise InputError(f"look={look}: expected at least 1")
        self.k, self.which = k, which
        self.tolerance = tolerance
        self.max_products = max_products
        self._cold_products = max(k, cold_products)
        self._seed = seed
        self._starts: list[Tensor] = []  # [2k, P] each, the latest first, of the last two calls
        self._alternates: bool | None = None  # whether the earlier start is of the phase that is coming
        self._calm = 0  # how many starts in succession were good enough by far
        self._calls = 0  # since the cold start
        self._look = look
        self._looked = -look  # the call of the last look
        self._rest = math.nan  # bound of what is not followed, over λ_1, at that call
        self._peak = 0.0  # the largest λ_1 since then
        self._last: list[float] = []  # λ_1 of the last two calls
        self._subspace: _Subspace

    @property
    def budget(self) -> int:
        """How many products the coming `update` may spend, those with `directions` among them.

        Where λ turns out to have changed suddenly it may spend those of a look more.
        """
        is_look_due = bool(self._starts) and self._calls - self._looked >= self._look
        return self._own_budget + is_look_due * LOOK_PRODUCTS

    @property
    def _own_budget(self) -> int:
        """Without looks."""
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
        self._subspace = _Subspace(like, min(self._own_budget, held, len(like)))
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
        budget, rest, has_looked = self._own_budget, math.nan, False
        while True:
            quotients, vectors, vector_images = space.ritz_pairs(k + 1, self.which)
            residual_vectors = vector_images - quotients[:, None].to(images) * vectors
            residuals = _norms(residual_vectors).cpu()
            unsure = self._unsure(quotients, residuals)
            if spent == first:
                is_calm = not (residuals[:k] > _CALM * self._allowed(quotients[:k])).any()
            # A basis as large as the space is exact; its residual is rounding and must not be widened by.
            room = min(budget - spent, images.shape[1] - space.size)
            widened = images[:0]
            if room > 0 and unsure.any():
                if space.size == space.most:
                    space.restart(max(2 * k, space.most // 2), self.which)
                widened = space.extended(residual_vectors[unsure.to(images.device)], space.size + room)
            if len(widened):
                space.know(products(widened))
                spent += len(widened)
            elif not has_looked and self._is_due(quotients[0]):
                has_looked = True
                rest, looked = self._look_around(space, products)
                spent, budget = spent + looked, budget + looked
            else:
                break
        quotients, vectors, vector_images = space.ritz_pairs(2 * k, self.which)
        del self._subspace
        residuals = residuals[:k]
        if not torch.isfinite(quotients).all():  # nothing to lean on; the next call starts from what was good
            return Eigenpairs(quotients[:k], quotients[:k], vectors[:k], residuals, spent)
        signs = self._steady_signs(vectors)
        vectors, vector_images = signs * vectors, signs * vector_images
        self._remember(quotients, vectors, vector_images, min(len(vectors), first))
        values = quotients[:k] + self._missing(quotients[:k], residuals)
        order = _ranked(values, self.which)
        self._last = [float(values[order[0]]), *self._last][:2]
        size = abs(self._last[0])
        if math.isfinite(rest):
            self._looked, self._rest, self._peak = self._calls, rest / max(size, _TINY), size
        self._peak = max(self._peak, size)
        self._calm = self._calm + 1 if is_calm else 0
        self._calls += 1
        found = vectors[order.to(vectors.device)]
        bound = self._bound(quotients[:k], residuals, self._rest * self._peak)
        return Eigenpairs(values[order], quotients[order], found, residuals[order], spent, bound)

    def _allowed(self, quotients: Tensor) -> Tensor:
        """Residuals that the pairs may have; a cold start could come to rest at another eigenvalue in passing."""
        sizes = quotients.abs()
        tolerance = self.tolerance if self._starts else _COLD * self.tolerance
        return tolerance * sizes.clamp(min=float(sizes.max()) / 10)

    def _unsure(self, quotients: Tensor, residuals: Tensor) -> Tensor:
        """By whose residuals the basis is widened: if any, also by that of the pair behind the wanted ones."""
        k, sizes = self.k, _wanted(quotients, self.which)
        unsure = torch.zeros(len(quotients), dtype=torch.bool)
        unsure[:k] = residuals[:k] > self._allowed(quotients[:k])
        if len(quotients) > k:
            beyond = sizes[k] + residuals[k] - sizes[k - 1]
            is_rough = residuals[k] > self.tolerance * quotients.abs().max()
            unsure[k] = bool(unsure.any() and is_rough) or bool(beyond > self.tolerance**2 * sizes[k - 1].abs())
        return unsure

    def _is_due(self, quotient: Tensor) -> bool:
        """Whether it is time for a look, by the calls since the last one or by how λ has changed."""
        since, value = self._calls - self._looked, float(quotient)
        if not math.isfinite(value):
            return False
        change = min((abs(value - last) for last in self._last), default=0.0)
        return since >= self._look or (since >= _PATIENCE and change > _SURPRISE * abs(value))

    def _look_around(self, space: _Subspace, products: Products) -> tuple[float, int]:
        """Bound of what the wanted pairs leave, and products spent; what a cold start knows has come from a look."""
        if not self._starts:
            return space.bound_beyond(0, self.which) if self.k == 1 and space.is_unbroken else math.nan, 0
        kept = min(self.k, space.size)
        space.restart(kept, self.which, kept + LOOK_PRODUCTS)
        generator = torch.Generator().manual_seed(self._seed + 1 + self._calls)
        vector = torch.randn(space.length, generator=generator, dtype=torch.float64).to(space.like)
        for _ in range(LOOK_PRODUCTS):
            added = space.extended([vector], space.size + 1)
            if not len(added):
                break
            vector = products(added)[0]
            space.know(vector[None])
        return space.bound_beyond(kept, self.which), space.size - kept

    def _bound(self, quotients: Tensor, residuals: Tensor, rest: float) -> float:
        """Of the whole operator, from its Ritz pairs, their residuals and the bound of what they leave.

        For a vector with components x_j along the Ritz vectors and y beyond, xᵀHx <= Σ q_j x_j² + 2 Σ r_j |x_j||y| +
        rest y²: the largest eigenvalue of the matrix of this form bounds that of H.
        """
        if not math.isfinite(rest):
            return math.nan
        sizes = _wanted(quotients, self.which)
        matrix = torch.diag(torch.cat([sizes, sizes.new_tensor([rest])]))
        matrix[-1, :-1] = matrix[:-1, -1] = residuals
        bound = float(torch.linalg.eigvalsh(matrix)[-1])
        return -bound if self.which == "smallest" else bound

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
            self._alternates = bool(_share(start[0], before) > _share(start[0], last) + _NEARER)
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
            "looked": self._looked,
            "rest": self._rest,
            "peak": self._peak,
            "last": list(self._last),
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
        self._looked, self._rest, self._peak = state["looked"], state["rest"], state["peak"]
        self._last = list(state["last"])


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
        is_unbroken: Whether all vectors that ever were in it are.
    """

    def __init__(self, like: Tensor, most: int) -> None:
        self.most, self.size, self.is_unbroken = most, 0, True
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

    def restart(self, kept: int, which: Which, most: int = 0) -> None:
        """Keep the ``kept`` most wanted Ritz vectors, in the memory of the basis unless it is to hold ``most``."""
        values, weights = self._eigh(kept, which)
        before = self._vectors, self._images
        if most > self.most:
            self.most = most
            self._vectors, self._images = (rows.new_empty(most, self.length) for rows in before)
            self._operator = torch.zeros(most, most, dtype=torch.float64)
        for rows, old in zip((self._vectors, self._images), before, strict=True):
            for columns, mixed in zip(rows.split(_COLUMNS, 1), old.split(_COLUMNS, 1), strict=True):
                columns[:kept] = weights.to(columns) @ mixed[: self.size]
        self.size, self._known, self.is_unbroken = kept, kept, False
        self._operator[:kept, :kept] = values.diag()

    @property
    def length(self) -> int:
        """P."""
        return self._vectors.shape[1]

    @property
    def like(self) -> Tensor:
        """A tensor of its dtype and device."""
        return self._vectors

    def bound_beyond(self, first: int, which: Which) -> float:
        """What eigenvalues of the operator on the complement of the ``first`` vectors do not exceed, by `_wanted`.

        The vectors behind those have come by Lanczos steps from one random vector of the complement.
        """
        basis, last = self._vectors[: self.size], self._images[self.size - 1 : self.size]
        for _ in range(2):
            last = last - (last @ basis.T) @ basis
        matrix = self._operator[first : self.size, first : self.size]
        diagonal, beside = matrix.diagonal(), torch.cat([matrix.diagonal(1).abs(), _norms(last).cpu()])
        signs = {"largest": (1,), "smallest": (-1,), "magnitude": (1, -1)}[which]
        return max(_exceeded_by_chance(sign * diagonal, beside, self.length - first) for sign in signs)


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


def _wanted(values: Tensor, which: Which) -> Tensor:
    """Larger for what is wanted more."""
    return {"largest": values, "smallest": -values, "magnitude": values.abs()}[which]


def _ranked(values: Tensor, which: Which) -> Tensor:
    """Positions of the values, the most wanted first."""
    return _wanted(values, which).argsort(descending=True)


def _exceeded_by_chance(diagonal: Tensor, beside: Tensor, dimension: int) -> float:
    """What the largest eigenvalue exceeds with a probability of `_MISSED`, by Lanczos from a random unit vector z.

    The characteristic polynomial p of the tridiagonal matrix has ‖p(H) z‖ = Π β_j, over all entries beside its
    diagonal. Of an eigenvector u with eigenvalue x that is at least abs(p(x) u·z), where u·z, times the root of the
    dimension, is a normal number: below 1.25 x probability in size with that probability (van Dorsselaer,
    Hochstenbach and van der Vorst 2000, §3).

    Args:
        diagonal: ``[m]`` α_j.
        beside: ``[m]`` β_j, the last one that of the vector that would come next.
        dimension: Of the space.
    """
    nodes = torch.linalg.eigvalsh(diagonal.diag() + beside[:-1].diag(1) + beside[:-1].diag(-1))
    largest = float(nodes[-1])
    if not beside.min() > 4 * torch.finfo(beside.dtype).eps * max(abs(float(nodes[0])), abs(largest)):
        return largest  # the vector has no more to show
    allowed = float(beside.log().sum()) - math.log(math.sqrt(math.pi / 2) * _MISSED / math.sqrt(dimension))
    low, high = largest, largest + math.exp(allowed / len(nodes))
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if float((middle - nodes).log().sum()) < allowed else (low, middle)
    return high
