"""Runs a command through Hydra: composes its arguments, refuses them in one line, or runs one job or several."""

from __future__ import annotations

import os
import re
import shlex
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

from hydra import version
from hydra._internal.utils import _run_hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from opposing_signals.app.job import job
from opposing_signals.app.sweep import FAILED, SweepNote, finish_sweep, job_notes
from opposing_signals.arguments import folders, hydra_parser, instead_of, parsed
from opposing_signals.choices import choices, register
from opposing_signals.configuration import configuration_folder
from opposing_signals.errors import InputError, one_line
from opposing_signals.experiments import did_you_mean
from opposing_signals.interruption import Interrupted, end_children
from opposing_signals.processes import is_first


def run(arguments: list[str]) -> int:
    """Compose the configuration of ``arguments`` and run its job or jobs; returns the exit code.

    With several processes (`opposing_signals.processes`), all of them train, one run after another. Only the first
    keeps the notes of a sweep, draws, checks claims and writes to the dashboard.

    Raises:
        InputError: The arguments name something unknown, or ask for something impossible.
        TrainingStoppedError: The loss is not finite.
    """
    SweepNote.config = SweepNote.failure = None
    GlobalHydra.instance().clear()
    with _hydra_folders() as folders:
        return _run([*arguments, *folders])


@contextmanager
def _hydra_folders() -> Iterator[list[str]]:
    """Settings that let all processes but the first write Hydra's own files to a temporary folder."""
    if is_first():
        yield []
        return
    with tempfile.TemporaryDirectory() as folder:
        yield [f"hydra.{mode}.dir={folder}" for mode in ("run", "sweep")]


def _run(arguments: list[str]) -> int:
    options = parsed(arguments)
    options.resolve = options.cfg == "job"  # fields that depend on scale and run are shown resolved
    searched = folders(options)
    register(searched)
    # a user's configurations can name modules beside them; last in the path, so that they hide no others
    sys.path += [str(folder) for folder in searched[1:] if str(folder) not in sys.path]
    sys.argv[1:] = arguments
    if options.shell_completion:
        sys.argv[0] = "opposing-signals"  # the program whose arguments Hydra completes, not `python -m`
    # conf/hydra/launcher/submitit_slurm.yaml deliberately has the name of the plugin's schema, which checks its fields
    warnings.filterwarnings("ignore", r"(?s).*validated against ConfigStore schema with the same name")
    user_wants_tracebacks = "HYDRA_FULL_ERROR" in os.environ
    os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions reach this function instead of Hydra's own report
    version.setbase("1.3")
    try:
        with patch("hydra._internal.utils.get_args_parser", hydra_parser):  # shell completion makes its own parser
            _run_hydra(options, hydra_parser(), job, str(configuration_folder()), "config")
        if SweepNote.failure is not None:
            raise SweepNote.failure
    except (HydraException, OmegaConfBaseException) as error:
        if user_wants_tracebacks:
            raise
        raise InputError(_refusal(error, searched)) from None
    except YAMLError as error:
        if user_wants_tracebacks:
            raise
        raise InputError(f"{one_line(error)}: expected a file of YAML") from None
    except AssertionError as error:
        if user_wants_tracebacks or not _is_of_defaults(error):
            raise
        raise InputError(
            f"{shlex.join(arguments)}: Hydra cannot read a defaults list; expected its overrides, as override /run, "
            "behind all others; only _self_ may follow"
        ) from None
    except Interrupted:
        if SweepNote.config is not None and is_first():
            end_children()  # jobs of some launchers are processes that would continue
        raise
    except Exception as error:
        if options.shell_completion:
            raise InputError(f"{shlex.join(arguments)}: {one_line(error)}") from None
        if SweepNote.config is None or not is_first() or not job_notes(SweepNote.config):
            raise
        lost = one_line(error)  # jobs note their own failures, so this one is the launcher's
        print(f"opposing-signals: the launcher gave up: {type(error).__name__}: {lost}", file=sys.stderr)
        return finish_sweep(SweepNote.config) or FAILED
    finally:
        if not user_wants_tracebacks:
            del os.environ["HYDRA_FULL_ERROR"]
    return finish_sweep(SweepNote.config) if SweepNote.config is not None and is_first() else 0


def _refusal(error: Exception, searched: list[Path]) -> str:
    """Hydra's message in one line, without its proposal to add a field that nothing reads."""
    if missing := re.match(r"In '([^']*)': Could not (?:load|find) '([^']*)/([^'/]*)'", one_line(error)):
        where, group, name = missing.groups()
        return f"{where}: {group}={name}: unknown; {instead_of(name, choices(group, searched))}"
    text = re.sub(r"^\w+ raised while resolving interpolation: ", "", one_line(error))
    if several := re.match(r"Ambiguous value for argument '([^']*)'", text):
        field, _, values = several[1].partition("=")
        return f"{several[1]}: several values; add -m to run each of them, or write a list as {field}=[{values}]"
    if absent := re.fullmatch(r"Could not delete from config\. '([^']*)' does not exist\.", text):
        return f"~{absent[1]}: there is no such field to leave out; --cfg job prints the fields there are"
    text = re.sub(r" full_key: .*", "", text)
    near = ""
    unknown = error.__cause__
    if isinstance(unknown, OmegaConfBaseException) and isinstance(unknown.parent_node, DictConfig):
        near = did_you_mean(str(unknown.key), [str(field) for field in unknown.parent_node])
    return re.sub(r"\.? To append to your config use.*", f"; {near}--cfg job prints the fields there are", text)


def _is_of_defaults(error: AssertionError) -> bool:
    """Whether Hydra failed to resolve a defaults list: it asserts where it should raise a proper error."""
    return Path(traceback.extract_tb(error.__traceback__)[-1].filename).name in (
        "defaults_list.py",
        "default_element.py",
    )
