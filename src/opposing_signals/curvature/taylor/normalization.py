"""Normalizations of jets, written out: their statistics are jets as well."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from opposing_signals.curvature.any_order import per_channel
from opposing_signals.curvature.kernels.batch_norm import channel_combination, channel_moments
from opposing_signals.curvature.normalization import BatchNorm
from opposing_signals.curvature.taylor.arithmetic import add, added, linear_map, multiply
from opposing_signals.curvature.taylor.jet import Jet, orders


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
    v1, v2 = added([dot(c0, c1, 2.0)]), added([dot(c1, c1), dot(c0, c2, 2.0)])
    r1, r2 = (None if part is None else part / deviation.square() for part in (v1, v2))
    scale = 1 / deviation
    s1 = None if r1 is None else -0.5 * r1 * scale
    s2 = added([None if r2 is None else -0.5 * r2 * scale, None if r1 is None else 0.375 * r1.square() * scale])
    y0 = c0 * scale
    y1 = added([None if a is None or b is None else a * b for a, b in ((c1, scale), (c0, s1))])
    y2 = added([None if a is None or b is None else a * b for a, b in ((c2, scale), (c1, s1), (c0, s2))])
    return Jet(y0, y1, y2)


def _scaled_and_shifted(values: Jet, weight: Any, bias: Any, shape: list[int]) -> Jet:
    if weight is not None:
        values = multiply(values, linear_map(lambda w: w.view(shape), weight))
    if bias is not None:
        values = add(values, linear_map(lambda b: b.view(shape), bias))
    return values


def batch_norm(*args: Any, **named: Any) -> Jet:
    """γ (x − mean) / √(var + eps) + β of jets, by a few reductions per channel: fewer passes than `_normalized`."""
    call = BatchNorm(*args, **named)
    x0, x1, x2 = orders(call.input)
    one, zero = x0.new_ones(x0.shape[1]), x0.new_zeros(x0.shape[1])
    if call.training or call.running_mean is None or call.running_var is None:
        count = x0.numel() // x0.shape[1]
        axes = [axis for axis in range(x0.ndim) if axis != 1]
        # Centred first: in float32 the mean of a product loses the covariance where means are large.
        x0, x1 = (part - per_channel(part.mean(axes), part) for part in (x0, x1))

        def moments(values: Tensor, by: Tensor) -> tuple[Tensor, Tensor]:
            """Covariance with a centred ``by``, and the mean of ``values``."""
            dot, total = channel_moments(values, by, zero, one)
            return dot / count, total / count

        variance, cov01, cov11 = (moments(*pair)[0] for pair in ((x0, x0), (x1, x0), (x1, x1)))
        cov02, m2 = moments(x2, x0)
        s0 = (variance + call.eps).rsqrt()
        r1, r2 = 2 * cov01 * s0.square(), (cov11 + 2 * cov02) * s0.square()
        s1, s2 = -0.5 * r1 * s0, (0.375 * r1.square() - 0.5 * r2) * s0
    else:
        x0 = x0 - per_channel(call.running_mean, x0)
        s0, s1, s2, m2 = (call.running_var + call.eps).rsqrt(), zero, zero, zero
    g0, g1, g2 = (one, zero, zero) if call.weight is None else orders(call.weight)
    b0, b1, b2 = (zero, zero, zero) if call.bias is None else orders(call.bias)
    a0, a1, a2 = g0 * s0, g0 * s1 + g1 * s0, g0 * s2 + g1 * s1 + g2 * s0
    return Jet(
        channel_combination(b0, (a0, x0)),
        channel_combination(b1, (a0, x1), (a1, x0)),
        channel_combination(b2 - a0 * m2, (a0, x2), (a1, x1), (a2, x0)),
    )


def layer_norm(
    input: Any,  # noqa: A002
    normalized_shape: Sequence[int],
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
) -> Jet:
    """`F.layer_norm`."""
    values = input if isinstance(input, Jet) else Jet(input)
    axes = list(range(-len(normalized_shape), 0))
    return _scaled_and_shifted(_normalized(values, axes, eps), weight, bias, list(normalized_shape))


def group_norm(
    input: Any,  # noqa: A002
    num_groups: int,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
) -> Jet:
    """`F.group_norm`."""
    shape = input.shape
    grouped = linear_map(lambda x: x.reshape(shape[0], num_groups, -1), input)
    normalized = linear_map(lambda x: x.view(shape), _normalized(grouped, [2], eps))
    return _scaled_and_shifted(normalized, weight, bias, [1, -1, *[1] * (len(shape) - 2)])


def instance_norm(
    input: Any,  # noqa: A002
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Any = None,
    bias: Any = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Jet:
    """`F.instance_norm`."""
    if use_input_stats:
        return group_norm(input, input.shape[1], weight, bias, eps)
    return batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
