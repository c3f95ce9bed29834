"""The dashboard of a run: a mirror of its record, figure and verdicts in W&B, TensorBoard or a CSV file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from logging import getLogger
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from opposing_signals.errors import InputError, one_line, printable
from opposing_signals.processes import is_first
from opposing_signals.record.quantities import QUANTITIES, SAMPLE_LOSS, SHARPNESS

if TYPE_CHECKING:
    from opposing_signals.record import Record
    from opposing_signals.signals import Trajectory
    from opposing_signals.studies.claim import Verdict

log = getLogger(__name__)

MEMBERS = 10
"""Most images of a group."""
LARGEST_RECORD = 2**20
"""Most bytes of a packed record."""
CHANGES = ("largest_rise", "largest_fall", "share_rising")
"""Of the one-step changes: the largest, the smallest, and the fraction above zero."""
EDGE = "2/η"


@contextmanager
def dashboard(config: DictConfig, own: str = "") -> Iterator[Dashboard | None]:
    """The dashboard that ``config.logger`` describes; None without one. Closed at the end: a second job has its own.

    Args:
        config: Of the job.
        own: The overrides that distinguish the job in its sweep.
    """
    mirror = Dashboard(config, own) if config.logger and is_first() else None
    try:
        yield mirror
    finally:
        if mirror is not None:
            mirror.close()


class Dashboard:
    """Shows what the record holds; the record remains authoritative.

    Nothing is started before there is something to show, so a refused configuration leaves no run behind.

    Attributes:
        was_live: Whether the training has shown its scalars itself, step by step.
    """

    def __init__(self, config: DictConfig, own: str = "") -> None:
        self.was_live = False
        self._config, self._own = config, own

    @cached_property
    def logger(self) -> Any:
        """Lightning's logger; W&B's starts its run on first access.

        Raises:
            InputError: A package that the logger needs is not installed, or it has no such setting.
        """
        given = self._config.logger
        choice = str(given._target_).rpartition(".")[2].removesuffix("Logger").lower()
        settings = {"config": self._settings} if choice == "wandb" else {}
        for kind in ("data", "cache") if choice == "wandb" else ():  # not in a home folder, which may be read-only
            place = Path(self._config.output_dir).absolute() / "wandb" / kind
            os.environ.setdefault(f"WANDB_{kind.upper()}_DIR", str(place))
        try:
            logger = instantiate(given, _partial_=True)(name=self.name, **settings)
        except ModuleNotFoundError as error:
            said = str(error).splitlines()[0]
            raise InputError(f"logger={choice}: {said}; pip install {choice}, or choose logger=csv") from None
        except (InstantiationException, TypeError) as error:
            raise InputError(f"logger={choice}: {one_line(error)}; --cfg job prints its settings") from None
        if choice == "wandb":
            logger._wandb_init.pop("anonymous")  # Lightning passes on what wandb has deprecated and warns about
        return logger

    @property
    def name(self) -> str:
        """Run, scale, seed and step size, and the other overrides that distinguish the job in its sweep."""
        config = self._config
        parts = [config.run.name, config.scale.name, f"seed{config.seed}"]
        lr = OmegaConf.select(config, "optimizer.lr")
        parts += [] if lr is None else [f"lr{lr:g}" if isinstance(lr, int | float) else f"lr{lr}"]
        told = ("seed=", "optimizer.lr=", "run=")
        return "-".join([*parts, *(part for part in self._own.split(",") if part and not part.startswith(told))])

    @property
    def _settings(self) -> dict[str, Any]:
        # a sweep's configuration holds Hydra's own, some of whose fields only its jobs have
        shown = OmegaConf.masked_copy(self._config, [str(name) for name in self._config if name != "hydra"])
        settings = OmegaConf.to_container(shown, resolve=True)
        assert isinstance(settings, dict)
        return {str(name): value for name, value in settings.items()}

    def show_steps(self, trajectory: Trajectory) -> None:
        """One row per step: the record's scalars, unless shown live, and quantities derived from the record."""
        for step, row in sorted(steps(trajectory, with_scalars=not self.was_live).items()):
            self.logger.log_metrics(row, step)

    def show(self, folder: Path, verdicts: Sequence[Verdict], trajectories: Mapping[str, Trajectory]) -> None:
        """Show what an experiment has concluded.

        Args:
            folder: Holds its figure.
            verdicts: On its claims.
            trajectories: Its runs; of a single one, the steps are shown too.
        """
        only = next(iter(trajectories.values())) if len(trajectories) == 1 else None
        if only is not None:
            self.show_steps(only)
        values = {f"claim/{verdict.id}": verdict.value for verdict in verdicts if verdict.value is not None}
        figure = folder / "figure.png"
        kind = type(self.logger).__name__
        if kind == "WandbLogger":
            self._show_in_wandb(figure, verdicts, values, only)
            return
        if kind == "TensorBoardLogger" and figure.is_file():
            import numpy as np
            from PIL import Image

            with Image.open(figure) as picture:
                self.logger.experiment.add_image("figure", np.asarray(picture.convert("RGB")), dataformats="HWC")
        self.logger.log_hyperparams(self._settings)
        self.logger.log_metrics(values, 0)

    def _show_in_wandb(
        self, figure: Path, verdicts: Sequence[Verdict], values: dict[str, float], only: Trajectory | None
    ) -> None:
        import wandb

        run = self.logger.experiment
        if only is not None:
            self._keep_record(run, only.record)
        columns: list[str | int] = list(verdicts[0].as_json()) if verdicts else []
        rows = [[str(value) for value in verdict.as_json().values()] for verdict in verdicts]
        shown: dict[str, Any] = {"claims": wandb.Table(columns=columns, data=rows)}
        if figure.is_file():
            shown["figure"] = wandb.Image(str(figure))
        run.log({**shown, **members(only)})
        run.summary.update(values)
        run.summary.update({f"verdict/{verdict.id}": verdict.verdict for verdict in verdicts})

    def _keep_record(self, run: Any, record: Record) -> None:
        """Log the packed ``record`` as an artifact; W&B reads its file when the run is uploaded, which may be later."""
        import wandb

        from opposing_signals.packing import SUFFIX, pack_run

        name = record.folder.resolve().name
        path = Path(self._config.output_dir).absolute() / "wandb" / "records" / f"{name}{SUFFIX}"
        try:
            why = pack_run(record, path, LARGEST_RECORD)
        except InputError as error:
            log.warning("the dashboard gets no packed record: %s", printable(str(error)))
            return
        artifact = wandb.Artifact(name, type="record", description=why or None, metadata=record.provenance)
        artifact.add_file(str(path), policy="immutable")
        run.log_artifact(artifact)

    def close(self) -> None:
        """Close the logger, if it was started."""
        if "logger" not in vars(self):
            return
        if type(self.logger).__name__ == "WandbLogger":
            import wandb

            wandb.finish()
        else:
            self.logger.finalize("success")


def steps(trajectory: Trajectory, with_scalars: bool) -> dict[int, dict[str, float]]:
    """Step ↦ name ↦ number: the curves of a run in a dashboard.

    Args:
        trajectory: Of the run.
        with_scalars: Whether to include every quantity of the record with one number per step.
    """
    import numpy as np

    rows: dict[int, dict[str, float]] = {}

    def add(name: str, at: np.ndarray, values: np.ndarray) -> None:
        for step, value in zip(at, values, strict=True):
            rows.setdefault(int(step), {})[name] = float(value)

    record = trajectory.record
    if with_scalars:
        for name in (name for name, quantity in QUANTITIES.items() if not quantity.shape and name in record):
            add(name, record[name].steps, record[name].values)
    if SHARPNESS in record and trajectory.edge is not None:
        add(EDGE, record[SHARPNESS].steps, np.full(len(record[SHARPNESS]), trajectory.edge))
    if SAMPLE_LOSS in record:
        changes = trajectory.changes
        extremes = np.array([(row.max(), row.min(), np.mean(row > 0)) for row in changes.values]).reshape(-1, 3)
        for name, column in zip(CHANGES, extremes.T, strict=True):
            add(name, changes.steps, column)
        for number, pair in enumerate(trajectory.pairs, start=1):
            for name, group in zip(pair_names(number), pair.groups, strict=True):
                loss = trajectory.group_loss(group)
                add(name, loss.steps, loss.values)
    return rows


def members(trajectory: Trajectory | None) -> dict[str, list[Any]]:
    """Name of each group of each opposing pair ↦ images of its members for W&B; empty if there are none."""
    import wandb

    if trajectory is None or SAMPLE_LOSS not in trajectory.record or not trajectory.pairs:
        return {}
    dataset = trajectory.dataset
    if dataset.images is None:
        return {}
    names = [dataset.class_names[int(label)] for label in dataset.targets]
    return {
        name: [wandb.Image(dataset.images[point], caption=names[point]) for point in group[:MEMBERS]]
        for number, pair in enumerate(trajectory.pairs, start=1)
        for name, group in zip(member_names(number), pair.groups, strict=True)
    }


def pair_names(number: int) -> list[str]:
    """Names of the mean losses of the two groups of pair ``number``; pair 1 is that of largest amplitude."""
    return [f"pair/{number}{side}" for side in "ab"]


def member_names(number: int) -> list[str]:
    """Names of the pictures of their members."""
    return [f"members/{number}{side}" for side in "ab"]
