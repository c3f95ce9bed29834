"""The weight gradient of narrow strided 1x1 convolutions, fixed for the whole process by importing this module.

oneDNN, which computes torch's convolution gradients on a CPU, writes past its workspace in one case. With AVX2 but not
AVX-512, in channels_last, the weight gradient of a 1x1 convolution with a stride, fewer than 8 input channels (output
channels if transposed), one group and no padding is wrong, crashes or hangs (oneDNN issue 6035; seen with torch 2.13).
The shortcuts of a ResNet of width 4 are such convolutions. Here this gradient is computed as that of the same
convolution with stride 1, restricted to the pixels that the stride hits: the sums are the same.

The fix replaces `aten::convolution_backward` for CPU tensors, through which all paths to the kernel go: training's
backward pass, double backward, compiled and vmapped models, and direct calls of the kernel. It applies on every CPU and
in every memory layout, so that results do not depend on the machine because of it. Forward passes, input gradients and
other shapes are torch's own, to the bit.
"""

from __future__ import annotations

import torch
from torch import Tensor

_BLOCK = 8
"""Channels that oneDNN's AVX2 kernel processes at once; it overruns a workspace for fewer."""

_Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]

_torchs_own = torch.library.get_kernel("aten::convolution_backward", "CPU")


def _convolution_backward(
    keys: torch._C.DispatchKeySet,
    slope: Tensor,
    values: Tensor,
    weight: Tensor,
    bias: list[int] | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
    mask: list[bool],
) -> _Gradients:
    """Like the operator: gradients in values, weight and bias, where ``mask`` asks for them."""

    def gradients(
        slope: Tensor, values: Tensor, stride: list[int], output_padding: list[int], mask: list[bool]
    ) -> _Gradients:
        geometry = stride, padding, dilation, transposed, output_padding, groups
        return _torchs_own.call_boxed(keys, slope, values, weight, bias, *geometry, mask)

    channels, *kernel = weight.shape[1:]
    is_narrow = channels < _BLOCK and groups == 1
    is_strided_point = max(kernel) == 1 and max(stride) > 1 and not any(padding)
    if not (is_narrow and is_strided_point and any(mask[1:])):
        return gradients(slope, values, stride, output_padding, mask)

    # One call each: torch runs the weight-gradient kernel for the bias gradient too.
    in_values = gradients(slope, values, stride, output_padding, [True, False, False])[0] if mask[0] else None
    in_weight = None
    if mask[1]:
        pair = (_hit(slope, stride), values) if transposed else (slope, _hit(values, stride))
        in_weight = gradients(*pair, [1] * len(stride), [0] * len(stride), [False, True, False])[1]
    in_bias = slope.sum([0, *range(2, slope.ndim)]) if mask[2] else None
    return in_values, in_weight, in_bias


def _hit(images: Tensor, stride: list[int]) -> Tensor:
    """The pixels of ``[n, C, ...]`` images that the stride hits."""
    steps = stride * (images.ndim - 2) if len(stride) == 1 else stride
    for axis, step in enumerate(steps, start=2):
        images = images[(slice(None),) * axis + (slice(None, None, step),)]
    return images


_library = torch.library.Library("aten", "IMPL")  # the override lasts as long as this object
_library.impl("convolution_backward", _convolution_backward, "CPU", with_keyset=True)
