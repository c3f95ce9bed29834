"""The command line: ``opposing-signals EXPERIMENT [scale=smoke|cpu|paper] [seed=N] [any.field=VALUE]``.

Work that does not need torch comes before its import, so that help and errors in a command appear at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib.metadata import version

from rich.table import Table

from opposing_signals import streams
from opposing_signals.commands import COMMANDS
from opposing_signals.errors import InputError, TrainingStoppedError, printable
from opposing_signals.experiments import FIGURES, did_you_mean, families
from opposing_signals.interruption import MESSAGE, Interrupted, ended_by_signals
from opposing_signals.processes import first_has_ended, is_first, is_one_of_several, joined
from opposing_signals.terminal import console

BAD_INPUT = 2
STOPPED = 1


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    if "OMP_WAIT_POLICY" not in os.environ:
        # A waiting thread of torch spins. If another process occupies the core of the thread that it waits for,
        # training takes fifty times as long. This is libgomp's own spin count for such a case; an idle machine loses
        # nothing.
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    with streams.usable():
        return _main(arguments)


def _main(arguments: list[str] | None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    command = arguments[0] if arguments else "help"
    if command not in COMMANDS:
        if command == "help" or {"-h", "--help"} & set(arguments):
            print_help()
            return 0
        if "--version" in arguments:
            print(version("opposing-signals"))
            return 0
    work = partial(COMMANDS[command], arguments[1:]) if command in COMMANDS else partial(_run, arguments)
    if not is_one_of_several():
        try:
            with ended_by_signals():
                return _exit_code(work)
        except Interrupted as told:
            with suppress(OSError):  # the terminal may be closed
                print(MESSAGE, file=sys.stderr)
            return told.code
    with joined():
        return _exit_code(work)


def _exit_code(work: Callable[[], int]) -> int:
    """The exit code of ``work``; a refusal or a stopped training is reported in one line."""
    try:
        return work()
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


def _failed(message: str, code: int) -> int:
    """Report a failure, unless the first of several processes reports it."""
    if is_one_of_several() and not is_first() and first_has_ended():
        return code
    print(f"opposing-signals: {printable(message)}", file=sys.stderr)
    return code


def print_help() -> None:
    """Print all commands on one screen."""
    shown = console()
    shown.print(
        "Which training examples drive the optimization of a neural network.\n\n"
        "[bold]opposing-signals EXPERIMENT[/] \\[scale=smoke|cpu|paper] \\[seed=N] \\[FIELD=VALUE ...]\n"
        "[bold]opposing-signals demo[/]                 three pictures of it, in two minutes\n"
        "[bold]opposing-signals list[/] \\[WORD]          experiments, and what they cost\n"
        "[bold]opposing-signals sweep[/] EXPERIMENT     its grid as a W&B sweep\n"
        "[bold]opposing-signals report[/] \\[FOLDER ...]  one page of all results\n"
        "[bold]opposing-signals gallery[/] \\[FOLDER]     results as one page of Markdown\n"
        "[bold]opposing-signals explain[/] FOLDER ...   which examples carried a run's loss spikes\n"
        "[bold]opposing-signals reproduce[/]            all of it, in order, in --budget SECONDS\n"
        "[bold]opposing-signals pack[/] RESULTS FOLDER  the records behind results, made small\n\n"
        "An experiment is given by a beginning of its name: fig1, fig06b. It trains what is missing, draws its figure, "
        "checks its claims and writes them to outputs/NAME/. Any field can be set: model.width=32 data=planted "
        "logger=none. [bold]--cfg job[/] prints all fields, [bold]-m[/] runs several values (seed=1,2), "
        "[bold]--hydra-help[/] says more.\n"
    )
    table = Table.grid(padding=(0, 2))
    for family, members in families().items():
        numbers = [name.split("_")[0] for name in members]
        table.add_row(family, f"{numbers[0]} to {numbers[-1]}" if family == FIGURES else ", ".join(members))
    shown.print(table)


def _run(arguments: list[str]) -> int:
    """Run one experiment, or each of several; if one fails, the others still run."""
    from opposing_signals.arguments import completed

    line = os.environ.get("COMP_LINE", "")
    if " " in line and any(text.startswith("query=") for text in arguments):
        from opposing_signals.shell_completion import for_hydra, proposals

        if (proposed := proposals(line)) is not None:
            print("\n".join(proposed))
            return 0
        try:
            os.environ["COMP_LINE"] = for_hydra(line)
        except InputError:  # reported when the command is run
            return 0
    try:
        commands = completed(arguments)
    except InputError:
        if near := did_you_mean(arguments[0], COMMANDS):
            raise InputError(f"{arguments[0]}: unknown; {near}--help shows what there is") from None
        raise
    from opposing_signals.app.command import run

    return max(_exit_code(partial(run, command)) for command in commands)


if __name__ == "__main__":
    sys.exit(main())
