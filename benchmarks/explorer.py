"""Time, memory and size of the explorer of a run with 50,000 pictures and 1,000 steps, and what its page loads.

python benchmarks/explorer.py [--steps 1000] [--points 50000] [--keep FOLDER]

The pictures are CIFAR-10's. The losses are noise and one pair, so that other points rise and fall at every step: a real
run shows fewer training examples. With --keep, record and explorer stay in FOLDER.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from opposing_signals.data import cifar10
from opposing_signals.record import Record
from opposing_signals.report.explorer import build_explorer

TARGET = 60.0
"""Target in seconds."""


def write_record(folder: Path, steps: int, points: int) -> None:
    """Falling losses with heavy-tailed noise, and one pair that oscillates for 50 steps in the middle."""
    generator = np.random.default_rng(0)
    configuration = {
        "run": {"name": "benchmark"},
        "data": {"_target_": "opposing_signals.data.cifar10", "images": points},
        "optimizer": {"_target_": "torch.optim.SGD", "lr": 0.01, "momentum": 0.0},
        "steps": steps,
    }
    with Record.writing(folder, configuration) as record:
        record.write_provenance({"data": {"name": f"cifar10 ({points} of 50000 images)", "examples": points}})
        for step in range(steps):
            losses = 2 * np.exp(-step / steps) + 0.1 * generator.standard_t(4, size=points)
            if abs(step - steps // 2) < 25:
                losses[:20] += 1 if step % 2 else -1
                losses[20:40] -= 1 if step % 2 else -1
            record.append("sample_loss", step, losses.astype(np.float32))
            record.append("sharpness", step, 150 + 100 * step / steps)
        record.write_state("complete")


def megabytes(paths: list[Path]) -> float:
    return sum(path.stat().st_size for path in paths if path.is_file()) / 1e6


def peak() -> float:
    """Peak resident memory in megabytes, including resident parts of mapped files."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--points", type=int, default=50_000)
    parser.add_argument("--keep", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.keep or Path(scratch)
        write_record(folder / "record", arguments.steps, arguments.points)
        before = peak()
        started = time.process_time()
        cifar10(arguments.points)
        data_seconds = time.process_time() - started
        data_memory = peak()
        wall, started = time.perf_counter(), time.process_time()
        build_explorer(folder / "record", folder / "explorer")
        seconds, wall = time.process_time() - started, time.perf_counter() - wall
        again = time.perf_counter()
        build_explorer(folder / "record", folder / "explorer")
        again = time.perf_counter() - again
        (place,) = (folder / "explorer").glob("data-*")
        kinds = {kind: megabytes(list(place.glob(f"{kind}/*"))) for kind in ("steps", "examples", "images", "series")}
        first = [folder / "explorer" / "index.html", place / "run.js", place / "steps" / "0000.js"]
        files = [path for path in place.rglob("*") if path.is_file()]
        print(f"{arguments.points:,} points x {arguments.steps:,} steps")
        print(
            f"  built in {seconds:.1f} s of one core ({wall:.1f} s on the clock), {data_seconds:.1f} s of it to load "
            f"the data: target {TARGET:.0f} s {'met' if seconds < TARGET else 'MISSED'}"
        )
        print(f"  an unchanged record is recognized in {1e3 * again:.0f} ms")
        print(f"  memory: {before:.0f} MB before, {data_memory:.0f} MB with the data, {peak():.0f} MB at the most")
        sizes = ", ".join(f"{kind} {size:.1f}" for kind, size in kinds.items())
        print(f"  folder: {megabytes(files):.1f} MB in {len(files):,} files ({sizes})")
        print(f"  page, curves and the file of a step: {megabytes(first):.2f} MB, and what the step's examples need")


if __name__ == "__main__":
    main()
