"""Layers whose second derivatives are cheap and right.

PyTorch differentiates convolution, batch norm and ReLU twice through chains of small kernels: the double backward of a
convolution transposes batch and channels to express a weight gradient as another convolution, that of batch norm runs
as some thirty unfused elementwise passes, and that of a ReLU writes zeros and adds them. Written down by hand, the
first is four calls of the very kernels that training uses, the second two reductions and two linear combinations, the
third one pass. A Hessian-vector product of a residual network then costs little more than the two gradients that the
arithmetic needs.

The first derivatives below call the same kernels in the same order as PyTorch's own, so a gradient computed in
`TwiceDifferentiable` is bit-identical to that of plain training.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import CheckpointError

from opposing_signals.curvature.any_order import DERIVATIVES, hard_sigmoid, mish, per_channel, prelu, silu, weight_norm
from opposing_signals.errors import InputError

aten = torch.ops.aten
attention, multi_head_attention = F.scaled_dot_product_attention, F.multi_head_attention_forward
group_norm, native_weight_norm = F.group_norm, torch._weight_norm


class TwiceDifferentiable(TorchFunctionMode):
    """Within this mode, calls of convolution, batch norm, ReLU, attention and weight norm are right and cheap to
    differentiate twice.

    It works on functions, not on modules, so it does not matter how a model is written. Everything else keeps the
    derivatives of PyTorch, which are right to second order in reverse mode for what the tests go through.

    Raises:
        InputError: A derivative is taken inside, of which this one would be the third: see `AnyOrder`.
    """

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Replace what is slow or has no second derivative."""
        if func in DERIVATIVES:
            raise InputError(
                "the model takes a gradient inside its forward pass, and did not when it was first seen: expected that "
                "it takes one for every batch or for none; leave out the instruments that measure curvature"
            )
        if torch._C._are_functorch_transforms_active():  # which custom functions cannot enter
            return func(*args, **(kwargs or {}))
        replacement = _REPLACEMENTS.get(func, func)
        return replacement(*args, **(kwargs or {}))


def check_layers(model: nn.Module) -> None:
    """Refuse a model whose second derivatives would be wrong or random.

    Raises:
        InputError: A dropout layer is active, spectral norm moves its vectors, the model was compiled, or a weight is
            complex.
    """
    for name, parameter in model.named_parameters():
        if parameter.is_complex():
            raise InputError(
                f"the parameter {name!r} is complex: expected real ones; hold both parts in a real parameter and join "
                "them by torch.view_as_complex"
            )
    for name, module in model.named_modules():
        if isinstance(module, _DropoutNd) and module.training and module.p > 0:
            raise InputError(
                f"layer {name!r} is {type(module).__name__}(p={module.p}) in training mode: its loss is random and has "
                "no curvature of its own; set p=0, or put the layer in evaluation mode"
            )
        of_hooks = (hook for hook in module._forward_pre_hooks.values() if isinstance(hook, SpectralNorm))
        if module.training and (isinstance(module, _SpectralNorm) or any(of_hooks)):
            raise InputError(
                f"layer {name!r} has spectral norm in training mode, which moves its vectors in every forward pass: "
                "the loss is no function of the weights alone; put the layer in evaluation mode"
            )
        # By torch.compile, whose class lives in a slow import, or in place.
        if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None):
            raise InputError(
                "a compiled model has no second derivatives: pass the model itself, and compile training only"
            )


def check_graph(gradient: Sequence[Tensor]) -> None:
    """Refuse a gradient through a function marked `once_differentiable`: PyTorch would drop its terms in silence.

    Raises:
        InputError: There is such a function in the graph of ``gradient``.
    """
    seen: set[Any] = set()
    waiting = [piece.grad_fn for piece in gradient]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting.extend(following for following, _ in node.next_functions)
            if node.name() == "torch::autograd::Error":
                raise InputError(
                    "the model has a layer whose backward is marked once_differentiable, so its second derivatives "
                    "are missing: replace the layer, or leave out the instruments that measure curvature"
                )


@contextmanager
def refusing_missing_derivatives() -> Iterator[None]:
    """Name the function that PyTorch differentiates only once.

    Raises:
        InputError: Its second derivative was asked for.
    """
    try:
        yield
    except RuntimeError as error:
        name = re.search(r"derivative for '?(?:aten::)?(\w+)'? is not implemented", str(error))
        if name is None:
            raise
        raise InputError(
            f"the model or its loss has no second derivative, of which PyTorch lacks that of {name[1]}: replace the "
            "function, or leave out the instruments that measure curvature"
        ) from error


@contextmanager
def refusing_checkpoints() -> Iterator[None]:
    """Name what is wrong where a forward pass that a layer repeats in the backward pass is not as the first was.

    Raises:
        InputError: The model uses `torch.utils.checkpoint`, and the measurement cannot go with it.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_of_checkpoints(error):
            raise
        raise InputError(
            "the model computes activations twice (torch.utils.checkpoint), and the second time outside of what "
            "measures it: switch that off, or leave out the instruments that measure curvature and gradient norms"
        ) from error


def is_of_checkpoints(error: Exception) -> bool:
    """Whether `torch.utils.checkpoint` raised it."""
    return isinstance(error, CheckpointError) or "use_reentrant" in str(error)


# -- convolution ------------------------------------------------------------------------------------------------


class _Geometry(NamedTuple):
    """What `aten.convolution` takes behind input, weight and bias; never transposed."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def convolve(self, values: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        origin = [0] * len(self.stride)
        return aten.convolution(
            values, weight, bias, self.stride, self.padding, self.dilation, False, origin, self.groups
        )

    def backward(
        self, slope: Tensor, values: Tensor, weight: Tensor, bias: list[int] | None, mask: list[bool]
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Derivatives in values, weight and bias, where ``mask`` asks for them; ``bias`` is its shape."""
        origin = [0] * len(self.stride)
        return aten.convolution_backward(
            slope, values, weight, bias, self.stride, self.padding, self.dilation, False, origin, self.groups, mask
        )


class _Convolution(Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, bias: Tensor | None, geometry: _Geometry) -> Tensor:
        ctx.save_for_backward(values, weight)
        ctx.geometry, ctx.bias = geometry, None if bias is None else list(bias.shape)
        return geometry.convolve(values, weight, bias)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        values, weight = ctx.saved_tensors
        mask = list(ctx.needs_input_grad[:3])
        return *_ConvolutionBackward.apply(slope, values, weight, ctx.bias, ctx.geometry, mask), None


class _ConvolutionBackward(Function):
    """(g, x, W) ↦ (∂x, ∂W, ∂b): bilinear each, so that their own derivatives are convolutions of the same kind.

    A g that comes out of a batch norm is not kept, but computed again from what the batch norm keeps: it would be a
    quarter of the graph's memory, and is one linear combination.
    """

    @staticmethod
    def forward(
        ctx: Any, slope: Tensor, values: Tensor, weight: Tensor, bias: Any, geometry: _Geometry, mask: list[bool]
    ) -> Any:
        ctx.set_materialize_grads(False)
        origin = getattr(slope, "origin", None)
        ctx.geometry, ctx.is_normalized = geometry, origin is not None
        ctx.save_for_backward(values, weight, *([slope] if origin is None else origin))
        return geometry.backward(slope, values, weight, bias, mask)

    @staticmethod
    def backward(
        ctx: Any, values_dual: Tensor | None, weight_dual: Tensor | None, bias_dual: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        values, weight, *origin = ctx.saved_tensors
        slope = slope_through_batch_norm(*origin) if ctx.is_normalized else origin[0]
        needs_slope, needs_values, needs_weight = ctx.needs_input_grad[:3]
        in_slope = in_values = in_weight = None
        if values_dual is not None:
            if needs_slope:
                in_slope = ctx.geometry.convolve(values_dual, weight)
            if needs_weight:
                in_weight = ctx.geometry.backward(slope, values_dual, weight, None, [False, True, False])[1]
        if weight_dual is not None:
            if needs_slope:
                image = ctx.geometry.convolve(values, weight_dual)
                in_slope = image if in_slope is None else in_slope.add_(image)
            if needs_values:
                in_values = ctx.geometry.backward(slope, values, weight_dual, None, [True, False, False])[0]
        if bias_dual is not None and needs_slope:
            constant = per_channel(bias_dual, slope).expand_as(slope)
            in_slope = constant.clone() if in_slope is None else in_slope.add_(constant)
        return in_slope, in_values, in_weight, None, None, None


def of_each_axis(value: int | Sequence[int], dimensions: int) -> tuple[int, ...]:
    """Stride, padding or dilation as torch takes it, one number for all axes or one for each, as one for each."""
    return (value,) * dimensions if isinstance(value, int) else tuple(value) * (dimensions // len(value))


def _convolution(native: Callable[..., Tensor], dimensions: int) -> Callable[..., Tensor]:
    def convolution(
        input: Tensor,  # noqa: A002  # the name that callers of F.conv2d use
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor:
        if isinstance(padding, str) or input.ndim != dimensions + 2:
            return native(input, weight, bias, stride, padding, dilation, groups)

        strides, paddings, dilations = (of_each_axis(value, dimensions) for value in (stride, padding, dilation))
        geometry = _Geometry(strides, paddings, dilations, groups)
        return _Convolution.apply(input, weight, bias, geometry)

    return convolution


# -- batch norm -------------------------------------------------------------------------------------------------


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
        output, mean, inverse_deviation, reserve, kernel = torch._batch_norm_impl_index(
            values, weight, bias, running_mean, running_var, True, momentum, eps, torch.backends.cudnn.enabled
        )
        ctx.save_for_backward(values, weight, mean, inverse_deviation, reserve)
        ctx.eps, ctx.kernel = eps, kernel
        return output

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        mask = list(ctx.needs_input_grad[:3])
        return *_BatchNormBackward.apply(slope, *ctx.saved_tensors, ctx.eps, ctx.kernel, mask), None, None, None, None


class _BatchNormBackward(Function):
    """(g, x, γ) ↦ (∂x, ∂γ, ∂β) of y = γ x̂ + β with x̂ = s (x − μ), s = 1/√(var + ε).

    Per channel with n values: ∂x = γ P g, ∂γ = x̂·g, ∂β = 1·g, where P g = s (g − 1·g/n − x̂ (x̂·g)/n) is the
    (symmetric) Jacobian of x̂. Contracted with duals (u, a, b) it gives φ = γ s K + a x̂·g + b 1·g with
    K = u·g − (1·u)(1·g)/n − (x̂·u)(x̂·g)/n, and

        ∂φ/∂g = γ P u + a x̂ + b
        ∂φ/∂x = −γ s/n (s K x̂ + (x̂·g) P u + (x̂·u) P g) + a P g
        ∂φ/∂γ = s K

    so that beside four reductions, two of them known from the first backward, both are linear combinations of u, g
    and x with one coefficient a channel.
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
        mask: list[bool],
    ) -> Any:
        ctx.set_materialize_grads(False)
        in_values, in_weight, in_bias = aten._batch_norm_impl_index_backward(
            kernel, values, slope, weight, None, None, mean, inverse_deviation, True, eps, mask, reserve
        )
        if in_weight is None or in_bias is None:
            in_weight, in_bias = channel_moments(slope, values, mean, inverse_deviation)
        ctx.save_for_backward(slope, values, weight, mean, inverse_deviation, in_weight, in_bias)
        if in_values is not None:  # a sum with other slopes is another tensor, and has no origin
            gamma = torch.ones_like(mean) if weight is None else weight.detach()
            sums = in_weight.detach(), in_bias.detach()
            in_values.origin = slope.detach(), values.detach(), gamma, mean, inverse_deviation, *sums
        return in_values, in_weight if mask[1] else None, in_bias if mask[2] else None

    @staticmethod
    def backward(
        ctx: Any, values_dual: Tensor | None, weight_dual: Tensor | None, bias_dual: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        slope, values, weight, mean, inverse, slope_dot, slope_sum = ctx.saved_tensors
        count = values.numel() // values.shape[1]
        zero = torch.zeros_like(mean)
        gamma = torch.ones_like(mean) if weight is None else weight
        a = zero if weight_dual is None else weight_dual
        b = zero if bias_dual is None else bias_dual
        if values_dual is None:
            curve = dual_dot = dual_sum = zero
        else:
            dual_dot, dual_sum = channel_moments(values_dual, values, mean, inverse)
            product = channel_moments(values_dual, slope, zero, torch.ones_like(mean))[0]
            curve = product - (dual_sum * slope_sum + dual_dot * slope_dot) / count

        def dual_term(coefficient: Tensor) -> list[tuple[Tensor, Tensor]]:
            return [] if values_dual is None else [(coefficient, values_dual)]

        in_slope = in_values = None
        if ctx.needs_input_grad[0]:
            on_dual = gamma * inverse
            on_values = (a - on_dual * dual_dot / count) * inverse
            constant = b - on_dual * dual_sum / count - on_values * mean
            in_slope = channel_combination(constant, *dual_term(on_dual), (on_values, values))
        if ctx.needs_input_grad[1]:
            on_dual = -gamma * inverse.square() * slope_dot / count
            on_slope = -gamma * inverse.square() * dual_dot / count + a * inverse
            on_values = (
                -(gamma * inverse.square() * curve + on_dual * dual_dot + on_slope * slope_dot) * inverse / count
            )
            constant = -(on_dual * dual_sum + on_slope * slope_sum) / count - on_values * mean
            in_values = channel_combination(constant, *dual_term(on_dual), (on_slope, slope), (on_values, values))
        in_weight = inverse * curve if weight is not None else None
        return in_slope, in_values, in_weight, None, None, None, None, None, None


def slope_through_batch_norm(
    slope: Tensor, values: Tensor, gamma: Tensor, mean: Tensor, inverse: Tensor, slope_dot: Tensor, slope_sum: Tensor
) -> Tensor:
    """γ P g, see `_BatchNormBackward`, from ``[C]`` x̂·g and 1·g."""
    count = values.numel() // values.shape[1]
    on_slope = gamma * inverse
    on_values = -on_slope * inverse * slope_dot / count
    constant = -on_slope * slope_sum / count - on_values * mean
    return channel_combination(constant, (on_slope, slope), (on_values, values))


def channel_moments(values: Tensor, by: Tensor, mean: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """``[C]`` values·(scale (by − mean)) and 1·values, of ``[n, C, ...]`` values and by, ``[C]`` mean and scale.

    They are the two reductions of batch norm's own backward.
    """
    # On a GPU the kernel leaves both reductions out where there is no weight; they do not depend on it.
    _, dot, total = aten.native_batch_norm_backward(
        values, by, scale, None, None, mean, scale, True, 0.0, [False, True, True]
    )
    return dot, total


def channel_combination(constant: Tensor, *terms: tuple[Tensor, Tensor]) -> Tensor:
    """``[n, C, ...]``: constant + Σ coefficient x tensor, with a ``[C]`` constant and ``[C]`` coefficients."""
    (coefficient, tensor), *others = terms
    if tensor.is_contiguous():  # there addcmul is not vectorized when two operands broadcast
        result = torch.mul(tensor, per_channel(coefficient, tensor)).add_(per_channel(constant, tensor))
    else:  # without ``out`` addcmul takes several times as long in channels_last
        result = torch.empty_like(tensor)
        torch.addcmul(per_channel(constant, tensor), tensor, per_channel(coefficient, tensor), out=result)
    for coefficient, tensor in others:
        result.addcmul_(tensor, per_channel(coefficient, tensor))
    return result


def _batch_norm(
    input: Tensor,  # noqa: A002  # the name that callers of F.batch_norm use
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not training:
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    if input.numel() == input.shape[1]:
        raise ValueError(f"batch norm in training mode needs more than one value a channel, got {list(input.shape)}")
    return _BatchNorm.apply(input, weight, bias, running_mean, running_var, momentum, eps)


# -- ReLU -------------------------------------------------------------------------------------------------------


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
    """g ↦ g where the output is positive; almost everywhere constant in the output."""

    @staticmethod
    def forward(ctx: Any, slope: Tensor, output: Tensor) -> Tensor:
        ctx.save_for_backward(output)
        return aten.threshold_backward(slope, output, 0)

    @staticmethod
    def backward(ctx: Any, dual: Tensor) -> tuple[Tensor, None]:
        return aten.threshold_backward(dual, *ctx.saved_tensors, 0), None


def _relu(input: Tensor, inplace: bool = False) -> Tensor:  # noqa: A002  # the name that callers of F.relu use
    return _ReLU.apply(input, inplace)


# -- attention, group norm, weight norm and activations -----------------------------------------------------------


class _Recomputed(Function):
    """A function whose first derivative runs in a kernel that has no second derivative, or none with the same bits.

    Its first derivative is PyTorch's own, its second that of ``twice``, the same function written such that PyTorch
    can differentiate it twice; each recomputes the function from its inputs.
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


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *options: Any, **named: Any
) -> Tensor:
    def once(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return attention(query, key, value, attn_mask, *options, **named)

    def twice(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            return once(query, key, value)

    if attn_mask is not None and attn_mask.requires_grad:
        return twice(query, key, value)
    return _Recomputed.apply(once, twice, query, key, value)


def _group_norm(
    input: Tensor,  # noqa: A002  # the name that callers of F.group_norm use
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """PyTorch's kernel for the first derivative is another one where a graph is asked for: same values, other bits."""
    if weight is None or bias is None:
        return group_norm(input, num_groups, weight, bias, eps)

    def kernel(values: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return group_norm(values, num_groups, weight, bias, eps)

    return _Recomputed.apply(kernel, kernel, input, weight, bias)


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    return _Recomputed.apply(partial(native_weight_norm, dim=dim), partial(weight_norm, dim=dim), v, g)


def _activation(once: Callable[..., Tensor], twice: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    def activation(input: Tensor, inplace: bool = False) -> Tensor:  # noqa: A002  # the name that callers use
        output = _Recomputed.apply(once, twice, input.clone() if inplace else input)
        return input.copy_(output) if inplace else output

    return activation


def _prelu(input: Tensor, weight: Tensor) -> Tensor:  # noqa: A002
    return _Recomputed.apply(F.prelu, prelu, input, weight)


def _multi_head_attention(*args: Any, **kwargs: Any) -> Any:
    """`nn.MultiheadAttention`'s function; calls inside a Python function of torch's do not reach a function mode."""
    with patch.object(F, "scaled_dot_product_attention", _attention):
        return multi_head_attention(*args, **kwargs)


_REPLACEMENTS: dict[Callable, Callable] = {
    torch.conv1d: _convolution(torch.conv1d, 1),
    torch.conv2d: _convolution(torch.conv2d, 2),
    torch.conv3d: _convolution(torch.conv3d, 3),
    F.batch_norm: _batch_norm,
    F.relu: _relu,
    torch.relu: _relu,
    Tensor.relu: _relu,
    torch.relu_: partial(_relu, inplace=True),
    Tensor.relu_: partial(_relu, inplace=True),
    group_norm: _group_norm,
    F.hardsigmoid: _activation(F.hardsigmoid, hard_sigmoid),
    F.prelu: _prelu,
    F.silu: _activation(F.silu, silu),
    F.mish: _activation(F.mish, mish),
    native_weight_norm: _weight_norm,
    attention: _attention,
    multi_head_attention: _multi_head_attention,
}
