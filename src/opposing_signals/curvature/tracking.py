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
"""What a cold start may spend: λ before the first step matters least, and the warm starts that follow improve on it."""
_HELD = 10  # vectors of a basis beyond which a large problem restarts from its best half
_FLOATS_HELD = 2**25  # a smaller problem goes on without a restart as long as its basis has no more numbers than this
_CALM = 0.4  # residual over tolerance below which half the directions are enough: the error grows as its square
_REFRESHED = 3  # in calm, every so many calls have all directions, for what may overtake; odd, to see both phases
LOOK_PRODUCTS = 8  # most products of a look: enough for a bound within some 10% of λ, see docs/curvature.md
_GROWTH = 1.1  # what is not followed may grow by that between two looks whatever λ_1 does
_FAR_BELOW = 0.9  # of λ_1: a look ends when what is not followed is bounded by that
_BESIDE = 0.9  # of the wanted eigenvalue: the pair behind is made exact with it when it may be that large
_SURPRISE, _PATIENCE = 0.3, 6  # a change of λ that calls for a look, and calls that must lie between two such looks
_NEARER = 1e-3  # what tells phases apart; a vector that is new to both, or the same in both, is followed from the last
_COLD = 0.1  # tolerance of a cold start over that of a warm one
_TINY = 1e-300
_STATE = ("starts", "alternates", "calm", "calls", "looked", "rest", "peak", "last")


class EigenTracker:
    """Follows extreme eigenpairs of an operator from call to call: block Rayleigh-Ritz with warm starts.

    A call has two halves. `directions` gives the vectors whose products are wanted first. They are known *before* the
    operator is, so these products can ride on a pass that is made anyway. `update` takes them, and asks for more until
    every residual is within the tolerance. The basis holds, in this order:

    - The warm start: the products {Hu_1, Hu_2} of the last two Ritz vectors (2k of them for k pairs), one step of power
      iteration ahead. At the edge of stability the Hessian alternates with period two; there the start is that of the
      call before the last. After two calls with residuals well within the tolerance, k vectors are the start at two
      calls of three.
    - The ``hint``, such as the gradient, except where k vectors are the start.
    - Residuals of the Ritz vectors. From one start vector they span the Krylov space, so a cold start is the Lanczos
      method with full reorthogonalization (Saad 2011, §6.3). The pair behind the wanted ones counts where it may reach
      them.
    - A look, every ``look`` calls and when λ is more than 30% off both of its last two values: up to 8 Lanczos steps
      from a random vector, in the space orthogonal to the 2k Ritz vectors, until they bound what is there well below
      λ_1 (van Dorsselaer, Hochstenbach and van der Vorst 2000). What they find joins the basis.

    A basis of 10 vectors (of 2^25 numbers, where those are more) goes on from the better half of its Ritz vectors: a
    thick restart (Wu and Simon 2000). Between calls there are two starts of 2k vectors in half of the precision.

    λ is the Rayleigh quotient q and what it falls short by, ‖r‖²/(q − μ) to leading order, where r is the residual. For
    μ stand 0.4 q, in place of r's own Rayleigh quotient, and what r shares with the residuals of the other Ritz
    vectors. Of the smallest eigenvalues, and of negative ones, a residual does not tell this: there λ is q. The reasons
    and measurements are in docs/curvature.md.

    Args:
        k: How many pairs; with ``above``, at most.
        which: The algebraically largest eigenvalues, the smallest, or the largest in absolute value.
        tolerance: Stop when every residual is at most ``tolerance`` x |q_1|. The relative error of q is then at most
            about tolerance² x |q| / gap.
        max_products: Stop after this many products a step, looks apart; the first 2k are those of the start, k of them
            where it is calm and there may be more than 2k.
        cold_products: A cold start may spend this many instead (at least k), the call behind it at most twice as many,
            and so on: what a cold start has not found comes over several steps.
        seed: Of the random vectors.
        look: After how many calls the tracker looks again for what it does not follow.
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
        cold_products: int = COLD_PRODUCTS,
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
        self._cold_products = max(k, cold_products)
        self._seed = seed
        self._starts: list[Tensor] = []  # [2k, P] each, the latest first, of the last two calls
        self._alternates: bool | None = None  # whether the earlier start is of the phase that is coming
        self._calm = 0  # how many starts in succession were good enough by far
        self._calls = 0  # since the cold start
        self._look = look
        self._looked = -look  # the call of the last look
        self._rest = math.nan  # bound of what is not followed, over λ_1, at that call
        self._peak = 0.0  # the largest λ_1 since then, times what it had just risen by; at least 1.1 x that of the look
        self._last: list[float] = []  # λ_1 of the last two calls
        self._subspace: Subspace

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
        if self._most > len(like):
            raise InputError(f"k={self._most}: expected at most {len(like)}, the number of parameters")
        if self._starts:
            self._starts = [start.to(like.device) for start in self._starts]  # a checkpoint brings them to another
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
        """The start of the phase that is coming, then the other; where that is not known, the best of each first."""
        if self._alternates is None:
            return [start[: self.k] for start in self._starts] + [start[self.k :] for start in self._starts]
        return self._starts[::-1] if self._alternates else self._starts

    def update(
        self, images: Tensor, products: Products, hint: Tensor | None = None, finish: Finish | None = None
    ) -> Eigenpairs:
        """Find the pairs of the operator as it is now.

        Args:
            images: ``[m, P]``, its products with `directions`.
            products: The operator, for what is wanted beyond.
            hint: ``[P]``, a vector that may have a part in an eigenvector that the starts do not know: the gradient of
                the loss whose Hessian the operator is. Where a warm start is not narrow, it joins the basis first.
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
            # A basis as large as the space is exact; its residual is rounding and must not be widened by.
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
        if not torch.isfinite(quotients).all():  # nothing to lean on; the next call starts from what was good
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
            if before:  # what is not followed may still rise as λ_1 just has
                self._peak = max(self._peak, size * max(1, size / before))
            rest = self._rest * self._peak
        self._calm = self._calm + 1 if is_calm else 0
        self._calls += 1
        found = vectors[order.to(vectors.device)]
        bound = bounds.of_operator(quotients[:k], residuals, rest, self.which)
        bound = -(bound + error) if self.which == "smallest" else bound + error
        if self.which != "smallest" and math.isfinite(bound):  # where little is beside λ_1, 0.4 q is too much
            values[order[0]] = min(float(values[order[0]]), bound)
        return Eigenpairs(values[order], quotients[order], found, residuals[order], spent, bound, error)

    def _allowed(self, quotients: Tensor) -> Tensor:
        """Residuals that the pairs may have; a cold start could come to rest at another eigenvalue in passing."""
        sizes = quotients.abs()
        tolerance = self.tolerance if self._starts else _COLD * self.tolerance
        return tolerance * sizes.clamp(min=float(sizes.max()) / 10)

    def _unsure(self, quotients: Tensor, residuals: Tensor) -> Tensor:
        """By whose residuals the basis is widened; that of the pair behind the wanted ones counts if it comes near."""
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
        """Whether the pair behind the wanted ones is wanted, too, or may be."""
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
        """Bound of what the wanted pairs leave, and products spent; what a cold start knows has come from a look."""
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
        """Keep what the next calls start from; ``held`` vectors of it are new."""
        if self.which == "smallest":  # H shrinks what belongs to a small eigenvalue; vectors and images span a step
            start = torch.cat([vectors[: self.k], images[: self.k]])
        else:
            images = torch.where(quotients[:, None] < 0, -1.0, 1.0).to(images) * images  # with the vectors' signs
            start = torch.where(norms(images)[:, None] == 0, vectors, images)
        if self._starts and held < 2 * self.k:  # a narrow start, widened or not, knows nothing of the second pair
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
        """``[m, 1]``: the sign with which each vector overlaps with the nearest of the last ones."""
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
