"""Extreme eigenpairs of an operator that changes a little from call to call."""

from __future__ import annotations

import math
from copy import copy
from typing import Any

import torch
from torch import Tensor

from opposing_signals.curvature import bounds
from opposing_signals.curvature.eigen import Eigenpairs, Finish, Products, Which, ranked, wanted
from opposing_signals.curvature.subspace import Subspace, norms, share
from opposing_signals.errors import InputError

COLD_PRODUCTS = 10
"""Least products that a cold start may spend, and all where the first λ matters least: warm starts improve on it."""
_HELD = 10  # basis size at which a large problem restarts from the better half
_FLOATS_HELD = 2**25  # a smaller problem restarts only once its basis holds more numbers than this
_CALM = 0.4  # residual over tolerance below which half the directions are enough: the error grows as its square
_REFRESHED = 3  # when calm, one call in three has all directions, to see what may overtake; odd, to see both phases
LOOK_PRODUCTS = 8  # most products of a look: enough for a bound within about 10% of λ, see docs/curvature.md
_GROWTH = 1.1  # assumed growth between two looks of what is not followed, whatever λ_1 does
_FAR_BELOW = 0.9  # of λ_1: a look ends when it bounds what is not followed by this
_BESIDE = 0.9  # of the wanted eigenvalue: the next pair is refined as well if it may be that large
_SURPRISE, _PATIENCE = 0.3, 6  # relative change of λ that triggers a look, and fewest calls between two such looks
_NEARER = 1e-3  # difference of overlaps that tells phases apart; with less, the last start is the first
_COLD = 0.1  # tolerance of a cold start over that of a warm one
_TINY = 1e-300
_STATE = ("starts", "alternates", "calm", "calls", "looked", "rest", "peak", "last")


class EigenTracker:
    """Follows extreme eigenpairs of an operator from call to call: block Rayleigh-Ritz with warm starts.

    A call has two halves. `directions` gives the vectors whose products are wanted first. They are known *before* the
    operator is, so these products can share a pass that is made anyway. `update` takes them, and requests more until
    every residual is within the tolerance. The basis holds, in this order:

    - The warm start: the products {Hu_1, Hu_2} of the last two Ritz vectors (2k of them for k pairs), one step of power
      iteration. At the edge of stability the Hessian alternates with period two; the start then comes from the call
      before the last. After two calls with residuals well within the tolerance ("calm"), two of three calls have a
      narrow start of k vectors.
    - The ``hint``, such as the gradient, except after a narrow start.
    - Residuals of the Ritz vectors. From one start vector they span the Krylov space, so a cold start is the Lanczos
      method with full reorthogonalization (Saad 2011, §6.3). The pair after the wanted ones counts where it may reach
      them.
    - A look for eigenvalues that are not followed, every ``look`` calls and when λ differs by more than 30% from both
      of its last two values: up to 8 Lanczos steps from a random vector orthogonal to the 2k Ritz vectors, until they
      bound the eigenvalues there well below λ_1 (van Dorsselaer, Hochstenbach and van der Vorst 2000). The vectors join
      the basis.

    At 10 vectors (or 4k, or 2^25 numbers, if that is more) the basis is reduced to the better half of its Ritz vectors:
    a thick restart (Wu and Simon 2000). Between calls, two starts of 2k vectors are stored in half the precision.

    λ is the Rayleigh quotient q plus its deficit, ‖r‖²/(q − μ) to leading order, where r is the residual. μ is 0.4 q,
    an estimate of r's own Rayleigh quotient, plus a term for the overlap of r with the residuals of the other Ritz
    vectors. For the smallest eigenvalues, and for negative ones, a residual does not give the deficit: there λ is q.
    Reasons and measurements are in docs/curvature.md.

    Args:
        k: How many pairs; with ``above``, at most.
        which: The algebraically largest eigenvalues, the smallest, or the largest in absolute value.
        tolerance: Stop when every residual is at most ``tolerance`` x |q_1|. The relative error of q is then at most
            about tolerance² x |q| / gap.
        max_products: Stop after this many products per step, not counting looks. The first 2k are those of the start (k
            if it is narrow).
        cold_products: A cold start may spend this many instead (at least k), the next call at most twice as many, and
            so on: what a cold start misses is found over several steps. None for ``max_products``, at least 10.
        seed: Of the random vectors.
        look: Calls between two looks for eigenvalues that are not followed.
        above: Follow all eigenvalues beyond this one, such as 1.5/η, and at least the first: their number grows and
            shrinks with the operator. With "magnitude" those larger in absolute value.

    Raises:
        InputError: A setting that cannot work.
    """

    def __init__(
        self,
        k: int = 1,
        which: Which = "largest",
        tolerance: float = 0.03,
        max_products: int = 40,
        cold_products: int | None = None,
        seed: int = 0,
        look: int = 6,
        above: float | None = None,
    ) -> None:
        if k < 1:
            raise InputError(f"k={k}: expected at least one eigenpair")
        if which not in ("largest", "smallest", "magnitude"):
            raise InputError(f"which={which}: expected largest, smallest or magnitude")
        if not isinstance(tolerance, int | float) or not tolerance >= 0:
            raise InputError(f"tolerance={tolerance}: expected a number, at least 0")
        if max_products < k:
            raise InputError(f"max_products={max_products}: expected at least k={k}")
        if above is not None and which == "smallest":
            raise InputError(f"above={above}: expected which=largest or magnitude; for the smallest, give k")
        if look < 1:
            raise InputError(f"look={look}: expected at least 1")
        self.k, self._most, self.which = k if above is None else 1, k, which
        self._above = None if above is None else float(wanted(torch.tensor(above, dtype=torch.float64), which))
        self.tolerance = tolerance
        self.max_products = max_products
        self._cold_products = max(k, max(COLD_PRODUCTS, max_products) if cold_products is None else cold_products)
        self._seed = seed
        self._starts: list[Tensor] = []  # [2k, P] each, the latest first, of the last two calls
        self._alternates: bool | None = None  # whether the earlier start belongs to the coming phase
        self._calm = 0  # successive starts with residuals well within the tolerance
        self._calls = 0  # since the cold start
        self._look = look
        self._looked = -look  # the call of the last look
        self._rest = math.nan  # bound on what is not followed, over λ_1, at that call
        self._peak = 0.0  # largest λ_1 since then, times its rise at that call; at least 1.1 x that of the look
        self._last: list[float] = []  # λ_1 of the last two calls
        self._subspace: Subspace

    @property
    def budget(self) -> int:
        """Products that the coming `update` may spend, those with `directions` included.

        If λ turns out to have changed suddenly, it may spend those of a look in addition.
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
        if self._most > len(like):
            raise InputError(f"k={self._most}: expected at most {len(like)}, the number of parameters")
        if self._starts:
            self._starts = [start.to(like.device) for start in self._starts]  # a checkpoint may load them on another
            starts = self._in_order()
        else:
            generator = torch.Generator().manual_seed(self._seed)
            starts = [torch.randn(self.k, len(like), generator=generator, dtype=torch.float64)]
        held = max(_HELD, 4 * self._most, _FLOATS_HELD // len(like))
        self._subspace = Subspace(like, min(self._own_budget, held, len(like)))
        return self._subspace.extended((vector for start in starts for vector in start), self._width)

    @property
    def _width(self) -> int:
        if self.max_products <= 2 * self.k:
            return self.max_products
        return self.k + (self._above is not None) if self._is_narrow else 2 * self.k

    @property
    def _is_narrow(self) -> bool:
        return self._calm >= 2 and self._calm % _REFRESHED > 0

    def _in_order(self) -> list[Tensor]:
        """The start of the coming phase, then the other; if unknown: the first k vectors of each, then the rest."""
        if self._alternates is None:
            return [start[: self.k] for start in self._starts] + [start[self.k :] for start in self._starts]
        return self._starts[::-1] if self._alternates else self._starts

    def update(
        self, images: Tensor, products: Products, hint: Tensor | None = None, finish: Finish | None = None
    ) -> Eigenpairs:
        """Find the eigenpairs of the current operator.

        Args:
            images: ``[m, P]``, its products with `directions`.
            products: The operator, for all further products.
            hint: ``[P]``, a vector that may overlap with eigenvectors that the starts miss: the gradient of the loss
                whose Hessian the operator is. It joins the basis first, unless the start is cold or narrow.
            finish: Recomputes the products of the found vectors more exactly; see `Finish`.
        """
        space = self._subspace
        space.know(images)
        first = spent = len(images)
        is_wide = bool(self._starts) and not self._is_narrow
        budget, rest, has_looked, before = self._own_budget, math.nan, False, -math.inf
        while True:
            k = self.k
            quotients, vectors, vector_images = space.ritz_pairs(k + 1, self.which)
            residual_vectors = vector_images - quotients[:, None].to(images) * vectors
            residuals = norms(residual_vectors).cpu()
            if self._grows(quotients, residuals):
                self.k += 1
                continue
            unsure = self._unsure(quotients, residuals)
            size = float(wanted(quotients[:k], self.which).sum())
            if finish is not None and size - before <= self.tolerance**2 * abs(size):
                unsure[:] = False
            if spent == first:
                is_calm = not (residuals[:k] > _CALM * self._allowed(quotients[:k])).any()
            # A basis as large as the space is exact; its residual is rounding and must not widen it.
            room = min(budget - spent, images.shape[1] - space.size)
            widened = images[:0]
            if room > 0 and hint is not None and spent == first and is_wide:
                widened = space.extended([hint], space.size + 1)
            if room > 0 and not len(widened) and unsure.any():
                if space.size == space.most:
                    space.restart(max(2 * k, space.most // 2), self.which)
                widened = space.extended(residual_vectors[unsure.to(images.device)], space.size + room)
                before = size
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
        if not torch.isfinite(quotients).all():  # unusable; the next call starts from the last good call
            return Eigenpairs(quotients[:k], quotients[:k], vectors[:k], residuals, spent)
        signs = self._steady_signs(vectors)
        vectors, vector_images = signs * vectors, signs * vector_images
        error, ritz = 0.0, quotients
        if finish is not None:
            finer, errors = finish(vectors[:k])
            by_finer = torch.linalg.vecdot(vectors[:k].double(), finer.double()).cpu()
            error = float(torch.maximum((by_finer - quotients[:k]).abs(), errors.cpu()).max())
            residual_vectors = finer - by_finer[:, None].to(finer) * vectors[:k]
            residuals = norms(residual_vectors).cpu()
            quotients, vector_images = torch.cat([by_finer, quotients[k:]]), torch.cat([finer, vector_images[k:]])
            spent += k
        self._remember(quotients, vectors, vector_images, min(len(vectors), first))
        values = quotients[:k].clone()
        for j in range(k):
            if ritz[j] > 0 and self.which != "smallest":
                values[j] += space.missing(ritz[j], residuals[j], residual_vectors[j])
        order = ranked(values, self.which)
        if self._above is not None:
            self.k = max(1, int((wanted(values, self.which) > self._above).sum()))
            order = order[: self.k]
        size, before = abs(float(values[order[0]])), max(map(abs, self._last), default=0.0)
        self._last = [float(values[order[0]]), *self._last][:2]
        if math.isfinite(rest):
            self._looked, self._rest, self._peak = self._calls, max(rest, 0) / max(size, _TINY), _GROWTH * size
        else:
            if before:  # what is not followed may rise as λ_1 just has
                self._peak = max(self._peak, size * max(1, size / before))
            rest = self._rest * self._peak
        self._calm = self._calm + 1 if is_calm else 0
        self._calls += 1
        found = vectors[order.to(vectors.device)]
        bound = bounds.of_operator(quotients[:k], residuals, rest, self.which)
        bound = -(bound + error) if self.which == "smallest" else bound + error
        if self.which != "smallest" and math.isfinite(bound):  # if the rest of H is small, μ = 0.4 q is too large
            values[order[0]] = min(float(values[order[0]]), bound)
        return Eigenpairs(values[order], quotients[order], found, residuals[order], spent, bound, error)

    def _allowed(self, quotients: Tensor) -> Tensor:
        """Allowed residuals; smaller for a cold start, which could otherwise stop at another eigenvalue."""
        sizes = quotients.abs()
        tolerance = self.tolerance if self._starts else _COLD * self.tolerance
        return tolerance * sizes.clamp(min=float(sizes.max()) / 10)

    def _unsure(self, quotients: Tensor, residuals: Tensor) -> Tensor:
        """The pairs whose residuals widen the basis; the pair after the wanted ones is one if it comes near them."""
        k, sizes = self.k, wanted(quotients, self.which)
        unsure = torch.zeros(len(quotients), dtype=torch.bool)
        unsure[:k] = residuals[:k] > self._allowed(quotients[:k])
        if len(quotients) > k:
            reached = sizes[k] + residuals[k]
            is_rough = residuals[k] > self.tolerance * quotients.abs().max()
            is_near = unsure.any() and is_rough and reached > _BESIDE * sizes[k - 1]
            unsure[k] = bool(is_near) or bool(reached - sizes[k - 1] > self.tolerance**2 * sizes[k - 1].abs())
        return unsure

    def _grows(self, quotients: Tensor, residuals: Tensor) -> bool:
        """Whether the pair after the wanted ones is, or may be, wanted too."""
        if self._above is None or not self.k < min(self._most, len(quotients)):
            return False
        return bool(wanted(quotients, self.which)[self.k] + residuals[self.k] > self._above)

    def _is_due(self, quotient: Tensor) -> bool:
        """Whether it is time for a look, by the calls since the last one or by how λ has changed."""
        since, value = self._calls - self._looked, float(quotient)
        if not math.isfinite(value):
            return False
        change = min((abs(value - last) for last in self._last), default=0.0)
        return since >= self._look or (since >= _PATIENCE and change > _SURPRISE * abs(value))

    def _look_around(self, space: Subspace, products: Products) -> tuple[float, int]:
        """Bound on what is not followed, and products spent; a cold start from a random vector is itself a look."""
        if not self._starts:
            if self.k > 1 or not space.is_unbroken:
                return math.nan, 0
            return bounds.of_complement(*space.tridiagonal(0), space.length, self.which), 0
        kept = min(2 * self.k, space.size)
        space.restart(kept, self.which, kept + LOOK_PRODUCTS)
        quotients, vectors, images = space.ritz_pairs(kept, self.which)
        residuals = norms(images - quotients[:, None].to(images) * vectors).cpu()
        behind = slice(self.k, kept)
        generator = torch.Generator().manual_seed(self._seed + 1 + self._calls)
        vector = torch.randn(space.length, generator=generator, dtype=torch.float64)
        rest = math.nan
        for _ in range(LOOK_PRODUCTS):
            added = space.extended([vector], space.size + 1)
            if not len(added):
                break
            vector = products(added)[0]
            space.know(vector[None])
            rest = bounds.of_complement(*space.tridiagonal(kept), space.length - kept, self.which)
            rest = bounds.of_operator(quotients[behind], residuals[behind], rest, self.which)
            if rest <= _FAR_BELOW * float(wanted(quotients, self.which)[0]):
                break
        return rest, space.size - kept

    def _remember(self, quotients: Tensor, vectors: Tensor, images: Tensor, held: int) -> None:
        """Store the start of the next calls; its first ``held`` vectors are new."""
        if self.which == "smallest":  # H shrinks the part of small eigenvalues; vectors and images span a step
            start = torch.cat([vectors[: self.k], images[: self.k]])
        else:
            images = torch.where(quotients[:, None] < 0, -1.0, 1.0).to(images) * images  # with the vectors' signs
            start = torch.where(norms(images)[:, None] == 0, vectors, images)
        if self._starts and held < 2 * self.k:  # a narrow start, widened or not, has no second pair
            nearest = self._starts[int(bool(self._alternates))]
            start = torch.cat([start[:held], nearest[held:].to(start)])
        if len(self._starts) == 2:
            last, before = (earlier.to(start) for earlier in self._starts)
            self._alternates = bool(share(start[0], before) > share(start[0], last) + _NEARER)
        self._starts = [halved(start), *self._starts][:2]

    def __call__(self, products: Products, like: Tensor) -> Eigenpairs:
        """Both halves at once. See `directions` for ``like``."""
        directions = self.directions(like)
        return self.update(products(directions), products)

    def _steady_signs(self, vectors: Tensor) -> Tensor:
        """``[m, 1]``: the sign of each vector's overlap with the nearest of the last ones."""
        if not self._starts:
            return vectors.new_ones(len(vectors), 1)
        overlaps = vectors @ self._starts[0][: self.k].to(vectors).T
        nearest = overlaps.gather(1, overlaps.abs().argmax(1, keepdim=True))
        return torch.where(nearest < 0, -1.0, 1.0).to(vectors)

    def state_dict(self) -> dict[str, Any]:
        """The warm start, so that a resumed run measures what an uninterrupted one would."""
        state = {name: copy(getattr(self, f"_{name}")) for name in _STATE}
        return state if self._above is None else state | {"k": self.k}

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
        for name in _STATE:
            setattr(self, f"_{name}", copy(state[name]))
        self.k = state.get("k", self.k)


def halved(vectors: Tensor) -> Tensor:
    """Rows in a floating-point type of half the size, each scaled to a largest entry of 1, so that none overflows."""
    half = {torch.float64: torch.float32, torch.float32: torch.float16}.get(vectors.dtype, vectors.dtype)
    largest = vectors.abs().amax(1, keepdim=True)
    return (vectors / torch.where(largest == 0, 1, largest)).to(half)
