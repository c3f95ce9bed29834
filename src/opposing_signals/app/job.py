"""One job of a command: a run that is trained and concluded, alone or in a sweep."""

from __future__ import annotations

from contextlib import ExitStack
from logging import getLogger
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from opposing_signals import schema
from opposing_signals.app.completion import announce, is_reused, recorded
from opposing_signals.app.conclusion import check_conclusion, conclude
from opposing_signals.app.dashboard import Dashboard, dashboard
from opposing_signals.app.sweep import UNFINISHED, SweepNote, is_concluded_as_a_whole, write_note
from opposing_signals.arguments import searched_folder
from opposing_signals.choices import check_settings
from opposing_signals.configuration import experiment_folder, job_folder, run_folder
from opposing_signals.errors import InputError, TrainingStoppedError, one_line, printable, refusal
from opposing_signals.interruption import Interrupted, ended_by_signals, leave_worker
from opposing_signals.processes import count, is_first, is_one_of_several, joined
from opposing_signals.record import Record

log = getLogger(__name__)


def job(config: DictConfig) -> None:
    """Run one job, in this process or in one that a launcher has started."""
    with ExitStack() as held:
        if is_one_of_several() and count() == 1:  # tasks of a job that a launcher has submitted to Slurm
            held.enter_context(joined())
        if count() == 1:  # torchrun ends its processes itself
            held.enter_context(ended_by_signals())
        try:
            _run_job(config)
        except Interrupted as told:
            leave_worker(told)
            raise


def _run_job(config: DictConfig) -> None:
    """One run: alone, it is drawn at once; in a sweep, it leaves a note for `finish_sweep`.

    A sweep's jobs may be processes on other machines, or follow each other in one process; they share data only through
    the disk. One that fails says so in its note, and the others continue.
    """
    hydra_config: Any = HydraConfig.get()
    if hydra_config.mode == RunMode.RUN:
        try:
            begin(config, _searched(), config.experiment.name)
            with dashboard(config) as mirror:
                record = recorded(config, mirror)
                _conclude_alone(config, record, mirror)
        except Exception as error:
            SweepNote.failure = error
        return
    path = experiment_folder(config) / "jobs" / f"{hydra_config.job.num}.json"
    own = hydra_config.job.override_dirname
    label = own or config.run.name
    name = _name_in_grid(config, hydra_config)
    note = {"name": name, "job": label, "folder": "", "failure": UNFINISHED}
    write_note(path, note)
    try:
        begin(config, _searched(), f"{config.experiment.name}, {name}")
        with dashboard(config, own) as mirror:
            record = recorded(config, mirror, wait=True)
            note |= {"folder": str(record.folder.resolve()), "failure": ""}
            _conclude_alone(config, record, mirror, own)
    except Exception as error:
        if isinstance(error, TrainingStoppedError):
            note["folder"] = str(run_folder(config).resolve())
        expected = isinstance(refusal(error), InputError | TrainingStoppedError)
        note["failure"] = one_line(error) if expected else f"{type(error).__name__}: {one_line(error)}"
        log.error("%s", printable(f"{label} failed: {note['failure']}"), exc_info=not expected)
    write_note(path, note)


def _searched() -> list[Path]:
    """The folders of the job's choices."""
    sources = [f"{source.schema}://{source.path}" for source in HydraConfig.get().runtime.config_sources]
    return [folder for source in sources if (folder := searched_folder(source)) and folder.is_dir()]


def begin(config: DictConfig, searched: list[Path], what: str) -> None:
    """Refuse what is wrong by the configuration alone, and print what is about to be done.

    Args:
        config: Of the job.
        searched: Folders of its choices.
        what: The job's name in that line.

    Raises:
        InputError: A field is unknown, or has an invalid value.
    """
    schema.check(config)
    OmegaConf.resolve(config)  # once: otherwise each lookup resolves again
    check_settings(config.settings, searched)
    experiment_folder(config)  # refuses a name that leads elsewhere
    announce(config, what)  # before Lightning is imported, which takes as long as everything so far
    if not is_reused(config):
        schema.check_training(config)
    if config.conclude:
        check_conclusion(config)


def _conclude_alone(config: DictConfig, record: Record, mirror: Dashboard | None, own: str = "") -> None:
    """Draw the figure and verdicts of one run, unless it belongs to a grid, which has one figure.

    Args:
        config: Of the job.
        record: Of its run.
        mirror: The dashboard.
        own: The overrides that distinguish the job in its sweep.
    """
    if not is_first():
        return
    hydra_config: Any = HydraConfig.get()
    if config.conclude and not (hydra_config.mode == RunMode.MULTIRUN and is_concluded_as_a_whole(hydra_config)):
        conclude(config, {config.run.name: record}, mirror, subfolder=job_folder(own))
    elif mirror is not None:
        from opposing_signals.signals import Trajectory

        mirror.show_steps(Trajectory(record, config.signals))


def _name_in_grid(config: DictConfig, hydra_config: DictConfig) -> str:
    """The run's name in a grid of runs; otherwise the point of the grid, for instance ``optimizer.lr=0.1``."""
    fields = list(hydra_config.sweeper.get("params") or {})
    if fields in ([], ["run"]):
        return config.run.name
    chosen = dict(override.lstrip("+").split("=", 1) for override in hydra_config.overrides.task)
    return ",".join(f"{field}={chosen[field]}" for field in fields)
