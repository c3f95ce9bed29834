"""The command line: ``opposing-signals experiment=NAME [scale=smoke|cpu|paper] [seed=N] [any.field=VALUE]``.

What does not need torch is done before torch is imported, so that help comes at once.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from contextlib import suppress
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from opposing_signals import streams
from opposing_signals.configuration import configuration_folder
from opposing_signals.errors import READ_NAMED_DATA, InputError, TrainingStoppedError, printable
from opposing_signals.interruption import MESSAGE, Interrupted, ended_by_signals

BAD_INPUT = 2
STOPPED = 1
LAUNCHERS = {
    "joblib": "hydra-joblib-launcher",
    "submitit_local": "hydra-submitit-launcher",
    "submitit_slurm": "hydra-submitit-launcher",
    "ray": "hydra-ray-launcher",
}
"""Launcher ↦ the package that brings it; Hydra itself has ``basic``."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    with streams.usable():
        return _main(arguments)


def _main(arguments: list[str] | None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print_help()
        return 0
    if arguments[0] == "--version":
        print(version("opposing-signals"))
        return 0
    if not _is_one_of_several():
        try:
            with ended_by_signals():
                return _exit_code(arguments)
        except Interrupted as told:
            with suppress(OSError):  # a terminal that was closed
                print(MESSAGE, file=sys.stderr)
            return told.code
    from opposing_signals.processes import joined

    with joined():
        return _exit_code(arguments)


def _exit_code(arguments: list[str]) -> int:
    try:
        if arguments[0] == "report":
            from opposing_signals.report import build

            named_data, folders = _folders(arguments)
            given = [Path(folder) for folder in folders]
            if missing := [str(folder) for folder in given if not folder.is_dir()]:
                raise InputError(f"report: no folder {', '.join(missing)}; expected folders with results or runs")
            print(f"report: {build(given or [Path('outputs'), Path('results')], named_data=named_data)}")
            return 0
        if arguments[0] == "explain":
            from opposing_signals.own_model import explain

            named_data, folders = _folders(arguments)
            if not folders:
                raise InputError("explain: no folder given: expected opposing-signals explain FOLDER, that of a record")
            for folder in folders:
                for line in explain(folder, named_data=named_data).split("\n"):
                    print(printable(line))
            return 0
        _check_names(arguments)
        from opposing_signals.app import run

        return run(arguments)
    except InputError as error:
        return _failed(str(error), BAD_INPUT)
    except TrainingStoppedError as error:
        return _failed(f"training stopped: {error}", STOPPED)
    except BrokenPipeError:
        raise
    except OSError as error:
        if os.environ.get("HYDRA_FULL_ERROR"):
            raise
        return _failed(f"{error.strerror or error}: {error.filename or 'the record'}", BAD_INPUT)


def _folders(arguments: list[str]) -> tuple[bool, list[str]]:
    """Of ``report`` and ``explain``: whether to read data that a record names, and the folders."""
    for argument in arguments[1:]:
        if argument.startswith("-") and argument != READ_NAMED_DATA:
            raise InputError(f"{arguments[0]}: no option {argument}; there is {READ_NAMED_DATA}")
    return READ_NAMED_DATA in arguments, [argument for argument in arguments[1:] if argument != READ_NAMED_DATA]


def _is_one_of_several() -> bool:
    """Whether torchrun has started this process."""
    return {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= os.environ.keys()


def _failed(message: str, code: int) -> int:
    """Report a failure, unless the first of several processes reports the same."""
    if _is_one_of_several():
        from opposing_signals.processes import first_has_ended, is_first

        if not is_first() and first_has_ended():
            return code
    print(f"opposing-signals: {printable(message)}", file=sys.stderr)
    return code


def experiments() -> dict[str, tuple[str, dict[str, str]]]:
    """Name ↦ (one line, cost at each scale) of every experiment."""
    found = {}
    for path in sorted((configuration_folder() / "experiment").glob("*.yaml")):
        described = OmegaConf.load(path).experiment
        found[path.stem] = (described.title, dict(described.cost))
    return found


def print_help() -> None:
    """What can be run, and what it costs."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    console.print(
        "Which training examples drive the optimization of a neural network.\n\n"
        "  [bold]opposing-signals experiment=NAME[/] \\[scale=smoke|cpu|paper] \\[seed=N] \\[FIELD=VALUE ...]\n"
        "  [bold]opposing-signals report[/] \\[FOLDER ...]      one page of all results\n"
        "  [bold]opposing-signals explain[/] FOLDER ...       which examples carried a run's loss spikes\n"
        "      [bold]--read-named-data[/] with these two: read text from where a record that you trust says it lies\n\n"
        "An experiment trains what is missing, draws its figure, checks its claims and writes them to outputs/NAME/. "
        "Any field of the configuration can be set: model.width=32, optimizer.lr=0.02, data=planted, logger=none, "
        "output_dir=FOLDER. [bold]--cfg job[/] prints the configuration of a command, [bold]--hydra-help[/] the "
        "options of Hydra (sweeps, launchers)."
    )
    table = Table(title="\nExperiments (cost: two CPU cores at smoke and cpu, one GPU at paper)", title_justify="left")
    for column in ("experiment", "what it shows", "smoke", "cpu", "paper"):
        table.add_column(column, no_wrap=column == "experiment")
    for name, (title, cost) in experiments().items():
        table.add_row(name, title, *(str(cost.get(scale, "-")) for scale in ("smoke", "cpu", "paper")))
    console.print(table)


def _check_names(arguments: list[str]) -> None:
    """Refuse an unknown choice of a configuration group here: Hydra says the same in a page."""
    folder = configuration_folder()
    has_own_folder = any(argument.startswith(("--config-dir", "-cd", "hydra.searchpath")) for argument in arguments)
    for argument in arguments:
        group, separator, choices = argument.lstrip("+~").partition("=")
        if group == "hydra/launcher":
            _check_launcher(choices)
            continue
        if argument.startswith("+") and not has_own_folder:
            _check_added(argument)
        if not separator or argument.startswith("-") or not (folder / group).is_dir():
            continue
        known = sorted(path.stem for path in (folder / group).glob("*.yaml"))
        for choice in choices.strip("[]").split(","):
            if choice not in known:
                raise InputError(f"{group}={choice}: unknown; there are {', '.join(known)}")
    chosen = [a for a in arguments if a.startswith("experiment=")]
    if not chosen and not any(a.startswith("--") for a in arguments):
        raise InputError(
            f"no experiment given, only {shlex.join(arguments)}: expected experiment=NAME with one of "
            f"{', '.join(experiments())}"
        )


def _check_added(argument: str) -> None:
    """Refuse ``+name=value`` where nothing reads such a field: it would change a run's key, and nothing else."""
    name = re.split(r"[.@/=]", argument.lstrip("+"))[0]
    folder = configuration_folder()
    if (folder / name).is_dir() or name == "hydra":
        return
    read = {field for path in folder.rglob("*.yaml") for field in re.findall(r"^(\w+):", path.read_text("utf-8"), re.M)}
    if name not in read:
        raise InputError(f"{argument}: no job reads a field {name}; --cfg job prints the fields there are")


def _check_launcher(launcher: str) -> None:
    """Refuse a launcher that is not there, and say how to get it; or one that does not fit to several processes."""
    known = sorted({"basic", *LAUNCHERS})
    if launcher not in known:
        raise InputError(f"hydra/launcher={launcher}: unknown; there are {', '.join(known)}")
    if launcher != "basic" and _is_one_of_several():
        raise InputError(
            f"hydra/launcher={launcher} under torchrun: expected basic, whose jobs follow each other; start the "
            "command without torchrun for jobs side by side"
        )
    if launcher != "basic":
        package = LAUNCHERS[launcher]
        if find_spec("hydra_plugins") is None or find_spec(f"hydra_plugins.{package.replace('-', '_')}") is None:
            raise InputError(f"hydra/launcher={launcher}: expected its package, by `pip install {package}`")


if __name__ == "__main__":
    sys.exit(main())
