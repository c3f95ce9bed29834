"""Compose a configuration in this process, as the command line would."""

from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from opposing_signals.choices import register
from opposing_signals.configuration import configuration_folder


def composed(experiment: str, *overrides: str, output_dir: Path | str = "outputs") -> DictConfig:
    register()
    with initialize_config_dir(str(configuration_folder()), version_base="1.3"):
        return compose(
            "config", [f"experiment={experiment}", "scale=smoke", "logger=none", f"output_dir={output_dir}", *overrides]
        )
