"""One training example's own view of its chunk: a loss ℓ_i that depends on no other example."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from opposing_signals.errors import InputError
from opposing_signals.normalization import captured, frozen
from opposing_signals.risk import EmpiricalRisk


@contextmanager
def independent_examples(risk: EmpiricalRisk, chunk: slice) -> Iterator[None]:
    """Let the examples of a chunk be evaluated one by one with the losses that they have in it.

    Batch norm in training mode couples the examples of a chunk. Here it normalizes by the chunk's statistics, held
    constant. The model leaves no trace: see `EmpiricalRisk.probe`.

    Args:
        risk: Its model, in the mode that it is in.
        chunk: Positions of the chunk's examples.

    Raises:
        InputError: A layer is random, or a batch norm in training mode is used more than once.
    """
    is_coupled = any(isinstance(module, _BatchNorm) for module in risk.model.modules())
    seen = chunk if is_coupled else slice(chunk.start, chunk.start + 1)
    with risk.probe():
        with _once(risk.model), captured(risk.model) as statistics, risk.deterministic(), torch.no_grad():
            risk.evaluate(risk.inputs[seen], risk.targets[seen])
        with frozen(risk.model, statistics):
            yield


@contextmanager
def _once(model: nn.Module) -> Iterator[None]:
    """Refuse a forward pass that uses a batch norm twice: with two pairs of statistics, of which `frozen` takes one."""
    used: set[str] = set()

    def use(name: str, module: nn.Module, _: Any) -> None:
        if name in used and module.training:
            raise InputError(
                f"layer {name!r} is a batch norm in training mode that is used more than once: expected a layer of its "
                "own for each use"
            )
        used.add(name)

    norms = [(name, module) for name, module in model.named_modules() if isinstance(module, _BatchNorm)]
    hooks = [module.register_forward_pre_hook(partial(use, name)) for name, module in norms]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def by_chunk(risk: EmpiricalRisk, indices: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    """The chunks that hold any of ``indices``, each with the positions *in* ``indices`` of those that it holds.

    Raises:
        InputError: An index is outside the training set, or there are none.
    """
    if indices.ndim != 1 or not len(indices) or int(indices.min()) < 0 or int(indices.max()) >= len(risk):
        raise InputError(
            f"points {indices.tolist()}: expected a list of one or more numbers from 0 to {len(risk) - 1}, positions "
            "in the training set"
        )
    chunks = indices // risk.chunk
    for number in chunks.unique().tolist():
        first = number * risk.chunk
        yield slice(first, min(first + risk.chunk, len(risk))), (chunks == number).nonzero().flatten()
