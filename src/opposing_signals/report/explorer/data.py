"""What the page of a run loads: the files that the package `explorer` lists."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from opposing_signals.data.tracked import positions
from opposing_signals.record import Record, Series
from opposing_signals.record.quantities import QUANTITIES, SAMPLE_LOSS, SHARPNESS, SHARPNESS_BOUND, TRAIN_LOSS
from opposing_signals.report.explorer.examples import COLUMNS, Examples
from opposing_signals.report.result import entry
from opposing_signals.signals import OpposingPair, Trajectory, fallers, name_pair, risers

SHOWN = 24
"""Risers and fallers per step, as in the grids of Appendix H."""
STEPS = 50
"""Steps in a file."""
BLOCK = 32
"""Training examples in a file."""
MOST_LINES = 16
"""Most numbers per step of a quantity that is drawn as lines."""
SERIES_BYTES = 16 << 20
"""Losses over the steps are kept for as many points as fit into this, and always for the members of pairs."""


@dataclass(frozen=True)
class _Selection:
    """The risers and fallers of each step.

    Attributes:
        steps: ``[T']`` the t with θ_t and θ_{t+1} recorded.
        points: For each step, the indices of its risers and of its fallers, the largest change first.
        losses: For each step, ``[2, risers + fallers]`` ℓ_i(θ_t) and ℓ_i(θ_{t+1}) of these points.
        share: ``[T']`` fraction of all points with Δ_i > 0.
        finite: How many of the steps come before the first loss that is not finite.
    """

    steps: np.ndarray
    points: list[tuple[np.ndarray, np.ndarray]]
    losses: list[np.ndarray]
    share: np.ndarray
    finite: int


def write_data(trajectory: Trajectory, examples: Examples, described: dict[str, str], place: Path) -> dict[str, Any]:
    """Write all files of ``place``, ``run.js`` last; returns the content of ``run.js``."""
    record = trajectory.record
    notices = _notices(trajectory, examples)
    run: dict[str, Any] = {**described, **_over_steps(trajectory), "classes": examples.class_names}
    run["pairs"], run["examples"] = [], None
    if SAMPLE_LOSS in record and len(trajectory.losses):
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
    run["other"] = _write_other(trajectory, place)
    _write(place, "run", run)
    return run


def _notices(trajectory: Trajectory, examples: Examples) -> list[str]:
    """What the page cannot show, and why."""
    record, notices = trajectory.record, []
    if is_part(record):
        packed = record.provenance["packed"]
        notices.append(
            f"The record is a packed one: {trajectory.losses.values.shape[1]:,} of the run's {packed['examples']:,} "
            f"training examples are kept, {packed['exact']:,} of them exactly and the others with three digits. The "
            "members of the dominant pairs and the examples that move most are among them; risers, fallers and pairs "
            "are those among what is kept."
        )
    if not record.is_complete:
        steps = len(trajectory.losses) if SAMPLE_LOSS in record else 0
        last = f"; the losses of {steps} steps are shown" if steps else ""
        notices.append(
            f"The run has {'not ended' if record.state == 'running' else record.state}{last}. Build the report again "
            "to see what has been recorded since."
        )
    if SAMPLE_LOSS not in record or not len(trajectory.losses):
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
    if SHARPNESS not in record or not len(trajectory.sharpness):
        notices.append("The sharpness was not recorded (instrument sharpness).")
    if examples.problem:
        notices.append(examples.problem)
    return notices


def is_part(record: Record) -> bool:
    """Whether the record holds only a part of the training examples, as a packed one may."""
    return isinstance(entry(record.provenance, "packed", "examples"), int) and SAMPLE_LOSS in record


def _over_steps(trajectory: Trajectory) -> dict[str, Any]:
    """Loss, sharpness and break-even."""
    record = trajectory.record
    loss, loss_is = Series(np.empty(0), np.empty(0)), ""
    if SAMPLE_LOSS in record and not (is_part(record) and TRAIN_LOSS in record):
        loss, loss_is = trajectory.mean_loss, "mean over all recorded training examples"
    elif TRAIN_LOSS in record:
        loss, loss_is = record[TRAIN_LOSS], "as the training computed it"
    found: dict[str, Any] = {
        "loss": _curve(loss),
        "lossIs": loss_is,
        SHARPNESS: None,
        "threshold": None,
        "breakEven": None,
        "changes": None,
    }
    if SHARPNESS in record and len(trajectory.sharpness):
        found[SHARPNESS] = _curve(trajectory.sharpness)
        if SHARPNESS_BOUND in record:
            found["bound"] = _curve(record[SHARPNESS_BOUND])
        found |= {"threshold": trajectory.edge, "breakEven": trajectory.break_even}
    return found


def _write_other(trajectory: Trajectory, place: Path) -> list[dict[str, str]]:
    """Write the other quantities with few numbers per step, one file each; returns their descriptions."""
    record, found = trajectory.record, []
    for name, quantity in QUANTITIES.items():
        if name in (SAMPLE_LOSS, TRAIN_LOSS, SHARPNESS, SHARPNESS_BOUND) or name not in record:
            continue
        series = record[name]
        columns = series.values.reshape(len(series), -1)
        if len(series) < 2 or columns.dtype.kind not in "fiu" or columns.shape[1] > MOST_LINES:
            continue
        lines = [_numbers(column, "f4") for column in columns.T]
        _write(place, f"other/{name}", {"steps": _numbers(series.steps, "i4"), "lines": lines})
        found.append({"name": str(name), "meaning": quantity.meaning, "unit": quantity.unit})
    return found


def _selected(trajectory: Trajectory) -> _Selection:
    changes = trajectory.changes
    # A copy of the steps, since those of the record lie far apart on the disk, one per row.
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
    """The points that are kept, in the order of the files, and ``[N]`` the rank of each point, −1 if it is not kept."""
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
    """Write risers and fallers; returns their summaries over all steps."""
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


def _pair(trajectory: Trajectory, examples: Examples, pair: OpposingPair, rank: np.ndarray) -> dict[str, Any]:
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
    examples: Examples,
    ranked: np.ndarray,
    pairs: list[OpposingPair],
    place: Path,
) -> dict[str, Any]:
    """Write the descriptions, pictures and losses of the points that are kept."""
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


def _curve(series: Series) -> dict[str, str]:
    return {"steps": _numbers(series.steps, "i4"), "values": _numbers(series.values, "f4")}


def _numbers(values: Any, kind: str) -> str:
    return base64.b64encode(np.ascontiguousarray(values, dtype=f"<{kind}").tobytes()).decode("ascii")


def script(name: str, content: Any) -> str:
    """A script that hands ``content`` to the page under ``name``."""
    return f"explorer.receive({json.dumps(name)}, {json.dumps(content)});\n"


def read(place: Path) -> dict[str, Any]:
    """The content of ``run.js`` in ``place``."""
    written = (place / "run.js").read_text(encoding="ascii")
    return json.loads(written.partition(", ")[2].removesuffix(");\n"))


def _write(place: Path, name: str, content: dict[str, Any]) -> None:
    path = place / f"{name}.js"
    path.parent.mkdir(exist_ok=True)
    with _named(path):
        path.write_text(script(name, content), encoding="ascii")


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Add the file's name to the error of a full disk."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
