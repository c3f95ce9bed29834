"""The command line: ``opposing-signals EXPERIMENT [scale=smoke|cpu|paper] [seed=N] [any.field=VALUE]``.

What does not need torch is done before torch is imported, so that help, and what is wrong with a command, come at once.
"""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

from rich.markup import escape
from rich.table import Table

from opposing_signals import streams
from opposing_signals.configuration import SCALES
from opposing_signals.errors import READ_NAMED_DATA, InputError, TrainingStoppedError, printable
from opposing_signals.experiments import ALL, FIGURES, did_you_mean, experiments, families, markdown_page, named
from opposing_signals.interruption import MESSAGE, Interrupted, ended_by_signals
from opposing_signals.processes import first_has_ended, is_first, is_one_of_several, joined
from opposing_signals.terminal import console

BAD_INPUT = 2
STOPPED = 1


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
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
            with suppress(OSError):  # a terminal that was closed
                print(MESSAGE, file=sys.stderr)
            return told.code
    with joined():
        return _exit_code(work)


def _exit_code(work: Callable[[], int]) -> int:
    """The exit code of ``work``, which may be refused or stopped: that is reported in one line."""
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
    """Report a failure, unless the first of several processes reports the same."""
    if is_one_of_several() and not is_first() and first_has_ended():
        return code
    print(f"opposing-signals: {printable(message)}", file=sys.stderr)
    return code


def print_help() -> None:
    """What can be done, on one screen."""
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
        "[bold]opposing-signals reproduce[/]            all of it, in order, in --budget SECONDS\n\n"
        "An experiment is given by its name or a beginning of it: fig1, fig06b, theorem31. It trains what is missing, "
        "draws its figure, checks its claims and writes them to outputs/NAME/. Any field of its configuration can be "
        "set: model.width=32 data=planted logger=none output_dir=FOLDER. [bold]--cfg job[/] prints the configuration, "
        "[bold]-m[/] runs each of several values (seed=1,2), [bold]--hydra-help[/] says more.\n"
    )
    table = Table.grid(padding=(0, 2))
    for family, members in families().items():
        numbers = [name.split("_")[0] for name in members]
        table.add_row(family, f"{numbers[0]} to {numbers[-1]}" if family == FIGURES else ", ".join(members))
    shown.print(table)


def _list(arguments: list[str]) -> int:
    """Experiments with what they show and cost."""
    parser = _Parser("list", "List the experiments: what each shows, and its cost (smoke and cpu on two cores).")
    parser.add_argument("word", nargs="?", help="only those with this in their name or description, or by this name")
    parser.add_argument("--markdown", action="store_true", help="as a page of documentation")
    options = parser.parse_args(arguments)
    word = options.word
    known = experiments()
    if word is None:
        chosen = list(known)
    else:
        chosen = [name for name, (title, _) in known.items() if word.lower() in f"{name} {title}".lower()]
        try:
            chosen = [named(word)]
        except InputError:
            if not chosen:
                raise InputError(f"list {word}: no experiment has this in its name or description; {ALL}") from None
    if options.markdown:
        print(markdown_page({name: known[name] for name in chosen}))
        return 0
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    for name in chosen:
        title, cost = known[name]
        costs = ", ".join(f"{scale}: {time}" for scale, time in cost.items())
        table.add_row(f"[bold]{name}[/]", f"{escape(title)}\n[dim]{costs}[/]")
    console().print(table)
    return 0


def _sweep(arguments: list[str]) -> int:
    """An experiment's grid as a W&B sweep."""
    parser = _Parser("sweep", "Print an experiment's grid as the file that `wandb sweep` takes.")
    parser.add_argument("experiment", help="its name, or a beginning of it")
    parser.add_argument("--scale", choices=SCALES, default="paper", help="of the runs (%(default)s)")
    options = parser.parse_args(arguments)
    from opposing_signals.sweeps import wandb_sweep

    print(wandb_sweep(named(options.experiment), options.scale), end="")
    return 0


def _report(arguments: list[str]) -> int:
    """One page of all results."""
    parser = _Parser("report", "Write one page of all results, with an explorer of every run.")
    parser.add_argument(
        "folders", nargs="*", type=Path, metavar="FOLDER", help="with results or runs (default: outputs and results)"
    )
    _add_named_data(parser)
    options = parser.parse_args(arguments)
    given = options.folders
    if missing := [str(folder) for folder in given if not folder.is_dir()]:
        raise InputError(f"report: no folder {', '.join(missing)}; expected folders with results or runs")
    from opposing_signals.report import build

    print(f"report: {build(given or [Path('outputs'), Path('results')], named_data=options.named_data)}")
    return 0


def _gallery(arguments: list[str]) -> int:
    """Results to be read where they lie."""
    parser = _Parser("gallery", "Write FOLDER/README.md: each result with its picture, verdicts and cost.")
    parser.add_argument("folder", nargs="?", type=Path, metavar="FOLDER", default=Path("results"), help="(%(default)s)")
    parser.add_argument("--check", action="store_true", help="write nothing; fail where the gallery is out of date")
    options = parser.parse_args(arguments)
    from opposing_signals.report import check_gallery, write_gallery

    if options.check:
        check_gallery(options.folder)
        return 0
    page, undescribed = write_gallery(options.folder)
    for place in undescribed:
        print(f"gallery: {place}: what it shows was written for an earlier picture; look at it, and renew the sentence")
    print(f"gallery: {page}")
    return 0


def _explain(arguments: list[str]) -> int:
    """What a run's record says."""
    parser = _Parser(
        "explain", "Say which examples oppose each other in a run, who carried its loss spikes, and where it diverged."
    )
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="of a run's record, or a packed one")
    parser.add_argument("--json", action="store_true", help="print it as JSON, one object a folder")
    _add_named_data(parser)
    options = parser.parse_args(arguments)
    import json

    from opposing_signals.follow.explanation import explain
    from opposing_signals.packing import unpacked

    for folder in options.folders:
        explanation = explain(unpacked(Path(folder)), named_data=options.named_data)
        if options.json:
            print(json.dumps(explanation.as_json()))
            continue
        for line in explanation.lines:
            print(printable(line))
    return 0


def _add_named_data(parser: ArgumentParser) -> None:
    parser.add_argument(
        READ_NAMED_DATA,
        dest="named_data",
        action="store_true",
        help="read text from where a record that you trust says it lies",
    )


def _demo(arguments: list[str]) -> int:
    """Three pictures that show the finding."""
    from opposing_signals import demo

    parser = _Parser("demo", "Draw three pictures that show the finding, in two minutes and without a data set.")
    parser.add_argument(
        "folder",
        nargs="?",
        type=Path,
        metavar="FOLDER",
        default=demo.FOLDER,
        help="for all that is written (%(default)s)",
    )
    folder = parser.parse_args(arguments).folder
    if "=" in folder.name:
        parser.error(f"{folder} is a setting, and the demo has none")
    return demo.demo(folder)


def _reproduce(arguments: list[str]) -> int:
    """The whole paper, or a part, in what time there is."""
    parser = _Parser("reproduce", "Run the experiments that have no figure yet, those that the paper rests on first.")
    parser.add_argument("settings", nargs="*", metavar="FIELD=VALUE", help="set in each experiment; behind --")
    parser.add_argument("--scale", choices=("smoke", "cpu", "paper"), default="cpu", help="of all (%(default)s)")
    parser.add_argument("--budget", type=_seconds, metavar="SECONDS", help="then what runs writes its state and ends")
    parser.add_argument("--next", dest="only_next", action="store_true", help="only the next one")
    parser.add_argument("--only", nargs="+", default=[], metavar="EXPERIMENT", help="only these")
    parser.add_argument("--to", type=Path, default=Path("outputs"), metavar="FOLDER", help="for all (%(default)s)")
    parser.add_argument("--pack", type=Path, metavar="FOLDER", help="run nothing, but pack what is done, to be sent")
    parser.add_argument("--kb", type=_kilobytes, default=2**14, help="that a packed run takes at most (%(default)s)")
    options = parser.parse_args(arguments)
    from opposing_signals.reproduce import chosen, pack, reproduce, show

    if options.pack is not None:
        count = pack(chosen(options.only), options.scale, options.to, options.pack, 1024 * options.kb)
        print(f"reproduce: {count} experiments at scale={options.scale} packed in {options.pack}")
        return 0
    jobs = reproduce(
        chosen(options.only), options.scale, options.to, options.budget, options.only_next, options.settings
    )
    return show(jobs, options.scale, options.to)


def _seconds(given: str) -> float:
    seconds = float(given)
    if not seconds > 0:
        raise ValueError("no time")
    return seconds


def _kilobytes(given: str) -> int:
    kilobytes = int(given)
    if not 1 <= kilobytes <= 2**14:
        raise ValueError("no size of a file that travels")
    return kilobytes


def _run(arguments: list[str]) -> int:
    """Run one experiment, or each of several; one that cannot work leaves the others."""
    from opposing_signals.arguments import completed

    try:
        commands = completed(arguments)
    except InputError:
        if near := did_you_mean(arguments[0], COMMANDS):
            raise InputError(f"{arguments[0]}: unknown; {near}--help shows what there is") from None
        raise
    from opposing_signals.app import run

    return max(_exit_code(partial(run, command)) for command in commands)


class _Parser(ArgumentParser):
    """Of one of `COMMANDS`; what it refuses is one line."""

    def __init__(self, command: str, description: str) -> None:
        super().__init__(f"opposing-signals {command}", description=description)

    def error(self, message: str) -> NoReturn:
        usage = " ".join(self.format_usage().removeprefix("usage: ").replace("[-h] ", "").split())
        raise InputError(f"{self.prog.split()[-1]}: {message}; expected {usage}")


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "demo": _demo,
    "list": _list,
    "sweep": _sweep,
    "report": _report,
    "gallery": _gallery,
    "explain": _explain,
    "reproduce": _reproduce,
}
"""The first word of a command ↦ what it does with the others; any other first word begins an experiment."""


if __name__ == "__main__":
    sys.exit(main())
