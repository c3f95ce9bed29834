"""A sweep from its first job to its last: notes of its jobs, and the figure made from them."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from opposing_signals.app.conclusion import conclude
from opposing_signals.app.dashboard import dashboard
from opposing_signals.configuration import experiment_folder
from opposing_signals.errors import InputError, printable
from opposing_signals.files import read_json, write_json
from opposing_signals.processes import is_first
from opposing_signals.record import Record

FAILED = 1
"""The exit code of a sweep with a failed job."""
NOTE = {"name", "job", "folder", "failure"}
"""The fields of a job's note."""
UNFINISHED = "its process was killed or is still at work; the same command goes on with it"


class SweepNote(Callback):
    """Keeps what Hydra does not return to its caller: a sweep's configuration, and the failure of a single job.

    The configuration is needed to draw the figure after the last job. The failure is raised again outside of Hydra,
    which would print its own report of it.
    """

    config: DictConfig | None = None
    failure: Exception | None = None

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Forget the jobs of an earlier sweep. Called in the process that launches the jobs, not in theirs."""
        SweepNote.config = config
        try:
            if is_first():
                _clear(experiment_folder(config) / "jobs")
        except (InputError, OSError) as error:  # Hydra would turn it into a warning
            SweepNote.config, SweepNote.failure = None, error


def is_concluded_as_a_whole(hydra_config: DictConfig) -> bool:
    """Whether the jobs are an experiment's grid, with one figure; otherwise each has its own."""
    return bool(hydra_config.sweeper.get("params"))


def write_note(path: Path, note: dict[str, str]) -> None:
    """Write a job's note, for `finish_sweep` to find."""
    if is_first():
        write_json(path, note)


def _clear(folder: Path) -> None:
    """Delete the notes of an earlier sweep, whoever wrote them: a leftover note would be taken for a job's."""
    if folder.is_symlink():
        folder.unlink()
    elif folder.exists():
        shutil.rmtree(folder)


def job_notes(config: DictConfig) -> list[dict[str, str]]:
    """The notes of the jobs, in order.

    Raises:
        InputError: A file is not a valid note.
    """
    paths = (experiment_folder(config) / "jobs").glob("*.json")
    notes = {int(path.stem): read_json(path) for path in paths if path.stem.isdecimal()}
    for number, note in notes.items():
        if note.keys() != NOTE or not all(isinstance(value, str) for value in note.values()):
            path = experiment_folder(config) / "jobs" / f"{number}.json"
            raise InputError(f"{path}: no note of a job; start the same command again, it reuses the runs")
    return [notes[number] for number in sorted(notes)]


def finish_sweep(config: DictConfig) -> int:
    """Draw and check what the jobs have trained, and name those that failed; returns the exit code.

    Raises:
        InputError: There was no job.
    """
    notes = job_notes(config)
    if not notes:
        grid = [*(f"{name}={values}" for name, values in (config.hydra.sweeper.params or {}).items()), *sys.argv[1:]]
        raise InputError(
            f"the grid of the sweep is empty ({shlex.join(grid)}): expected at least one value for each of its fields"
        )
    names = [note["name"] for note in notes]
    by = "name" if len(set(names)) == len(names) else "job"
    failures = {note[by]: note["failure"] for note in notes if note["failure"]}
    if config.conclude and is_concluded_as_a_whole(config.hydra):
        records = {note[by]: Record(note["folder"]) for note in notes if note["folder"]}
        with dashboard(config, "figure") as mirror:
            conclude(config, records, mirror, failures)
    elif config.conclude:
        from opposing_signals.report.sweep import conclude_sweep

        conclude_sweep(experiment_folder(config), {note["job"]: note["folder"] for note in notes})
    for name, failure in failures.items():
        print(f"opposing-signals: {printable(f'{name} failed: {failure}')}", file=sys.stderr)
    return FAILED if failures else 0
