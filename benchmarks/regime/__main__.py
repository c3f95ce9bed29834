"""The regime, measured: what oscillates under gradient descent, by network, images, batch norm's chunk and step size.

    python benchmarks/regime --list                             # the grid, and the expected cost of each point
    python benchmarks/regime --train                            # resumes where it stopped, the most informative first
    python benchmarks/regime --measure --folder outputs/regime outputs
    python benchmarks/regime --eigenvectors
    python benchmarks/regime --draw

A point of the grid is one run of `run=regime_gd`, started by the command line in a process of its own, on one core. A
complete run is kept, an incomplete one resumes from its checkpoint. ``--measure`` reads every run of full-batch
gradient descent on CIFAR-10 in the folders, including those of the figures, and writes their rows into
``regime.json``; ``--eigenvectors`` adds how classes relate to the Hessian's leading eigenvectors, in
``eigenvectors.json``; ``--draw`` needs ``regime.json`` alone. See docs/regime.md.
"""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Mapping
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any

from grid import Point, finished, grid, is_ghost, train
from measures import eigenvectors, measured
from pictures import draw
from tables import as_table, eigenvector_table

from opposing_signals.files import write_json
from opposing_signals.record import Record


def measure(runs: Mapping[Point, Record], results: Path) -> list[dict[str, Any]]:
    """Every row of ``regime.json``, into which a row for each run is written; those of runs elsewhere stay."""
    path = results / "regime.json"
    rows = {_point(row): row for row in _rows(path)} | {point: measured(point, run) for point, run in runs.items()}
    ordered = [rows[point] for point in sorted(rows, key=astuple)]
    write_json(path, ordered)
    return ordered


def note_eigenvectors(runs: Mapping[Point, Record], results: Path) -> list[dict[str, Any]]:
    """Add `eigenvectors` of the first seed's runs of 1,000 images to ``eigenvectors.json`` where they are missing."""
    path = results / "eigenvectors.json"
    rows = _rows(path)
    known = {_point(row) for row in rows}
    for point, record in runs.items():
        if point.images > 1000 or point.seed > 1 or is_ghost(asdict(point)) or point in known:
            continue
        rows.append(eigenvectors(point, record, count=6, max_products=36))
        write_json(path, rows)
    return rows


def _rows(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []


def _point(row: Mapping[str, Any]) -> Point:
    return Point(**{name: row[name] for name in Point.__dataclass_fields__})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--eigenvectors", action="store_true")
    parser.add_argument("--draw", action="store_true")
    parser.add_argument("--results", type=Path, default=Path("results/regime"))
    parser.add_argument("--folder", type=Path, nargs="+", default=[Path("outputs/regime")])
    arguments = parser.parse_args()
    folders = [folder.absolute() for folder in arguments.folder]
    if arguments.list:
        for point in grid():
            print(f"{point.expected_seconds:7.0f} s  {shlex.join(point.overrides)}")
    if arguments.train:
        train(grid(), folders[0])
    if arguments.measure:
        print(as_table(measure(finished(folders), arguments.results)))
    if arguments.eigenvectors:
        print(eigenvector_table(note_eigenvectors(finished(folders), arguments.results)))
    if arguments.draw:
        draw(_rows(arguments.results / "regime.json")).savefig(arguments.results / "regime.png", dpi=90)


if __name__ == "__main__":
    main()
