"""The losses of the examples in a training batch, from the training's own forward pass.

The training step has just computed what the user's per-sample loss asks of the model. So the modules that the loss
function calls are observed during the training step, and the loss function is evaluated with their outputs in place of
a second forward pass.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from opposing_signals.errors import first_line
from opposing_signals.follow.isolation import isolated
from opposing_signals.follow.per_sample import PerSampleLoss

Safely = Callable[..., Any]
"""Runs work that must not fail in training: (description, work, *arguments) ↦ the result, None if the work failed."""

PATIENCE = 3
"""Number of batches in which the calls are looked for before giving up."""

_CALL = "_compiled_call_impl"
"""What `nn.Module.__call__` calls if it is set: it runs below the hooks, and before a module's compiled form."""

_MANY = 64  # most calls of a module per step among which the right one is searched for


Made = dict[nn.Module, list[tuple[Any, Any, Any]]]
"""Module ↦ its calls in a training step: (arguments, keyword arguments, outputs)."""


class BatchLosses:
    """Per-sample losses of each batch, taken while the training step computes them.

    Args:
        module: The module in training.
        per_sample_loss: (module, batch) ↦ ``[n]``.
        calls: The modules that `per_sample_loss` calls, in order; see `outermost_calls`.
        take: Called with the ``[n]`` losses, once per batch.
        context: Context in which a training step computes, such as the autocast of mixed precision.
        safely: See `Safely`.
    """

    def __init__(
        self,
        module: nn.Module,
        per_sample_loss: PerSampleLoss,
        calls: list[nn.Module],
        take: Callable[[Tensor], None],
        context: Callable[[], AbstractContextManager[Any]],
        safely: Safely,
    ) -> None:
        self._module = module
        self._safely = safely
        self._context = context
        self._per_sample_loss = per_sample_loss
        self._calls = calls
        self._watched = {one: _watched(one) for one in calls}
        self._take = take
        self._made: Made = {one: [] for one in calls}
        self._chosen: list[int] | None = None  # for each of `calls`, its number among its module's calls in a step
        self._batch: Any = None
        self._missed = 0
        self._draws: bool | None = None
        self._is_taken = False
        self.failure = ""

    def open(self, batch: Any) -> None:
        """The training step on ``batch`` begins; None takes the arguments of the model's own call."""
        self._batch, self._is_taken = batch, False
        if not self.failure:
            for watched in self._watched.values():
                watched.add(self, self._seen)

    def close(self) -> None:
        """The training step is over."""
        if not self.failure and not self._is_taken:
            self._look(self._made)
        self._batch = None
        self.release()

    def release(self) -> None:
        """Restore the modules."""
        for watched in self._watched.values():
            watched.remove(self)
        for calls in self._made.values():
            calls.clear()

    def _seen(self, module: nn.Module, arguments: Any, named: Any, outputs: Any) -> None:
        made = self._made[module]
        if self._is_taken or not torch.is_grad_enabled() or len(made) >= _MANY:
            return
        made.append((arguments, named, outputs))
        if self._chosen is None:
            return
        calls = []
        for one, place in zip(self._calls, self._chosen, strict=True):
            if len(self._made[one]) <= place:
                return
            calls.append(self._made[one][place])
        self._is_taken = True  # any further call belongs to another pass over the batch
        # Immediately, so that no tensor is kept alive longer than in plain training.
        self._safely("taking the batch's losses", self._replay, calls)

    def _look(self, made: Made) -> None:
        """Find out, on the first batches, which of the modules' calls are on the batch itself."""
        if not any(made.values()):
            self._miss("the training step did not call the modules that per_sample_loss calls, or in a compiled whole")
            return
        chosen: list[int] = []
        for number, module in enumerate(self._calls):
            taken = [place for other, place in zip(self._calls[:number], chosen, strict=True) if other is module]
            places = [place for place in range(len(made[module])) if place not in taken]
            fits = [place for place in places if self._fits(made, [*chosen, place])]
            if not fits:
                hint = "" if self._batch is not None else ": give batch=, what per_sample_loss gets"
                self._miss(f"the training step gives the model other inputs than per_sample_loss does{hint}")
                return
            chosen.append(fits[0])
        outputs = [made[module][place] for module, place in zip(self._calls, chosen, strict=True)]
        if self._replay(outputs):
            self._chosen, self._missed = chosen, 0

    def _fits(self, made: Made, chosen: list[int]) -> bool:
        """Whether per_sample_loss passes the inputs of these calls, the first few calls of all."""
        calls = [made[module][place] for module, place in zip(self._calls, chosen, strict=False)]
        asked: list[bool] = []
        try:
            self._evaluated(calls, lambda call, *inputs: asked.append(_same(call[:2], inputs)))
        except _OutOfCallsError:
            pass
        except Exception:
            return False
        return len(asked) >= len(calls) and all(asked[: len(calls)])

    def _replay(self, calls: list[tuple[Any, Any, Any]]) -> bool:
        try:
            losses = self._evaluated(calls)
        except Exception as error:  # no error of the user's function may reach training
            self._miss(f"per_sample_loss failed on the training batch: {first_line(error)}")
            return False
        if not isinstance(losses, Tensor) or losses.dim() != 1:
            self._miss("per_sample_loss gave no [n] losses for the training batch")
            return False
        self._take(losses.detach() if losses.requires_grad else losses)
        return True

    def _evaluated(self, calls: list[tuple[Any, Any, Any]], see: Callable[..., Any] = lambda *_: None) -> Any:
        remaining = list(zip(self._calls, calls, strict=False))
        has_gradient = torch.is_grad_enabled()

        def answer(module: nn.Module, *inputs: Any) -> Any:
            for place, (asked, made) in enumerate(remaining):
                if asked is module:
                    del remaining[place]
                    see(made, *inputs)
                    return made[2]
            raise _OutOfCallsError

        batch = self._batch
        if batch is None:
            arguments, named, _ = calls[0]
            batch = named or (arguments if len(arguments) > 1 else arguments[0])
        for watched in self._watched.values():
            watched.answer = answer
        has_cache = torch.is_autocast_cache_enabled()
        torch.set_grad_enabled(False)  # context managers would take five times as long after a long step
        torch.set_autocast_cache_enabled(False)  # see `uncached_casts`
        try:
            with self._context():
                if self._draws is False:
                    return self._per_sample_loss(self._module, batch)
                state = torch.get_rng_state()
                with isolated():
                    losses = self._per_sample_loss(self._module, batch)
                    self._draws = not torch.equal(state, torch.get_rng_state())
                return losses
        finally:
            torch.set_grad_enabled(has_gradient)
            torch.set_autocast_cache_enabled(has_cache)
            for watched in self._watched.values():
                watched.answer = None

    def _miss(self, reason: str) -> None:
        self._missed += 1
        if self._missed >= PATIENCE:
            self.failure = reason


class _OutOfCallsError(Exception):
    """per_sample_loss calls a module more often than calls were recorded."""


class _Watched:
    """A module whose calls are passed to observers, also in its compiled form; its own behaviour does not change.

    Attributes:
        answer: (module, arguments, keyword arguments) ↦ outputs that replace the module's own.
    """

    def __init__(self, module: nn.Module) -> None:
        self.answer: Callable[..., Any] | None = None
        self._module = weakref.ref(module)
        self._seen_by: dict[Any, Callable[..., None]] = {}
        self._original: Callable[..., Any] | None = None

    def add(self, who: Any, see: Callable[..., None]) -> None:
        """Let ``who`` observe each call by ``see``: module, arguments, keyword arguments and outputs."""
        module = self._module()
        if not self._seen_by and module is not None:
            state = vars(module)
            self._original, state[_CALL] = state.get(_CALL), self
        self._seen_by[who] = see

    def remove(self, who: Any) -> None:
        """Stop observing for ``who``; after the last observer the module is restored."""
        module = self._module()
        if self._seen_by.pop(who, None) is not None and not self._seen_by and module is not None:
            _set_call(module, self._original)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        module = self._module()
        assert module is not None  # it is being called
        if self.answer is not None:
            return self.answer(module, arguments, named)
        outputs = (self._original or module._call_impl)(*arguments, **named)
        if not torch.compiler.is_compiling():
            for see in list(self._seen_by.values()):
                see(module, arguments, named, outputs)
        return outputs


_all_watched: weakref.WeakKeyDictionary[nn.Module, _Watched] = weakref.WeakKeyDictionary()


def _watched(module: nn.Module) -> _Watched:
    if module not in _all_watched:
        _all_watched[module] = _Watched(module)
    return _all_watched[module]


def outermost_calls(module: nn.Module, work: Callable[[], Any]) -> list[nn.Module]:
    """The modules inside ``module`` that ``work`` calls, in order, without those called within other modules."""
    calls: list[nn.Module] = []
    depth = 0

    def noting(entered: nn.Module) -> Callable[..., Any]:
        original = vars(entered).get(_CALL) or entered._call_impl

        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal depth
            if depth == 0:
                calls.append(entered)
            depth += 1
            try:
                return original(*arguments, **named)
            finally:
                depth -= 1

        return call

    before = {entered: vars(entered).get(_CALL) for entered in _eager_modules(module)}
    for entered in before:
        _set_call(entered, noting(entered))
    try:
        work()
    finally:
        for entered, call in before.items():
            _set_call(entered, call)
    return calls


def _eager_modules(module: nn.Module) -> list[nn.Module]:
    """``module`` and its submodules, without those inside a compiled module."""
    if "_orig_mod" in module._modules or vars(module).get(_CALL) is not None:  # by torch.compile, module.compile
        return [module]
    within = [one for child in module.children() for one in _eager_modules(child)]
    return list(dict.fromkeys([module, *within]))


def _set_call(module: nn.Module, call: Callable[..., Any] | None) -> None:
    """Set it without `__setattr__`, which module wrappers forward to what they wrap."""
    vars(module).pop(_CALL, None)
    if call is not None:
        vars(module)[_CALL] = call


def _same(call: tuple[Any, Any], inputs: tuple[Any, Any]) -> bool:
    """Whether two calls have the same tensors."""
    ones, others = ([leaf for leaf in tree_leaves(part) if isinstance(leaf, Tensor)] for part in (call, inputs))
    if len(ones) < len(others) or not others:  # training may pass more, such as the number of items
        return False
    return all(
        any(one is other or (one.shape == other.shape and bool((one == other).all())) for one in ones)
        for other in others
    )
