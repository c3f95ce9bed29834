"""Sharpness-aware minimization, with one ascent step per batch (SAM) or per sample (1-SAM); §5."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap
from torch.nn import Embedding
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.optimizer import ParamsT

from opposing_signals.curvature.chunks import Batch
from opposing_signals.curvature.examples import check_independence
from opposing_signals.curvature.risk import EmpiricalRisk
from opposing_signals.errors import InputError
from opposing_signals.optim.groups import DECAY, NOT_NEGATIVE, Rule, called, descend, with_gradient
from opposing_signals.processes import summed_together
from opposing_signals.values import Decay, NotNegative, Positive

_RANGES = MappingProxyType({"lr": NOT_NEGATIVE, "rho": NOT_NEGATIVE, "momentum": DECAY})
_WEIGHTS = {"cpu": 4_000_000, "cuda": 200_000_000}  # copies of weights held at once, in entries


class SAM(Rule):
    """SGD with the gradient at θ + ρ ∇L/‖∇L‖ (Foret et al. 2021); the norm is over all parameters.

    The closure is called twice, at θ and at the perturbed weights, and ``.grad`` holds the latter gradient afterwards.
    θ is restored to the bit before the step. Both calls update batch norm's running statistics, which have no effect in
    training, because it normalizes by the chunk.

    Args:
        params: As for any torch optimizer.
        lr: Step size of the descent.
        rho: ρ, the length of the ascent step.
        momentum: Of the descent, as in `torch.optim.SGD`.

    Raises:
        InputError: A number is negative, or the momentum not below 1.
        RuntimeError: In `step`, a gradient is sparse.
    """

    ranges = _RANGES

    def __init__(self, params: ParamsT, lr: Positive = 0.1, rho: NotNegative = 0.05, momentum: Decay = 0.0) -> None:
        super().__init__(params, {"lr": lr, "rho": rho, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float]) -> float | None:  # type: ignore[override]  # the closure is needed
        """Take one step; returns the loss at θ."""
        loss = called(closure)
        seen = [(group["rho"], *with_gradient(group)) for group in self.param_groups]
        moved = [parameter for _, parameters, _ in seen for parameter in parameters]
        kept = [parameter.clone() for parameter in moved]
        norm = _norm([gradient for _, _, gradients in seen for gradient in gradients])
        for rho, parameters, gradients in seen:
            scale = torch.where(norm > 0, rho / norm, 0)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.add_(gradient * scale.to(gradient))
        called(closure)
        torch._foreach_copy_(moved, kept)
        for group in self.param_groups:
            descend(self, group, *with_gradient(group))
        return loss


class OneSAM(Rule):
    """SGD with the mean of the gradients ∇ℓ_i(θ + ρ ∇ℓ_i/‖∇ℓ_i‖): every sample of the batch has its own ascent step.

    1-SAM is m-SAM of Foret et al. 2021 with m = 1 (Andriushchenko and Flammarion 2022). A closure gives only the mean
    gradient of the batch. The step also needs the loss of each sample as a function of the weights, and which samples
    it uses: see `follow`.

    The closure's pass over the batch only gives the loss; `ascended_gradient` costs two more gradients per sample, each
    with weights of its own.

    Args:
        params: All parameters of the model that `follow` names; one group.
        lr: Step size of the descent.
        rho: ρ, the length of the ascent steps.
        momentum: Of the descent, as in `torch.optim.SGD`.

    Raises:
        InputError: A number is negative, or the momentum not below 1; in `step`, see `ascended_gradient`.
    """

    ranges = _RANGES

    def __init__(self, params: ParamsT, lr: Positive = 0.1, rho: NotNegative = 0.05, momentum: Decay = 0.0) -> None:
        super().__init__(params, {"lr": lr, "rho": rho, "momentum": momentum})
        self._gradient: Callable[[float], list[Tensor]] | None = None

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Take the parameters.

        Raises:
            InputError: There is a group already, or a setting cannot work.
        """
        if self.param_groups:
            raise InputError("1-SAM with several parameter groups: expected one; give it the parameters in one list")
        super().add_param_group(param_group)

    def follow(self, risk: EmpiricalRisk, batch: Callable[[], Batch]) -> None:
        """Set what is trained.

        Args:
            risk: Over the model of this optimizer's parameters.
            batch: Called in each step; returns the examples that it uses.
        """
        self._gradient = lambda rho: ascended_gradient(risk, batch(), rho)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step; returns the loss of ``closure`` at θ, if there is one."""
        if self._gradient is None:
            raise InputError("1-SAM does not know its batches: expected a call of OneSAM.follow before the first step")
        loss = called(closure)
        (group,) = self.param_groups
        descend(self, group, list(group["params"]), self._gradient(group["rho"]))
        return loss


def ascended_gradient(risk: EmpiricalRisk, batch: Batch, rho: NotNegative) -> list[Tensor]:
    """(1/n) Σ ∇ℓ_i(θ + ρ ∇ℓ_i/‖∇ℓ_i‖) over the n examples of a batch, in the shapes of ``risk.parameters``.

    Where the risk has weights, the mean is weighted, as L is.

    It is computed in the precision of the weights. Examples are batched (`torch.func.vmap`), as many as copies of the
    weights fit a limit.

    Raises:
        InputError: A layer couples examples, such as batch norm in training mode, is random, or cannot be evaluated
            with different weights for each example.
    """
    if any(isinstance(module, _BatchNorm) and module.training for module in risk.model.modules()):
        raise InputError(
            "1-SAM with batch norm in training mode: the loss of one example then depends on its chunk; expected a "
            "model without it, as vgg11, vit or mlp"
        )
    if any(isinstance(module, Embedding) and module.padding_idx is not None for module in risk.model.modules()):
        raise InputError(
            "1-SAM with an embedding's padding_idx: torch.func.vmap gives that row a gradient; expected an embedding "
            "without it"
        )
    check_independence(risk, hold_statistics=False)
    parameters = risk.parameters
    at_once = max(1, _WEIGHTS[risk.inputs.device.type] // sum(p.numel() for p in parameters))
    total = [torch.zeros_like(p) for p in parameters]
    with risk.probe(), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # the others have no rule for vmap
        for inputs, targets, shares in _pieces(risk, batch, at_once):
            start = [p.new_zeros(len(inputs), *p.shape).requires_grad_() for p in parameters]
            slopes = torch.autograd.grad(_losses(risk, start, inputs, targets).sum(), start, materialize_grads=True)
            squares = torch.stack([slope.flatten(1).square().sum(1) for slope in slopes]).sum(0)
            scale = torch.where(squares > 0, rho * squares.rsqrt(), 0)
            ascent = [slope * scale.view(-1, *[1] * (slope.ndim - 1)) for slope in slopes]
            del start, slopes
            losses = _losses(risk, ascent, inputs, targets)
            mean = (losses * shares.to(losses)).sum()
            torch._foreach_add_(total, torch.autograd.grad(mean, parameters, materialize_grads=True))
    return list(summed_together(total))


def _pieces(risk: EmpiricalRisk, batch: Batch, examples: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    for chunk, shares in zip(risk.chunks(batch), risk.shares(batch), strict=True):
        yield from zip(*(part.split(examples) for part in (*chunk, shares)), strict=True)


def _losses(risk: EmpiricalRisk, offsets: list[Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
    """``[n]`` ℓ_i(θ + offset_i). The loss stays outside `vmap`, which cannot handle every loss."""
    weights = [p + offset for p, offset in zip(risk.parameters, offsets, strict=True)]

    def output(weights: list[Tensor], example: Tensor) -> Tensor:
        with risk.at(weights):
            return risk.model(example[None])[0]

    try:
        outputs = vmap(output)(weights, inputs)
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"the model cannot be evaluated with other weights for each example, as 1-SAM does "
            f"({str(error).splitlines()[0]}): expected layers of torch.nn that draw no random numbers"
        ) from error
    return risk.loss(outputs, targets)


def _norm(tensors: list[Tensor]) -> Tensor:
    norms = [torch.linalg.vector_norm(tensor) for tensor in tensors]
    return torch.stack([norm.to(norms[0]) for norm in norms]).norm()
