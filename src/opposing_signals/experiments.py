"""The experiments: what each shows and costs, and which one an abbreviation means."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from difflib import get_close_matches
from pathlib import Path

from opposing_signals.choices import choices, written
from opposing_signals.errors import InputError

ALL = "`opposing-signals list` shows all"
FAMILIES = {
    "theory of section 3.3": r"Theorem|§3\.3",
    "conjectures": "Conjecture",
    "the authors' talk": "Talk",
    "others": "",
}
"""Families of experiments other than the paper's figures ↦ how their titles begin; the first match counts."""
FIGURES = "the paper's figures"


def experiments(folders: Sequence[Path] | None = None) -> dict[str, tuple[str, dict[str, str]]]:
    """Name ↦ (one line, measured cost by scale) of every experiment, in ``folders`` or those of the package."""
    found = {}
    for name in choices("experiment", folders):
        described = written("experiment", name, folders).get("experiment", {})
        found[name] = (str(described.get("title", "")), dict(described.get("cost", {})))
    return found


def families() -> dict[str, list[str]]:
    """Family ↦ names of its experiments. Figures of the paper are recognized by name, others by title."""
    found: dict[str, list[str]] = {family: [] for family in (FIGURES, *FAMILIES)}
    for name, (title, _) in experiments().items():
        by_title = next(family for family, beginning in FAMILIES.items() if re.match(beginning, title))
        found[FIGURES if re.match(r"fig\d", name) else by_title].append(name)
    return found


def named(given: str, folders: Sequence[Path] | None = None) -> str:
    """The experiment that ``given`` means: its name, the number of its figure, or a unique prefix.

    Raises:
        InputError: It matches none of them, or several.
    """
    meant = beginning_with(given, folders)
    if len(meant) == 1:
        return meant[0]
    if meant:
        raise InputError(f"experiment {given!r}: it could be {_any_of(meant)}; say which")
    known = choices("experiment", folders)
    figures = [number[0] for name in known if (number := re.match(r"fig\d+[a-z]?", without_zeros(name)))]
    near = did_you_mean(given, known) or did_you_mean(given, figures)
    raise InputError(f"experiment {given!r}: unknown; {near}{ALL}")


def beginning_with(given: str, folders: Sequence[Path] | None = None) -> list[str]:
    """The experiments whose name begins with ``given``; only the one of exactly this name, if there is one.

    ``fig1`` and ``fig01`` are figure 1, not figures 10 to 19 as well.
    """
    known = choices("experiment", folders)
    if given in known:
        return [given]
    beginning = without_zeros(given.lower().replace("-", "_"))
    another_digit = r"(?!\d)" if re.fullmatch(r"fig\d+", beginning) else ""
    return [name for name in known if beginning and re.match(re.escape(beginning) + another_digit, without_zeros(name))]


def did_you_mean(given: str, known: Collection[str]) -> str:
    """``"did you mean ...?; "`` with the names in ``known`` that look like ``given``; empty if none does."""
    near = get_close_matches(given, known, n=3)
    return f"did you mean {_any_of(near)}? " if near else ""


def _any_of(names: list[str]) -> str:
    shown = names if len(names) <= 6 else [*names[:5], f"{len(names) - 5} others"]
    return " or ".join(part for part in (", ".join(shown[:-1]), shown[-1]) if part)


def without_zeros(name: str) -> str:
    """``fig06a_...`` as ``fig6a_...``, which `named` also accepts."""
    return re.sub(r"^fig0+(?=\d)", "fig", name)
