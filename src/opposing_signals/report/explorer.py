"""One run as a page to look around in: losses and sharpness over the steps, who rises and falls, the opposing pairs.

The page needs no server. Browsers let a page from the file system load scripts and pictures beside it and nothing
else, so the data are small scripts that hand their content to the page, each loaded when it is shown:

    <run>/index.html
    <run>/data-<key>/run.js            everything over the steps, and the pairs
                     steps/0000.js     risers and fallers of `STEPS` steps
                     examples/0000.js  what `BLOCK` training examples are, and images/0000.png how they look
                     series/0000.js    their losses over the steps
                     ids.js            which training examples there are

Numbers are base64 of little-endian arrays, exact to the bit. Only points are kept that are among the risers and
fallers of a step or in a pair; their rank is their place in the files: members of pairs first, then those that are
selected most often, so that what is shown together lies together.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image

from opposing_signals.data import Dataset
from opposing_signals.data.recorded import is_known
from opposing_signals.data.tokenizers import decode
from opposing_signals.data.tracked import FILE as TRACKED
from opposing_signals.data.tracked import positions
from opposing_signals.errors import InputError, NotWrittenError
from opposing_signals.files import write_text
from opposing_signals.record import Record, Series
from opposing_signals.report.result import Explorer, entry
from opposing_signals.signals import OpposingPair, Trajectory, fallers, name_pair, risers
from opposing_signals.templates import templates

log = getLogger(__name__)

SHOWN = 24
"""Risers and fallers of a step, as in the grids of Appendix H."""
STEPS = 50
"""Steps in a file."""
BLOCK = 32
"""Training examples in a file."""
SERIES_BYTES = 16 << 20
"""Losses over the steps are kept for as many points as fit into this, the members of pairs in any case."""
LONGEST_SIDE = 96
"""Pixels of a picture at the most."""
COLUMNS = 8
"""Pictures beside each other in a sheet."""
LONGEST_TEXT = 600
"""Characters of a text at the most."""
SOURCES = ("explorer.html.j2", "explorer.css", "explorer.js")


@dataclass(frozen=True)
class _Selection:
    """Who rises and who falls.

    Attributes:
        steps: ``[T']`` the t with θ_t and θ_{t+1} recorded.
        points: Of each of them, the indices of its risers and of its fallers, the largest change first.
        losses: Of each of them, ``[2, risers + fallers]`` ℓ_i(θ_t) and ℓ_i(θ_{t+1}) of these points.
        share: ``[T']`` share of all points with Δ_i > 0.
        finite: How many of the steps come before the first loss that is not finite.
    """

    steps: np.ndarray
    points: list[tuple[np.ndarray, np.ndarray]]
    losses: list[np.ndarray]
    share: np.ndarray
    finite: int


@dataclass(frozen=True)
class _Examples:
    """How training examples are shown.

    Attributes:
        dataset: None if it cannot be had.
        problem: Why not.
        kind: ``"image"``, ``"text"``, ``"number"`` or ``"none"``.
    """

    dataset: Dataset | None
    problem: str
    kind: str

    @classmethod
    def of(cls, trajectory: Trajectory) -> _Examples:
        """Those of the run, loaded again if they are one of the package's data sets and still the same ones."""
        if not is_known(trajectory.configuration.get("data")):
            return cls(None, "Training examples are shown by their numbers: the run has data of its own.", "none")
        try:
            dataset = trajectory.dataset
        except InputError as error:
            said = _without_place(error, trajectory.record.folder)
            return cls(None, f"Training examples are shown by their numbers: {said}.", "none")
        recorded = entry(trajectory.record.provenance, "data", "sha256")
        lies_elsewhere = not (trajectory.record.folder / TRACKED).is_file()
        if lies_elsewhere and recorded is not None and recorded != dataset.checksum:
            return cls(
                None,
                "Training examples are shown by their numbers: the data set found here is not the one that the run "
                f"trained on (sha256 {dataset.checksum[:12]}…, expected {str(recorded)[:12]}…).",
                "none",
            )
        points = trajectory.losses.values.shape[1] if "sample_loss" in trajectory.record else len(dataset)
        if points != len(dataset):
            return cls(
                None,
                f"Training examples are shown by their numbers: the data set has {len(dataset):,} of them, and the "
                f"record losses of {points:,}.",
                "none",
            )
        if dataset.images is not None:
            return cls(dataset, "", "image")
        if dataset.is_classification and dataset.targets.ndim == 2:
            return cls(dataset, "", "text")
        is_number = dataset.inputs.is_floating_point() and dataset.inputs[0].numel() <= 4
        return cls(dataset, "", "number" if is_number else "none")

    @property
    def class_names(self) -> list[str]:
        """Names of the classes; empty where a point has no class."""
        if self.dataset is None or not self.dataset.is_classification or self.dataset.targets.ndim > 1:
            return []
        return list(self.dataset.class_names) if len(self.dataset.class_names) > 1 else []

    def caption(self, point: int) -> str:
        """The class of training example ``point``, its numbers, or its text."""
        if self.dataset is None:
            return ""
        if self.class_names:
            return self.class_names[int(self.dataset.targets[point])]
        if self.kind == "text":
            text = decode(self.dataset.inputs[point].tolist(), self.dataset.class_names)
            return text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 1] + "…"
        if self.kind != "number":
            return ""
        x, y = (part[point].ravel()[:4].tolist() for part in (self.dataset.inputs, self.dataset.targets))
        return f"x = {', '.join(f'{v:.3g}' for v in x)}; y = {', '.join(f'{v:.3g}' for v in y)}".replace("-", "−")

    def sheet(self, points: np.ndarray) -> Image.Image:
        """The pictures of ``points``, `COLUMNS` beside each other, none larger than `LONGEST_SIDE`."""
        assert self.dataset is not None
        assert self.dataset.images is not None
        pictures = self.dataset.images[points]
        width, height = self.picture_size
        sheet = Image.new("RGB", (COLUMNS * width, -(-len(points) // COLUMNS) * height), "white")
        for place, picture in enumerate(pictures):
            image = Image.fromarray(picture)
            if image.size != (width, height):
                image = image.resize((width, height), Image.Resampling.LANCZOS)
            sheet.paste(image, (place % COLUMNS * width, place // COLUMNS * height))
        return sheet

    @property
    def picture_size(self) -> tuple[int, int]:
        """Width and height of a picture in a sheet."""
        assert self.dataset is not None
        assert self.dataset.images is not None
        height, width = self.dataset.images.shape[1:3]
        scale = min(1, LONGEST_SIDE / max(width, height))
        return max(1, round(width * scale)), max(1, round(height * scale))


def build_explorers(records: list[Path], report: Path, named_data: bool = False) -> list[Explorer]:
    """Write the explorer of every run into ``report``, the folder with the page of all results.

    A run whose record has not changed since its explorer was written is passed over. A record that cannot be read
    becomes a problem, never an error.

    Args:
        records: The runs' folders.
        report: Explorers are written to ``runs/`` in it.
        named_data: See `opposing_signals.data.recorded`.
    """
    explorers, taken = [], set()
    for folder in records:
        name = folder.resolve().name
        place, number = name, 1
        while place in taken:
            number += 1
            place = f"{name}-{number}"
        taken.add(place)
        try:
            summary = build_explorer(folder, report / "runs" / place, named_data)
            explorers.append(Explorer(name, f"runs/{place}/index.html", summary))
        except NotWrittenError:
            raise
        except InputError as error:
            explorers.append(Explorer(name, "", "", _without_place(error, folder)))
        except Exception as error:  # a record may come from anywhere and hold anything; the page is for the others too
            log.debug("%s", folder, exc_info=True)
            said = " ".join(str(error).split())
            explorers.append(
                Explorer(name, "", "", f"{name}: no run that can be shown ({type(error).__name__}: {said})")
            )
    return explorers


def build_explorer(folder: Path, target: Path, named_data: bool = False) -> str:
    """Write the explorer of the run in ``folder`` to ``target``; the run in a line.

    Args:
        folder: Of the record.
        target: Of the explorer.
        named_data: See `opposing_signals.data.recorded`.

    Raises:
        InputError: What is in ``folder`` is no readable record.
        NotWrittenError: ``target`` cannot be written.
    """
    record = Record(folder)
    key = _key(record)
    trajectory = Trajectory(record, named_data=named_data)
    _check(record)
    described = _described(trajectory)
    if _is_built(target, key):
        return described["summary"]
    record.verify(("sample_loss", "train_loss", "sharpness", "learning_rate"))
    examples = _Examples.of(trajectory)
    # Without its data set a run is worth another attempt the next time, when the data may be there.
    place = target / f"data-{key}{'-incomplete' if examples.problem else ''}"
    shutil.rmtree(place, ignore_errors=True)
    try:
        place.mkdir(parents=True)
        _write_data(trajectory, examples, described, place)
    except OSError as error:
        shutil.rmtree(place, ignore_errors=True)
        kept = "the run's earlier page is kept" if (target / "index.html").is_file() else "the run has no page yet"
        said = f"{error.filename or place} cannot be written ({error.strerror or error})"
        raise NotWrittenError(f"{said}; {kept}") from error
    write_text(target / "index.html", _page(described["name"], place.name))
    for other in target.glob("data-*"):
        if other != place:
            shutil.rmtree(other)
    return described["summary"]


def _is_built(target: Path, key: str) -> bool:
    return (target / "index.html").is_file() and (target / f"data-{key}" / "run.js").is_file()


def _key(record: Record) -> str:
    """Eight hexadecimal digits that change with the record and with what an explorer looks like."""
    package = Path(__file__).parent
    state: list[Any] = [(package / source).read_text(encoding="utf-8") for source in (*SOURCES, Path(__file__).name)]
    for pattern in ("*.npy", "configuration.json", "state.json"):
        files = sorted(record.folder.glob(pattern))
        state += [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(json.dumps(state).encode()).hexdigest()[:8]


def _without_place(error: InputError, folder: Path) -> str:
    """What ``error`` says about a file of the record in ``folder``; the page does not tell where that lies."""
    name = folder.resolve().name
    return str(error).replace(f"{folder}{os.sep}", f"{name}: ").replace(str(folder), name)


def _check(record: Record) -> None:
    """Refuse a folder whose files are not those of a run."""
    for quantity in ("sample_loss", "train_loss", "sharpness"):
        if quantity in record:
            series = record[quantity]
            dimensions = 2 if quantity == "sample_loss" else 1
            if series.values.ndim != dimensions or series.values.dtype.kind != "f":
                raise InputError(
                    f"{record.folder.name}: {quantity} has shape {list(series.values.shape)} and type "
                    f"{series.values.dtype}; expected numbers, {'[steps, points]' if dimensions == 2 else '[steps]'}"
                )


def _described(trajectory: Trajectory) -> dict[str, str]:
    """What the head of the page says."""
    record, configuration = trajectory.record, trajectory.configuration
    name = str(entry(configuration, "run", "name") or record.folder.resolve().name)
    step_size = _step_size(trajectory)
    batch, planned = configuration.get("batch"), configuration.get("steps")
    points = (
        trajectory.losses.values.shape[1] if "sample_loss" in record else entry(record.provenance, "data", "examples")
    )
    data_name = str(entry(record.provenance, "data", "name") or "")
    state = "running or interrupted" if record.state == "running" else record.state
    facts = [data_name, f"{points:,} training examples" if isinstance(points, int) else ""]
    facts += [f"η = {step_size:g}" if step_size else "", f"batch {batch}" if batch else ""]
    facts += [f"{planned:,} steps" if isinstance(planned, int) else "", state]
    return {
        "name": name,
        "folder": record.folder.resolve().name,
        "summary": " · ".join(fact for fact in facts if fact),
    }


def _step_size(trajectory: Trajectory) -> float | None:
    """η; None if the configuration does not say."""
    given = entry(trajectory.configuration, "optimizer", "lr")
    return float(given) if isinstance(given, (int, float)) and given > 0 else None


# -- data ---------------------------------------------------------------------------------------------------------


def _write_data(trajectory: Trajectory, examples: _Examples, described: dict[str, str], place: Path) -> None:
    """Write every file of ``place``, ``run.js`` last."""
    record = trajectory.record
    notices = _notices(trajectory, examples)
    run: dict[str, Any] = {**described, **_over_steps(trajectory), "classes": examples.class_names}
    run["pairs"], run["examples"] = [], None
    if "sample_loss" in record and len(trajectory.losses):
        selection = _selected(trajectory)
        if selection.finite < len(selection.steps):
            notices.append(
                f"From step {selection.steps[selection.finite] + 1} on there are losses that are not finite; pairs are "
                "looked for in the steps before."
            )
        pairs = trajectory.pairs
        if len(selection.steps) and not pairs:
            notices.append("No opposing pair was found.")
        ranked, rank = _ranked(selection, pairs, len(trajectory.losses.values[0]))
        run["changes"] = _write_steps(selection, rank, place)
        run["pairs"] = [_pair(trajectory, examples, pair, rank) for pair in pairs]
        run["examples"] = _write_examples(trajectory, selection, examples, ranked, pairs, place)
    run["notices"] = notices
    _write(place, "run", run)


def _notices(trajectory: Trajectory, examples: _Examples) -> list[str]:
    """What the page cannot show, and why."""
    record, notices = trajectory.record, []
    if not record.is_complete:
        steps = len(trajectory.losses) if "sample_loss" in record else 0
        last = f"; the losses of {steps} steps are shown" if steps else ""
        notices.append(
            f"The run has {'not ended' if record.state == 'running' else record.state}{last}. Build the report again "
            "to see what has been recorded since."
        )
    if "sample_loss" not in record or not len(trajectory.losses):
        notices.append(
            "No losses of training examples were recorded (instrument sample_losses), so there are no risers, fallers "
            "or pairs."
        )
    elif not len(trajectory.changes):
        notices.append(
            "Losses were never recorded at two successive steps (consecutive of the instrument sample_losses), so "
            "there are no one-step changes: no risers, fallers or pairs."
        )
    elif len(trajectory.changes) < len(trajectory.losses) - 1:
        notices.append(
            f"Losses were recorded at {len(trajectory.losses):,} steps, and at the step after it for "
            f"{len(trajectory.changes):,} of them: these can be looked at."
        )
    if "sharpness" not in record or not len(trajectory.sharpness):
        notices.append("The sharpness was not recorded (instrument sharpness).")
    if examples.problem:
        notices.append(examples.problem)
    return notices


def _over_steps(trajectory: Trajectory) -> dict[str, Any]:
    """Loss, sharpness and break-even."""
    record = trajectory.record
    if "sample_loss" in record:
        loss = trajectory.mean_loss
    else:
        loss = record["train_loss"] if "train_loss" in record else Series(np.empty(0), np.empty(0))
    found: dict[str, Any] = {
        "loss": _curve(loss),
        "lossIs": "mean over all recorded training examples" if "sample_loss" in record else "of the step's batch",
        "sharpness": None,
        "threshold": None,
        "breakEven": None,
        "changes": None,
    }
    if "sharpness" in record and len(trajectory.sharpness):
        found["sharpness"] = _curve(trajectory.sharpness)
        found |= {"threshold": trajectory.edge, "breakEven": trajectory.break_even}
    return found


def _selected(trajectory: Trajectory) -> _Selection:
    changes = trajectory.changes
    # A copy of the steps: those of the record lie far apart on the disk, one a row.
    recorded = Series(np.array(trajectory.losses.steps), trajectory.losses.values)
    points, losses, shares = [], [], []
    finite = len(changes)
    for row, (step, change) in enumerate(zip(changes.steps, changes.values, strict=True)):
        if finite == len(changes) and not np.isfinite(change).all():
            finite = row
        upper, lower = risers(change, SHOWN), fallers(change, SHOWN)
        upper, lower = upper[change[upper] > 0], lower[change[lower] < 0]
        points.append((upper, lower))
        chosen = np.concatenate((upper, lower))
        losses.append(np.stack([recorded.at(int(step) + following)[chosen] for following in (0, 1)]))
        shares.append(np.count_nonzero(change > 0) / len(change))
    return _Selection(np.asarray(changes.steps), points, losses, np.array(shares), finite)


def _ranked(selection: _Selection, pairs: list[OpposingPair], points: int) -> tuple[np.ndarray, np.ndarray]:
    """The points that are kept in the order of the files, and ``[N]`` the place of each in it."""
    appearances, first = np.zeros(points, np.int64), np.full(points, len(selection.steps))
    for row, groups in enumerate(selection.points):
        for group in groups:
            appearances[group] += 1
            first[group] = np.minimum(first[group], row)
    place = np.full(points, np.iinfo(np.int64).max)
    for number, member in enumerate(np.concatenate([group for pair in pairs for group in pair.groups] or [first[:0]])):
        place[member] = min(place[member], number)
    ranked = np.lexsort((first, -appearances, place))
    ranked = ranked[(appearances[ranked] > 0) | (place[ranked] < np.iinfo(np.int64).max)]
    rank = np.full(points, -1)
    rank[ranked] = np.arange(len(ranked))
    return ranked, rank


def _write_steps(selection: _Selection, rank: np.ndarray, place: Path) -> dict[str, Any]:
    """Risers and fallers; what of them goes over all steps."""
    means = np.zeros((2, len(selection.steps)))
    for start in range(0, len(selection.steps), STEPS):
        rows = range(start, min(start + STEPS, len(selection.steps)))
        points = [group for row in rows for group in selection.points[row]]
        losses = np.concatenate([selection.losses[row] for row in rows], axis=1)
        content = {
            "counts": _numbers([len(group) for group in points], "u1"),
            "ranks": _numbers(rank[np.concatenate(points)], "u4"),
            "before": _numbers(losses[0], "f4"),
            "after": _numbers(losses[1], "f4"),
        }
        _write(place, f"steps/{start // STEPS:04d}", content)
    for row, ((upper, _), losses) in enumerate(zip(selection.points, selection.losses, strict=True)):
        change = losses[1] - losses[0]
        for side, part in enumerate((change[: len(upper)], change[len(upper) :])):
            means[side, row] = part.mean(dtype=np.float64) if len(part) else 0
    return {
        "steps": _numbers(selection.steps, "i4"),
        "rise": _numbers(means[0], "f4"),
        "fall": _numbers(means[1], "f4"),
        "share": _numbers(selection.share, "f4"),
        "inFile": STEPS,
        "shown": SHOWN,
    }


def _pair(trajectory: Trajectory, examples: _Examples, pair: OpposingPair, rank: np.ndarray) -> dict[str, Any]:
    values = trajectory.losses.values
    return {
        "rising": _numbers(rank[pair.rising], "u4"),
        "falling": _numbers(rank[pair.falling], "u4"),
        "name": "" if examples.dataset is None else name_pair(examples.dataset, pair),
        "step": pair.step,
        "window": [pair.window[0], pair.window[1] + 1],
        "correlation": pair.correlation,
        "amplitude": pair.amplitude,
        "losses": [_numbers(np.asarray(values[:, group]).mean(1, dtype=np.float64), "f4") for group in pair.groups],
    }


def _write_examples(
    trajectory: Trajectory,
    selection: _Selection,
    examples: _Examples,
    ranked: np.ndarray,
    pairs: list[OpposingPair],
    place: Path,
) -> dict[str, Any]:
    """What the points that are kept look like, and their losses."""
    times = np.zeros((2, len(trajectory.losses.values[0])), np.int64)
    for groups in selection.points:
        for side, group in enumerate(groups):
            times[side, group] += 1
    members = len({int(member) for pair in pairs for group in pair.groups for member in group})
    affordable = SERIES_BYTES // (4 * max(1, len(trajectory.losses)))
    with_series = min(len(ranked), max(members, affordable))
    places = positions(trajectory.record.folder, len(times[0]))
    kept = np.stack([np.asarray(row)[ranked[:with_series]] for row in trajectory.losses.values]).astype("<f4")
    for number, start in enumerate(range(0, len(ranked), BLOCK)):
        points = ranked[start : start + BLOCK]
        content = {
            "ids": _numbers(places[points], "u4"),
            "captions": [examples.caption(int(point)) for point in points],
            "rises": _numbers(times[0, points], "u4"),
            "falls": _numbers(times[1, points], "u4"),
        }
        _write(place, f"examples/{number:04d}", content)
        if start < with_series:
            _write(place, f"series/{number:04d}", {"values": _numbers(kept[:, start : start + BLOCK].T, "f4")})
        if examples.kind == "image":
            path = place / "images" / f"{number:04d}.png"
            path.parent.mkdir(exist_ok=True)
            with _named(path):
                examples.sheet(points).save(path, compress_level=3)
    _write(place, "ids", {"ids": _numbers(places[ranked], "u4")})
    return {
        "kept": len(ranked),
        "among": int(places.max()) + 1,
        "inFile": BLOCK,
        "withSeries": with_series,
        "kind": examples.kind,
        "picture": [*examples.picture_size, COLUMNS] if examples.kind == "image" else None,
    }


# -- files --------------------------------------------------------------------------------------------------------


def _curve(series: Series) -> dict[str, str]:
    return {"steps": _numbers(series.steps, "i4"), "values": _numbers(series.values, "f4")}


def _numbers(values: Any, kind: str) -> str:
    return base64.b64encode(np.ascontiguousarray(values, dtype=f"<{kind}").tobytes()).decode("ascii")


def _write(place: Path, name: str, content: dict[str, Any]) -> None:
    """A script that hands ``content`` to the page under ``name``."""
    path = place / f"{name}.js"
    path.parent.mkdir(exist_ok=True)
    with _named(path):
        path.write_text(f"explorer.receive({json.dumps(name)}, {json.dumps(content)});\n", encoding="ascii")


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """A full disk is told by the file that did not fit."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def _page(name: str, place: str) -> str:
    package = Path(__file__).parent
    environment = templates("report")
    style, script = (Markup((package / source).read_text(encoding="utf-8")) for source in SOURCES[1:])
    return environment.get_template(SOURCES[0]).render(name=name, place=place, style=style, script=script)
