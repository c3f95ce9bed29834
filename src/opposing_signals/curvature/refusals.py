"""Refusals of models, losses and gradients for which a measurement would be wrong."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.utils.checkpoint import CheckpointError

from opposing_signals.curvature.graphs import graph_nodes
from opposing_signals.errors import InputError

_COMPILED = "a compiled model has no second derivatives: pass the model itself, and compile training only"


def check_data(inputs: Any, targets: Any) -> None:
    """Refuse data that are not tensors.

    Raises:
        InputError: They are not.
    """
    for name, data in (("inputs", inputs), ("targets", targets)):
        if not isinstance(data, Tensor):
            raise InputError(
                f"{name} are a {type(data).__name__}: expected a tensor [N, ...]; for other examples let inputs be "
                "their numbers, and look them up in the model"
            )


def check_shapes(model: nn.Module) -> None:
    """Refuse a model that has no shape yet.

    Raises:
        InputError: A layer is lazy and has seen no batch.
    """
    for name, parameter in model.named_parameters():
        if isinstance(parameter, UninitializedParameter):
            raise InputError(f"the parameter {name!r} has no shape yet: expected a lazy layer to have seen a batch")


def check_real(model: nn.Module) -> None:
    """Refuse complex weights.

    Raises:
        InputError: There is one.
    """
    for name, parameter in model.named_parameters():
        if parameter.is_complex():
            raise InputError(
                f"the parameter {name!r} is complex: expected real ones; hold both parts in a real parameter and join "
                "them by torch.view_as_complex"
            )


def check_trained(parameters: Sequence[Tensor]) -> None:
    """Refuse a model without any parameter to differentiate by.

    Raises:
        InputError: There is none.
    """
    if not parameters:
        raise InputError("no parameter of the model is trained: expected requires_grad=True of one at least")


def check_layers(model: nn.Module) -> None:
    """Refuse a model whose second derivatives would be wrong or random.

    Raises:
        InputError: A dropout layer is active, spectral norm moves its vectors, the model was compiled, or a weight is
            complex.
    """
    check_real(model)
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
            raise InputError(_COMPILED)


def check_graph(gradient: Sequence[Tensor | None], model: nn.Module) -> None:
    """Refuse a gradient that cannot be differentiated as it is.

    Args:
        gradient: One tensor per parameter with ``requires_grad``; None where there is none.
        model: Named in the error.

    Raises:
        InputError: It is sparse, or its graph has a function marked `once_differentiable`, whose terms PyTorch would
            silently drop.
    """
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    for name, piece in zip(names, gradient, strict=True):
        if piece is not None and piece.layout is not torch.strided:
            raise InputError(
                f"the gradient in {name!r} is sparse: expected a dense one; set sparse=False in its embedding"
            )
    if any(node.name() == "torch::autograd::Error" for node in graph_nodes(gradient)):
        raise InputError(
            "the model has a layer whose backward is marked once_differentiable, so its second derivatives are "
            "missing: replace the layer, or leave out the instruments that measure curvature"
        )


@contextmanager
def naming_causes() -> Iterator[None]:
    """Replace an error of PyTorch's by one line that names its cause.

    Raises:
        InputError: PyTorch differentiates a function only once; a part of the model is compiled; or it uses
            `torch.utils.checkpoint`, whose recomputation escapes the measurement.
    """
    try:
        yield
    except RuntimeError as error:
        name = re.search(r"derivative for '?(?:aten::)?(\w+)'? is not implemented", str(error))
        if name is not None:
            raise InputError(
                f"the model or its loss has no second derivative, of which PyTorch lacks that of {name[1]}: replace "
                "the function, or leave out the instruments that measure curvature"
            ) from error
        if "not currently support double backward" in str(error):
            raise InputError(_COMPILED) from error
        if is_of_checkpoints(error):
            raise InputError(
                "the model computes activations twice (torch.utils.checkpoint), and the second time outside of what "
                "measures it: switch that off, or leave out the instruments that measure curvature and gradient norms"
            ) from error
        raise


def is_of_checkpoints(error: Exception) -> bool:
    """Whether `torch.utils.checkpoint` raised it."""
    return isinstance(error, CheckpointError) or "use_reentrant" in str(error)


def check_losses(losses: Any, inputs: Tensor, are_single: bool = True) -> None:
    """Refuse losses ``[n, 1]`` and the like, which would broadcast against the weights of the n examples.

    Args:
        losses: The loss function's result.
        inputs: ``[n, ...]``.
        are_single: Whether each example must have one loss; several, such as a sequence's tokens, have no mean here.

    Raises:
        InputError: They are not ``[n]``, or a gradient is wanted and they have none.
    """
    shape = list(losses.shape) if isinstance(losses, Tensor) else None
    if not shape or shape[0] != len(inputs) or (are_single and len(shape) > 1):
        given = f"shape {shape}" if shape is not None else f"type {type(losses).__name__}"
        raise InputError(
            f"a loss of {given} for {len(inputs)} examples: expected [{len(inputs)}], one number an example; a loss of "
            "torch.nn needs reduction='none', and .flatten(1).mean(1) where it has several numbers"
        )
    if torch.is_grad_enabled() and not losses.requires_grad:
        raise InputError(
            "the loss does not depend on the parameters: expected some with requires_grad, and no detach or no_grad "
            "between them and the loss"
        )
