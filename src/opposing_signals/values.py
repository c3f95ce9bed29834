"""Types and ranges of plain values in signatures: ``width: Count`` is a whole number, at least 1.

A configuration is checked against these annotations (`opposing_signals.schema`), and so are the arguments that a
foreign record gives to a data set (`opposing_signals.data.recorded`). To a type checker they are ``int`` and ``float``.
"""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from opposing_signals.errors import InputError


@dataclass(frozen=True)
class Range:
    """The numbers from ``least`` to ``most``; either end may be excluded.

    Attributes:
        least: The lower end.
        most: The upper end.
        above: The lower end is excluded.
        below: The upper end is excluded.
    """

    least: float = -math.inf
    most: float = math.inf
    above: bool = False
    below: bool = False

    def __contains__(self, number: float) -> bool:
        return (self.least < number if self.above else self.least <= number) and (
            number < self.most if self.below else number <= self.most
        )

    def __str__(self) -> str:
        lower = "" if self.least == -math.inf else f"{'above' if self.above else 'at least'} {self.least}"
        upper = "" if self.most == math.inf else f"{'below' if self.below else 'at most'} {_short(self.most)}"
        return " and ".join(end for end in (lower, upper) if end)


Count = Annotated[int, Range(1, 2**63, below=True)]
Natural = Annotated[int, Range(0, 2**63, below=True)]
Seed = Annotated[int, Range(0, 2**32, below=True)]
"""Seed of PyTorch's generators, which on the CPU use the last 32 bits."""
Positive = Annotated[float, Range(0, above=True)]
NotNegative = Annotated[float, Range(0)]
Fraction = Annotated[float, Range(0, 1)]
Decay = Annotated[float, Range(0, 1, below=True)]
"""The factor of a moving average."""

_SEQUENCES = (list, tuple, Sequence, Iterable)
_WORDS: Mapping[Any, str] = {
    int: "a whole number",
    float: "a finite number",
    str: "a text",
    Path: "a path",
    bool: "true or false",
    type(None): "null",
}
_LONGEST = 80
"""Characters of a value that a message shows."""


def expect(field: str, value: Any, hint: Any) -> None:
    """Refuse a value that does not match the annotation ``hint``.

    Raises:
        InputError: The message names ``field``, the value, and what is expected.
    """
    if not fits(value, hint):
        raise InputError(f"{field}={written(value)}: expected {in_words(hint)}")


def fits(value: Any, hint: Any) -> bool:
    """Whether ``value``, from YAML or JSON, matches the annotation ``hint``. Numbers must be finite.

    For a class other than the plain types, ``value`` must be an instance; an annotation that cannot be checked matches.
    """
    origin, parts = get_origin(hint), get_args(hint)
    if hint is Any or hint is object or isinstance(hint, TypeVar | str):
        return True
    if origin is Annotated:
        ranges = [part for part in parts[1:] if isinstance(part, Range)]
        return fits(value, parts[0]) and all(value in one for one in ranges)
    if origin in (Union, types.UnionType):
        return any(fits(value, part) for part in parts)
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in parts)
    if origin in _SEQUENCES or hint in _SEQUENCES:
        return isinstance(value, list | tuple) and _fit(value, origin, parts)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if hint is Path:
        return isinstance(value, str | Path)
    if hint in _WORDS:
        return type(value) is hint
    if origin is Callable:
        return callable(value)
    plain = origin if isinstance(origin, type) else hint
    return isinstance(value, plain) if isinstance(plain, type) else True


def _fit(values: Sequence[Any], origin: Any, parts: tuple[Any, ...]) -> bool:
    if origin is tuple and parts[1:] != (Ellipsis,):
        return len(values) == len(parts) and all(map(fits, values, parts))
    return not parts or all(fits(value, parts[0]) for value in values)


def in_words(hint: Any) -> str:
    """What ``hint`` expects, for a message."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return ", ".join([in_words(parts[0]), *(str(part) for part in parts[1:] if isinstance(part, Range))])
    if origin in (Union, types.UnionType):
        words = [in_words(part) for part in parts if fits_plainly(part)]
        return ", or ".join(dict.fromkeys(words))
    if origin is Literal:
        return " or ".join(
            [", ".join(map(written, parts[:-1])), written(parts[-1])] if parts[1:] else map(written, parts)
        )
    if origin is tuple and parts[1:] != (Ellipsis,):
        return f"a list of {len(parts)}: {'; '.join(map(in_words, parts))}"
    if origin in _SEQUENCES or hint in _SEQUENCES:
        return f"a list, each of it {in_words(parts[0])}" if parts else "a list"
    if origin is Callable:
        return "a function, as its _target_"
    return _WORDS.get(hint, "fields" if origin in (dict, Mapping) else getattr(hint, "__name__", str(hint)))


def fits_plainly(hint: Any) -> bool:
    """Whether plain values can match ``hint``: no tensors, functions and the like."""
    origin = get_origin(hint)
    return origin is not Callable and (origin is not None or hint in _WORDS or hint in (list, tuple, dict))


def is_plain(hint: Any) -> bool:
    """Whether all values of ``hint`` are plain, and not made by a function: numbers, strings, lists of them."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return is_plain(parts[0])
    if origin in (Union, types.UnionType):
        return all(map(is_plain, parts))
    if origin in _SEQUENCES:
        return all(is_plain(part) for part in parts if part is not Ellipsis)
    return origin is Literal or hint in _WORDS


def written(value: Any) -> str:
    """``value`` as on a command line, truncated to fit a message."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    text = f"[{', '.join(map(written, value))}]" if isinstance(value, list | tuple) else str(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _short(number: float) -> str:
    """The number as text; large powers of two as such."""
    exponent = int(number).bit_length() - 1
    return f"2^{exponent}" if number == 2**exponent and exponent > 16 else str(number)
