"""Batch normalization by another's statistics: what one example sees when the rest of its chunk stands still.

Under batch norm in training mode a loss ℓ_i depends on the whole chunk, so "the network's answer to one more input"
and "the gradient of one example alone" need a convention. Ours is: the chunk's mean and variance are what they are in
training, and are held constant. An example that belongs to the chunk then gets exactly its training output.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Statistics = dict[str, tuple[Tensor, Tensor]]
"""Mean and (biased) variance per channel, by the name of the batch-norm module."""


def _in_training(model: nn.Module) -> dict[str, _BatchNorm]:
    """The modules that normalize by the statistics of the chunk at hand."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None)
    }


@contextmanager
def captured(model: nn.Module) -> Iterator[Statistics]:
    """The statistics by which ``model`` normalizes the first chunk that passes through it in this context.

    They are there when that forward pass has ended. Nothing that the model computes changes.
    """
    statistics: Statistics = {}

    def keep(name: str, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if name not in statistics:
            with torch.no_grad():
                values = inputs[0].detach()
                values = values.to(torch.promote_types(values.dtype, torch.float32))  # under autocast it is bfloat16
                axes = [axis for axis in range(values.ndim) if axis != 1]
                variance, mean = torch.var_mean(values, axes, correction=0)
            statistics[name] = (mean, variance)

    hooks = [module.register_forward_pre_hook(partial(keep, name)) for name, module in _in_training(model).items()]
    try:
        yield statistics
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def frozen(model: nn.Module, statistics: Mapping[str, tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Let ``model`` normalize by ``statistics``, as constants, wherever it would use the chunk at hand.

    Inside, outputs of different examples are independent of each other, and running statistics stay as they are.

    Raises:
        KeyError: ``statistics`` lacks a module that normalizes by the chunk.
    """
    modules = _in_training(model)
    for name, module in modules.items():
        module.forward = partial(_by_statistics, module, statistics[name])  # type: ignore[method-assign]
    try:
        yield
    finally:
        for module in modules.values():
            del module.forward


def _by_statistics(module: _BatchNorm, statistics: tuple[Tensor, Tensor], values: Tensor) -> Tensor:
    mean, variance = statistics
    return F.batch_norm(values, mean, variance, module.weight, module.bias, training=False, eps=module.eps)
