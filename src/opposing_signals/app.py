"""An experiment from its configuration to its verdicts: train what is missing, draw, check, write down.

What needs torch or matplotlib is imported where it is used, so that the first line does not wait for it.
"""

from __future__ import annotations

import errno
import inspect
import os
import re
import shlex
import shutil
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from datetime import UTC, datetime
from logging import getLogger
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from hydra import version
from hydra._internal.utils import _run_hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from hydra.utils import get_method, instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from opposing_signals.arguments import folders, hydra_parser, parsed, searched_folder
from opposing_signals.choices import check_settings, register
from opposing_signals.configuration import configuration_folder, decisive, experiment_folder, reference_of, run_folder
from opposing_signals.errors import DamagedError, InputError, NotWrittenError, TrainingStoppedError, printable
from opposing_signals.experiments import did_you_mean
from opposing_signals.files import read_json, replacing, write_json
from opposing_signals.interruption import Interrupted, end_children, ended_by_signals, leave_worker
from opposing_signals.processes import agreed, count, is_first, together
from opposing_signals.record import Record, WrittenElsewhere
from opposing_signals.terminal import console

if TYPE_CHECKING:
    from opposing_signals.studies.claim import Claim

log = getLogger(__name__)

FAILED = 1
SHARED_JOB = "opposing_signals.training.job.train"
"""The job whose work several processes can share."""
CLAIM = ("statement", "source", "statistic", "threshold")
"""The fields of a claim."""
NOTE = {"name", "job", "folder", "failure"}
"""The fields of a job's note."""
UNFINISHED = "its process was killed or is still at work; the same command goes on with it"


class SweepNote(Callback):
    """Notes what Hydra does not hand back to its caller: a sweep's configuration, and the failure of a single job.

    With the first the figure can be drawn when the last job has ended; the second is raised where Hydra no longer
    prints its own report of it.
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


def run(arguments: list[str]) -> int:
    """Compose the configuration of ``arguments`` and run its job or jobs; the exit code.

    Of several processes (`opposing_signals.processes`) all train, one run after another, and the first one alone keeps
    the notes of a sweep, draws, checks claims and talks to the dashboard.

    Raises:
        InputError: The arguments name what is not there, or ask for what cannot work.
        TrainingStoppedError: The loss is not finite.
    """
    SweepNote.config = SweepNote.failure = None
    GlobalHydra.instance().clear()
    with _hydra_folders() as folders:
        return _run([*arguments, *folders])


@contextmanager
def _hydra_folders() -> Iterator[list[str]]:
    """Settings of where Hydra writes its own files: for all processes but the first, where they are thrown away."""
    if is_first():
        yield []
        return
    with tempfile.TemporaryDirectory() as folder:
        yield [f"hydra.{mode}.dir={folder}" for mode in ("run", "sweep")]


def _run(arguments: list[str]) -> int:
    options = parsed(arguments)
    options.resolve = options.cfg == "job"  # fields that depend on scale and run are shown with their values
    searched = folders(options)
    register(searched)
    # modules beside a user's own configurations can be named in them; behind all others, so that they hide none
    sys.path += [str(folder) for folder in searched[1:] if str(folder) not in sys.path]
    sys.argv[1:] = arguments
    if options.shell_completion:
        sys.argv[0] = "opposing-signals"  # of which Hydra completes the arguments, not of `python -m`
    # conf/hydra/launcher/submitit_slurm.yaml has, on purpose, the name of the plugin's schema, which checks its fields
    warnings.filterwarnings("ignore", r"(?s).*validated against ConfigStore schema with the same name")
    user_wants_tracebacks = "HYDRA_FULL_ERROR" in os.environ
    os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions reach this function instead of Hydra's own report
    version.setbase("1.3")
    try:
        with patch("hydra._internal.utils.get_args_parser", hydra_parser):  # shell completion asks for one of its own
            _run_hydra(options, hydra_parser(), _job, str(configuration_folder()), "config")
        if SweepNote.failure is not None:
            raise SweepNote.failure
    except (HydraException, OmegaConfBaseException) as error:
        if user_wants_tracebacks:
            raise
        raise InputError(_refusal(error)) from None
    except AssertionError as error:
        if user_wants_tracebacks or not _is_of_defaults(error):
            raise
        raise InputError(
            f"{shlex.join(arguments)}: Hydra cannot read a defaults list; expected its overrides, as override /run, "
            "behind all others; only _self_ may follow"
        ) from None
    except Interrupted:
        if SweepNote.config is not None and is_first():
            end_children()  # jobs of some launchers are processes that would go on
        raise
    except Exception as error:
        if options.shell_completion:
            raise InputError(f"{shlex.join(arguments)}: {_one_line(error)}") from None
        if SweepNote.config is None or not is_first() or not _job_notes(SweepNote.config):
            raise
        lost = _one_line(error)  # jobs keep their failures to themselves: this one is the launcher's
        print(f"opposing-signals: the launcher gave up: {type(error).__name__}: {lost}", file=sys.stderr)
        return _finish_sweep(SweepNote.config) or FAILED
    finally:
        if not user_wants_tracebacks:
            del os.environ["HYDRA_FULL_ERROR"]
    return _finish_sweep(SweepNote.config) if SweepNote.config is not None and is_first() else 0


def _refusal(error: Exception) -> str:
    """What Hydra says, in one line, without its proposal to add a field that nothing reads."""
    text = _one_line(error)
    if several := re.match(r"Ambiguous value for argument '([^']*)'", text):
        field, _, values = several[1].partition("=")
        return f"{several[1]}: several values; add -m to run each of them, or write a list as {field}=[{values}]"
    text = re.sub(r" full_key: .*", "", text)
    near = ""
    unknown = error.__cause__
    if isinstance(unknown, OmegaConfBaseException) and isinstance(unknown.parent_node, DictConfig):
        near = did_you_mean(str(unknown.key), [str(field) for field in unknown.parent_node])
    return re.sub(r"\.? To append to your config use.*", f"; {near}--cfg job prints the fields there are", text)


def _is_of_defaults(error: AssertionError) -> bool:
    """Whether Hydra's search for what a defaults list means fails: it asserts what it should refuse."""
    return Path(traceback.extract_tb(error.__traceback__)[-1].filename).name in (
        "defaults_list.py",
        "default_element.py",
    )


def _one_line(error: Exception) -> str:
    cause = error.__cause__ if isinstance(error.__cause__, InputError) else error
    return " ".join(str(cause).split())


def _job(config: DictConfig) -> None:
    """One run, in this process or in one that a launcher has started."""
    with ended_by_signals() if count() == 1 else nullcontext():  # torchrun ends its processes in its own way
        try:
            _run_job(config)
        except Interrupted as told:
            leave_worker(told)
            raise


def _run_job(config: DictConfig) -> None:
    """One run: alone it is drawn at once, in a sweep it leaves a note for `_finish_sweep`.

    A sweep's jobs may be processes on other machines, or follow each other in one process; what they share lies on
    the disk. One that fails leaves that in its note, and the others go on.
    """
    hydra_config: Any = HydraConfig.get()
    sources = [f"{source.schema}://{source.path}" for source in hydra_config.runtime.config_sources]
    searched = [folder for source in sources if (folder := searched_folder(source)) and folder.is_dir()]
    if hydra_config.mode == RunMode.RUN:
        try:
            check_settings(config.settings, searched)
            _announce(config, config.experiment.name)
            _check_conclusion(config)
            with _logger(config, config.run.name) as logger:
                record = _recorded(config, logger)
                if config.conclude and is_first():
                    _conclude(config, {config.run.name: record}, logger)
        except Exception as error:
            SweepNote.failure = error
        return
    path = experiment_folder(config) / "jobs" / f"{hydra_config.job.num}.json"
    own = hydra_config.job.override_dirname
    label = own or config.run.name
    name = _name_in_grid(config, hydra_config)
    note = {"name": name, "job": label, "folder": "", "failure": UNFINISHED}
    _write_note(path, note)
    try:
        check_settings(config.settings, searched)
        _announce(config, f"{config.experiment.name}, {name}")
        _check_conclusion(config)
        with _logger(config, label) as logger:
            record = _recorded(config, logger, wait=True)
            note |= {"folder": str(record.folder.resolve()), "failure": ""}
            if config.conclude and is_first() and not _is_concluded_as_a_whole(hydra_config):
                _conclude(config, {config.run.name: record}, logger, subfolder=own.replace("/", "_"))
    except (InputError, TrainingStoppedError) as error:
        if isinstance(error, TrainingStoppedError):
            note["folder"] = str(run_folder(config).resolve())
        note["failure"] = str(error)
        log.error("%s", printable(f"{label} failed: {error}"))
    except Exception as error:
        note["failure"] = f"{type(error).__name__}: {_one_line(error)}"
        log.exception("%s failed", printable(label))
    _write_note(path, note)


def _announce(config: DictConfig, what: str) -> None:
    """Say what is about to be done: the first line of a command, before anything takes long.

    Of a damaged run nothing is said here: `_recorded` does, with the remedy.
    """
    folder = run_folder(config)
    record = Record(folder) if (folder / "configuration.json").is_file() else None
    begun = "going on with" if record and record.checkpoint.is_file() else "new run"
    try:
        doing = "reusing" if record and record.is_complete else begun
    except DamagedError:
        return
    log.info("%s: %s %s", what, doing, folder)


def _check_conclusion(config: DictConfig) -> None:
    """Refuse before the training what could not be drawn or checked after it."""
    if not isinstance(config.conclude, bool):
        raise InputError(f"conclude={config.conclude}: expected true or false")
    if not config.conclude:
        return
    from opposing_signals.signals import find_pairs
    from opposing_signals.studies.probes.paths import check_probe

    for claim in _claims(config):
        claim.bound(config.scale.name)
    known = [
        name for name, field in inspect.signature(find_pairs).parameters.items() if field.kind == field.KEYWORD_ONLY
    ]
    if unknown := [str(name) for name in config.signals if name not in known]:
        raise InputError(f"signals.{unknown[0]}: no such field; there are {', '.join(known)}")
    probes = OmegaConf.select(config, "instruments.block_probe.probes")
    if OmegaConf.is_list(probes) and "probe" in config.experiment:  # anything else the instrument refuses
        check_probe(config.experiment.probe, probes, config.run.name)


def _write_note(path: Path, note: dict[str, str]) -> None:
    if is_first():
        write_json(path, note)


def _is_concluded_as_a_whole(hydra_config: DictConfig) -> bool:
    """Whether the jobs are the grid of an experiment, which has one figure; otherwise each has its own."""
    return bool(hydra_config.sweeper.get("params"))


def _name_in_grid(config: DictConfig, hydra_config: DictConfig) -> str:
    """The run's name in a grid of runs; otherwise the point of the grid, for instance ``optimizer.lr=0.1``."""
    fields = list(hydra_config.sweeper.get("params") or {})
    if fields in ([], ["run"]):
        return config.run.name
    chosen = dict(override.lstrip("+").split("=", 1) for override in hydra_config.overrides.task)
    return ",".join(f"{field}={chosen[field]}" for field in fields)


def _clear(folder: Path) -> None:
    """Delete the notes of an earlier sweep, whoever wrote them: a note that stays would be taken for a job's."""
    if folder.is_symlink():
        folder.unlink()
    elif folder.exists():
        shutil.rmtree(folder)


def _job_notes(config: DictConfig) -> list[dict[str, str]]:
    paths = (experiment_folder(config) / "jobs").glob("*.json")
    notes = {int(path.stem): read_json(path) for path in paths if path.stem.isdecimal()}
    for number, note in notes.items():
        if note.keys() != NOTE or not all(isinstance(value, str) for value in note.values()):
            path = experiment_folder(config) / "jobs" / f"{number}.json"
            raise InputError(f"{path}: no note of a job; start the same command again, it reuses the runs")
    return [notes[number] for number in sorted(notes)]


def _finish_sweep(config: DictConfig) -> int:
    notes = _job_notes(config)
    if not notes:
        grid = [*(f"{name}={values}" for name, values in (config.hydra.sweeper.params or {}).items()), *sys.argv[1:]]
        raise InputError(
            f"the grid of the sweep is empty ({shlex.join(grid)}): expected at least one value for each of its fields"
        )
    names = [note["name"] for note in notes]
    by = "name" if len(set(names)) == len(names) else "job"
    failures = {note[by]: note["failure"] for note in notes if note["failure"]}
    if config.conclude and _is_concluded_as_a_whole(config.hydra):
        records = {note[by]: Record(note["folder"]) for note in notes if note["folder"]}
        with _logger(config, "figure") as logger:
            _conclude(config, records, logger, failures)
    elif config.conclude:
        from opposing_signals.report.sweep import conclude_sweep

        conclude_sweep(experiment_folder(config), [note["job"] for note in notes])
    for name, failure in failures.items():
        print(f"opposing-signals: {printable(f'{name} failed: {failure}')}", file=sys.stderr)
    return FAILED if failures else 0


def _recorded(config: DictConfig, logger: Any, wait: bool = False, announced: str = "") -> Record:
    """The complete record of ``config``; one that is damaged is trained again where ``retrain_damaged`` says so."""
    try:
        return _completed(config, logger, wait, announced)
    except DamagedError as error:
        if not config.retrain_damaged or count() > 1:
            again = "train the run again from the start by adding retrain_damaged=true, or restore the file"
            raise InputError(f"{error}; {again}{' (without torchrun)' if count() > 1 else ''}") from None
        log.warning("%s: the run is trained again from the start", error)
        return _completed(config, logger, wait, announced, anew=True)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise NotWrittenError(
            f"{error.strerror}: {error.filename or run_folder(config)}; the steps before are kept, and the same "
            "command goes on from the last checkpoint when there is room"
        ) from None


def _completed(config: DictConfig, logger: Any, wait: bool, announced: str, anew: bool = False) -> Record:
    """The complete record of ``config``: reused if it is there, otherwise begun or gone on with.

    A run that is measured against a reference has that completed first. Jobs of a parallel sweep that share a
    reference, or the whole run, ``wait`` for the one that trains it. What is not complete can be ``announced``.
    """
    folder = run_folder(config)
    configuration = decisive(config)
    if count() > 1 and config.job != SHARED_JOB:
        raise InputError(
            f"{count()} processes for {config.experiment.name}: expected one, {config.job} is no training whose work "
            "they could share; start the same command without torchrun"
        )
    with _writing(folder, configuration, wait, anew) as record:
        state = agreed(lambda: record.state)
        if state == "complete":
            agreed(record.verify)
        if state.startswith("stopped"):
            raise TrainingStoppedError(f"{state.removeprefix('stopped: ')} ({folder}); try a smaller optimizer.lr")
        if state != "complete":
            if announced:
                _announce(config, announced)
            if "reference" in config:
                _recorded(reference_of(config), None, wait=True, announced=f"the reference of {config.run.name}")
            try:
                with together():
                    get_method(config.job)(config, record, logger)
            except TrainingStoppedError as stop:
                raise TrainingStoppedError(
                    f"{stop}; the record is kept in {folder}; try a smaller optimizer.lr"
                ) from None
    return Record(folder)


@contextmanager
def _writing(folder: Path, configuration: dict[str, Any], wait: bool, anew: bool) -> Iterator[Record]:
    """`Record.writing` in the first process; the others append to nothing."""
    with ExitStack() as held:
        opened: list[Record] = []
        agreed(lambda: opened.append(held.enter_context(Record.writing(folder, configuration, wait, anew))))
        yield opened[0] if opened else WrittenElsewhere(folder)


def _conclude(
    config: DictConfig,
    records: dict[str, Record],
    logger: Any,
    failures: Mapping[str, str] = MappingProxyType({}),
    subfolder: str = "",
) -> None:
    """Draw the figure, check the claims, write both down and show them.

    Args:
        config: Of the experiment.
        records: Of its runs, those that were stopped among them, by name.
        logger: Where the figure and the verdicts are mirrored.
        failures: Name ↦ why that run is not complete.
        subfolder: Of the experiment's folder, where they are written.
    """
    import matplotlib.pyplot as plt

    from opposing_signals.signals import Runs, Trajectory
    from opposing_signals.studies import style
    from opposing_signals.studies.claim import verdict_table

    folder = experiment_folder(config) / subfolder
    folder.mkdir(parents=True, exist_ok=True)
    own_data: Any = OmegaConf.to_container(config.data, resolve=True) if "data" in config else {}
    read = {name: Trajectory(record, config.signals, own_data) for name, record in records.items()}
    stopped = {name: trajectory for name, trajectory in read.items() if name in failures}
    trajectories = Runs({name: read[name] for name in read if name not in stopped}, stopped, failures)
    verdicts = [claim.check(trajectories, config.scale.name, config.seed) for claim in _claims(config)]
    write_json(folder / "claims.json", [verdict.as_json() for verdict in verdicts])
    write_json(folder / "experiment.json", _description(config, records))
    drawn = set()
    if trajectories or failures:
        figure = instantiate(config.figure)(trajectories) if trajectories else style.figure(8, 2, "No run is complete")
        style.name_verdicts(figure, verdicts, failures)
        for name in ("figure.png", "figure.pdf"):
            with replacing(folder / name) as unfinished:
                figure.savefig(unfinished, dpi=150)
            drawn.add(name)
        plt.close(figure)
        if trajectories and OmegaConf.select(config, "animation") is not None:
            with replacing(folder / "animation.gif") as unfinished:
                instantiate(config.animation)(trajectories, unfinished)
            drawn.add("animation.gif")
        if trajectories and OmegaConf.select(config, "tables") is not None:
            instantiate(config.tables)(trajectories, folder)
            drawn |= {"tables.txt", "tables.html"}
    for stale in {"figure.png", "figure.pdf", "animation.gif", "tables.txt", "tables.html"} - drawn:
        (folder / stale).unlink(missing_ok=True)
    _mirror(logger, folder, verdicts)
    shown = console()
    title = f"{config.experiment.name} at scale={config.scale.name}, seed={config.seed}"
    shown.print(verdict_table(verdicts, title, shown))
    shown.print(f"figure: {folder / 'figure.png'}\nclaims: {folder / 'claims.json'}", soft_wrap=True)


def _claims(config: DictConfig) -> list[Claim]:
    from opposing_signals.studies.claim import Claim

    found = []
    for identifier, claim in config.claims.items():
        if unknown := sorted({*map(str, claim)} - {*CLAIM, "seeds"}):
            near = did_you_mean(unknown[0], CLAIM)
            raise InputError(f"claims.{identifier}.{unknown[0]}: no such field; {near}there are {', '.join(CLAIM)}")
        if missing := [field for field in CLAIM if field not in claim]:
            raise InputError(f"claims.{identifier}: no {missing[0]}; expected {', '.join(CLAIM)}")
        threshold = claim.threshold if isinstance(claim.threshold, str) else dict(claim.threshold)
        statistic = instantiate(claim.statistic, _partial_=True)
        seeds = claim.get("seeds", "each")
        found.append(Claim(str(identifier), claim.statement, claim.source, statistic, threshold, seeds))
    return found


def _description(config: DictConfig, records: dict[str, Record]) -> dict[str, Any]:
    """What the report says about the experiment."""
    return {
        "name": config.experiment.name,
        "title": config.experiment.title,
        "command": shlex.join(["opposing-signals", *sys.argv[1:]]),
        "scale": config.scale.name,
        "seed": config.seed,
        "drawn": datetime.now(UTC).isoformat(timespec="seconds"),
        "runs": {
            name: {"folder": record.folder.name, "configuration": record.configuration, "provenance": record.provenance}
            for name, record in records.items()
        },
    }


@contextmanager
def _logger(config: DictConfig, name: str) -> Iterator[Any]:
    """The dashboard's run of one job; closed at its end, because a second job must not go on in it."""
    run = instantiate(config.logger, name=name) if config.logger and is_first() else None
    try:
        if run is not None:
            run.define_metric("trainer/global_step")  # Lightning's name for the step, along which all is drawn
            run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
            # a sweep's configuration holds Hydra's own, some of whose fields only its jobs have
            shown = OmegaConf.masked_copy(config, [str(name) for name in config if name != "hydra"])
            run.config.update(OmegaConf.to_container(shown, resolve=True))
        yield run
    finally:
        if run is not None:
            run.finish()


def _mirror(run: Any, folder: Path, verdicts: list[Any]) -> None:
    if run is None:
        return
    import wandb

    columns = list(verdicts[0].as_json()) if verdicts else []
    rows = [[str(value) for value in verdict.as_json().values()] for verdict in verdicts]
    if (folder / "figure.png").is_file():
        run.log({"figure": [wandb.Image(str(folder / "figure.png"))]})
    run.log({"claims": wandb.Table(columns=columns, data=rows)})
    run.summary.update({f"verdict/{verdict.id}": verdict.verdict for verdict in verdicts})
