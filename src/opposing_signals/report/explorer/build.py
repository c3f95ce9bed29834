"""The explorers of all runs: which ones to write, and which records cannot be read."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from logging import getLogger
from pathlib import Path
from typing import Any

from markupsafe import Markup

from opposing_signals.errors import InputError, NotWrittenError
from opposing_signals.files import write_text
from opposing_signals.record import Record
from opposing_signals.record.quantities import LEARNING_RATE, SAMPLE_LOSS, SHARPNESS, TRAIN_LOSS
from opposing_signals.report.explorer.data import is_part, read, script, write_data
from opposing_signals.report.explorer.examples import Examples, without_place
from opposing_signals.report.result import Explorer, Result, entry
from opposing_signals.signals import Trajectory
from opposing_signals.templates import templates

log = getLogger(__name__)

SCRIPTS = ("data", "state", "choices", "charts", "overview", "cards", "step", "pair", "example", "input")
"""Parts of the page's script, in order."""


def build_explorers(
    records: list[Path], report: Path, results: Sequence[Result] = (), named_data: bool = False
) -> list[Explorer]:
    """Write the explorer of every run into ``report``, the folder with the page of all results.

    A run is skipped if its record has not changed since its explorer was written. A record that cannot be read becomes
    a problem, never an error.

    Args:
        records: The runs' folders.
        report: Explorers are written to ``runs/`` in it.
        results: The figures drawn from the runs; an explorer links back to them.
        named_data: See `opposing_signals.data.recorded`.
    """
    explorers: list[Explorer] = []
    listed: list[dict[str, Any]] = []
    taken = set()
    for folder in records:
        name = folder.resolve().name
        place, number = name, 1
        while place in taken:
            number += 1
            place = f"{name}-{number}"
        taken.add(place)
        try:
            data, run = build_explorer(folder, report / "runs" / place, named_data)
            steps = [pair["step"] for pair in run["pairs"]]
            views = [(f"pair {i}, step {step}", f"step={step}&pair={i}") for i, step in enumerate(steps, start=1)]
            explorers.append(Explorer(name, f"runs/{place}/index.html", run["summary"], views=tuple(views)))
            figures = {result.name: result.title for result in results if name in (one.folder for one in result.runs)}
            listed.append({"page": place, "data": data, "summary": run["summary"], "figures": list(figures.items())})
        except NotWrittenError:
            raise
        except InputError as error:
            explorers.append(Explorer(name, "", "", without_place(error, folder)))
        except Exception as error:  # a record of unknown origin may hold anything, and must not break the page
            log.debug("%s", folder, exc_info=True)
            said = " ".join(str(error).split())
            explorers.append(
                Explorer(name, "", "", f"{name}: no run that can be shown ({type(error).__name__}: {said})")
            )
    if listed:
        write_text(report / "runs" / "runs.js", script("runs", listed))
    return explorers


def build_explorer(folder: Path, target: Path, named_data: bool = False) -> tuple[str, dict[str, Any]]:
    """Write the explorer of the run in ``folder`` to ``target``, unless it is there already.

    Args:
        folder: Folder of the record.
        target: Folder of the explorer.
        named_data: See `opposing_signals.data.recorded`.

    Returns:
        Name of the folder with its data, and the content of its ``run.js``.

    Raises:
        InputError: ``folder`` holds no readable record.
        NotWrittenError: ``target`` cannot be written.
    """
    record = Record(folder)
    key = _key(record)
    trajectory = Trajectory(record, named_data=named_data)
    _check(record)
    described = _described(trajectory)
    if (target / "index.html").is_file() and (target / f"data-{key}" / "run.js").is_file():
        return f"data-{key}", read(target / f"data-{key}")
    record.verify((SAMPLE_LOSS, TRAIN_LOSS, SHARPNESS, LEARNING_RATE))
    examples = Examples.of(trajectory)
    # A run without its data set is tried again the next time, when the data may be there.
    place = target / f"data-{key}{'-incomplete' if examples.problem else ''}"
    shutil.rmtree(place, ignore_errors=True)
    try:
        place.mkdir(parents=True)
        run = write_data(trajectory, examples, described, place)
    except OSError as error:
        shutil.rmtree(place, ignore_errors=True)
        kept = "the run's earlier page is kept" if (target / "index.html").is_file() else "the run has no page yet"
        said = f"{error.filename or place} cannot be written ({error.strerror or error})"
        raise NotWrittenError(f"{said}; {kept}") from error
    write_text(target / "index.html", _page(described["name"], place.name))
    for other in target.glob("data-*"):
        if other != place:
            shutil.rmtree(other)
    return place.name, run


def _key(record: Record) -> str:
    """Eight hexadecimal digits that change with the record and with what an explorer looks like."""
    parts = sorted([*Path(__file__).parent.rglob("*.*"), Path(__file__).parents[1] / "base.css"])
    sources = (path for path in parts if path.suffix != ".pyc")
    state: list[Any] = [path.read_text(encoding="utf-8") for path in sources]
    for pattern in ("*.npy", "configuration.json", "state.json"):
        files = sorted(record.folder.glob(pattern))
        state += [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(json.dumps(state).encode()).hexdigest()[:8]


def _check(record: Record) -> None:
    """Refuse a folder whose files are not those of a run."""
    for quantity in (SAMPLE_LOSS, TRAIN_LOSS, SHARPNESS):
        if quantity in record:
            series = record[quantity]
            dimensions = 2 if quantity == SAMPLE_LOSS else 1
            if series.values.ndim != dimensions or series.values.dtype.kind != "f":
                raise InputError(
                    f"{record.folder.name}: {quantity} has shape {list(series.values.shape)} and type "
                    f"{series.values.dtype}; expected numbers, {'[steps, points]' if dimensions == 2 else '[steps]'}"
                )


def _described(trajectory: Trajectory) -> dict[str, str]:
    """The entries of the page's head."""
    record, configuration = trajectory.record, trajectory.configuration
    name = str(entry(configuration, "run", "name") or record.folder.resolve().name)
    step_size = _step_size(trajectory)
    batch, planned = configuration.get("batch"), configuration.get("steps")
    points = (
        trajectory.losses.values.shape[1] if SAMPLE_LOSS in record else entry(record.provenance, "data", "examples")
    )
    data_name = str(entry(record.provenance, "data", "name") or "")
    state = "running or interrupted" if record.state == "running" else record.state
    among = f" of {entry(record.provenance, 'packed', 'examples'):,}" if is_part(record) else ""
    facts = [data_name, f"{points:,}{among} training examples" if isinstance(points, int) else ""]
    facts += [f"η = {step_size:g}" if step_size else "", f"batch {batch}" if batch else ""]
    facts += [f"{planned:,} steps" if isinstance(planned, int) else "", state]
    return {
        "name": name,
        "folder": record.folder.resolve().name,
        "summary": " · ".join(fact for fact in facts if fact),
    }


def _step_size(trajectory: Trajectory) -> float | None:
    """η; None if the configuration has none."""
    given = entry(trajectory.configuration, "optimizer", "lr")
    return float(given) if isinstance(given, (int, float)) and given > 0 else None


def _page(name: str, place: str) -> str:
    scripts = Path(__file__).parent / "script"
    script = "\n".join((scripts / f"{part}.js").read_text(encoding="utf-8") for part in SCRIPTS)
    return (
        templates("report").get_template("explorer/page.html.j2").render(name=name, place=place, script=Markup(script))
    )
