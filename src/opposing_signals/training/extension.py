"""Runs that take over the results of a complete run of the same training, and measure only what is missing.

Two runs train identically if their configurations differ only in name and instruments (`training_key`). What one of
them has recorded holds for the other. What is missing is measured in one of two ways: at the snapshots of θ_t that the
complete run has recorded, or while the training is repeated without the other instruments. Either way the train loss of
each step is compared with the recorded one, so that two trainings that diverged are never mixed.

A run that differs from a complete one only in having more steps continues where that ends (`begin`).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from logging import getLogger
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from omegaconf import DictConfig

from opposing_signals.configuration import decisive, key, run_folder, training_key
from opposing_signals.curvature.chunks import Batch
from opposing_signals.errors import DamagedError
from opposing_signals.files import replacing
from opposing_signals.processes import count
from opposing_signals.record import Record, Series
from opposing_signals.record.quantities import PARAMETERS, QUANTITIES, TRAIN_LOSS
from opposing_signals.training.checkpoint import Begun, begun
from opposing_signals.training.intervention import place
from opposing_signals.training.module import StepHooks, TrainingModule

log = getLogger(__name__)

Way = Literal["snapshots", "training"]
WAYS: tuple[Way, ...] = ("snapshots", "training")
"""How the missing instruments measure, the cheaper first."""
LOOKED_AT = (TRAIN_LOSS, PARAMETERS)
"""The quantities that decide whether a complete run can be extended."""


class DepartedError(Exception):
    """The training departed from that of the complete run, or its snapshots do not reproduce its losses.

    Attributes:
        way: How the missing instruments were measured.
    """

    def __init__(self, said: str, way: Way) -> None:
        super().__init__(said)
        self.way = way


@dataclass(frozen=True)
class Extension:
    """What a run takes over from a complete one.

    Attributes:
        source: The complete run.
        way: How the remaining instruments measure.
        taken: Names of the instruments whose results are taken over.
        measured: Names of the instruments that measure here: those that ``source`` lacks, and those whose results of
            the same step they need.
        quantities: Quantities taken over.
        losses: The train loss of ``source``.
    """

    source: Record
    way: Way
    taken: list[str]
    measured: list[str]
    quantities: list[str]
    losses: Series

    @property
    def provenance(self) -> dict[str, Any]:
        """For the record of the run."""
        of_source = {name: self.source.provenance.get(name) for name in ("commit", "started")}
        return {"run": self.source.folder.name, **of_source, "way": self.way, "quantities": self.quantities}

    def __str__(self) -> str:
        way = {"snapshots": "at its snapshots", "training": "in a training that repeats it"}[self.way]
        measured = f"measured {way}: {', '.join(self.measured)}" if self.measured else "nothing is left to measure"
        return f"taken over from {self.source.folder}: {', '.join(self.taken) or 'nothing'}; {measured}"

    def complete(self, record: Record) -> None:
        """Copy the quantities into ``record``, once its other instruments have measured, and mark it complete."""
        self.source.verify(self.quantities)
        for quantity in self.quantities:
            record.replace(quantity, self.source[quantity])
        record.write_state("complete")
        if not self.measured and self.source.checkpoint.is_file():  # it holds the weights after the last step
            _copy_checkpoint(self.source, record)


def begin(
    config: DictConfig, record: Record, instruments: Mapping[str, StepHooks], ways: Collection[Way]
) -> tuple[Begun, Extension | None]:
    """Where the run resumes, and what it takes over.

    Args:
        config: Of the run.
        record: Of the run.
        instruments: All of the configuration, by name.
        ways: The allowed ones.
    """
    start = begun(record.checkpoint) if record.checkpoint.exists() else Begun()
    if start.steps and not start.extends:
        return start, None
    extension = _found(config, record, instruments, ways, start.extends)
    if extension is not None:
        log.info("%s", extension)
        return start, extension
    if start.extends:
        log.warning("%s is gone or changed: the run is started again", start.extends.get("run"))
        return Begun(), None
    return begun(record.checkpoint) if _continued(config, record) else Begun(), None


def _found(
    config: DictConfig,
    record: Record,
    instruments: Mapping[str, StepHooks],
    ways: Collection[Way],
    interrupted: Mapping[str, Any],
) -> Extension | None:
    """The extension that leaves least to measure; if one was ``interrupted`` (its provenance), the same again."""
    if any(instrument.ends_run or not _written(instrument) for instrument in instruments.values()):
        return None  # a user's own instrument may take anything from the others
    possible = [
        extension
        for source in _complete(config, record, training_key)
        if source.folder.name == interrupted.get("run", source.folder.name) and _is_sound(source, LOOKED_AT)
        for way in ways
        if way == interrupted.get("way", way)
        if (extension := _extension(config, source, instruments, way)) is not None
    ]
    possible.sort(key=lambda one: (len(one.measured), WAYS.index(one.way)))
    return next((one for one in possible if _is_sound(one.source, one.quantities)), None)


def _continued(config: DictConfig, record: Record) -> bool:
    """Whether there is a complete run that differs from this one only in having fewer steps.

    Its rows and checkpoint are then copied into ``record``, and the run resumes as if interrupted there.
    """

    def alike(configuration: Mapping[str, Any]) -> str:
        return key({**configuration, "run": None, "steps": None})

    def steps(source: Record) -> int:
        taken = source.configuration.get("steps")
        return taken if isinstance(taken, int) else 0

    for source in sorted(_complete(config, record, alike), key=steps, reverse=True):
        if steps(source) >= config.steps or not source.checkpoint.is_file() or not _is_sound(source):
            continue
        end = begun(source.checkpoint)
        if end.extends or (end.steps, end.rows) != (steps(source), source.rows):
            continue  # it ended early, or holds results taken over from another run
        for quantity in source:
            record.replace(quantity, source[quantity])
        record.write_provenance({**source.provenance, "continues": source.folder.name})
        _copy_checkpoint(source, record)
        log.info("going on from the last step of %s", source.folder)
        return True
    return False


def _complete(config: DictConfig, record: Record, alike: Callable[[Mapping[str, Any]], str]) -> Iterator[Record]:
    """The complete records next to that of ``config`` whose configurations are ``alike``."""
    if config.run_dir is not None or record.folder != run_folder(config):
        return
    ours = alike(decisive(config))
    for path in sorted(record.folder.parent.glob("*/configuration.json")):
        other = Record(path.parent)
        with suppress(DamagedError):  # whoever needs that run gets the error
            if other.folder != record.folder and alike(other.configuration) == ours and other.is_complete:
                yield other


def _is_sound(source: Record, quantities: Collection[str] | None = None) -> bool:
    try:
        source.verify(quantities)
    except DamagedError as error:
        log.warning("%s; nothing is taken over from it", error)
        return False
    return True


def _copy_checkpoint(source: Record, record: Record) -> None:
    with replacing(record.checkpoint) as unfinished:
        shutil.copyfile(source.checkpoint, unfinished)


def _extension(config: DictConfig, source: Record, instruments: Mapping[str, StepHooks], way: Way) -> Extension | None:
    """The extension of ``source``, if it has something to take over and the missing instruments can go this ``way``."""
    ours, theirs = decisive(config)["instruments"], source.configuration.get("instruments")
    if not isinstance(theirs, dict) or TRAIN_LOSS not in source or config.steps - 1 not in source[TRAIN_LOSS].steps:
        return None
    names = list(instruments)
    takes = {
        name: [one for one in names if isinstance(instruments[one], instrument.takes_from)]
        for name, instrument in instruments.items()
    }
    differs = {name for name in names if key(ours[name]) != key(theirs.get(name))}
    missing = {name for name in names if name in differs or differs & {*takes[name]}}
    measured = missing.union(*(takes[name] for name in missing))
    taken = [name for name in names if name not in measured]
    quantities = [quantity for name in taken for quantity in _written(instruments[name]) if quantity in source]
    losses = Series(*(np.array(part) for part in (source[TRAIN_LOSS].steps, source[TRAIN_LOSS].values)))
    is_due = {step for name in measured for step in range(config.steps) if instruments[name].is_due(step)}
    is_possible = {
        "training": bool(quantities),
        "snapshots": count() == 1  # other processes may have another disk
        and source.checkpoint.is_file()
        and not any(instruments[name].needs_training for name in measured)
        and is_due <= ({*source[PARAMETERS].steps.tolist()} if PARAMETERS in source else set()),
    }
    here = [name for name in names if name in measured]
    return Extension(source, way, taken, here, quantities, losses) if is_possible[way] else None


def _written(instrument: StepHooks) -> list[str]:
    """The quantities that an instrument of this package writes; none for a foreign one."""
    kind = type(instrument)
    is_ours = kind.__module__.startswith("opposing_signals.")
    return [str(quantity) for quantity in QUANTITIES.values() if is_ours and quantity.writer == kind.__name__]


class SameTraining(Callback):
    """Ends a training whose loss differs from that recorded by the complete run.

    Raises:
        DepartedError: In the step in which the losses differ.
    """

    def __init__(self, extension: Extension) -> None:
        self._extension = extension

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Compare the loss of the step's own pass, to the bit."""
        assert isinstance(pl_module, TrainingModule)
        losses, source, step, loss = self._extension.losses, self._extension.source, pl_module.step, pl_module.loss
        if step in losses.steps and losses.at(step) != loss:
            said = f"the train loss at step {step} is {loss} here and {losses.at(step)} in {source.folder}"
            raise DepartedError(said, self._extension.way)


class ReplayedModule(TrainingModule):
    """A training whose weights are not computed but read from the snapshots of a complete run.

    Only steps with a measurement have a pass. The weights after the last step are those of the complete run's
    checkpoint.

    Args:
        module: The training, with the instruments that measure.
        source: The complete run.
        steps: Of the whole run.
    """

    def __init__(self, module: TrainingModule, source: Record, steps: int) -> None:
        super().__init__(module.risk, _Unmoved, module.batches, module.augmentation)
        self.instruments = module.instruments
        self._source, self._steps = source, steps

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Read θ_t, and let the instruments measure it."""
        step, optimizer = self.global_step, self.optimizers()
        if any(instrument.is_due(step) for instrument in self.instruments):
            place(self, self._source[PARAMETERS].at(step))
            super().training_step(batch, batch_idx)
        else:
            assert not isinstance(optimizer, list)
            optimizer.step()  # Lightning counts steps by this call
        if step + 1 == self._steps:
            checkpoint = torch.load(self._source.checkpoint, map_location=self.device, weights_only=True, mmap=True)
            self.load_state_dict(checkpoint["state_dict"])


class _Unmoved(torch.optim.Optimizer):
    """Leaves the weights as they are."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # it needs no loss
        pass
