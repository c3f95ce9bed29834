"""Batch normalization by given statistics: what one example sees when the rest of its chunk is held constant.

Under batch norm in training mode a loss ℓ_i depends on the whole chunk, so "the network's answer to one more input"
and "the gradient of one example alone" need a convention. Here the chunk's mean and variance have their values from
training and are held constant. An example of the chunk then gets exactly its training output.

A use of batch norm is a call of `F.batch_norm` in training mode, by a module or by the model itself; a module that is
called twice has two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function_variadic

from opposing_signals.errors import InputError
from opposing_signals.processes import stacked

Statistics = list[tuple[Tensor, Tensor]]
"""Mean and (biased) variance per channel of each use of batch norm in a forward pass, in the order of the uses."""

batch_norm = F.batch_norm
_split: list[None] = []


class BatchNorm(NamedTuple):
    """The arguments of a call of `F.batch_norm`."""

    input: Tensor
    running_mean: Tensor | None
    running_var: Tensor | None
    weight: Tensor | None = None
    bias: Tensor | None = None
    training: bool = False
    momentum: float = 0.1
    eps: float = 1e-5


def in_training(rule: Callable[[BatchNorm], Tensor]) -> Callable[..., Tensor]:
    """`F.batch_norm`, computed by ``rule`` in training mode."""

    def either(*args: Any, **named: Any) -> Tensor:
        call = BatchNorm(*args, **named)
        return rule(call) if call.training else F.batch_norm(*call)

    return either


@contextmanager
def captured(model: nn.Module) -> Iterator[Statistics]:
    """The statistics by which ``model`` normalizes the first chunk that passes through it in this context.

    The list is complete after that forward pass. Nothing that the model computes changes.
    """
    statistics: Statistics = []

    def keep(values: Tensor, number: int) -> None:
        if passes[0] == 1 and number == len(statistics):  # not where a checkpoint recomputes it
            with torch.no_grad():
                statistics.append(moments(values.detach())[:2])

    with _uses(model, keep) as passes:
        yield statistics


def moments(values: Tensor) -> tuple[Tensor, Tensor, int]:
    """``[C]`` mean and (biased) variance per channel of ``[n, C, ...]`` values, and the number of values per channel.

    Within `statistics_over_processes` they are those of the whole chunk, of which each process has a piece.
    """
    values = values.to(torch.promote_types(values.dtype, torch.float32))  # under autocast it is bfloat16
    variance, mean = torch.var_mean(values, [axis for axis in range(values.ndim) if axis != 1], correction=0)
    size = values.numel() // values.shape[1]
    if not is_split():
        return mean, variance, size
    means, variances, sizes = stacked(torch.stack([mean, variance, torch.full_like(mean, size)]).double()).unbind(1)
    shares = sizes / sizes.sum(0)
    whole = (shares * means).sum(0)
    spread = (shares * (variances + (means - whole).square())).sum(0)
    return whole.to(mean), spread.to(mean), int(sizes[:, 0].sum())


@contextmanager
def statistics_over_processes() -> Iterator[None]:
    """Inside, each process has a piece of the same chunk, and its statistics are taken over all pieces."""
    _split.append(None)
    try:
        yield
    finally:
        _split.pop()


def is_split() -> bool:
    """Whether `statistics_over_processes` is active."""
    return bool(_split)


@contextmanager
def frozen(model: nn.Module, statistics: Statistics) -> Iterator[None]:
    """Let ``model`` normalize by ``statistics``, as constants, wherever it would use those of its chunk.

    Inside, batch norm does not couple examples, and running statistics do not change.

    Raises:
        InputError: In a forward pass, the model uses batch norm more often than it did for the chunk.
    """

    def statistics_of(_: Tensor, number: int) -> tuple[Tensor, Tensor]:
        if number >= len(statistics):
            raise InputError(
                f"the model computes activations twice (torch.utils.checkpoint), or uses batch norm in training mode "
                f"more often for an example than the {len(statistics)} times for its chunk: expected the same uses; "
                "switch that off, or put the layers in evaluation mode"
            )
        return statistics[number]

    counts = [buffer for name, buffer in model.named_buffers() if name.endswith("num_batches_tracked")]
    kept = [buffer.clone() for buffer in counts]
    try:
        with _uses(model, statistics_of):
            yield
    finally:
        for buffer, count in zip(counts, kept, strict=True):
            buffer.copy_(count)


@contextmanager
def _uses(model: nn.Module, look: Callable[[Tensor, int], tuple[Tensor, Tensor] | None]) -> Iterator[list[int]]:
    """Call ``look`` with the input and number of each use; statistics it returns replace those of the chunk.

    Yields a list of one number, the count of forward passes so far.
    """
    passes, used, depth = [0], [0], [0]

    def begin(*_: object) -> None:
        passes[0] += 1
        used[0] = 0

    def normalize(*args: Any, **named: Any) -> Tensor:
        call = BatchNorm(*args, **named)
        if call.training and not depth[0]:
            statistics = look(call.input, used[0])
            used[0] += 1
            if statistics is not None:
                call = call._replace(training=False, running_mean=statistics[0], running_var=statistics[1])
        depth[0] += 1  # a function mode may call this again
        try:
            return _batch_norm(*call)
        finally:
            depth[0] -= 1

    hook = model.register_forward_pre_hook(begin)
    try:
        with patch.object(F, "batch_norm", normalize):
            yield passes
    finally:
        hook.remove()


def _batch_norm(*arguments: Any) -> Tensor:
    """`F.batch_norm`; function modes see the original function although it is patched."""
    tensors = arguments[:5]
    if has_torch_function_variadic(*tensors):
        return handle_torch_function(batch_norm, tensors, *arguments)
    return batch_norm(*arguments)


def by_statistics(values: Tensor, mean: Tensor, inverse: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Batch norm: (x − mean) x inverse x weight + bias, channel by channel."""
    scale = inverse if weight is None else inverse * weight
    shift = -mean * scale if bias is None else bias - mean * scale
    channels = (1, -1, *[1] * (values.ndim - 2))
    return torch.addcmul(shift.view(channels), values, scale.view(channels))


def with_constant_statistics(call: BatchNorm) -> tuple[Tensor | None, ...]:
    """The call's arguments as those of `by_statistics`."""
    if call.training:
        values = call.input.detach()
        _, mean, inverse = torch.native_batch_norm(values, None, None, None, None, True, call.momentum, call.eps)
    else:
        assert call.running_mean is not None
        assert call.running_var is not None
        mean, inverse = call.running_mean, torch.rsqrt(call.running_var + call.eps)
    return call.input, mean, inverse, call.weight, call.bias
