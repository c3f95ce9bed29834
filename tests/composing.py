"""Compose a configuration in this process, as the command line would."""

from pathlib import Path

from omegaconf import DictConfig

from opposing_signals import choices


def composed(
    experiment: str, *overrides: str, output_dir: Path | str = "outputs", with_hydra: bool = False
) -> DictConfig:
    return choices.composed(
        f"experiment={experiment}",
        "scale=smoke",
        "logger=none",
        f"output_dir={output_dir}",
        *overrides,
        with_hydra=with_hydra,
    )
