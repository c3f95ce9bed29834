"""Which part of a configuration decides the numbers of a run, and the folder and key that follow from it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

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
        "run_dir",
        "scale",
        "signals",
        "tables",
        "threads",
        "trainer",
    }
)
"""Top-level fields that leave a run's numbers as they are. Any other field counts, also one added later."""


def configuration_folder() -> Path:
    """The Hydra configuration: in a wheel it is inside the package, in a checkout it stands at the top."""
    installed = Path(str(resources.files("opposing_signals"))) / "conf"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "conf"


def decisive(config: DictConfig) -> dict[str, Any]:
    """The resolved part of ``config`` that decides a run's numbers. Where the data lie does not."""
    resolved = OmegaConf.to_container(config, resolve=True)
    assert isinstance(resolved, dict)
    kept: dict[str, Any] = {str(name): value for name, value in resolved.items() if name not in UNDECISIVE}
    if isinstance(kept.get("data"), dict):
        kept["data"] = without_root(kept["data"])
    return kept


def without_root(data: Mapping[str, Any]) -> dict[str, Any]:
    """What a record keeps of the field ``data``: not where on this machine the data lie."""
    return {name: value for name, value in data.items() if name != "root"}


def run_key(config: DictConfig) -> str:
    """Eight hexadecimal digits: equal for configurations whose runs have equal numbers."""
    canonical = json.dumps(_one_spelling(decisive(config)), sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:8]


def _one_spelling(value: Any) -> Any:
    """``value`` with whole numbers as integers wherever they stand: lr=10 and lr=10.0 are one run."""
    if isinstance(value, dict):
        return {name: _one_spelling(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_one_spelling(part) for part in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def reference_of(config: DictConfig) -> DictConfig:
    """The configuration of a run's reference: the run's, with the fields of ``config.reference`` in their place."""
    fields = OmegaConf.to_container(config, resolve=True)
    assert isinstance(fields, dict)
    changes = fields.pop("reference")
    return OmegaConf.create({**fields, "run_dir": None, **changes})


def run_folder(config: DictConfig) -> Path:
    """Where the run's record is kept."""
    if config.run_dir is not None:
        return Path(config.run_dir)
    name = f"{config.run.name}-{config.scale.name}-seed{config.seed}-{run_key(config)}"
    return Path(config.output_dir) / "runs" / name


def experiment_folder(config: DictConfig) -> Path:
    """Where the experiment's figure and claims are written."""
    return Path(config.output_dir) / config.experiment.name
