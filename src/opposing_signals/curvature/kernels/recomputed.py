"""Attention, group norm, weight norm and activations: PyTorch's first derivative and our own second one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.nn.attention import SDPBackend, sdpa_kernel

from opposing_signals.curvature.any_order import prelu, weight_norm

attention, multi_head_attention = F.scaled_dot_product_attention, F.multi_head_attention_forward
group_norm, native_weight_norm = F.group_norm, torch._weight_norm


class _Recomputed(Function):
    """A function whose first derivative runs in a kernel without a second derivative, or without one of the same bits.

    Its first derivative is PyTorch's own, its second that of ``twice``, the same function in a form that PyTorch can
    differentiate twice. Each recomputes the function from its inputs.
    """

    @staticmethod
    def forward(ctx: Any, once: Callable[..., Tensor], twice: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        ctx.save_for_backward(*inputs)
        ctx.once, ctx.twice = once, twice
        return once(*inputs)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *_RecomputedBackward.apply(slope, ctx.once, ctx.twice, *ctx.saved_tensors)


class _RecomputedBackward(Function):
    @staticmethod
    def forward(
        ctx: Any, slope: Tensor, once: Callable[..., Tensor], twice: Callable[..., Tensor], *inputs: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(slope, *inputs)
        ctx.twice = twice
        inputs = tuple(tensor.detach().requires_grad_() for tensor in inputs)
        with torch.enable_grad():
            output = once(*inputs)
        return torch.autograd.grad(output, inputs, slope)

    @staticmethod
    def backward(ctx: Any, *duals: Tensor) -> tuple[Tensor | None, ...]:
        slope, *inputs = (tensor.detach().requires_grad_() for tensor in ctx.saved_tensors)
        with torch.enable_grad():
            slopes = torch.autograd.grad(ctx.twice(*inputs), inputs, slope, create_graph=True)
            in_slope, *in_inputs = torch.autograd.grad(slopes, [slope, *inputs], duals, materialize_grads=True)
        return in_slope, None, None, *in_inputs


def twice_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *options: Any, **named: Any
) -> Tensor:
    """`F.scaled_dot_product_attention`; its second derivative is that of the math kernel."""

    def once(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return attention(query, key, value, attn_mask, *options, **named)

    def twice(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            return once(query, key, value)

    if attn_mask is not None and attn_mask.requires_grad:
        return twice(query, key, value)
    return _Recomputed.apply(once, twice, query, key, value)


def twice_group_norm(
    input: Tensor,  # noqa: A002  # the name that callers of F.group_norm use
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """`F.group_norm`; PyTorch's kernel for the first derivative rounds differently where a graph is asked for."""
    if weight is None or bias is None:
        return group_norm(input, num_groups, weight, bias, eps)

    def kernel(values: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return group_norm(values, num_groups, weight, bias, eps)

    return _Recomputed.apply(kernel, kernel, input, weight, bias)


def twice_weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """`torch._weight_norm`."""
    return _Recomputed.apply(partial(native_weight_norm, dim=dim), partial(weight_norm, dim=dim), v, g)


def twice_activation(once: Callable[..., Tensor], twice: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """An activation with the values and first derivative of ``once``, and the second derivative of ``twice``."""

    def activation(input: Tensor, inplace: bool = False) -> Tensor:  # noqa: A002  # the name that callers use
        output = _Recomputed.apply(once, twice, input.clone() if inplace else input)
        return input.copy_(output) if inplace else output

    return activation


def twice_prelu(input: Tensor, weight: Tensor) -> Tensor:  # noqa: A002
    """`F.prelu`."""
    return _Recomputed.apply(F.prelu, prelu, input, weight)


def twice_multi_head_attention(*args: Any, **kwargs: Any) -> Any:
    """`nn.MultiheadAttention`'s function; calls inside a Python function of torch's do not reach a function mode."""
    with patch.object(F, "scaled_dot_product_attention", twice_attention):
        return multi_head_attention(*args, **kwargs)
