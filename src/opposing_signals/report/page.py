"""The page of all results: figures, verdicts, the origin of the numbers, and an explorer of every run."""

from __future__ import annotations

import math
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from itertools import groupby
from logging import getLogger
from pathlib import Path
from typing import Any

from opposing_signals.errors import InputError
from opposing_signals.files import replacing, write_text
from opposing_signals.report.result import VERDICTS, Explorer, Picture, Result
from opposing_signals.report.sentences import FILE, Shown, paper, shown
from opposing_signals.templates import templates

log = getLogger(__name__)

PAGE = Path("outputs", "report", "index.html")
PICTURES = "pictures"
PACKED = "*.record.zip"
PACKS = "runs"
"""Name of the folder of packed records, beside the results of one scale."""
SYMBOLS = dict(zip(VERDICTS, "✓✗?–", strict=True))
DEPTH = 3
"""Levels of folders below a given one that are searched for results."""
SCALES = ("paper", "cpu", "smoke")
"""The order of the results of one experiment."""


def build(folders: list[Path], page: Path | None = None, named_data: bool = False) -> Path:
    """Write the page of every result in ``folders``, and beside it their pictures and an explorer of every run.

    A result is a folder with ``experiment.json``, ``claims.json`` and ``figure.png``, as an experiment writes it; a
    run is a folder with a record. A malformed one is still listed on the page, which says what is wrong with it. Equal
    results give an equal page.

    Args:
        folders: Searched three levels deep; missing ones are skipped.
        page: The file to write; None: ``outputs/report/index.html``. Pictures are copied to ``pictures/`` and
            explorers written to ``runs/`` beside it.
        named_data: Also read text from the place that a record names; for trusted records only.

    Returns:
        The file that was written.

    Raises:
        InputError: There is neither a result nor a run in ``folders``.
        NotWrittenError: The page, a picture or an explorer cannot be written; the earlier one is kept.
    """
    results, records = find_results(folders), find_records(folders)
    if not results and not records:
        raise InputError(
            f"no results in {', '.join(map(str, folders))}: expected folders with experiment.json, claims.json and "
            "figure.png; opposing-signals experiment=NAME makes one"
        )
    page = PAGE if page is None else page
    explorers: list[Explorer] = []
    if records:
        from opposing_signals.report.explorer import build_explorers  # needs torch, which the page alone does not need

        explorers = build_explorers(records, page.parent, results, named_data)
    pictures = [result.picture for result in results if result.picture]
    for picture in pictures:
        place = page.parent / picture_name(picture)
        if not place.is_file():  # its name is the hash of its content
            with replacing(place) as unfinished:
                shutil.copyfile(picture.path, unfinished)
    write_text(page, render(results, explorers))
    shown_now = {Path(picture_name(picture)).name for picture in pictures}
    for path in (page.parent / PICTURES).glob("[0-9a-f]" * 16 + ".png"):
        if path.name not in shown_now:  # left by an earlier page, and kept until this one is written
            path.unlink()
    return page


def find_results(folders: Iterable[Path]) -> list[Result]:
    """Every result in ``folders``, in the order of the page: by experiment, then by scale, seed and folder.

    Results of one experiment at one scale and seed from the same runs are copies of one result; the one with the
    latest picture is kept.
    """
    labels: dict[Path, str] = {}
    sentences: dict[Path, Shown] = {}
    for given in folders:
        for level in range(DEPTH + 1):
            for file in ("experiment.json", "claims.json"):
                for path in given.glob("*/" * level + file):
                    labels.setdefault(path.parent.resolve(), _label(path.parent, given))
            for path in given.glob("*/" * level + FILE):
                sentences |= shown(path.parent)
    found = [Result.read(folder, label, sentences.get(folder)) for folder, label in labels.items()]
    distinct: dict[Any, Result] = {}
    for result in sorted(found, key=lambda result: (result.drawn, result.shown is not None, result.folder)):
        runs = tuple(sorted(run.folder for run in result.runs)) or result.folder
        distinct[result.name, result.scale, result.seed, runs] = result
    return sorted(distinct.values(), key=_order)


def find_records(folders: Iterable[Path]) -> list[Path]:
    """The folder of every run in ``folders``, by name; one of several copies of a run.

    A packed record is unpacked into the user's cache; if that fails, it is reported and left out.
    """
    folders = list(folders)
    found = {
        path.parent.resolve(): path.parent
        for given in folders
        for level in range(DEPTH + 1)
        for path in given.glob("*/" * level + "configuration.json")
    }
    for path in [path for given in folders for level in range(DEPTH + 1) for path in given.glob("*/" * level + PACKED)]:
        from opposing_signals.packing import unpacked  # needs torch, which the page alone does not need

        try:
            found[path.resolve()] = unpacked(path)
        except InputError as error:
            log.warning("%s", error)
    ordered = sorted(found.values(), key=lambda folder: (_natural(folder.resolve().name), folder.as_posix()))
    return list({_identity(folder): folder for folder in reversed(ordered)}.values())[::-1]


def render(results: list[Result], explorers: Sequence[Explorer] = ()) -> str:
    """The page as HTML, with no references except to pictures and explorers beside it.

    Args:
        results: In the order of `find_results`.
        explorers: Explorers of the runs.
    """
    environment = templates("report")
    environment.filters.update(number=number, interval=interval, threshold=threshold, duration=duration, moment=moment)
    runs = {run.folder: run for result in results for run in result.runs}
    return environment.get_template("page.html.j2").render(
        experiments=[(name, list(group)) for name, group in groupby(results, key=lambda result: result.name)],
        results=results,
        explorers=explorers,
        explored={explorer.folder: explorer for explorer in reversed(explorers) if explorer.link},
        counts=Counter(verdict["verdict"] for result in results for verdict in result.verdicts),
        outcomes=Counter((result.outcome, result.scale) for result in results),
        scales=sorted({result.scale for result in results}, key=_scale_order),
        networks=sorted({network for result in results for network in result.networks}),
        runs=runs,
        trained=sum(run.training_seconds or 0 for run in runs.values()),
        paper=paper(),
        picture=picture_name,
        reason=reason,
        symbols=SYMBOLS,
    )


def picture_name(picture: Picture) -> str:
    """File name of a picture beside the page; equal pictures share one file."""
    return f"{PICTURES}/{picture.sha256[:16]}.png"


def _identity(folder: Path) -> tuple[object, ...]:
    """A key that only copies of one run share."""
    files = [folder / name for name in ("configuration.json", "provenance.json")]
    if not all(path.is_file() for path in files):
        return (folder.resolve(),)
    arrays = sorted((path.name, path.stat().st_size) for path in folder.glob("*.npy") if path.is_file())
    return (folder.resolve().name, *(path.read_bytes() for path in files), *arrays)


def reason(result: Result) -> str:
    """The sentence on what the result shows, if there is one; otherwise the failed claims with their values."""
    if result.shown:
        return result.shown.sentence
    failed = [claim for claim in result.verdicts if claim["verdict"] != VERDICTS[0]]
    return "; ".join(f"{claim['statement']}: {claim['verdict']}{_value(claim)}" for claim in failed)


def _value(claim: dict[str, Any]) -> str:
    return "" if claim["value"] is None else f", {number(claim['value'])} ({threshold(claim['threshold'])})"


def number(value: Any) -> str:
    """Four significant digits with a proper minus sign; an en dash for no number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "–"
    return _in_print(f"{value:.4g}")


def measured(claim: dict[str, Any]) -> str:
    """A claim's value with its interval, to significant digits; empty for no value.

    Two digits of the interval's width, or three of a value without an interval; more if rounding would put a number
    onto the threshold.
    """
    value, bounds = claim["value"], claim["interval"]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return ""
    limits = [float(limit) for limit in re.findall(r"-?\d+(?:\.\d*)?(?:e-?\d+)?", str(claim["threshold"]))]
    if not isinstance(bounds, list):
        return _in_print(f"{round(value, _places([value], abs(value), 3, limits)):.12g}")
    places = _places([value, *bounds], bounds[1] - bounds[0], 2, limits)
    texts = [_in_print(f"{round(x, places):.{max(places, 0)}f}") for x in (value, *bounds)]
    return f"{texts[0]}, 95% interval {texts[1]} to {texts[2]}"


def spread(mean: float, deviation: float) -> str:
    """A mean and its standard deviation, to two digits of the deviation."""
    places = max(_places([], deviation, 2, []), 0)
    return _in_print(f"mean {mean:.{places}f}, standard deviation {deviation:.{places}f}")


def _places(numbers: list[float], size: float, digits: int, limits: list[float]) -> int:
    """The decimal places that show ``digits`` digits of ``size`` and keep ``numbers`` distinct from ``limits``."""
    places = digits - 1 - (math.floor(math.log10(size)) if size > 0 else 0)
    while places < 12 and any(round(x, places) in limits and x not in limits for x in numbers):
        places += 1
    return places


def _in_print(text: str) -> str:
    """``text`` with a typographic minus sign."""
    return text.replace("-", "−")


def interval(bounds: Any) -> str:
    """Both ends of an interval; an en dash for no interval."""
    return f"{number(bounds[0])} to {number(bounds[1])}" if isinstance(bounds, list) and len(bounds) == 2 else "–"


def threshold(text: Any) -> str:
    """A claim's threshold with typographic signs."""
    return _in_print(str(text).replace(">=", "≥").replace("<=", "≤"))


def duration(seconds: float) -> str:
    """Seconds in the two largest fitting units."""
    if seconds < 60:
        return f"{seconds:.2g} s"
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if minutes < 60:
        return f"{int(seconds) // 60} min {int(seconds) % 60} s"
    return f"{minutes // 60} h {minutes % 60} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def moment(text: str) -> str:
    """An ISO 8601 time in words, in UTC; any other text as it is."""
    try:
        time = datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):
        return text
    return f"{time.day} {time:%B %Y, %H:%M} UTC"


def _label(folder: Path, given: Path) -> str:
    """``folder`` relative to the current folder or, if it lies elsewhere, to the folder around ``given``."""
    absolute = folder.resolve()
    for base in (Path.cwd(), given.resolve().parent):
        if absolute != base and absolute.is_relative_to(base):
            return absolute.relative_to(base).as_posix()
    return absolute.name


def _order(result: Result) -> tuple[Any, ...]:
    """Figures first, by number; then by `Result.name`, so that results of one name stay together."""
    is_figure = re.match(r"fig\d", result.name) is not None
    return (
        not is_figure,
        _natural(result.name),
        result.name,
        _scale_order(result.scale),
        _natural(result.seed),
        result.folder,
    )


def _scale_order(scale: str) -> tuple[int, str]:
    return (SCALES.index(scale) if scale in SCALES else len(SCALES), scale)


def _natural(text: str) -> list[tuple[int, str]]:
    """A key that sorts fig9 before fig10."""
    return [(int(digits or -1), letters) for digits, letters in re.findall(r"([0-9]+)|([^0-9]+)", text)]
