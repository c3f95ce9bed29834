"""Kill, interrupt, starve, damage and poison runs at random, many times, and count what held.

    python benchmarks/soak.py --rounds 200 --out results/trust     # make soak

Each round draws one kind of trouble and its moment from a seeded generator. It holds if every process ends as it should
(by its signal, with exit code 0, or with 2 and one line), without a traceback, and if the restarted run is
bit-identical to an undisturbed one. Jobs are forked from one process that has imported everything, so that a round
takes about a second.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import opposing_signals.follow.explanation
import opposing_signals.report
import opposing_signals.training.job  # noqa: F401  # imported once, before anything is forked
from opposing_signals.__main__ import main
from opposing_signals.errors import InputError
from opposing_signals.provenance import commit
from opposing_signals.record import Record

STEPS = 60
EXIT_REFUSED = 2


class NotHeldError(AssertionError):
    """A check of a round failed."""


def expect(held: bool, what: str) -> None:
    """Raise `NotHeldError` unless ``held``."""
    if not held:
        raise NotHeldError(what)


class Job:
    """The command in a process of its own.

    Args:
        arguments: Arguments of ``opposing-signals``.
        log: File for its output.
        file_limit: Maximum size of a file in bytes; None for no limit.
    """

    def __init__(self, arguments: list[str], log: Path, file_limit: int | None = None) -> None:
        self.log = log
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            status = 70
            try:
                descriptor = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
                os.dup2(descriptor, 1)
                os.dup2(descriptor, 2)
                if file_limit is not None:
                    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then writing fails as on a full disk
                    resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
                os.chdir(log.parent)  # a report is written to the current folder
                status = main(arguments)
            except SystemExit as ended:
                status = int(ended.code or 0)
            except BaseException:
                sys.excepthook(*sys.exc_info())
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)

    def signal(self, number: signal.Signals) -> None:
        """Send the signal, if the job still runs."""
        os.kill(self.pid, number)

    def wait(self) -> int:
        """The exit code; minus the signal's number if a signal ended the job."""
        _, status = os.waitpid(self.pid, 0)
        return os.waitstatus_to_exitcode(status)

    @property
    def said(self) -> str:
        """Its output so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""


class Soak:
    """The rounds, in ``folder``; the generator ``draw`` decides what happens in them."""

    def __init__(self, folder: Path, draw: random.Random) -> None:
        self.folder, self.draw = folder, draw
        self.reference = self.folder / "reference"
        started = time.monotonic()
        expect(self.job(self.reference).wait() == 0, "the undisturbed run failed")
        self.seconds = time.monotonic() - started
        self.bytes = digest(run_of(self.reference))

    def job(self, place: Path, *more: str, log: str = "log", file_limit: int | None = None) -> Job:
        """Start the run in ``place``."""
        settings = ["scale=smoke", f"steps={STEPS}", "logger=none", "threads=1", "conclude=false"]
        command = ["experiment=fig03_chebyshev", *settings, "checkpoint_seconds=0.02", f"output_dir={place}", *more]
        place.mkdir(parents=True, exist_ok=True)
        return Job(command, place / log, file_limit)

    def ends_equal(self, place: Path, *more: str) -> None:
        """Start the run again: it must complete with the bytes of the undisturbed run."""
        job = self.job(place, *more, log="again")
        status = job.wait()
        expect(status == 0, f"started again, it ended with {status}: {job.said[-300:]}")
        expect("Traceback" not in job.said, f"a traceback: {job.said[-600:]}")
        expect(digest(run_of(place)) == self.bytes, "the bytes differ from the undisturbed run's")

    def moment(self) -> None:
        """Wait for a random part of a run."""
        time.sleep(self.draw.uniform(0, 1.1 * self.seconds))

    def killed(self, place: Path) -> bool:
        """SIGKILL, up to three times."""
        hit = False
        for _ in range(self.draw.randint(1, 3)):
            job = self.job(place)
            self.moment()
            job.signal(signal.SIGKILL)
            expect(job.wait() in (0, -signal.SIGKILL), "neither killed nor at its end")
            hit |= is_in_the_middle(place)
        self.ends_equal(place)
        return hit

    def told_to_end(self, place: Path) -> bool:
        """SIGTERM, SIGHUP or SIGINT: the exit code is the signal's, and one line says what to do."""
        number = self.draw.choice([signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
        job = self.job(place)
        self.moment()
        job.signal(number)
        status = job.wait()
        expect(status in (0, 128 + number, -number), f"{number.name}: ended with {status}: {job.said[-300:]}")
        expect("Traceback" not in job.said, f"{number.name}: a traceback: {job.said[-600:]}")
        hit = is_in_the_middle(place)
        self.ends_equal(place)
        return hit

    def disk_full(self, place: Path) -> bool:
        """No file may grow beyond a random size."""
        job = self.job(place, file_limit=self.draw.randint(200, 60_000))
        status = job.wait()
        expect(status in (0, EXIT_REFUSED), f"ended with {status}: {job.said[-300:]}")
        expect("Traceback" not in job.said, f"a traceback: {job.said[-600:]}")
        self.ends_equal(place)
        return status == EXIT_REFUSED

    def two_writers(self, place: Path) -> bool:
        """Two processes of the same run: one trains, the other is refused in a line or finds it done."""
        jobs = [self.job(place, log="first")]
        time.sleep(self.draw.uniform(0, self.seconds))
        jobs.append(self.job(place, log="second"))
        ended = [job.wait() for job in jobs]
        expect(0 in ended and set(ended) <= {0, EXIT_REFUSED}, f"ended with {ended}")
        expect(not any("Traceback" in job.said for job in jobs), "a traceback")
        self.ends_equal(place)
        return EXIT_REFUSED in ended

    def read_while_written(self, place: Path) -> bool:
        """At any time a reader sees a prefix of the run."""
        whole = {quantity: np.asarray(Record(run_of(self.reference))[quantity].values) for quantity in ("train_loss",)}
        job, reads = self.job(place), 0
        while os.waitpid(job.pid, os.WNOHANG)[0] == 0:
            try:
                record = Record(run_of(place))
                for quantity, values in whole.items():
                    if quantity in record:
                        seen = np.asarray(record[quantity].values)
                        expect(np.array_equal(seen, values[: len(seen)]), f"{quantity}: no beginning of the run")
                        reads += 1
            except (InputError, FileNotFoundError, StopIteration):
                pass  # nothing is there yet
            time.sleep(0.005)
        self.ends_equal(place)
        return reads > 0

    def damaged(self, place: Path) -> bool:
        """A file of a finished run is truncated, emptied, changed in one bit, replaced or deleted."""
        shutil.copytree(self.reference, place)
        victim = self.draw.choice(
            [path for path in sorted(run_of(place).iterdir()) if path.suffix in (".npy", ".json") and path.is_file()]
        )
        data = bytearray(victim.read_bytes())
        kind = self.draw.choice(["cut", "empty", "bit", "garbage", "gone"])
        if kind == "bit":
            data[self.draw.randrange(len(data))] ^= 1 << self.draw.randrange(8)
        elif kind == "cut":
            data = data[: self.draw.randrange(len(data))]
        elif kind == "garbage":
            data = bytearray(self.draw.randbytes(len(data)))
        victim.write_bytes(b"" if kind == "empty" else bytes(data))
        if kind == "gone":
            victim.unlink()
        job = self.job(place)
        status = job.wait()
        what = f"{kind} of {victim.name}"
        expect("Traceback" not in job.said, f"{what}: a traceback: {job.said[-600:]}")
        expect(status in (0, EXIT_REFUSED), f"{what}: ended with {status}: {job.said[-300:]}")
        if status == 0:
            same = digest(run_of(place)) == self.bytes
            expect(same or not victim.name.endswith(".npy"), f"{what}: taken for the run")
        self.ends_equal(place, "retrain_damaged=true")
        return status == EXIT_REFUSED

    def hostile(self, place: Path) -> bool:
        """A record that asks to run code is reported and explained: no code runs, nothing is written elsewhere."""
        shutil.copytree(self.reference, place)
        folder, canary = run_of(place), place / "canary"
        configuration = json.loads((folder / "configuration.json").read_text())
        attack = self.draw.choice(
            [
                {"_target_": "os.system", "command": f"touch {canary}"},
                {"_target_": "pathlib.Path.write_text", "self": str(canary), "data": "x"},
                {"_target_": "builtins.exec", "_args_": [f"open({str(canary)!r}, 'w')"]},
                {"_target_": "torch.load", "f": str(place / "poison"), "weights_only": False},
                {"_partial_": True, "_target_": "subprocess.run", "args": ["touch", str(canary)]},
            ]
        )
        torch.save(_Touch(str(canary)), place / "poison")
        field = self.draw.choice(["data", "model", "run", "loss", "optimizer"])
        if field == "data" and self.draw.random() < 0.5:
            configuration["data"]["degree"] = attack
        else:
            configuration[field] = attack
        (folder / "configuration.json").write_text(json.dumps(configuration))
        if self.draw.random() < 0.3:
            np.save(folder / "sharpness.npy", np.array([_Touch(str(canary))], object), allow_pickle=True)
        for name, arguments in {
            "report": ["report", str(place)],
            "explain": ["explain", str(folder)],
        }.items():
            job = Job(arguments, place / name)
            status = job.wait()
            expect(status in (0, EXIT_REFUSED), f"{name} ended with {status}: {job.said[-300:]}")
            expect("Traceback" not in job.said, f"{name}: a traceback: {job.said[-600:]}")
            expect(not canary.exists(), f"{name}: code of the record was run ({field}: {attack['_target_']})")
            expect(name == "explain" or status == 0, f"{name}: no page: {job.said[-300:]}")
        return True


class _Touch:
    """Writes a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, (self.path, "w")


def run_of(place: Path) -> Path:
    """The folder of the only run in ``place``."""
    return next(iter(sorted((place / "runs").iterdir())))


def is_in_the_middle(place: Path) -> bool:
    """Whether the run has begun to write and is not complete."""
    begun = list(place.glob("runs/*/train_loss.npy"))
    return bool(begun) and not Record(begun[0].parent).is_complete


def digest(folder: Path) -> str:
    """Hash of every recorded quantity."""
    found = hashlib.sha256()
    for path in sorted(folder.glob("*.npy")):
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
        found.update(path.name.encode() + rows["step"].tobytes() + rows["value"].tobytes())
    return found.hexdigest()


KINDS = {
    "killed with SIGKILL, up to three times": Soak.killed,
    "SIGTERM, SIGHUP, SIGINT": Soak.told_to_end,
    "disk full at a random size": Soak.disk_full,
    "two writers": Soak.two_writers,
    "read while written": Soak.read_while_written,
    "finished run damaged": Soak.damaged,
    "hostile record reported and explained": Soak.hostile,
}


def table(counts: dict[str, list[int]], command: str, seconds: float) -> str:
    """Table of the rounds, as Markdown."""
    lines = ["| trouble | rounds | held | met the run at work |", "|---|---:|---:|---:|"]
    rows = {**counts, "all": [sum(column) for column in zip(*counts.values(), strict=True)]}
    lines += [f"| {kind} | {tried} | {held} | {met} |" for kind, (tried, held, met) in rows.items()]
    return "\n".join(
        [
            "# What happens to a run that is disturbed",
            "",
            f"`{command}`, at commit {commit()}, {seconds / 60:.0f} minutes. A round",
            "holds if every process ends as it should, without a traceback, and the run that is started again has the",
            "bytes of the undisturbed one; of a hostile record, if nothing that it names is run or written. The last",
            "column counts the rounds in which the trouble came while the run was at work, or the damage was told.",
            "",
            *lines,
            "",
        ]
    )


def soak(rounds: int, minutes: float, seed: int, out: Path | None) -> int:
    """Run up to ``rounds`` rounds, starting none after ``minutes``; returns the number of those that did not hold."""
    draw, started = random.Random(seed), time.monotonic()
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    with tempfile.TemporaryDirectory() as scratch:
        rounds_of = Soak(Path(scratch), draw)
        print(f"the undisturbed run takes {rounds_of.seconds:.1f} s", flush=True)
        order: list[str] = []
        while len(order) < rounds:
            order += draw.sample(list(KINDS), len(KINDS))
        for number, kind in enumerate(order[:rounds], 1):
            if time.monotonic() - started > 60 * minutes:
                break
            place = Path(scratch) / f"{number}"
            counts[kind][0] += 1
            try:
                met = KINDS[kind](rounds_of, place)
                counts[kind][1] += 1
                counts[kind][2] += met
            except NotHeldError as failure:
                print(f"round {number}, {kind}: {failure}", flush=True)
            shutil.rmtree(place, ignore_errors=True)
            if number % 10 == 0 or number == rounds:
                print(f"{number} of {rounds} rounds, {time.monotonic() - started:.0f} s", flush=True)
    command = f"python benchmarks/soak.py --rounds {rounds} --minutes {minutes:g} --seed {seed}"
    text = table({kind: counts[kind] for kind in KINDS if kind in counts}, command, time.monotonic() - started)
    print(text)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "README.md").write_text(text)
    return sum(tried - held for tried, held, _ in counts.values())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=60.0, help="in which rounds begin (%(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="folder for the table")
    given = parser.parse_args()
    torch.set_num_threads(1)
    sys.exit(min(soak(given.rounds, given.minutes, given.seed, given.out), 1))
