"""Per-sample losses: their form, and checks that a function returns them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from opposing_signals.errors import InputError, first_line
from opposing_signals.follow.isolation import uncached_casts

PerSampleLoss = Callable[[Any, Any], Tensor]
"""(module, batch) ↦ ``[n]``, one loss per example of the batch."""

CHECKED = 8
"""Number of examples whose losses are computed alone and compared with those in a batch."""

_TOLERANCE = {torch.bfloat16: 0.05, torch.float16: 0.02}
"""Largest relative difference between an example's loss alone and in a batch; 0.001 in other precisions."""


class Losses(nn.Module):
    """Positions in the tracking set ↦ ``[n, 1]`` losses: the form of a model that `EmpiricalRisk` takes.

    Args:
        module: The module in training.
        per_sample_loss: See `PerSampleLoss`.
        batches: Batches of the tracking set, on the device.
        batch_size: Examples in each but the last.
        examples: Number of examples.
        context: Context in which every forward pass runs, such as the autocast of mixed precision.
        failed: Called with the error of a pass, whose losses are then NaN; None: the error is raised.
    """

    def __init__(
        self,
        module: nn.Module,
        per_sample_loss: PerSampleLoss,
        batches: list[Any],
        batch_size: int,
        examples: int,
        context: Callable[[], AbstractContextManager[Any]],
        failed: Callable[[Exception], None] | None = None,
    ) -> None:
        super().__init__()
        self.module = module
        self.per_sample_loss = per_sample_loss
        self.batch = batches.__getitem__  # a list of batches would count as state of the model
        self.batch_size = batch_size
        self.examples = examples
        self.context = context
        self.failed = failed
        self._sharded = sharded_parts(module)

    def forward(self, positions: Tensor) -> Tensor:
        """``[n, 1]`` losses of the examples at ``positions``."""
        number = int(positions[0]) // self.batch_size
        first = number * self.batch_size
        size = min(self.batch_size, self.examples - first)
        try:
            with self.context(), uncached_casts():
                losses = self.per_sample_loss(self.module, self._in_float64(self.batch(number)))
            check_shape(losses, size)
        except Exception as error:
            if self.failed is None:
                raise
            self.failed(error)
            losses = torch.full((size,), torch.nan, device=positions.device)
        for part in self._sharded:
            part.reshard()
        return (losses if len(losses) == len(positions) else losses[positions - first])[:, None]

    def _in_float64(self, batch: Any) -> Any:
        """The batch in the precision of the parameters, which are float64 during their check."""
        parameter = next(self.module.parameters(), None)
        if parameter is None or parameter.dtype is not torch.float64:
            return batch

        def exact(part: Any) -> Any:
            return part.double() if isinstance(part, Tensor) and part.is_floating_point() else part

        return tree_map(exact, batch)


def sharded_parts(module: nn.Module) -> list[Any]:
    """The parts of ``module`` whose parameters are sharded over processes and gathered in a forward pass.

    After a forward pass without a backward pass, their ``reshard()`` restores the parameters that the optimizer holds.
    """
    return [part for part in module.modules() if callable(getattr(part, "reshard", None))]


def check_shape(losses: Any, count: int) -> None:
    """Refuse anything but one loss per example.

    Args:
        losses: The result of per_sample_loss.
        count: Examples in the batch.

    Raises:
        InputError: They are not ``[count]``.
    """
    shape = list(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
    if shape == [count]:
        return
    hint = "pass reduction='none' to the loss function"
    if shape == [count, count] and count > 1:
        hint = f"outputs [{count}, 1] and targets [{count}] may have been broadcast: squeeze the outputs, outputs[:, 0]"
    elif isinstance(shape, list) and count in shape[:1]:
        hint = "take the mean over the other axes, for instance losses.flatten(1).mean(1)"
    elif isinstance(shape, list) and len(shape) == 1 and shape[0] % count == 0 and shape[0]:
        hint = f"take the mean over what an example holds, for instance losses.view({count}, -1).mean(1)"
    raise InputError(
        f"per_sample_loss returned {f'shape {shape}' if isinstance(shape, list) else f'a {shape}'} for a batch of "
        f"{count} examples: expected [{count}], one loss an example; {hint}"
    )


def check_single(
    module: nn.Module,
    per_sample_loss: PerSampleLoss,
    together: Any,
    alone: list[Any],
    context: Callable[[], AbstractContextManager[Any]],
) -> None:
    """Refuse losses that depend on the other examples: each example must have the same loss alone and in a batch.

    The module is in evaluation mode, and no gradient is taken.

    Args:
        module: The module in training.
        per_sample_loss: See `PerSampleLoss`.
        together: One batch of all examples in ``alone``.
        alone: Batches of one example.
        context: Context in which the losses are computed, such as the autocast of mixed precision.

    Raises:
        InputError: The loss of an example depends on the others or on randomness, or the function changes the mode.
    """

    def evaluated(batch: Any, count: int) -> Tensor:
        try:
            with context(), uncached_casts():
                losses = per_sample_loss(module, batch)
        except Exception as error:
            raise InputError(
                f"per_sample_loss failed on a batch of {count} of train_dataset's examples ({type(error).__name__}: "
                f"{first_line(error)}): expected a function of the model and the batch that the training step gets; "
                "give collate=, if examples are put together in another way than in the loader"
            ) from error
        check_shape(losses, count)
        return losses.detach()

    first = evaluated(together, len(alone))
    if any(part.training for part in module.modules()):
        raise InputError(
            "per_sample_loss puts the module into training mode (module.train()): expected it to leave the mode alone, "
            "because dropout and batch norm would make an example's loss depend on chance and on the others"
        )
    tolerance = _TOLERANCE.get(first.dtype, 1e-3)
    if any(parameter.dtype in _TOLERANCE for parameter in module.parameters()) or torch.is_autocast_enabled("cpu"):
        tolerance = max(_TOLERANCE.values())
    with context():
        if torch.is_autocast_enabled(first.device.type):
            tolerance = max(_TOLERANCE.values())
    size = float(first.double().abs().nan_to_num(posinf=0.0).max())

    def differs(one: Tensor, other: Tensor) -> bool:
        return not torch.allclose(one.double(), other.double(), rtol=tolerance, atol=tolerance * size, equal_nan=True)

    again = evaluated(together, len(alone))
    if differs(first, again):
        raise InputError(
            f"per_sample_loss returned {float(first[0]):.4g} and then {float(again[0]):.4g} for the same example: "
            "expected the same each time; draw nothing at random in it"
        )
    single = torch.cat([evaluated(batch, 1) for batch in alone])
    if not differs(single, first):
        return
    worst = int((single.double() - first.double()).abs().nan_to_num(posinf=0.0).argmax())
    if len(alone) > 1 and bool((first == first[0]).all()):
        raise InputError(
            f"per_sample_loss returned {float(first[0]):.4g} for each of {len(alone)} examples, but "
            f"{float(single[0]):.4g} for the first of them alone: expected the loss of each example, not the batch's "
            "mean; use reduction='none'"
        )
    raise InputError(
        f"per_sample_loss returned {float(first[worst]):.4g} for an example in a batch of {len(alone)} and "
        f"{float(single[worst]):.4g} for it alone: expected a loss that does not depend on the other examples; look "
        "for outputs [n, 1] against targets [n] (squeeze them), a division by what the batch sums up to, or a loss "
        "that compares examples"
    )
