"""An experiment's grid as a W&B sweep, whose jobs are taken one by one by agents on several machines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from opposing_signals.choices import composed, written
from opposing_signals.errors import InputError
from opposing_signals.experiments import experiments
from opposing_signals.files import write_text
from opposing_signals.record.quantities import TRAIN_LOSS


def grid(experiment: str, folders: Sequence[Path] | None = None) -> dict[str, list[Any]]:
    """Field ↦ values that ``experiment`` sweeps over; empty if it trains one run."""
    described = OmegaConf.create(written("experiment", experiment, folders))
    params = OmegaConf.select(described, "hydra.sweeper.params") or {}
    return {
        str(field): [OmegaConf.create(f"- {value}")[0] for value in str(values).split(",")]
        for field, values in params.items()
    }


def wandb_sweep(experiment: str, scale: str = "paper") -> str:
    """The file that ``wandb sweep`` takes. Its jobs only train; the figure is drawn from their runs by a later command.

    Raises:
        InputError: The experiment trains one run.
    """
    fields = grid(experiment)
    if not fields:
        raise InputError(
            f"sweep {experiment}: it trains one run; expected an experiment with a grid, as fig39_sgd_grid"
        )
    fixed = [f"experiment={experiment}", f"scale={scale}", "hydra.mode=RUN", "conclude=false", "logger.mode=online"]
    trained = composed(f"experiment={experiment}", f"scale={scale}", "logger=none")
    sweep = {
        "program": "opposing-signals",
        "project": "opposing-signals",
        "name": experiment,
        "method": "grid",
        **({"metric": {"name": str(TRAIN_LOSS), "goal": "minimize"}} if TRAIN_LOSS in trained.instruments else {}),
        "parameters": {field: {"values": values} for field, values in fields.items()},
        "command": ["opposing-signals", *fixed, "${args_no_hyphens}"],
    }
    return OmegaConf.to_yaml(OmegaConf.create(sweep))


def write_sweeps(folder: Path, scale: str = "paper") -> None:
    """Write `wandb_sweep` of every experiment that has a grid to ``folder/NAME.yaml``."""
    for name in filter(grid, experiments()):
        write_text(folder / f"{name}.yaml", wandb_sweep(name, scale))
