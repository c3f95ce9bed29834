"""Reproduces the whole paper, or a part of it, figure by figure, within a time budget.

``opposing-signals reproduce --scale paper --budget 540`` starts the experiments one after another, the most important
first, each in a process of its own. Experiments that have their figure are skipped. Those that were begun resume from
their checkpoint. When the time is over, the running training is told to end: it finishes its step and writes its state.
The time that each experiment has taken, and still needs, is stored with the results.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, get_type_hints

from rich.table import Table

from opposing_signals.configuration import folder_name
from opposing_signals.errors import InputError, printable
from opposing_signals.experiments import experiments, named
from opposing_signals.files import read_json, write_json
from opposing_signals.interruption import Interrupted
from opposing_signals.terminal import console
from opposing_signals.values import fits

if TYPE_CHECKING:
    from opposing_signals.report.result import Result

ORDER = (
    *("fig03*", "fig04*", "fig38*", "theorem*", "linear_*"),  # seconds
    *("fig1[6-9]*", "fig2[01]*", "fig33*", "fig36*", "fig49*", "fig5[01]*"),  # VGG-11, with batch norm and without
    *("fig01*", "fig05*", "fig1[0-5]*", "fig46*", "fig02*", "fig32*"),  # ResNet-18
    *("fig06*", "fig37*"),  # minibatches
    *("fig39*", "fig4[0-4]*"),  # optimizers
    *("fig2[89]*", "fig3[01]*"),  # Adam
    *("fig34*", "fig5[2-4]*"),  # ViT
    *("fig0[789]*", "fig35*", "fig45*"),  # GPT
    *("fig47*", "fig48*"),  # further seeds
    *("fig2[2-7]*",),  # gradient flow
    "*",
)
"""Patterns of experiments' names, the most wanted first; those that share a run are together."""
GRACE = 30.0
"""Seconds of the budget reserved for a training to finish its step and write its state."""
ENDING = 25.0
"""Seconds after which a job that was told to end is told again, then killed: it can resume from what it has written."""
_TOLD_TO_END = (128 + signal.SIGTERM, -signal.SIGTERM, -signal.SIGKILL)
_STEP = re.compile(r"step (\d+) of (\d+)")
_LEFT = re.compile(r"(?:(\d+):)?(\d+):(\d+) left")


@dataclass(frozen=True)
class Job:
    """The state of one experiment at one scale.

    Attributes:
        name: Of the experiment.
        state: ``"done"``, ``"begun"``, ``"failed"`` or ``"open"``.
        seconds: Time taken so far.
        left: Seconds to its end, as its training last estimated them; None if unknown.
        said: The last line of output of a failed job.
    """

    name: str
    state: str = "open"
    seconds: float = 0.0
    left: float | None = None
    said: str = ""


def chosen(only: Sequence[str]) -> list[str]:
    """The experiments that ``only`` names, or all of them, the most wanted first.

    Raises:
        InputError: One of ``only`` matches no experiment, or several.
    """
    names = [named(given) for given in only] or list(experiments())
    return sorted(names, key=lambda name: next(i for i, pattern in enumerate(ORDER) if fnmatch(name, pattern)))


def reproduce(
    names: Sequence[str],
    scale: str,
    outputs: Path,
    budget: float | None = None,
    only_next: bool = False,
    settings: Sequence[str] = (),
) -> list[Job]:
    """Run the experiments ``names`` that have no figure yet, within the budget.

    Args:
        names: In their order.
        scale: ``"smoke"``, ``"cpu"`` or ``"paper"``.
        outputs: Folder of runs, figures and claims.
        budget: Seconds; None for no limit.
        only_next: Stop after the first that was not done.
        settings: Overrides that each experiment gets.

    Returns:
        The state of each of them at the end.
    """
    started = time.monotonic()
    plan = Plan(outputs, scale)
    jobs = {name: plan.job(name) for name in names}
    for name in names:
        if jobs[name].state == "done":
            continue
        left = None if budget is None else budget - GRACE - (time.monotonic() - started)
        if left is not None and left <= 0:
            break
        print(f"{name}: {_expected(jobs[name], scale)}", flush=True)
        jobs[name] = plan.run(jobs[name], left, settings)
        if only_next:
            break
    return list(jobs.values())


class Plan:
    """The notes about all jobs of one scale, in ``<outputs>/reproduce/<scale>.json``, and a log of each."""

    def __init__(self, outputs: Path, scale: str) -> None:
        self.outputs, self.scale = outputs, scale
        self.path = outputs / "reproduce" / f"{scale}.json"

    def job(self, name: str) -> Job:
        """The state of the experiment ``name``."""
        noted = read_json(self.path).get(name) if self.path.is_file() else None
        try:
            job = Job(**{**noted, "name": name}) if noted else Job(name)
            if wrong := [field for field, hint in get_type_hints(Job).items() if not fits(getattr(job, field), hint)]:
                raise TypeError(wrong[0])
        except TypeError:
            raise InputError(
                f"{self.path}: no notes of jobs; delete the file, and its times are measured anew"
            ) from None
        if self.result(name) is not None:
            return replace(job, state="done", left=0.0)
        return replace(job, state="begun" if job.state == "done" else job.state)

    def run(self, job: Job, budget: float | None, settings: Sequence[str]) -> Job:
        """Start or resume ``job``, for at most ``budget`` seconds."""
        log = self.path.with_suffix("") / f"{job.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        command = [
            *(sys.executable, "-u", "-m", "opposing_signals", f"experiment={job.name}", f"scale={self.scale}"),
            *(f"output_dir={self.outputs}", *settings),
        ]
        with log.open("ab") as written, subprocess.Popen(command, stdout=written, stderr=subprocess.STDOUT) as process:
            try:
                status = process.wait(budget)
            except subprocess.TimeoutExpired:
                status = _ended(process)
            except Interrupted:
                _ended(process)
                self._note(job, time.monotonic() - began, "begun", log)
                raise
        state = "done" if self.result(job.name) else "begun" if status in _TOLD_TO_END else "failed"
        return self._note(job, time.monotonic() - began, state, log)

    def _note(self, job: Job, seconds: float, state: str, log: Path) -> Job:
        lines = [
            line for line in re.split(r"[\r\n]+", log.read_text(encoding="utf-8", errors="replace")) if line.strip()
        ]
        job = replace(
            job,
            state=state,
            seconds=round(job.seconds + seconds, 1),
            left=0.0 if state == "done" else _time_left(lines),
            said=lines[-1].removeprefix("opposing-signals: ") if state == "failed" and lines else "",
        )
        notes = read_json(self.path) if self.path.is_file() else {}
        write_json(self.path, {**notes, job.name: asdict(job)})
        return job

    def result(self, name: str) -> Result | None:
        """The result of the experiment ``name`` at this scale; None if it is missing or unreadable."""
        from opposing_signals.report.result import Result

        folder = self.outputs / name
        if not (folder / "claims.json").is_file():
            return None
        found = Result.read(folder, name)
        is_sound = found.scale == self.scale and not any(said.startswith("claims.json") for said in found.problems)
        return found if is_sound else None

    def runs(self, name: str) -> list[str]:
        """Names of the folders of the runs behind the result of ``name``, below ``<outputs>/runs``."""
        found = self.result(name)
        where = f"{self.outputs / name / 'experiment.json'}: folder"
        return [folder_name(run.folder, where) for run in found.runs] if found else []


def _ended(process: subprocess.Popen[bytes]) -> int:
    """Tell a job to end; returns its exit status."""
    for end, seconds in ((process.terminate, ENDING), (process.terminate, ENDING / 5)):
        end()
        with suppress(subprocess.TimeoutExpired):
            return process.wait(seconds)
    process.kill()
    return process.wait()


def _time_left(lines: Sequence[str]) -> float | None:
    """The time left, in seconds, by the last line of a training's progress."""
    for line in reversed(lines):
        if _STEP.search(line):
            found = _LEFT.search(line)
            if found is None:
                return None
            hours, minutes, seconds = (int(part or 0) for part in found.groups())
            return float(3600 * hours + 60 * minutes + seconds)
    return None


def _expected(job: Job, scale: str) -> str:
    if job.state == "open":
        cost = experiments()[job.name][1].get(scale)
        return f"begins ({cost})" if cost else "begins"
    return f"goes on; {_duration(job.seconds)} so far" + ("" if job.left is None else f", {_duration(job.left)} left")


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def pack(names: Sequence[str], scale: str, outputs: Path, to: Path, limit: int) -> int:
    """Copy figure and claims of the experiments that are done, and pack their runs; returns their number.

    Args:
        names: Of the experiments.
        scale: ``"smoke"``, ``"cpu"`` or ``"paper"``.
        outputs: Folder of runs, figures and claims.
        to: Destination folder.
        limit: Most bytes of a packed record.

    Raises:
        InputError: A record is missing or damaged, or does not fit.
    """
    from opposing_signals import packing
    from opposing_signals.record import Record

    if to.resolve() == outputs.resolve():
        raise InputError(f"reproduce: --pack {to} is the folder of the results; expected another one")
    plan = Plan(outputs, scale)
    done = [name for name in names if plan.result(name) is not None]
    for name in done:
        (to / name).mkdir(parents=True, exist_ok=True)
        for kept in ("figure.png", "claims.json", "experiment.json"):
            if (outputs / name / kept).is_file():
                shutil.copy(outputs / name / kept, to / name / kept)
    for run in sorted({run for name in done for run in plan.runs(name)}):  # experiments share runs
        why = packing.pack_run(Record(outputs / "runs" / run), to / "runs" / f"{run}{packing.SUFFIX}", limit)
        if why:
            print(f"reproduce: {why}")
    return len(done)


def table(jobs: Sequence[Job], plan: Plan) -> Table:
    """The state of each experiment, the time it took, what is left, and its verdicts."""
    counts = Counter(job.state for job in jobs)
    shown = Table(
        title=f"scale={plan.scale}: " + ", ".join(f"{count} {state}" for state, count in counts.items()), box=None
    )
    for heading in ("experiment", "state", "time", "left", "verdicts"):
        shown.add_column(heading, no_wrap=heading == "experiment")
    for job in jobs:
        found = plan.result(job.name)
        counted = Counter(claim["verdict"] for claim in found.verdicts) if found else Counter()
        verdicts = ", ".join(f"{count} {verdict}" for verdict, count in sorted(counted.items(), reverse=True))
        shown.add_row(
            job.name,
            job.state,
            _duration(job.seconds) if job.seconds else "",
            "" if job.left is None or job.state == "done" else _duration(job.left),
            printable(job.said) or verdicts,
        )
    return shown


def show(jobs: Sequence[Job], scale: str, outputs: Path) -> int:
    """Print the table; 1 if a job failed, else 0."""
    console(markup=False).print(table(jobs, Plan(outputs, scale)))
    return int(any(job.state == "failed" for job in jobs))
