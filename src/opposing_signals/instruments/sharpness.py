"""Sharpness: the largest eigenvalue of the training loss's Hessian."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from logging import getLogger
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from opposing_signals.curvature import Eigenpairs, EigenTracker
from opposing_signals.curvature.chunks import WHOLE, Batch
from opposing_signals.curvature.differences import GradientDifferences
from opposing_signals.curvature.double_backward import CurvaturePass
from opposing_signals.curvature.eigen import Which
from opposing_signals.curvature.risk import EmpiricalRisk, flatten
from opposing_signals.errors import InputError, first_line
from opposing_signals.instruments.instrument import Instrument, announcing
from opposing_signals.record import Record
from opposing_signals.record.quantities import (
    EIGENVALUES,
    EIGENVECTOR_SHARE,
    SHARPNESS,
    SHARPNESS_BOUND,
    SHARPNESS_ERROR,
    SHARPNESS_PRODUCTS,
    SHARPNESS_QUOTIENT,
    SHARPNESS_RESIDUAL,
)
from opposing_signals.training.module import TrainingModule
from opposing_signals.values import Count, NotNegative

log = getLogger(__name__)

ProductsBy = Literal["exact", "differences"]

_STEPS_BETWEEN_LOOKS = 24
_TOLERATED = 0.5
"""Largest usable error of differences, over q."""


def calls_between_looks(every: int, consecutive: int) -> int:
    """Measurements between two looks of the tracker for eigenvalues that it does not follow.

    24 steps, or one measurement if that is longer. At most two where single measurements have steps between them: an
    eigenvector is soon lost then.
    """
    calls = max(1, _STEPS_BETWEEN_LOOKS * consecutive // every)
    return min(calls, 2) if consecutive == 1 < every else calls


@dataclass(frozen=True)
class TopEigenvector:
    """What `Sharpness` shares with later instruments.

    Attributes:
        vector: ``[P]``, the unit eigenvector of λ(θ_t).
        batch: The examples over which L is the mean.
    """

    vector: Tensor
    batch: Batch


def top_eigenvector(module: TrainingModule) -> TopEigenvector:
    """The current step's, once it has its gradient, for instruments that take from `Sharpness`."""
    found = module.shared(TopEigenvector)
    assert found is not None  # see Instrument.check_partners
    return found


class Sharpness(Instrument):
    """Writes ``sharpness`` λ(θ_t) and its ``_quotient``, ``_residual``, ``_bound`` and ``_products``.

    The quotient is q = vᵀHv, the residual ‖Hv − qv‖; λ is q corrected by the residual, see `EigenTracker`. No
    eigenvalue exceeds the bound, see `Eigenpairs`. The products are those spent. It also writes ``eigenvector_share``
    ``[tensors]``: the fraction of v's squared entries in each parameter tensor (figures 32 to 35), in the model's
    order; and with k > 1 ``eigenvalues`` ``[k]``.

    Under full-batch training the first products share the step's own pass, which then costs two more gradients
    (``max_products=2``) rather than two more passes; if the whole set is one chunk, so do all others. Under minibatch
    training each measurement is a pass of its own over the whole training set. A later instrument of the same step
    finds v by `top_eigenvector`.

    With ``products="differences"`` v is found by differences of the training pass's gradient, one gradient each
    (`GradientDifferences`), and the last product, of v itself, is exact: so are quotient and residual. Where there is
    no exact product, the last is a central difference, and a warning says why. ``sharpness_error`` is how far that last
    product has moved q, or its own error if larger; it is included in the bound. The loss has to be smooth, without
    ReLUs: if the error exceeds half of q, a run does not begin; at later steps there is one warning.

    Args:
        tolerance: See `EigenTracker`, also for ``k`` and ``which``.
        max_products: See `EigenTracker`; 2 means one pass per step after the first, which may spend 10.
        examples: L is the mean over this many training examples, evenly spaced, for data over which a pass takes too
            long; None for all. With a number, each measurement is a pass of its own.
        products: ``"exact"``, all by double backward, or ``"differences"``.

    Raises:
        InputError: There are fewer examples than that, or ``products`` is neither; at step 0, the error of differences
            is too large.
    """

    def __init__(
        self,
        risk: EmpiricalRisk,
        record: Record,
        every: Count = 1,
        consecutive: Count = 1,
        tolerance: NotNegative = 0.05,
        max_products: Count = 40,
        k: Count = 1,
        which: Which = "largest",
        examples: Count | None = None,
        *,
        products: ProductsBy = "exact",
    ) -> None:
        super().__init__(risk, record, every, consecutive)
        if products not in get_args(ProductsBy):
            raise InputError(f"Sharpness: products={products}: expected {' or '.join(get_args(ProductsBy))}")
        if examples is not None and not 1 <= examples <= len(risk):
            raise InputError(f"Sharpness: examples={examples}: expected 1 to {len(risk)}, or null for all")
        self._batch: Batch = WHOLE
        if examples is not None:
            self._batch = torch.linspace(0, len(risk) - 1, examples, dtype=torch.float64).round().long()
        self.tracker = EigenTracker(k, which, tolerance, max_products, look=calls_between_looks(every, consecutive))
        self._by_differences = products == "differences"
        self._has_exact: bool | None = None
        self._has_warned = False

    def before_step(self, module: TrainingModule, step: int) -> None:
        """Request the first products, or the gradient; under minibatch training compute them."""
        if self._by_differences:
            if module.batches.is_full and self._batch is WHOLE:
                module.request_gradient(partial(self._measure_by_differences, module, step))
            else:
                self._measure_by_differences(module, step)
            return
        directions = self.tracker.directions(flatten([parameter.detach() for parameter in self.risk.parameters]))
        module.announce(f"curvature, product {len(directions)} of {self.tracker.budget}")
        if module.batches.is_full and self._batch is WHOLE:
            module.request_products(directions, partial(self._measure, module, step))
        else:
            self._measure(module, step, self.risk.hessian_products(directions, self._batch))

    def _measure(self, module: TrainingModule, step: int, seen: CurvaturePass) -> None:
        further = seen.further or (lambda vectors: self.risk.hessian_products(vectors, self._batch).products)
        announced = announcing(further, module, self.tracker.budget, len(seen.products))
        self._write(module, step, self.tracker.update(seen.products, announced, seen.gradient))

    def _measure_by_differences(self, module: TrainingModule, step: int, gradient: Tensor | None = None) -> None:
        differences = GradientDifferences(self.risk, self._batch, gradient)
        announced = announcing(differences, module, self.tracker.budget + self.tracker.k)
        directions = self.tracker.directions(differences.theta)
        finish = partial(self._finish, differences)
        pairs = self.tracker.update(announced(directions), announced, differences.gradient, finish)
        self._check_smooth(pairs, step)
        self._write(module, step, pairs)
        self.write(module, step, SHARPNESS_ERROR, pairs.error)

    def _check_smooth(self, pairs: Eigenpairs, step: int) -> None:
        """Refuse a run whose differences are too inexact at step 0; warn once if they become so later."""
        if not pairs.error > _TOLERATED * abs(pairs.quotient) or self._has_warned:
            return
        off = pairs.error / abs(pairs.quotient)
        said = (
            f"differences of gradients are {off:.0%} of λ off at step {step}: the loss is not smooth, as with ReLUs, "
            "or its gradient is too rough: expected instruments.sharpness.products=exact"
        )
        if step == 0:
            raise InputError(said)
        self._has_warned = True
        log.warning(said)

    def _finish(self, differences: GradientDifferences, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Exact products, else central differences; the first measurement finds out which."""
        if self._has_exact is not False:
            try:
                products = self.risk.hessian_products(vectors, self._batch).products
            except (InputError, RuntimeError) as error:
                if self._has_exact:
                    raise
                self._has_exact = False
                log.warning("λ has no exact product, and its error is that of differences: %s", first_line(error))
            else:
                self._has_exact = True
                return products, torch.zeros(len(vectors), dtype=torch.float64)
        return differences.both_sides(vectors)

    def _write(self, module: TrainingModule, step: int, pairs: Eigenpairs) -> None:
        module.share(TopEigenvector(pairs.vector, self._batch))
        self.write(module, step, SHARPNESS, pairs.value)
        self.write(module, step, SHARPNESS_QUOTIENT, pairs.quotient)
        self.write(module, step, SHARPNESS_RESIDUAL, pairs.residual)
        self.write(module, step, SHARPNESS_BOUND, pairs.bound)
        self.write(module, step, SHARPNESS_PRODUCTS, pairs.products)
        shares = torch.stack([piece.double().square().sum() for piece in self.risk.unflatten(pairs.vector)])
        self.write(module, step, EIGENVECTOR_SHARE, shares.float().cpu().numpy())
        if self.tracker.k > 1:
            self.write(module, step, EIGENVALUES, np.asarray(pairs.values))

    def state_dict(self) -> dict[str, Any]:
        """The tracker's warm start."""
        return self.tracker.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.tracker.load_state_dict(state_dict)
