"""How the package's pages are made of templates."""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined


def templates(room: str) -> Environment:
    """Those of a subpackage; text is escaped, and a name that is not given is an error."""
    return Environment(
        loader=PackageLoader("opposing_signals", room),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
