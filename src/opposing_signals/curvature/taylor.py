"""Taylor arithmetic: a network's outputs along a line in parameter space, to second order, in one forward pass.

A jet holds x(t) = x₀ + x₁ t + x₂ t² + O(t³). Running a model on jets of its parameters θ + t v gives ℓ_i(θ + t v) and
so, for every example at once, the slope ∇ℓ_i·v = ℓ_i₁ and the curvature vᵀ∇²ℓ_i v = 2 ℓ_i₂ (Griewank and Walther 2008,
§13). A convolution costs five convolutions, where nested forward mode spends eight and a Hessian-vector product nine;
nothing is kept for a backward pass.

What is linear acts on the coefficients, what is bilinear convolves them, normalizations are written out here, some
functions are composed of others, and the rest are expanded by PyTorch's nested forward mode. The last is silently wrong
through the fused kernels of layer norm and of batch norm in training mode and through some of linear algebra (torch
2.13): the former have rules of their own, and `sample_curvature` looks for what is left.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import jvp
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_flatten, tree_unflatten

from opposing_signals.curvature.any_order import (
    DERIVATIVES,
    as_in_torch,
    hard_sigmoid,
    mish,
    per_channel,
    prelu,
    silu,
    weight_norm,
    without_flag,
)
from opposing_signals.curvature.second_order import aten, channel_combination, channel_moments
from opposing_signals.errors import InputError

Coefficients = tuple[Tensor, Tensor | None, Tensor | None]
"""x₀, x₁, x₂; None is zero."""


class _Memory:
    """What a jet shares with its views: they would change with what is written into one of them, and do not."""

    is_overwritten = False


class Jet(Tensor):
    """A tensor x(t) to second order; it looks like x₀ to the code that computes with it."""

    memory: _Memory
    _coefficients: Coefficients

    @staticmethod
    def __new__(cls, constant: Tensor, slope: Tensor | None = None, curve: Tensor | None = None) -> Jet:
        """A jet of three tensors of one shape."""
        jet = Tensor._make_subclass(cls, constant)
        jet.assign((constant, slope, curve))
        return jet

    @property
    def coefficients(self) -> Coefficients:
        """x₀, x₁, x₂.

        Raises:
            InputError: A view of it, or what it is a view of, was written in place.
        """
        if self.memory.is_overwritten:
            raise _in_place()
        return self._coefficients

    def assign(self, coefficients: Coefficients) -> None:
        """Hold others, which are of no view."""
        self._coefficients, self.memory = coefficients, _Memory()

    @classmethod
    def __torch_function__(
        cls, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Apply ``func`` to jets."""
        return _apply(func, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Refuse what has passed `__torch_function__` by, and would compute with x₀ alone."""
        raise InputError(_OUT_OF_SIGHT)


def orders(value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x₀, x₁, x₂ with zeros written out; a plain tensor does not vary."""
    first, slope, curve = _coefficients(value)
    return (
        first,
        torch.zeros_like(first) if slope is None else slope,
        torch.zeros_like(first) if curve is None else curve,
    )


def constant(value: Any) -> Any:
    """x₀ of a jet; anything else is itself."""
    return value.coefficients[0] if isinstance(value, Jet) else value


def _coefficients(value: Any) -> Coefficients:
    return value.coefficients if isinstance(value, Jet) else (value, None, None)


def _apply(func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    name = getattr(func, "__name__", "")
    if func in DERIVATIVES:
        raise InputError(f"the model takes a gradient inside its forward pass, {_CANNOT}: {_OR_LEAVE_OUT[3:]}")
    if torch._C._are_functorch_transforms_active():
        raise InputError(_OUT_OF_SIGHT)
    if kwargs.get("inplace"):
        return _assign(args[0], _apply(func, args, {**kwargs, "inplace": False}))
    if name in _IN_PLACE:
        return _assign(args[0], _apply(_IN_PLACE[name], args, kwargs))
    if name == "__setitem__" or (name.endswith("_") and not name.endswith("__")) or kwargs.get("out") is not None:
        raise _in_place()
    if func in _COMPOSED:
        return _COMPOSED[func](*args, **kwargs)
    with torch._C.DisableTorchFunctionSubclass():
        result = _expanded(func, name, args, kwargs)
        sources = {_storage(leaf): leaf.memory for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Jet)}
        for leaf in tree_flatten(result)[0]:
            if isinstance(leaf, Jet):
                leaf.memory = sources.get(_storage(leaf), leaf.memory)
        return result


def _expanded(func: Callable, name: str, args: tuple, kwargs: dict[str, Any]) -> Any:
    rule = _RULES.get(func)
    if rule is not None:
        return rule(*args, **kwargs)
    if _FUSED_NORM.search(name):
        raise InputError(
            f"the model calls {name}, {_CANNOT}: call the function of torch.nn.functional, {_OR_LEAVE_OUT}"
        )
    if func in _LINEAR and sum(isinstance(value, Jet) for value in tree_flatten((args, kwargs))[0]) == 1:
        return _per_coefficient(func, args, kwargs)
    with sdpa_kernel(SDPBackend.MATH):
        return _nested(func, args, kwargs)


def _storage(jet: Jet) -> int:
    return jet.coefficients[0].untyped_storage()._cdata


def _varies(value: Any) -> bool:
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())


def _assign(target: Any, value: Jet) -> Jet:
    if not isinstance(target, Jet):
        raise _in_place()
    coefficients = value.coefficients  # of the target itself, where the function does nothing, as inactive dropout
    target.memory.is_overwritten = True
    target.assign(coefficients)
    return target


_CANNOT = "and Taylor arithmetic cannot follow"
_OR_LEAVE_OUT = "or leave out the instruments that measure every point's curvature"
_OUT_OF_SIGHT = (
    "the model uses a transform of torch.func, such as vmap, or a function of torch.jit or of an extension, "
    f"{_CANNOT}: write it without, {_OR_LEAVE_OUT}"
)


def _in_place() -> InputError:
    return InputError(
        f"the model writes what depends on its parameters into a tensor in place, {_CANNOT}: write that out of place, "
        f"{_OR_LEAVE_OUT}"
    )


@contextmanager
def refusing_torchscript() -> Iterator[None]:
    """Refuse as `Jet` does where torch.jit hides the reason behind an error of its own.

    Raises:
        InputError: A function of torch.jit was called with a jet.
    """
    try:
        yield
    except RuntimeError as error:
        if "TorchScript" in str(error):
            raise InputError(_OUT_OF_SIGHT) from error
        raise


def _jets(parts: Sequence[Any]) -> Any:
    """The results of a function for each coefficient, as a jet or a tuple of jets."""
    if isinstance(parts[0], tuple | list):
        return tuple(_jets([None if part is None else part[i] for part in parts]) for i in range(len(parts[0])))
    return Jet(*parts)


def _per_coefficient(func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    """A function linear in its one jet."""
    leaves, tree = tree_flatten((args, kwargs))
    place = next(i for i, leaf in enumerate(leaves) if isinstance(leaf, Jet))
    results: list[Any] = []
    of_slopes = Tensor.reshape if func is Tensor.view else func  # they may be expanded where x₀ is dense
    for coefficient in leaves[place].coefficients:
        if coefficient is None:
            results.append(None)
            continue
        arguments, named = tree_unflatten([*leaves[:place], coefficient, *leaves[place + 1 :]], tree)
        results.append((of_slopes if results else func)(*arguments, **named))
    return _jets(results)


def _nested(func: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
    """Any function, by forward mode over forward mode: d/dt and d²/dt² of func(x(t))."""
    leaves, tree = tree_flatten((args, kwargs))
    arguments, named = tree_unflatten([constant(leaf) for leaf in leaves], tree)
    results, shape = tree_flatten(func(*arguments, **named))
    varying = [i for i, result in enumerate(results) if _varies(result)]
    if not varying:  # a shape, an index, a comparison
        return tree_unflatten(results, shape)
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Jet)]

    def function(*values: Tensor) -> tuple[Tensor, ...]:
        filled = list(leaves)
        for place, value in zip(places, values, strict=True):
            filled[place] = value
        arguments, named = tree_unflatten(filled, tree)
        parts = tree_flatten(func(*arguments, **named))[0]
        return tuple(parts[i] for i in varying)

    def slope(*values: Tensor) -> Any:
        half = len(values) // 2
        return jvp(function, values[:half], values[half:])

    jets = [orders(leaves[i]) for i in places]
    x0, x1, x2 = ([jet[order].contiguous() for jet in jets] for order in range(3))  # jvp refuses what is expanded
    try:
        expansion: Any = jvp(slope, (*x0, *x1), (*x1, *(2 * part for part in x2)))
    except RuntimeError as error:
        if "forward AD" not in str(error) and "derivative" not in str(error):
            raise
        raise InputError(
            f"the model or its loss calls {getattr(func, '__name__', func)}, of which PyTorch has no second derivative "
            f"in forward mode: replace it, {_OR_LEAVE_OUT}"
        ) from error
    (_, y1), (_, y2) = expansion
    for n, i in enumerate(varying):
        results[i] = Jet(results[i], y1[n], y2[n] / 2)
    return tree_unflatten(results, shape)


# -- rules ------------------------------------------------------------------------------------------------------


def _sum(terms: Sequence[Tensor | None]) -> Tensor | None:
    """Of those that are not zero; the first may be overwritten."""
    present = [term for term in terms if term is not None]
    if not present:
        return None
    total = present[0]
    for term in present[1:]:
        total = total.add_(term) if total.shape == term.shape else total + term
    return total


def _bilinear(product: Callable[[Tensor, Tensor], Tensor], first: Any, second: Any) -> Jet:
    """Cauchy product of two jets."""
    a, b = _coefficients(first), _coefficients(second)

    def term(i: int, j: int) -> Tensor | None:
        left, right = a[i], b[j]
        return None if left is None or right is None else product(left, right)

    rest = (_sum([term(i, order - i) for i in range(order + 1)]) for order in (1, 2))
    return Jet(product(a[0], b[0]), *rest)


def _affine(function: Callable[..., Tensor]) -> Callable[..., Jet]:
    """Convolutions and linear layers: bilinear in input and weight, plus a bias."""

    def rule(
        input: Any,  # noqa: A002  # the name that callers use
        weight: Any,
        bias: Any = None,
        *options: Any,
        **named: Any,
    ) -> Jet:
        result = _bilinear(lambda x, w: function(x, w, None, *options, **named), input, weight)
        if bias is None:
            return result
        channels = [1, -1, *[1] * (result.ndim - 2)] if function is not F.linear else [-1]
        return _add(result, _linear_map(lambda b: b.view(channels), bias))

    return rule


def _linear_map(function: Callable[[Tensor], Tensor], value: Any) -> Jet:
    x0, *rest = _coefficients(value)
    return Jet(function(x0), *(None if part is None else function(part) for part in rest))


def _add(first: Any, second: Any, alpha: float = 1) -> Jet:
    def total(a: Any, b: Any) -> Any:
        if a is None or b is None:
            return a if b is None else b * alpha
        return a + b * alpha if alpha != 1 else a + b

    x0, *rest = (total(a, b) for a, b in zip(_coefficients(first), _coefficients(second), strict=True))
    # Only the smaller of two broadcast operands may have a coefficient.
    return Jet(x0, *(part if part is None else part.expand(x0.shape) for part in rest))


def _subtract(first: Any, second: Any, alpha: float = 1) -> Jet:
    return _add(first, second, -alpha)


def _multiply(first: Any, second: Any) -> Jet:
    return _bilinear(lambda a, b: a * b, first, second)


def _relu(input: Jet, inplace: bool = False) -> Jet:  # noqa: A002, ARG001
    x0, *rest = input.coefficients
    # The derivative's own kernel is one pass; a product with a mask converts the mask first.
    return Jet(x0.clamp_min(0), *(None if part is None else aten.threshold_backward(part, x0, 0) for part in rest))


def _max_pool(input: Jet, *options: Any, **named: Any) -> Jet:  # noqa: A002
    named.pop("return_indices", None)
    x0, *rest = input.coefficients
    largest, indices = F.max_pool2d(x0, *options, **named, return_indices=True)

    def chosen(part: Tensor) -> Tensor:
        return part.flatten(-2).gather(-1, indices.flatten(-2)).view_as(indices)

    return Jet(largest, *(None if part is None else chosen(part) for part in rest))


def _normalized(values: Jet, axes: list[int], eps: float) -> Jet:
    """(x − mean) / √(var + eps) over ``axes``; the statistics are jets too."""
    centred = [
        None if part is None else part - part.mean(axes, keepdim=True, dtype=part.dtype) for part in values.coefficients
    ]
    c0, c1, c2 = centred
    assert c0 is not None

    def dot(a: Tensor | None, b: Tensor | None, factor: float = 1.0) -> Tensor | None:
        return None if a is None or b is None else (a * b).mean(axes, keepdim=True) * factor

    deviation = (c0.square().mean(axes, keepdim=True) + eps).sqrt()
    v1, v2 = _sum([dot(c0, c1, 2.0)]), _sum([dot(c1, c1), dot(c0, c2, 2.0)])
    r1, r2 = (None if part is None else part / deviation.square() for part in (v1, v2))
    scale = 1 / deviation
    s1 = None if r1 is None else -0.5 * r1 * scale
    s2 = _sum([None if r2 is None else -0.5 * r2 * scale, None if r1 is None else 0.375 * r1.square() * scale])
    y0 = c0 * scale
    y1 = _sum([None if a is None or b is None else a * b for a, b in ((c1, scale), (c0, s1))])
    y2 = _sum([None if a is None or b is None else a * b for a, b in ((c2, scale), (c1, s1), (c0, s2))])
    return Jet(y0, y1, y2)


def _scaled_and_shifted(values: Jet, weight: Any, bias: Any, shape: list[int]) -> Jet:
    if weight is not None:
        values = _multiply(values, _linear_map(lambda w: w.view(shape), weight))
    if bias is not None:
        values = _add(values, _linear_map(lambda b: b.view(shape), bias))
    return values


def _batch_norm(
    input: Any,  # noqa: A002
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,  # noqa: ARG001  # a probe moves no running statistics
    eps: float = 1e-5,
) -> Jet:
    if training or running_mean is None or running_var is None:
        return _batch_norm_by_chunk(input, weight, bias, eps)
    channels = [1, -1, *[1] * (input.ndim - 2)]
    mean, scale = running_mean.view(channels), (running_var + eps).rsqrt().view(channels)
    x0, *rest = _coefficients(input)
    normalized = Jet((x0 - mean) * scale, *(None if part is None else part * scale for part in rest))
    return _scaled_and_shifted(normalized, weight, bias, channels)


def _batch_norm_by_chunk(input: Any, weight: Any, bias: Any, eps: float) -> Jet:  # noqa: A002
    """γ (x − mean) / √(var + eps) + β, all of them jets, in fewer passes than `_normalized` takes: per channel a few
    reductions, then linear combinations of x's coefficients.
    """
    x0, x1, x2 = orders(input)
    count = x0.numel() // x0.shape[1]
    axes = [axis for axis in range(x0.ndim) if axis != 1]
    # Centred first: in float32 the mean of a product is no covariance where means are large.
    x0, x1 = (part - per_channel(part.mean(axes), part) for part in (x0, x1))
    one, zero = x0.new_ones(x0.shape[1]), x0.new_zeros(x0.shape[1])

    def moments(values: Tensor, by: Tensor) -> tuple[Tensor, Tensor]:
        """Covariance with a centred ``by``, and the mean of ``values``."""
        dot, total = channel_moments(values, by, zero, one)
        return dot / count, total / count

    variance, cov01, cov11 = (moments(*pair)[0] for pair in ((x0, x0), (x1, x0), (x1, x1)))
    cov02, m2 = moments(x2, x0)
    s0 = (variance + eps).rsqrt()
    r1, r2 = 2 * cov01 * s0.square(), (cov11 + 2 * cov02) * s0.square()
    s1, s2 = -0.5 * r1 * s0, (0.375 * r1.square() - 0.5 * r2) * s0
    g0, g1, g2 = (one, zero, zero) if weight is None else orders(weight)
    b0, b1, b2 = (zero, zero, zero) if bias is None else orders(bias)
    a0, a1, a2 = g0 * s0, g0 * s1 + g1 * s0, g0 * s2 + g1 * s1 + g2 * s0
    return Jet(
        channel_combination(b0, (a0, x0)),
        channel_combination(b1, (a0, x1), (a1, x0)),
        channel_combination(b2 - a0 * m2, (a0, x2), (a1, x1), (a2, x0)),
    )


def _layer_norm(
    input: Any,  # noqa: A002
    normalized_shape: Sequence[int],
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
) -> Jet:
    values = input if isinstance(input, Jet) else Jet(input)
    axes = list(range(-len(normalized_shape), 0))
    return _scaled_and_shifted(_normalized(values, axes, eps), weight, bias, list(normalized_shape))


def _group_norm(
    input: Any,  # noqa: A002
    num_groups: int,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
) -> Jet:
    shape = input.shape
    grouped = _linear_map(lambda x: x.reshape(shape[0], num_groups, -1), input)
    normalized = _linear_map(lambda x: x.view(shape), _normalized(grouped, [2], eps))
    return _scaled_and_shifted(normalized, weight, bias, [1, -1, *[1] * (len(shape) - 2)])


def _instance_norm(
    input: Any,  # noqa: A002
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Any = None,
    bias: Any = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Jet:
    if use_input_stats:
        return _group_norm(input, input.shape[1], weight, bias, eps)
    return _batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)


_RULES: dict[Callable, Callable[..., Any]] = {
    torch.conv1d: _affine(torch.conv1d),
    torch.conv2d: _affine(torch.conv2d),
    torch.conv3d: _affine(torch.conv3d),
    F.linear: _affine(F.linear),
    torch.matmul: lambda a, b: _bilinear(torch.matmul, a, b),
    Tensor.matmul: lambda a, b: _bilinear(torch.matmul, a, b),
    torch.add: _add,
    Tensor.add: _add,
    torch.sub: _subtract,
    Tensor.sub: _subtract,
    torch.mul: _multiply,
    Tensor.mul: _multiply,
    torch.relu: _relu,
    F.relu: _relu,
    Tensor.relu: _relu,
    F.max_pool2d: _max_pool,
    torch.max_pool2d: _max_pool,
    F.batch_norm: _batch_norm,
    F.layer_norm: _layer_norm,
    F.group_norm: _group_norm,
    F.instance_norm: _instance_norm,
    torch.batch_norm: as_in_torch(_batch_norm),
    torch.layer_norm: without_flag(_layer_norm),
    torch.group_norm: without_flag(_group_norm),
    torch.instance_norm: as_in_torch(_instance_norm),
}
_FUSED_NORM = re.compile("(batch|layer|group|instance)_norm")


def _gated(values: Any, dim: int = -1) -> Any:
    first, second = values.chunk(2, dim)
    return first * second.sigmoid()


def _huber(
    input: Any,  # noqa: A002
    target: Any,
    reduction: str = "mean",
    delta: float = 1.0,
    weight: Tensor | None = None,
) -> Any:
    losses = F.smooth_l1_loss(input, target, reduction="none", beta=delta) * delta
    return _reduced(losses if weight is None else losses * weight, reduction)


def _soft_margin(
    input: Any,  # noqa: A002
    target: Any,
    size_average: None = None,  # noqa: ARG001  # as `reduce` long superseded
    reduce: None = None,  # noqa: ARG001
    reduction: str = "mean",
) -> Any:
    return _reduced(F.softplus(-input * target), reduction)


def _reduced(losses: Any, reduction: str) -> Any:
    return losses if reduction == "none" else losses.mean() if reduction == "mean" else losses.sum()


# Functions whose second derivatives PyTorch lacks in forward mode, or has others of, by others.
_COMPOSED: dict[Callable, Callable[..., Any]] = {
    F.silu: lambda x, **_: silu(x),
    F.mish: lambda x, **_: mish(x),
    F.hardsigmoid: lambda x, **_: hard_sigmoid(x),
    F.prelu: prelu,
    F.glu: _gated,
    F.huber_loss: _huber,
    F.soft_margin_loss: _soft_margin,
    torch._weight_norm: weight_norm,
}
_IN_PLACE: dict[str, Callable] = {
    name + "_": getattr(Tensor, name) for name in ("relu", "add", "sub", "mul", "div", "tanh", "sigmoid", "clamp")
} | {"__iadd__": Tensor.add, "__isub__": Tensor.sub, "__imul__": Tensor.mul, "__itruediv__": Tensor.div}
_LINEAR_METHODS = (
    "flatten unflatten view reshape transpose permute contiguous expand squeeze unsqueeze mean sum neg chunk split "
    "unbind select narrow __getitem__ clone"
)
_LINEAR: set[Callable] = {
    F.adaptive_avg_pool2d,
    F.avg_pool2d,
    F.embedding,
    torch.flatten,
    torch.mean,
    torch.sum,
    torch.neg,
    *(getattr(Tensor, name) for name in _LINEAR_METHODS.split()),
}
