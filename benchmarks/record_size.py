"""Disk space and memory for 1,000 steps of 50,000 per-sample losses.

python benchmarks/record_size.py [--steps 1000] [--points 50000]
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from opposing_signals.record import Record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--points", type=int, default=50_000)
    arguments = parser.parse_args()
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        seconds = 0.0
        with Record.writing(folder, {}) as record:
            for step in range(arguments.steps):
                losses = generator.random(arguments.points, dtype=np.float32)
                started = time.perf_counter()
                record.append("sample_loss", step, losses)
                seconds += time.perf_counter() - started
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        disk = sum(path.stat().st_size for path in Path(folder).iterdir())
        assert len(Record(folder)["sample_loss"]) == arguments.steps
    print(
        f"{arguments.steps} steps of {arguments.points} losses: {disk / 1e6:.1f} MB on disk, "
        f"{memory / 1e3:.1f} MB of memory, {1e3 * seconds / arguments.steps:.2f} ms a step"
    )


if __name__ == "__main__":
    main()
