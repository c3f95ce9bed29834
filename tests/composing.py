"""Compose a configuration in this process, as the command line would."""

from copy import deepcopy
from functools import cache
from pathlib import Path

from omegaconf import DictConfig

from opposing_signals import choices

_composed = cache(choices.composed)


def composed(
    experiment: str, *overrides: str, output_dir: Path | str = "outputs", with_hydra: bool = False
) -> DictConfig:
    chosen = f"experiment={experiment}", "scale=smoke", "logger=none", *overrides
    config = deepcopy(_composed(*chosen, with_hydra=with_hydra))
    config.output_dir = str(output_dir)
    return config
