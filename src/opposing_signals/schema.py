"""Checks a job's configuration against the signatures of the functions that its fields are passed to.

A choice of any group names a function or class by ``_target_``. Its argument names are the fields, and their
annotations say what is expected (`opposing_signals.values`). So a user's own constructor is checked like the package's.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Collection, Mapping
from typing import Annotated, Any, Literal

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from opposing_signals.configuration import SCALES, UNDECISIVE
from opposing_signals.errors import InputError
from opposing_signals.experiments import did_you_mean
from opposing_signals.values import (
    Count,
    Decay,
    Fraction,
    NotNegative,
    Positive,
    Range,
    Seed,
    expect,
    is_plain,
    written,
)

JOB: Mapping[str, Any] = {
    "batch": Count | None,
    "checkpoint_seconds": NotNegative,
    "conclude": bool,
    "retrain_damaged": bool,
    "seed": Seed,
    "steps": Count,
    "threads": Annotated[int, Range(1, 1024)] | None,
}
"""Fields of a job that are passed to no function."""
NAMES: Mapping[str, Any] = {"name": str}
GROUPS: Mapping[str, str | Mapping[str, Any]] = {
    "intervention": "opposing_signals.training.intervention.branch",
    "risk": "opposing_signals.curvature.risk.EmpiricalRisk",
    "run": NAMES,
    "scale": {"name": Literal[SCALES]},
    "signals": "opposing_signals.signals.find_pairs",
    "trainer": {
        "accelerator": Literal["auto", "cpu", "gpu", "cuda"],
        "devices": Count | None,
        "num_nodes": Count | None,
    },
}
"""Groups whose choices have no ``_target_`` ↦ the function they are passed to, or their fields."""
SEVERAL = ("before_update", "claims", "experiment", "instruments", "run", "scale", "settings", "signals", "trainer")
"""Fields that hold any number of others, and are never null."""
OURS: Mapping[str, Collection[str]] = {
    "augmentation": ("seed",),
    "instruments": ("risk", "record"),
    "intervention": ("module", "reference"),
    "logger": ("name",),
    "model": ("input_shape", "outputs"),
    "optimizer": ("params",),
    "risk": ("model", "loss", "inputs", "targets"),
    "claims": ("id",),
    "signals": ("changes",),
}
"""Group ↦ arguments that the run itself passes."""
OF_TORCH: Mapping[str, Mapping[str, Any]] = {
    "torch.optim.": {
        "lr": Positive,
        "betas": tuple[Decay, Decay],
        "eps": NotNegative,
        "momentum": Decay,
        "weight_decay": NotNegative,
    },
    "torch.nn.CrossEntropyLoss": {"label_smoothing": Fraction, "reduction": Literal["none"]},
}
"""Where torch's annotations say less than a run needs: prefix of a name ↦ argument ↦ what is expected."""

TRAINING = "opposing_signals.training.job.train"
OF_TRAINING = {"augmentation", "before_update", "data", "instruments"}
OF_TRAINING |= {"intervention", "job", "loss", "model", "optimizer", "reference"}
"""The fields that a training reads, besides `JOB`, `GROUPS` and `UNDECISIVE`."""
OPTIONAL = {"animation", "augmentation", "before_update", "figure", "intervention", "reference", "tables"}
"""The fields among these that may be left out."""
FORWARDED: Mapping[str, str] = {"lightning.pytorch.loggers.WandbLogger": "wandb.init"}
"""A function that takes any keyword argument ↦ the function that it passes them to."""
_FEW = 12
"""The most fields that a message names."""


def check(config: DictConfig) -> None:
    """Refuse unknown or missing fields, wrong shapes, and wrong values of fields that do not decide a run's numbers.

    Raises:
        InputError: The message names the field, its value, and what is expected.
    """
    read = {*JOB, *GROUPS, *OF_TRAINING, *UNDECISIVE}
    needed = read if config.get("job") == TRAINING else {*UNDECISIVE, "job", "run", "seed"}
    if missing := sorted(needed - OPTIONAL - {*config}):
        raise InputError(f"{missing[0]}: left out; expected {missing[0]}=VALUE")
    fields = _fields(config)
    for name, value in fields.items():
        if name not in read and fields.get("job") == TRAINING:  # a user's own job may read fields of its own
            raise InputError(f"{name}: no training reads such a field; {did_you_mean(name, read)}".removesuffix("; "))
        _check_shape(name, value, name)
        if name in UNDECISIVE:
            _check_content(name, value, name)


def check_training(config: DictConfig) -> None:
    """The same for the values of fields that decide a run's numbers; needs the imports of training.

    Raises:
        InputError: See `check`.
    """
    fields = _fields(config)
    _check_job(fields["job"])
    reference = fields.pop("reference", None) or {}
    for name, value in fields.items():
        if name not in UNDECISIVE:
            _check_content(name, value, name)
    if not isinstance(reference, dict):
        raise InputError(f"reference={written(reference)}: expected fields of the run")
    for name, value in reference.items():
        _check_shape(name, value, f"reference.{name}")
        _check_content(name, value, f"reference.{name}")


def _fields(config: DictConfig) -> dict[str, Any]:
    try:
        fields = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        said = re.sub(r"^\w+ raised while resolving interpolation: |\s*full_key: .*", "", str(error), flags=re.S)
        raise InputError(" ".join(said.split())) from None
    assert isinstance(fields, dict)
    return {str(name): value for name, value in fields.items()}


def _check_shape(name: str, value: Any, where: str) -> None:
    """Check that ``value`` has the type that the code reading it relies on."""
    if name in JOB:
        expect(where, value, JOB[name])
    if name in SEVERAL and not isinstance(value, dict):
        raise InputError(f"{where}={written(value)}: expected fields, as in {where}.NAME=VALUE")
    if name == "experiment":
        if missing := {"name", "title"} - {*value}:
            raise InputError(f"{where}.{min(missing)}: missing; expected name and title of the experiment")
        expect(f"{where}.figure_seeds", value.get("figure_seeds", "each"), Literal["each", "together"])
    for member, described in value.items() if name == "instruments" else ():
        if not isinstance(described, dict) or "_target_" not in described:
            raise InputError(
                f"{where}.{member}={written(described)}: expected an instrument, as +instruments@instruments=sharpness "
                f"adds one; ~{where}.{member} leaves one out"
            )


def _check_content(name: str, value: Any, where: str) -> None:
    """Check all parts of ``value``, at any depth, against what they are passed to."""
    ours = OURS.get(name, ())
    if name == "claims":
        for member, claim in value.items():
            if not isinstance(claim, dict):
                raise InputError(f"{where}.{member}={written(claim)}: expected the fields of a claim")
            _check_arguments(claim, _accepted("opposing_signals.studies.claim.Claim", where), f"{where}.{member}", ours)
        ours = ()
    for member, described in value.items() if name == "instruments" else ():
        _check_instrument(described["_target_"], f"{where}.{member}")
    if isinstance(value, dict) and value and name in GROUPS:
        group = GROUPS[name]
        _check_arguments(value, _accepted(group, where) if isinstance(group, str) else group, where, ours)
    _check_tree(value, where, ours)


def _check_instrument(target: Any, where: str) -> None:
    from opposing_signals.instruments.instrument import Instrument

    called = named(target, f"{where}._target_")
    if isinstance(called, type) and not issubclass(called, Instrument):
        raise InputError(f"{where}._target_={target}: expected a class that derives from Instrument")


def _check_tree(value: Any, where: str, ours: Collection[str] = ()) -> None:
    """Check each ``_target_`` below, and that each number is finite."""
    if isinstance(value, dict):
        if "_target_" in value:
            given = {name: part for name, part in value.items() if not name.startswith("_")}
            _check_arguments(given, _accepted(value["_target_"], where), where, ours)
        for name, part in value.items():
            _check_tree(part, f"{where}.{name}", ours)
    elif isinstance(value, list):
        for part in value:
            _check_tree(part, where, ours)
    elif isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{where}={value}: expected a finite number")


def _check_arguments(
    given: Mapping[str, Any], accepted: Mapping[str, Any], where: str, ours: Collection[str] = ()
) -> None:
    known = [name for name in accepted if name not in ours and name != "**"]
    for name, value in given.items():
        if name in ours or (name not in accepted and "**" not in accepted):
            listed = ", ".join([*known[:_FEW], *["..."] * (len(known) > _FEW)])
            there_are = f"there are {listed}" if known else "there are none"
            raise InputError(f"{where}.{name}: no such field; {did_you_mean(str(name), known)}{there_are}")
        hint = accepted.get(name, Any)
        if is_plain(hint) or not (isinstance(value, dict) and "_target_" in value):
            expect(f"{where}.{name}", value, hint)


def _accepted(target: Any, where: str) -> dict[str, Any]:
    """Argument ↦ annotation of the callable ``target``; ``**`` if it takes any keyword.

    Raises:
        InputError: It names no callable.
    """
    called: Any = named(target, f"{where}._target_")
    function = called.__init__ if isinstance(called, type) else called  # type: ignore[misc]  # it is only read
    namespace = getattr(inspect.unwrap(function), "__globals__", {})
    try:
        parameters = inspect.signature(called).parameters.values()
    except (TypeError, ValueError):  # functions in C may have none
        return {"**": Any}
    accepted = {
        "**" if parameter.kind is parameter.VAR_KEYWORD else parameter.name: _hint(parameter.annotation, namespace)
        for parameter in parameters
    }
    if target in FORWARDED:
        del accepted["**"]
        accepted = {**_accepted(FORWARDED[target], where), **accepted}
    known = [hints for beginning, hints in OF_TORCH.items() if str(target).startswith(beginning)]
    return accepted | {name: hint for hints in known for name, hint in hints.items() if name in accepted}


def named(target: Any, where: str) -> Callable[..., Any]:
    """The callable named ``target``, the value of the field ``where``.

    Raises:
        InputError: There is none.
    """
    from hydra._internal.utils import _locate  # hydra.utils logs names that it cannot find

    try:
        found = _locate(target) if isinstance(target, str) else None
    except Exception as error:  # of any kind: a module of the user is executed
        raise InputError(
            f"{where}={written(target)}: expected a function or class, as package.module.NAME "
            f"({' '.join(str(error.__cause__ or error).split())})"
        ) from None
    if not callable(found):
        raise InputError(f"{where}={written(target)}: expected a function or class, as package.module.NAME")
    return found


def _check_job(target: Any) -> None:
    """Refuse a job that cannot be called with the configuration, the record and a logger."""
    try:
        signature = inspect.signature(named(target, "job"))
    except ValueError:  # functions in C may have no signature
        return
    try:
        signature.bind("config", "record", "logger")
    except TypeError:
        raise InputError(
            f"job={written(target)}: expected a function of configuration, record and logger, as "
            "opposing_signals.training.job.train is one; its arguments are "
            f"{signature}"
        ) from None


def _hint(annotation: Any, namespace: dict[str, Any]) -> Any:
    if annotation is inspect.Parameter.empty:
        return Any
    if not isinstance(annotation, str):
        return annotation
    try:
        return eval(annotation, namespace)  # the text comes from the function's own source
    except (NameError, TypeError):  # a name that exists only for type checkers
        return Any
