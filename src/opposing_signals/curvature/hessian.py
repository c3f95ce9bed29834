"""The Hessian of a training loss as a matrix that is never formed."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from opposing_signals.curvature.differences import GradientDifferences
from opposing_signals.curvature.eigen import Eigenpairs, Products, Which
from opposing_signals.curvature.gradient_norms import gradient_norms
from opposing_signals.curvature.risk import EmpiricalRisk, flatten
from opposing_signals.curvature.sample_curvature import AlongLine, sample_curvature
from opposing_signals.curvature.tracking import EigenTracker
from opposing_signals.errors import InputError

Loss = Callable[[Tensor, Tensor], Tensor]


class Hessian:
    """H = ∇²L(θ) of the mean loss L over a training set, at the model's current weights.

    ``H @ v`` is exact up to rounding, and leaves model, gradients and random state as they were. Batch norm in training
    mode normalizes by each chunk, as it does in training: the chunk size is then part of the definition of L.

    Args:
        model: Maps ``[n, ...]`` inputs to ``[n, C]`` outputs; or an `EmpiricalRisk`, with nothing else.
        loss: Per-sample loss, (outputs, targets) ↦ ``[n]``, such as ``torch.nn.CrossEntropyLoss(reduction="none")``.
        data: Inputs ``[N, ...]`` and targets ``[N]`` or ``[N, C]``, in the model's precision and on its device.
        chunk: Examples per forward pass; None for all.
        differences: Compute ``H @ v`` by central differences of gradients (`GradientDifferences`), for a model without
            second derivatives, such as one with a custom kernel. The relative error is about 1e-8 in float64 and 1e-4
            in float32 for a smooth model; with ReLUs, float32 gives no usable product.

    Raises:
        InputError: Loss or data are missing, or the chunk is not from 1 to N. Products raise it as
            `EmpiricalRisk.hessian_products` does, for instance if the model's second derivatives would be wrong.

    Examples:
        A linear model with half the squared error has H = (1/N) Σ x xᵀ, the same for every weight.

        >>> import torch
        >>> from opposing_signals import Hessian
        >>> x = torch.tensor([[2.0, 0.0], [0.0, 4.0]])
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> H = Hessian(model, lambda outputs, targets: (outputs - targets).square().sum(1) / 2, (x, torch.zeros(2, 1)))
        >>> H.shape
        (2, 2)
        >>> H @ torch.tensor([1.0, 1.0])
        tensor([2., 8.])
        >>> H @ torch.eye(2)
        tensor([[2., 0.],
                [0., 8.]])

        Its eigenpairs, and what each example contributes along the first eigenvector:

        >>> pairs = H.eigenpairs(2, tolerance=1e-6)
        >>> pairs.values.round(decimals=3)
        tensor([8., 2.], dtype=torch.float64)
        >>> H.along(pairs.vector).curvatures.round(decimals=3)
        tensor([ 0., 16.])

        The norms of the per-example gradients:

        >>> _ = torch.nn.init.ones_(model.weight)
        >>> H.gradient_norms()
        tensor([ 4., 16.])
    """

    def __init__(
        self,
        model: nn.Module | EmpiricalRisk,
        loss: Loss | None = None,
        data: tuple[Tensor, Tensor] | None = None,
        chunk: int | None = None,
        *,
        differences: bool = False,
    ) -> None:
        self._by_differences = differences
        if isinstance(model, EmpiricalRisk):
            if loss is not None or data is not None or chunk is not None:
                raise InputError("Hessian(risk) has model, loss, data and chunk of the risk: expected nothing else")
            self.risk = model
        elif loss is None or data is None:
            raise InputError("Hessian(model): expected Hessian(model, loss, (inputs, targets)), or Hessian(risk)")
        else:
            inputs, targets = data
            self.risk = EmpiricalRisk(
                model, loss, inputs, targets, chunk=chunk or len(inputs), precision="unchanged", channels_last=False
            )

    @property
    def shape(self) -> tuple[int, int]:
        """(P, P)."""
        size = sum(parameter.numel() for parameter in self.risk.parameters)
        return size, size

    def __matmul__(self, vectors: Tensor) -> Tensor:
        """H v of a vector ``[P]``, or H V of k columns ``[P, k]``, in one pass.

        Raises:
            InputError: The vectors have another length than θ; or see the class.
        """
        if vectors.ndim == 2:
            return self._products(vectors.T.contiguous()).T
        return self._products(vectors[None])[0]

    @property
    def _products(self) -> Products:
        """Products with H at the current θ."""
        if self._by_differences:
            differences = GradientDifferences(self.risk)
            return lambda vectors: differences.both_sides(vectors)[0]
        return lambda vectors: self.risk.hessian_products(vectors).products

    def eigenpairs(
        self,
        k: int = 1,
        which: Which = "largest",
        tolerance: float = 0.01,
        max_products: int = 200,
        above: float | None = None,
    ) -> Eigenpairs:
        """The k extreme eigenvalues and their eigenvectors, with residuals.

        Args:
            k: How many; with ``above``, at most.
            which: The algebraically largest, the smallest, or the largest in absolute value.
            tolerance: Stop when every residual is at most this fraction of the first eigenvalue.
            max_products: Stop after this many products in any case; at least k.
            above: Find all eigenvalues beyond this one, and at least the first; see `EigenTracker`.

        Raises:
            InputError: A setting that cannot work; or see the class.
        """
        tracker = EigenTracker(k, which, tolerance, max_products, above=above)
        return tracker(self._products, flatten([parameter.detach() for parameter in self.risk.parameters]))

    def along(self, vector: Tensor) -> AlongLine:
        """Loss, slope and curvature vᵀ∇²ℓ_i v of every example's own loss along ``vector`` ``[P]``; see `AlongLine`.

        Raises:
            InputError: See `sample_curvature`.
        """
        return sample_curvature(self.risk, vector)

    def gradient_norms(self) -> Tensor:
        """``[N]`` ‖∇ℓ_i(θ)‖ of every example; see `opposing_signals.curvature.gradient_norms`.

        Raises:
            InputError: See there.
        """
        return gradient_norms(self.risk)
