"""Which part of a configuration decides the numbers of a run, and the folder and key that follow from it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from opposing_signals.errors import InputError
from opposing_signals.values import written

UNDECISIVE = frozenset(
    {
        "animation",
        "checkpoint_seconds",
        "claims",
        "conclude",
        "experiment",
        "figure",
        "logger",
        "output_dir",
        "retrain_damaged",
        "run_dir",
        "scale",
        "settings",
        "signals",
        "tables",
        "threads",
        "trainer",
    }
)
"""Top-level fields that do not affect a run's numbers. Any other field counts, also one added later."""
SCALES = ("smoke", "cpu", "paper")
MISSING = object()


def configuration_folder() -> Path:
    """The folder of the Hydra configuration."""
    return shipped_folder("conf")


def shipped_folder(name: str) -> Path:
    """A folder that comes with the package: inside it in a wheel, at the top of a checkout."""
    installed = Path(str(resources.files("opposing_signals"))) / name
    return installed if installed.is_dir() else Path(__file__).parents[2] / name


def decisive(config: DictConfig) -> dict[str, Any]:
    """The resolved part of ``config`` that decides a run's numbers. The location of the data does not."""
    resolved = OmegaConf.to_container(config, resolve=True)
    assert isinstance(resolved, dict)
    kept: dict[str, Any] = {str(name): value for name, value in resolved.items() if name not in UNDECISIVE}
    if isinstance(kept.get("data"), dict):
        kept["data"] = without_root(kept["data"])
    return kept


def without_root(data: Mapping[str, Any]) -> dict[str, Any]:
    """The field ``data`` as a record keeps it: without the location of the data on this machine."""
    return {name: value for name, value in data.items() if name != "root"}


def run_key(config: DictConfig) -> str:
    """Eight hexadecimal digits: equal for configurations whose runs have equal numbers."""
    return key(decisive(config))


def training_key(configuration: Mapping[str, Any]) -> str:
    """The same for the training: equal for runs that differ only in name and instruments.

    Args:
        configuration: The decisive part, as a record holds it.
    """
    return key({name: value for name, value in configuration.items() if name not in ("run", "instruments")})


def key(value: Any) -> str:
    """Eight hexadecimal digits of the hash of a JSON value."""
    canonical = json.dumps(_one_spelling(value), sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:8]


def _one_spelling(value: Any) -> Any:
    """``value`` with whole numbers as integers wherever they stand: lr=10 and lr=10.0 are one run."""
    if isinstance(value, dict):
        return {name: _one_spelling(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_one_spelling(part) for part in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def reference_of(config: DictConfig) -> DictConfig:
    """The configuration of a run's reference: the run's own, with the fields of ``config.reference`` replaced."""
    fields = OmegaConf.to_container(config, resolve=True)
    assert isinstance(fields, dict)
    changes = fields.pop("reference")
    return OmegaConf.create({**fields, "run_dir": None, **changes})


def refuse_seed(config: DictConfig) -> None:
    """Refuse a seed other than the first in a job that draws nothing at random: its run would repeat the first.

    Raises:
        InputError: There is another seed.
    """
    if config.seed != 1:
        raise InputError(
            f"seed={config.seed}: {config.run.name} draws nothing at random, and every seed gives the same numbers; "
            "leave the seed out"
        )


def run_folder(config: DictConfig) -> Path:
    """The folder of the run's record.

    Raises:
        InputError: A part of its name would lead elsewhere.
    """
    if config.run_dir is not None:
        return Path(folder(config.run_dir, "run_dir"))
    parts = (folder_name(config[part].name, f"{part}.name") for part in ("run", "scale"))
    name = f"{'-'.join(parts)}-seed{folder_name(config.seed, 'seed')}-{run_key(config)}"
    return Path(folder(config.output_dir, "output_dir")) / "runs" / name


def experiment_folder(config: DictConfig) -> Path:
    """The folder of the experiment's figure and claims.

    Raises:
        InputError: Its name would lead elsewhere.
    """
    return Path(folder(config.output_dir, "output_dir")) / folder_name(config.experiment.name, "experiment.name")


def job_folder(job: str) -> str:
    """The folder, in its experiment's, of what a job of a sweep concludes; a job is named by its overrides."""
    return job.replace("/", "_")


def folder(given: Any, field: str) -> str:
    """``given``, the value of ``field``, as the path of a folder.

    Raises:
        InputError: It is empty, so that a name appended to it would be at the root of the disk, or it cannot be a path.
    """
    if isinstance(given, str | int) and str(given).strip() and str(given).isprintable():
        return str(given)
    raise InputError(f"{field}={written(given)}: expected the path of a folder, of printable characters; . is this one")


def folder_name(given: Any, field: str) -> str:
    """``given``, the value of ``field``, as the name of a folder inside another one.

    Raises:
        InputError: It would lead elsewhere: it is empty, has a separator or a control character, or begins with a dot.
    """
    name = str(given)
    if given is not None and name.strip() and name.isprintable() and name[0] != "." and not {"/", "\\"} & {*name}:
        return name
    raise InputError(
        f"{field}={written(given)}: expected a name for a folder, without / and \\ and no dot at its beginning"
    )


def by_scale(*values: Any, _root_: DictConfig) -> Any:
    """The value for the chosen scale: ``${by_scale:SMOKE, CPU, PAPER}``.

    Raises:
        InputError: The scale is not one of `SCALES`, or there is not one value for each.
    """
    scale = _root_.scale if isinstance(_root_.scale, str) else _root_.scale.name  # a string in a defaults list
    written = f"${{by_scale:{', '.join(map(str, values))}}}"
    if scale not in SCALES:
        raise InputError(f"scale.name={scale}: expected {', '.join(SCALES)}, for which there is {written}")
    if len(values) != len(SCALES):
        raise InputError(f"{written}: expected a value for each of {', '.join(SCALES)}")
    value = values[SCALES.index(scale)]
    return OmegaConf.create(value) if isinstance(value, list | dict) else value


def setting(name: str, *defaults: Any, _root_: DictConfig) -> Any:
    """The run's value ``settings.NAME`` for a choice, or else the default: one, or one per scale."""
    chosen = OmegaConf.select(_root_, f"settings.{name}", default=MISSING)
    if chosen is not MISSING:
        return chosen
    if len(defaults) > 1:
        return by_scale(*defaults, _root_=_root_)
    return OmegaConf.create(defaults[0]) if isinstance(defaults[0], list | dict) else defaults[0]


# conf/config.yaml uses the first two for Hydra's own files: folders are made before a job can refuse its configuration
OmegaConf.register_new_resolver("folder", folder, replace=True)
OmegaConf.register_new_resolver("folder_name", folder_name, replace=True)
OmegaConf.register_new_resolver("by_scale", by_scale, replace=True)
OmegaConf.register_new_resolver("setting", setting, replace=True)
