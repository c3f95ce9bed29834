"""Losses of single examples, computed independently: batch norm written out, with detached statistics."""

import torch
from layers import CROSS_ENTROPY, plain_losses
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from opposing_signals.curvature.risk import EmpiricalRisk


def _by_constants(module: _BatchNorm, values: Tensor) -> Tensor:
    axes = [axis for axis in range(values.ndim) if axis != 1]
    shape = [1, -1, *[1] * (values.ndim - 2)]
    mean = values.mean(axes, keepdim=True).detach()
    variance = values.var(axes, unbiased=False, keepdim=True).detach()
    output = (values - mean) * torch.rsqrt(variance + module.eps)
    return output * module.weight.view(shape) + module.bias.view(shape) if module.affine else output


def with_constant_statistics(risk: EmpiricalRisk) -> EmpiricalRisk:
    """The same risk; its batch-norm layers in training mode now take their chunk's statistics as constants."""
    for module in risk.model.modules():
        if isinstance(module, _BatchNorm) and module.training:
            module.forward = _by_constants.__get__(module)
    return risk


def own_losses(risk: EmpiricalRisk, loss=CROSS_ENTROPY) -> Tensor:
    """ℓ ``[N]``, where the graph of each loss depends on no other example."""
    return plain_losses(with_constant_statistics(risk), loss)
