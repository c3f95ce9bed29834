"""Layers whose second derivatives are cheap and correct.

PyTorch differentiates convolution, batch norm and ReLU twice through chains of small kernels: the double backward of a
convolution transposes batch and channels to express a weight gradient as another convolution, that of batch norm runs
as some thirty unfused elementwise passes, and that of a ReLU writes zeros and adds them. Written by hand, the first is
four calls of the kernels that training uses, the second two reductions and two linear combinations, the third one pass.
A Hessian-vector product of a residual network then costs little more than the two gradients that the arithmetic needs.

The first derivatives below call the same kernels in the same order as PyTorch's own, so a gradient computed in
`TwiceDifferentiable` is bit-identical to that of plain training.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from opposing_signals.curvature.any_order import DERIVATIVES, hard_sigmoid, mish, silu
from opposing_signals.curvature.kernels.batch_norm import batch_norm
from opposing_signals.curvature.kernels.convolution import convolution_of
from opposing_signals.curvature.kernels.recomputed import (
    attention,
    group_norm,
    multi_head_attention,
    native_weight_norm,
    twice_activation,
    twice_attention,
    twice_group_norm,
    twice_multi_head_attention,
    twice_prelu,
    twice_weight_norm,
)
from opposing_signals.curvature.kernels.relu import relu
from opposing_signals.errors import InputError


class TwiceDifferentiable(TorchFunctionMode):
    """Within this mode, convolution, batch norm, ReLU, attention, weight norm have correct, cheap second derivatives.

    It works on functions, not on modules, so it does not matter how a model is written. Everything else keeps PyTorch's
    derivatives, which are correct to second order in reverse mode for all that the tests cover.

    Raises:
        InputError: A derivative is taken inside, so that third derivatives would be needed: see `AnyOrder`.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Replace what is slow or has no second derivative."""
        if func in DERIVATIVES:
            raise InputError(
                "the model takes a gradient inside its forward pass, and did not when it was first seen: expected that "
                "it takes one for every batch or for none; leave out the instruments that measure curvature"
            )
        if torch._C._are_functorch_transforms_active():  # custom functions cannot be used there
            return func(*args, **(kwargs or {}))
        replacement = _REPLACEMENTS.get(func, func)
        return replacement(*args, **(kwargs or {}))


_REPLACEMENTS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.conv1d: convolution_of(torch.conv1d, 1),
    torch.conv2d: convolution_of(torch.conv2d, 2),
    torch.conv3d: convolution_of(torch.conv3d, 3),
    F.batch_norm: batch_norm,
    F.relu: relu,
    torch.relu: relu,
    Tensor.relu: relu,
    torch.relu_: partial(relu, inplace=True),
    Tensor.relu_: partial(relu, inplace=True),
    group_norm: twice_group_norm,
    F.hardsigmoid: twice_activation(F.hardsigmoid, hard_sigmoid),
    F.prelu: twice_prelu,
    F.silu: twice_activation(F.silu, silu),
    F.mish: twice_activation(F.mish, mish),
    native_weight_norm: twice_weight_norm,
    attention: twice_attention,
    multi_head_attention: twice_multi_head_attention,
}
