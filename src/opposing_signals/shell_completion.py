"""Shell completion for what Hydra does not know: commands and short names of experiments."""

from __future__ import annotations

from opposing_signals.choices import choices
from opposing_signals.commands import COMMANDS
from opposing_signals.experiments import beginning_with, named, without_zeros

_OF_EXPERIMENTS = ("list", "sweep", "--only")
"""Words that are followed by names of experiments."""


def proposals(line: str) -> list[str] | None:
    """Completions of the last word of ``line``, a command being typed; None if Hydra should complete it."""
    _, *given, word = line.split(" ")
    given = [text for text in given if text]
    if word.startswith("-"):
        return [] if {*given} & {*COMMANDS} else None
    if not given:
        return [name for name in COMMANDS if name.startswith(word)] + _names(word) or None
    if given[0] not in COMMANDS:
        return None
    behind = [text for text in given if text.startswith("--") or text in _OF_EXPERIMENTS]
    return _names(word) if behind and behind[-1] in _OF_EXPERIMENTS else []


def for_hydra(line: str) -> str:
    """``line`` with the experiment in Hydra's form, as in ``experiment=fig01_group_losses``.

    Raises:
        InputError: A word that is not a field matches no experiment, or several.
    """
    program, *given = line.split(" ")
    for i, word in enumerate(given[:-1]):
        if word and "=" not in word and not word.startswith("-"):
            given[i] = f"experiment={named(word)}"
    return " ".join([program, *given])


def _names(word: str) -> list[str]:
    """Experiments spelled so that they start with ``word``, as shells require: ``fig6a_sgd_groups`` for ``fig6``."""
    known = choices("experiment")
    written = [name for name in known if name.startswith(word)]
    return written or [short for name in beginning_with(word) if (short := without_zeros(name)).startswith(word)]
