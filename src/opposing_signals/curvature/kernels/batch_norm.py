"""Batch norm in training mode: two reductions and two linear combinations for its second derivative.

Where several processes each have a piece of a chunk (`over_processes`), the reductions run over all of them, in the
forward pass and in both derivatives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.overrides import TorchFunctionMode

from opposing_signals.curvature.any_order import as_in_torch, per_channel
from opposing_signals.curvature.normalization import (
    BatchNorm,
    by_statistics,
    in_training,
    is_split,
    moments,
    statistics_over_processes,
)
from opposing_signals.processes import summed

aten = torch.ops.aten

_OVER_PROCESSES = -1
"""Kernel number of the code below, in addition to PyTorch's own numbers."""


class _BatchNorm(Function):
    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        momentum: float,
        eps: float,
    ) -> Tensor:
        if is_split():
            mean, variance, size = moments(values)
            inverse_deviation, reserve, kernel = (variance + eps).rsqrt(), mean.new_empty(0), _OVER_PROCESSES
            output = by_statistics(values.to(mean), mean, inverse_deviation, weight, bias).to(values)
            if running_mean is not None and running_var is not None:
                running_mean.lerp_(mean.to(running_mean), momentum)
                running_var.lerp_((variance * (size / (size - 1))).to(running_var), momentum)
        else:
            size = values.numel() // values.shape[1]
            output, mean, inverse_deviation, reserve, kernel = torch._batch_norm_impl_index(
                values, weight, bias, running_mean, running_var, True, momentum, eps, torch.backends.cudnn.enabled
            )
        ctx.save_for_backward(values, weight, mean, inverse_deviation, reserve)
        ctx.eps, ctx.kernel, ctx.size = eps, kernel, size
        return output

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        mask = list(ctx.needs_input_grad[:3])
        options = ctx.eps, ctx.kernel, ctx.size, mask
        return *_BatchNormBackward.apply(slope, *ctx.saved_tensors, *options), None, None, None, None


class _BatchNormBackward(Function):
    """(g, x, γ) ↦ (∂x, ∂γ, ∂β) of y = γ x̂ + β with x̂ = s (x − μ), s = 1/√(var + ε).

    Per channel with n values: ∂x = γ P g, ∂γ = x̂·g, ∂β = 1·g, where P g = s (g − 1·g/n − x̂ (x̂·g)/n) is the
    (symmetric) Jacobian of x̂. Contracted with duals (u, a, b) it gives φ = γ s K + a x̂·g + b 1·g with
    K = u·g − (1·u)(1·g)/n − (x̂·u)(x̂·g)/n, and

        ∂φ/∂g = γ P u + a x̂ + b
        ∂φ/∂x = −γ s/n (s K x̂ + (x̂·g) P u + (x̂·u) P g) + a P g
        ∂φ/∂γ = s K

    so that, apart from four reductions, two of them known from the first backward, both are linear combinations of u, g
    and x with one coefficient per channel.

    Over processes, n and the reductions are those of the whole chunk. ∂γ, ∂β and ∂φ/∂γ are one process's contributions,
    because gradients are summed over processes at the end.
    """

    @staticmethod
    def forward(
        ctx: Any,
        slope: Tensor,
        values: Tensor,
        weight: Tensor | None,
        mean: Tensor,
        inverse_deviation: Tensor,
        reserve: Tensor,
        eps: float,
        kernel: int,
        size: int,
        mask: list[bool],
    ) -> Any:
        ctx.set_materialize_grads(False)
        ctx.size, ctx.is_split = size, kernel == _OVER_PROCESSES
        gamma = torch.ones_like(mean) if weight is None else weight.detach()
        if ctx.is_split:
            slope, values = slope.to(mean), values.to(mean)
            in_weight, in_bias = channel_moments(slope, values, mean, inverse_deviation)
            means = _over_chunk(ctx, in_weight, in_bias)
            in_values: Any = slope_through_batch_norm(slope, values, gamma, mean, inverse_deviation, *means)
        else:
            in_values, in_weight, in_bias = aten._batch_norm_impl_index_backward(
                kernel, values, slope, weight, None, None, mean, inverse_deviation, True, eps, mask, reserve
            )
            if in_weight is None or in_bias is None:
                in_weight, in_bias = channel_moments(slope, values, mean, inverse_deviation)
            means = _over_chunk(ctx, in_weight, in_bias)
        ctx.save_for_backward(slope, values, weight, mean, inverse_deviation, *means)
        if in_values is not None:  # a sum with other slopes is a new tensor, without an origin
            in_values.origin = slope.detach(), values.detach(), gamma, mean, inverse_deviation, *means
        return in_values, in_weight if mask[1] else None, in_bias if mask[2] else None

    @staticmethod
    def backward(
        ctx: Any, values_dual: Tensor | None, weight_dual: Tensor | None, bias_dual: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        slope, values, weight, mean, inverse, slope_dot, slope_sum = ctx.saved_tensors
        zero = torch.zeros_like(mean)
        gamma = torch.ones_like(mean) if weight is None else weight
        a = zero if weight_dual is None else weight_dual
        b = zero if bias_dual is None else bias_dual
        if values_dual is None:
            own_curve = curve = dual_dot = dual_sum = zero
        else:
            values_dual = values_dual.to(mean)
            own_dot, own_sum = channel_moments(values_dual, values, mean, inverse)
            product = channel_moments(values_dual, slope, zero, torch.ones_like(mean))[0]
            own_curve = product - (own_sum * slope_sum + own_dot * slope_dot)
            dual_dot, dual_sum, curve = _over_chunk(ctx, own_dot, own_sum, own_curve)

        def dual_term(coefficient: Tensor) -> list[tuple[Tensor, Tensor]]:
            return [] if values_dual is None else [(coefficient, values_dual)]

        in_slope = in_values = None
        if ctx.needs_input_grad[0]:
            on_dual = gamma * inverse
            on_values = (a - on_dual * dual_dot) * inverse
            constant = b - on_dual * dual_sum - on_values * mean
            in_slope = channel_combination(constant, *dual_term(on_dual), (on_values, values))
        if ctx.needs_input_grad[1]:
            on_dual = -gamma * inverse.square() * slope_dot
            on_slope = -gamma * inverse.square() * dual_dot + a * inverse
            on_values = -(gamma * inverse.square() * curve + on_dual * dual_dot + on_slope * slope_dot) * inverse
            constant = -(on_dual * dual_sum + on_slope * slope_sum) - on_values * mean
            in_values = channel_combination(constant, *dual_term(on_dual), (on_slope, slope), (on_values, values))
        in_weight = inverse * own_curve if weight is not None else None
        return in_slope, in_values, in_weight, *[None] * 7


def _over_chunk(ctx: Any, *sums: Tensor) -> Iterable[Tensor]:
    """``[C]`` sums over this process's values of a channel, as means over all values of the chunk."""
    together = torch.stack(sums)
    return ((summed(together) if ctx.is_split else together) / ctx.size).unbind()


def slope_through_batch_norm(
    slope: Tensor, values: Tensor, gamma: Tensor, mean: Tensor, inverse: Tensor, slope_dot: Tensor, slope_sum: Tensor
) -> Tensor:
    """γ P g, see `_BatchNormBackward`, from ``[C]`` x̂·g/n and 1·g/n."""
    on_slope = gamma * inverse
    on_values = -on_slope * inverse * slope_dot
    constant = -on_slope * slope_sum - on_values * mean
    return channel_combination(constant, (on_slope, slope), (on_values, values))


def channel_moments(values: Tensor, by: Tensor, mean: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """``[C]`` values·(scale (by − mean)) and 1·values, of ``[n, C, ...]`` values and by, ``[C]`` mean and scale.

    These are the two reductions of batch norm's own backward.
    """
    # Without a weight, the GPU kernel skips both reductions; they do not depend on its value.
    _, dot, total = aten.native_batch_norm_backward(
        values, by, scale, None, None, mean, scale, True, 0.0, [False, True, True]
    )
    return dot, total


def channel_combination(constant: Tensor, *terms: tuple[Tensor, Tensor]) -> Tensor:
    """``[n, C, ...]``: constant + Σ coefficient x tensor, with a ``[C]`` constant and ``[C]`` coefficients."""
    (coefficient, tensor), *others = terms
    if tensor.is_contiguous():  # here addcmul is not vectorized when two operands broadcast
        result = torch.mul(tensor, per_channel(coefficient, tensor)).add_(per_channel(constant, tensor))
    else:  # without ``out`` addcmul takes several times as long in channels_last
        result = torch.empty_like(tensor)
        torch.addcmul(per_channel(constant, tensor), tensor, per_channel(coefficient, tensor), out=result)
    for coefficient, tensor in others:
        result.addcmul_(tensor, per_channel(coefficient, tensor))
    return result


@in_training
def batch_norm(call: BatchNorm) -> Tensor:
    """`F.batch_norm`."""
    shape = list(call.input.shape)
    if call.input.numel() == shape[1]:
        raise ValueError(f"batch norm in training mode needs more than one value a channel, got {shape}")
    statistics = call.running_mean, call.running_var, call.momentum, call.eps
    return _BatchNorm.apply(call.input, call.weight, call.bias, *statistics)


class _OverProcesses(TorchFunctionMode):
    """Calls the kernel above even where no second derivative is wanted."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Replace batch norm."""
        return _RULES.get(func, func)(*args, **(kwargs or {}))


_RULES = {F.batch_norm: batch_norm, torch.batch_norm: as_in_torch(batch_norm)}
"""`F.batch_norm` before `captured` or `frozen` patch it; their replacement calls this one."""


@contextmanager
def over_processes(is_split: bool) -> Iterator[None]:
    """Inside, each process has a piece of the same chunk, over which batch norm takes its statistics, if ``is_split``.

    All processes must make the same calls in the same order, in forward and backward passes.
    """
    with statistics_over_processes() if is_split else nullcontext(), _OverProcesses() if is_split else nullcontext():
        yield
