"""Jets, and how a function of PyTorch is applied to them."""

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

from opposing_signals.curvature.any_order import DERIVATIVES
from opposing_signals.errors import InputError

RULES: dict[Callable[..., Any], Callable[..., Any]] = {}
"""Functions ↦ their rules for jets; filled by `opposing_signals.curvature.taylor.rules`."""
COMPOSED: dict[Callable[..., Any], Callable[..., Any]] = {}
"""Functions ↦ themselves, composed of others; filled there, too."""
_FUSED_NORM = re.compile("(batch|layer|group|instance)_norm")
_IN_PLACE: dict[str, Callable[..., Any]] = {
    name + "_": getattr(Tensor, name) for name in ("relu", "add", "sub", "mul", "div", "tanh", "sigmoid", "clamp")
} | {"__iadd__": Tensor.add, "__isub__": Tensor.sub, "__imul__": Tensor.mul, "__itruediv__": Tensor.div}
_LINEAR_METHODS = (
    "flatten unflatten view reshape transpose permute contiguous expand squeeze unsqueeze mean sum neg chunk split "
    "unbind select narrow __getitem__ clone"
)
_LINEAR: set[Callable[..., Any]] = {
    F.adaptive_avg_pool2d,
    F.avg_pool2d,
    torch.flatten,
    torch.mean,
    torch.sum,
    torch.neg,
    *(getattr(Tensor, name) for name in _LINEAR_METHODS.split()),
}

Coefficients = tuple[Tensor, Tensor | None, Tensor | None]
"""x₀, x₁, x₂; None is zero."""


class _Memory:
    """State that a jet shares with its views, so that writing into one of them is refused."""

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
            InputError: A view of it, or the tensor that it views, was written in place.
        """
        if self.memory.is_overwritten:
            raise _in_place()
        return self._coefficients

    def assign(self, coefficients: Coefficients) -> None:
        """Replace the coefficients by others that share no memory with a view."""
        self._coefficients, self.memory = coefficients, _Memory()

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Apply ``func`` to jets."""
        return _apply(func, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Refuse operations that bypass `__torch_function__`: they would compute with x₀ alone."""
        raise InputError(_OUT_OF_SIGHT)


def orders(value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x₀, x₁, x₂ with zeros written out; a plain tensor does not vary."""
    first, slope, curve = coefficients_of(value)
    return (
        first,
        torch.zeros_like(first) if slope is None else slope,
        torch.zeros_like(first) if curve is None else curve,
    )


def constant(value: Any) -> Any:
    """x₀ of a jet; anything else is itself."""
    return value.coefficients[0] if isinstance(value, Jet) else value


def coefficients_of(value: Any) -> Coefficients:
    """Of a jet; a tensor does not vary."""
    return value.coefficients if isinstance(value, Jet) else (value, None, None)


def _apply(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
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
    if func in COMPOSED:
        return COMPOSED[func](*args, **kwargs)
    with torch._C.DisableTorchFunctionSubclass():
        result = _expanded(func, name, args, kwargs)
        sources = {_storage(leaf): leaf.memory for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Jet)}
        for leaf in tree_flatten(result)[0]:
            if isinstance(leaf, Jet):
                leaf.memory = sources.get(_storage(leaf), leaf.memory)
        return result


def _expanded(func: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    rule = RULES.get(func)
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
    coefficients = value.coefficients  # may be the target's own, where the function does nothing, as inactive dropout
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
def refusing_what_stops() -> Iterator[None]:
    """Turn an error that a function raises on jets, and not on tensors, into an `InputError`.

    Raises:
        InputError: There was one.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:
        if "TorchScript" in str(error):
            raise InputError(_OUT_OF_SIGHT) from error
        raise InputError(
            f"the model stops at {type(error).__name__} ({str(error).splitlines()[0]}), {_CANNOT}: write it of "
            f"functions of torch.nn.functional, {_OR_LEAVE_OUT}"
        ) from error


def _jets(parts: Sequence[Any]) -> Any:
    """The results of a function for each coefficient, as a jet or a tuple of jets."""
    if isinstance(parts[0], tuple | list):
        return tuple(_jets([None if part is None else part[i] for part in parts]) for i in range(len(parts[0])))
    return Jet(*parts)


def _per_coefficient(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Apply a function that is linear in its one jet."""
    leaves, tree = tree_flatten((args, kwargs))
    place = next(i for i, leaf in enumerate(leaves) if isinstance(leaf, Jet))
    results: list[Any] = []
    of_slopes = Tensor.reshape if func is Tensor.view else func  # they may be expanded tensors where x₀ is dense
    for coefficient in leaves[place].coefficients:
        if coefficient is None:
            results.append(None)
            continue
        arguments, named = tree_unflatten([*leaves[:place], coefficient, *leaves[place + 1 :]], tree)
        results.append((of_slopes if results else func)(*arguments, **named))
    return _jets(results)


def _nested(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
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
    x0, x1, x2 = ([jet[order].contiguous() for jet in jets] for order in range(3))  # jvp refuses expanded tensors
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
