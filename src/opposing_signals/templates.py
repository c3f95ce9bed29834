"""Templates of the package's pages."""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined


def templates(room: str) -> Environment:
    """The templates of a subpackage; text is escaped, and an undefined name is an error."""
    return Environment(
        loader=PackageLoader("opposing_signals", room),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
