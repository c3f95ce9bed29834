"""ReLU, whose second derivative is one pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

aten = torch.ops.aten


class _ReLU(Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, inplace: bool) -> Tensor:
        output = values.relu_() if inplace else values.relu()
        if inplace:
            ctx.mark_dirty(values)
        ctx.save_for_backward(output)
        return output

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:
        return _ReLUBackward.apply(slope, *ctx.saved_tensors), None


class _ReLUBackward(Function):
    """g ↦ g where the output is positive; constant in the output almost everywhere."""

    @staticmethod
    def forward(ctx: Any, slope: Tensor, output: Tensor) -> Tensor:
        ctx.save_for_backward(output)
        return aten.threshold_backward(slope, output, 0)

    @staticmethod
    def backward(ctx: Any, dual: Tensor) -> tuple[Tensor, None]:
        return aten.threshold_backward(dual, *ctx.saved_tensors, 0), None


def relu(input: Tensor, inplace: bool = False) -> Tensor:  # noqa: A002  # the name that callers of F.relu use
    """`F.relu`."""
    return _ReLU.apply(input, inplace)
