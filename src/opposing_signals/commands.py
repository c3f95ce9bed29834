"""The commands other than running an experiment: their arguments, and what they call."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from rich.markup import escape
from rich.table import Table

from opposing_signals.configuration import SCALES, folder
from opposing_signals.errors import READ_NAMED_DATA, InputError, printable
from opposing_signals.experiments import ALL, beginning_with, experiments, named
from opposing_signals.terminal import console


def _folder(given: str) -> Path:
    return Path(folder(given, "FOLDER"))


def _list(arguments: list[str]) -> int:
    """Experiments with what they show and cost."""
    parser = _Parser("list", "List the experiments: what each shows, and its cost (smoke and cpu on two cores).")
    parser.add_argument("word", nargs="?", help="only those with this in their name or description, or by this name")
    word = parser.parse_args(arguments).word
    known = experiments()
    meant = list(known) if word is None else beginning_with(word)
    chosen = [
        name
        for name, (title, _) in known.items()
        if name in meant or (len(meant) != 1 and word.lower() in f"{name} {title}".lower())
    ]
    if not chosen:
        raise InputError(f"list {word}: no experiment has this in its name or description; {ALL}")
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
    chosen = parser.add_mutually_exclusive_group(required=True)
    chosen.add_argument("experiment", nargs="?", help="its name, or a beginning of it")
    chosen.add_argument(
        "--all", type=_folder, metavar="FOLDER", help="write every experiment's grid to FOLDER/NAME.yaml"
    )
    parser.add_argument("--scale", choices=SCALES, default="paper", help="of the runs (%(default)s)")
    options = parser.parse_args(arguments)
    from opposing_signals.sweeps import wandb_sweep, write_sweeps

    if options.all:
        write_sweeps(options.all, options.scale)
    else:
        print(wandb_sweep(named(options.experiment), options.scale), end="")
    return 0


def _report(arguments: list[str]) -> int:
    """One page of all results."""
    parser = _Parser("report", "Write one page of all results, with an explorer of every run.")
    parser.add_argument(
        "folders", nargs="*", type=_folder, metavar="FOLDER", help="with results or runs (default: outputs and results)"
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
    """A page of results, in their folder."""
    parser = _Parser("gallery", "Write FOLDER/README.md: each result with its picture, verdicts and cost.")
    parser.add_argument(
        "folder", nargs="?", type=_folder, metavar="FOLDER", default=Path("results"), help="(%(default)s)"
    )
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
    """An explanation of a run's record."""
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

    for given in options.folders:
        explanation = explain(unpacked(Path(given)), named_data=options.named_data)
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
        type=lambda given: _folder(given.removeprefix("output_dir=")),
        metavar="FOLDER",
        default=demo.FOLDER,
        help="for all that is written (%(default)s)",
    )
    chosen = parser.parse_args(arguments).folder
    if "=" in str(chosen):
        parser.error(f"{chosen} is a setting, and the demo has none")
    return demo.demo(chosen)


def _reproduce(arguments: list[str]) -> int:
    """The whole paper, or a part, within a time budget."""
    parser = _Parser("reproduce", "Run the experiments that have no figure yet, those that the paper rests on first.")
    parser.add_argument("settings", nargs="*", metavar="FIELD=VALUE", help="set in each experiment; behind --")
    parser.add_argument("--scale", choices=("smoke", "cpu", "paper"), default="cpu", help="of all (%(default)s)")
    parser.add_argument("--budget", type=_seconds, metavar="SECONDS", help="then what runs writes its state and ends")
    parser.add_argument("--next", dest="only_next", action="store_true", help="only the next one")
    parser.add_argument("--only", nargs="+", default=[], metavar="EXPERIMENT", help="only these")
    parser.add_argument("--to", type=_folder, default=Path("outputs"), metavar="FOLDER", help="for all (%(default)s)")
    parser.add_argument("--pack", type=_folder, metavar="FOLDER", help="run nothing, but pack what is done, to be sent")
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


def _pack(arguments: list[str]) -> int:
    """Records of results, small enough to be committed with them."""
    parser = _Parser("pack", "Pack the records behind the results in RESULTS, for the report to show their explorers.")
    parser.add_argument("results", type=_folder, metavar="RESULTS", help="folder of results, such as results")
    parser.add_argument("records", nargs="+", type=_folder, metavar="FOLDER", help="with records, whole or packed")
    parser.add_argument("--only", nargs="+", default=[], metavar="EXPERIMENT", help="only the records behind these")
    parser.add_argument("--kb", type=_kilobytes, default=300, help="that a packed record takes at most (%(default)s)")
    options = parser.parse_args(arguments)
    if missing := [str(folder) for folder in (options.results, *options.records) if not folder.is_dir()]:
        raise InputError(f"pack: no folder {', '.join(missing)}; expected results, and then folders with records")
    from opposing_signals.report.packs import pack_results

    only = [named(experiment) for experiment in options.only]
    packed = pack_results(options.results, options.records, 1024 * options.kb, only)
    for note in packed.notes:
        print(f"pack: {printable(note)}")
    for path in packed.deleted:
        print(f"pack: {path} is deleted: no result is drawn from it")
    for path in packed.written:
        print(f"pack: {path}, {path.stat().st_size / 1024:.0f} KB")
    if not packed.written:
        print(f"pack: no run behind the results in {options.results} has its record there")
    return 0


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


class _Parser(ArgumentParser):
    """The parser of one of `COMMANDS`; its errors are one line."""

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
    "pack": _pack,
}
"""First word of a command ↦ function of the other words; any other first word names an experiment."""
