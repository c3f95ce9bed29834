"""The arguments of an experiment, completed and checked before anything heavy is imported.

Hydra refuses most of the same errors too, but with a page of output for each.
"""

from __future__ import annotations

import re
import shlex
from argparse import Action, ArgumentParser, Namespace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn
from unittest.mock import patch

from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob, Override
from hydra.errors import HydraException

from opposing_signals.choices import choices
from opposing_signals.configuration import configuration_folder
from opposing_signals.errors import InputError
from opposing_signals.experiments import ALL, did_you_mean, named
from opposing_signals.processes import is_one_of_several

LAUNCHERS = {
    "joblib": "hydra-joblib-launcher",
    "submitit_local": "hydra-submitit-launcher",
    "submitit_slurm": "hydra-submitit-launcher",
    "ray": "hydra-ray-launcher",
}
"""Launcher ↦ the package that brings it; Hydra itself has ``basic``."""
_MODES = ("run", "multirun", "cfg", "shell_completion", "info")
"""Options of Hydra that select what to do."""


_FEW = 12
"""Up to this many choices, a message names all of them in addition to similar ones."""


class _Parser(ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; expected options of --hydra-help, and fields without dashes, as in scale=smoke")

    def add_argument(self, *names: Any, **settings: Any) -> Action:
        """Add the help text last: Python 3.14 checks it at once, and Hydra 1.3.8 has one that is not a string yet."""
        text = settings.pop("help", None)
        action = super().add_argument(*names, **settings)
        action.help = text
        return action


def hydra_parser() -> ArgumentParser:
    """The parser of Hydra's options, on any version of Python; it refuses by an `InputError`."""
    with patch("hydra._internal.utils.argparse", SimpleNamespace(ArgumentParser=_Parser)):
        return get_args_parser()


def parsed(arguments: list[str]) -> Namespace:
    """``arguments`` parsed by Hydra's options; fields may come before, between and after them.

    Raises:
        InputError: There is no such option, or two that exclude each other.
    """
    options = hydra_parser().parse_intermixed_args(arguments)
    wanted = [f"--{name.replace('_', '-')}" for name in _MODES if getattr(options, name) not in (None, False)]
    if len(wanted) > 1:
        raise InputError(f"{' '.join(wanted)}: expected one of them")
    if options.resolve and options.cfg is None:
        raise InputError("--resolve: expected together with --cfg job, whose output it changes")
    if options.experimental_rerun is not None:
        raise InputError("--experimental-rerun: not supported; the same command goes on with a run")
    return options


def completed(arguments: list[str]) -> list[list[str]]:
    """The checked arguments with the full name of the experiment; one list per experiment.

    Raises:
        InputError: They cannot be parsed, or name something unknown.
    """
    options = parsed(arguments)
    if options.shell_completion:
        return [arguments]
    if options.hydra_help:
        return [["--hydra-help"]]
    given = [text if "=" in text or text.startswith("~") else f"experiment={text}" for text in options.overrides]
    chosen = [text for text in given if text.startswith("experiment=")]
    others = [text for text in given if text not in chosen]
    searched = folders(options)
    if len(chosen) > 1:
        raise InputError(
            f"{shlex.join(options.overrides)}: expected one experiment, and fields as in scale=smoke, without spaces; "
            "-m experiment=fig1,fig2 runs several"
        )
    for text in others:
        _check(text, searched)
    if not chosen:
        if options.info == "plugins":
            return [arguments]
        only = f", only {shlex.join(arguments)}" if arguments else ""
        raise InputError(f"no experiment given{only}: expected a name, such as fig03_chebyshev; {ALL}")
    experiments = [
        named(name.strip(), searched) for name in chosen[0].removeprefix("experiment=").strip("[]").split(",")
    ]
    if len(experiments) > 1 and not options.multirun:
        raise InputError(f"{chosen[0]}: several experiments; add -m to run one after the other")
    flags = [argument for argument in arguments if argument not in options.overrides]
    return [[f"experiment={name}", *others, *flags] for name in experiments]


def folders(options: Namespace) -> list[Path]:
    """Where configurations are looked for: the package's folder, then those of plugins and of the user, as Hydra does.

    Raises:
        InputError: ``--config-dir`` or ``hydra.searchpath`` does not name a folder.
    """
    searched = create_config_search_path(str(configuration_folder()))
    if options.config_dir:
        searched.append("--config-dir", options.config_dir)
    for text in options.overrides:
        if text.lstrip("+").startswith("hydra.searchpath="):
            for place in _values(_override(text)):
                searched.append("hydra.searchpath", place)
    found = []
    for element in searched.get_path():
        folder = searched_folder(str(element.path))
        if folder is not None and folder.is_dir():
            found.append(folder)
        elif element.provider in ("--config-dir", "hydra.searchpath"):
            raise InputError(
                f"{element.provider}={element.path}: no such folder; expected one with configurations, as file:///PATH "
                "or pkg://PACKAGE.FOLDER in hydra.searchpath"
            )
    return found


def searched_folder(place: str) -> Path | None:
    """The folder of an element of Hydra's search path; None if it cannot hold experiments."""
    scheme, _, rest = place.rpartition("://")
    if scheme != "pkg":
        return Path(rest).absolute() if scheme in ("", "file") else None
    try:
        found = None if rest.split(".")[0] in ("hydra", "hydra_plugins") else find_spec(rest.replace("/", "."))
    except ModuleNotFoundError:
        return None
    return Path(next(iter(found.submodule_search_locations))) if found and found.submodule_search_locations else None


def _override(text: str) -> Override:
    try:
        return OverridesParser.create().parse_override(text)
    except HydraException as error:
        raise InputError(
            f"{text}: cannot be read, {' '.join(str(error).split())}; expected FIELD=VALUE, with quotes around a value "
            "that holds a comma, a bracket or an equals sign"
        ) from None


def _check(text: str, searched: list[Path]) -> None:
    """Refuse what Hydra cannot parse, and unknown names: Hydra does so in a page."""
    override = _override(text)
    group = override.key_or_group
    if group == "hydra/launcher":
        _check_launcher(text.partition("=")[2])
        return
    known = choices(group, searched)
    if override.is_add() and not known:
        _check_added(text, group, searched)
    if override.is_delete() or not known:
        return
    for choice in _values(override):
        if choice not in known:
            raise InputError(f"{group}={choice}: unknown; {instead_of(choice, known)}")


def _values(override: Override) -> list[str]:
    value = override.value()
    if isinstance(value, Glob):
        return []
    values = value.list if isinstance(value, ChoiceSweep) else value if isinstance(value, list) else [value]
    return ["null" if choice is None else str(choice) for choice in values]


def instead_of(choice: str, known: list[str]) -> str:
    """The proposal of a message for a ``choice`` that is not among the ``known`` ones."""
    near = did_you_mean(choice, known)
    return near.strip() if near and len(known) > _FEW else f"{near}there are {', '.join(known)}"


def _check_added(text: str, field: str, searched: list[Path]) -> None:
    """Refuse ``+name=value`` where nothing reads such a field: it would only change a run's key."""
    name = re.split(r"[./@]", field)[0]
    if name == "hydra" or choices(name, searched):
        return
    files = [path.read_text("utf-8") for folder in searched for path in folder.rglob("*.yaml")]
    read = {field for text in files for field in re.findall(r"^(\w+):", text, re.M)}
    if name not in read:
        near = did_you_mean(name, read)
        raise InputError(f"{text}: no job reads a field {name}; {near}--cfg job prints the fields there are")


def _check_launcher(launcher: str) -> None:
    """Refuse a launcher that is not installed, and say how to install it; or one that cannot run under torchrun."""
    known = sorted({"basic", *LAUNCHERS})
    if launcher not in known:
        raise InputError(f"hydra/launcher={launcher}: unknown; {instead_of(launcher, known)}")
    if launcher != "basic" and is_one_of_several():
        raise InputError(
            f"hydra/launcher={launcher} under torchrun: expected basic, whose jobs follow each other; start the "
            "command without torchrun for jobs side by side"
        )
    if launcher != "basic":
        package = LAUNCHERS[launcher]
        if find_spec("hydra_plugins") is None or find_spec(f"hydra_plugins.{package.replace('-', '_')}") is None:
            raise InputError(f"hydra/launcher={launcher}: expected its package, by `pip install {package}`")
