"""The data set that a record names, rebuilt without letting the record choose what is run or read.

A record may come from anywhere. Its field ``data`` is text: it selects one of the functions below by name and gives it
plain values. Nothing in it is instantiated or resolved.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_type_hints

from opposing_signals.data.chebyshev import chebyshev
from opposing_signals.data.cifar10 import cifar10
from opposing_signals.data.dataset import Dataset
from opposing_signals.data.planted import planted
from opposing_signals.data.text import openwebtext, text_demo
from opposing_signals.data.text_stream import text_stream
from opposing_signals.data.tracked import tracked
from opposing_signals.errors import READ_NAMED_DATA, InputError
from opposing_signals.values import expect

PACKAGE = "opposing_signals.data"
FUNCTIONS: Mapping[str, Callable[..., Dataset]] = {
    f"{PACKAGE}.{function.__name__}": function
    for function in (chebyshev, cifar10, openwebtext, planted, text_demo, text_stream, tracked)
}
"""The functions that a record may name."""
_NAMES_A_FILE = ("path", "hub")
"""Arguments that name a file, or a data set on the Hugging Face hub."""


def is_known(described: Any) -> bool:
    """Whether ``described``, a record's field ``data``, names one of `FUNCTIONS`."""
    target = described.get("_target_") if isinstance(described, dict) else None
    return isinstance(target, str) and target in FUNCTIONS


def recorded(described: Any, folder: Path, root: str | None = None, named_data: bool = False) -> Dataset:
    """The data set of a record.

    Args:
        described: The record's field ``data``.
        folder: Of the record, for the examples that it keeps itself.
        root: Folder of the data sets on this machine; the record's own is ignored.
        named_data: Whether to read a text file or a data set on the hub that the record names.

    Raises:
        InputError: It names no data set of this package, has an argument that the data set lacks or that is not a plain
            value of its type, or names a file or hub without ``named_data``; or the data set refuses an argument.
    """
    if not is_known(described):
        target = described.get("_target_") if isinstance(described, dict) else described
        raise InputError(
            f"{folder}: its data are {target!r}, no data set of this package; expected one of "
            f"{', '.join(name.removeprefix(f'{PACKAGE}.') for name in FUNCTIONS)}"
        )
    function = FUNCTIONS[described["_target_"]]
    given = {name: value for name, value in described.items() if name not in ("_target_", "root", "folder")}
    accepted = {name: hint for name, hint in get_type_hints(function, include_extras=True).items() if name != "return"}
    for name, value in given.items():
        if name not in accepted:
            raise InputError(f"{folder}: data.{name}: {function.__name__} has no such argument")
        expect(f"{folder}: data.{name}", value, accepted[name])
    if not named_data and (function is text_stream or any(given.get(name) is not None for name in _NAMES_A_FILE)):
        named = ", ".join(f"data.{name}={given[name]}" for name in _NAMES_A_FILE if given.get(name) is not None)
        raise InputError(
            f"{folder}: its text is outside the record ({named or function.__name__}) and not read from there unasked; "
            f"if you trust the record, give the option {READ_NAMED_DATA}"
        )
    if "root" in accepted:
        given["root"] = root
    if "folder" in accepted:
        given["folder"] = folder
    return function(**given)
