"""When the optimizers of a training step, and the norm of the gradient with which they step."""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from opposing_signals.follow.batch_losses import Safely


class OptimizerSteps:
    """Detects the optimizers' steps, and computes the Euclidean norm of the step's gradient before clipping.

    Args:
        safely: See `batch_losses.Safely`.
    """

    def __init__(self, safely: Safely) -> None:
        self.has_stepped = False
        self._safely = safely
        self._is_open = False  # a step has begun and is not complete
        self._norm: Tensor | float | None = None
        self._clipped: list[Tensor] = []
        self._optimizers: list[Optimizer] = []
        self._hooks: list[Any] = []

    def begin(self, optimizers: Sequence[Any], hooks: bool) -> None:
        """Training begins.

        Args:
            optimizers: Torch optimizers, or a framework's wrappers around them.
            hooks: Whether the optimizers' own hooks report their steps; otherwise `at_gradient` does.
        """
        self._optimizers = [innermost(optimizer) for optimizer in optimizers]
        _note_norms_of_clipping()
        _clipping.add(self)
        if hooks:
            self._hook()

    def follow(self, optimizers: Sequence[Any]) -> None:
        """Set the optimizers that step from now on."""
        optimizers = [innermost(optimizer) for optimizer in optimizers]
        if self._hooks and optimizers != self._optimizers:
            self._unhook()
            self._optimizers = optimizers
            self._hook()

    def _hook(self) -> None:
        me = weakref.ref(self)
        for optimizer in self._optimizers:
            self._hooks += [
                optimizer.register_step_pre_hook(lambda *given: _before(me(), *given)),
                optimizer.register_step_post_hook(lambda *_: _after(me())),
            ]

    def _unhook(self) -> None:
        for handle in self._hooks:
            handle.remove()
        self._hooks.clear()

    @property
    def learning_rate(self) -> float:
        """Learning rate of the first parameter group."""
        return float(self._optimizers[0].param_groups[0]["lr"])

    def open(self) -> None:
        """A batch begins."""
        self._is_open = True

    def at_gradient(self, optimizer: Optimizer) -> None:
        """``optimizer`` has its gradient and steps now."""
        if self._is_open:
            self._add(optimizer)
            self.has_stepped = True

    def take(self) -> Tensor | float | None:
        """End the step: the norm of its gradient; None if it is not known."""
        norm = self._norm
        if self._clipped and self._hooks:  # otherwise the framework has reported it
            norm = torch.stack([norm.detach().float() for norm in self._clipped]).norm()
        self._clipped.clear()
        self._norm, self._is_open, self.has_stepped = None, False, False
        return norm

    def end(self) -> None:
        """Training ends."""
        _clipping.discard(self)
        self.take()
        self._unhook()

    def _add(self, optimizer: Optimizer) -> None:
        """Add the gradient norm of one optimizer's parameters."""
        norm = self._safely("taking the gradient's norm", norm_of, optimizer)
        if norm is not None:
            self._norm = norm if self._norm is None else _hypot(self._norm, norm)


def _hypot(one: Tensor | float, other: Tensor | float) -> Tensor | float:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.hypot(one.to(other), other)
    return math.hypot(one, other)


def norm_of(optimizer: Optimizer) -> Tensor | float | None:
    """Euclidean norm of the gradient of ``optimizer``'s parameters; None if it has none, or a sparse one."""
    gradients = [
        gradient for group in optimizer.param_groups for p in group["params"] if (gradient := p.grad) is not None
    ]
    if not gradients:
        return None
    try:
        norms = torch._foreach_norm(gradients)
    except NotImplementedError:  # for a sparse gradient
        return None
    if all(norm.is_cpu and type(norm) is Tensor for norm in norms):
        each: list[Any] = [norm.tolist() for norm in norms]  # one by one: after a long step faster than stacked
        return math.hypot(*each)
    if len({norm.device for norm in norms}) > 1:
        return whole(torch.nn.utils.get_total_norm(gradients)).detach()
    return whole(torch.linalg.vector_norm(torch.stack(norms).detach()))


def whole(tensor: Tensor) -> Tensor:
    """``tensor``, gathered if several processes hold parts of it."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def innermost(optimizer: Any) -> Optimizer:
    """The optimizer inside the wrappers of frameworks."""
    while not type(optimizer).__module__.startswith("torch.optim") and isinstance(
        getattr(optimizer, "optimizer", None), Optimizer
    ):
        optimizer = optimizer.optimizer
    return optimizer


def _before(steps: OptimizerSteps | None, optimizer: Optimizer, arguments: Any, named: Any) -> None:
    has_gradient = len(arguments) <= 1 and not named  # a closure computes it later
    if steps is not None and steps._is_open and not steps._clipped and has_gradient:
        steps._add(optimizer)


def _after(steps: OptimizerSteps | None) -> None:
    if steps is not None and steps._is_open:
        steps.has_stepped = True


_clipping: weakref.WeakSet[OptimizerSteps] = weakref.WeakSet()
"""Observers of the norms that are computed for clipping."""


def _note_norms_of_clipping() -> None:
    """Let `torch.nn.utils.clip_grad_norm_` report the norm that it computes, the one before clipping, at no extra cost.

    Plain loops and transformers clip between backward and the optimizer's step, where no other hook could see it.
    """
    if hasattr(torch.nn.utils.clip_grad_norm_, "noted"):
        return
    original = torch.nn.utils.clip_grad_norm_

    @wraps(original)
    def clip_grad_norm_(parameters: Any, max_norm: float, norm_type: float = 2.0, *more: Any, **named: Any) -> Tensor:
        norm = original(parameters, max_norm, norm_type, *more, **named)
        if float(norm_type) == 2.0:
            for steps in _clipping:
                if steps._is_open:
                    steps._clipped.append(whole(norm))
        return norm

    clip_grad_norm_.noted = True  # type: ignore[attr-defined]
    for place in (torch.nn.utils, torch.nn.utils.clip_grad):
        setattr(place, "clip_grad_norm_", clip_grad_norm_)  # noqa: B010  # a module's attribute
