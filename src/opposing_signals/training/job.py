"""Trains the run that a configuration describes and writes its record."""

from __future__ import annotations

import os
import signal
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from logging import getLogger
from typing import Any

import torch
from hydra.utils import instantiate
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig

from opposing_signals.configuration import reference_of, run_folder
from opposing_signals.curvature.examples import check_independence
from opposing_signals.curvature.risk import EmpiricalRisk
from opposing_signals.data import Dataset
from opposing_signals.errors import DamagedError, InputError, NotWrittenError, TrainingStoppedError
from opposing_signals.interruption import Interrupted
from opposing_signals.processes import after_first, agreed, count, is_first
from opposing_signals.provenance import environment
from opposing_signals.record import Record
from opposing_signals.training.allocation import keep_freed_memory
from opposing_signals.training.batches import Batches
from opposing_signals.training.checkpoint import TimedCheckpoint
from opposing_signals.training.extension import WAYS, DepartedError, ReplayedModule, SameTraining, Way, begin
from opposing_signals.training.fit import fitting
from opposing_signals.training.intervention import branch
from opposing_signals.training.module import TrainingModule
from opposing_signals.training.progress import Progress

log = getLogger(__name__)


def train(config: DictConfig, record: Record, logger: Logger | None) -> None:
    """Train from the record's checkpoint, or from the start if there is none, until ``config.steps`` are taken.

    Results that a complete run of the same training has recorded are not measured again, see `training.extension`.

    Args:
        config: data, model, loss, optimizer, risk, batch, instruments, steps, seed, trainer, threads and
            checkpoint_seconds; with reference, the record of that run must be complete; augmentation and before_update
            may be left out.
        record: Open for writing.
        logger: Lightning logger that also receives the scalars; None: none.

    Raises:
        InputError: A setting that cannot work.
        TrainingStoppedError: The loss is not finite; the rows so far are kept.
    """
    _check(config)
    devices = _devices(config)
    started = time.monotonic()
    keep_freed_memory()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    dataset: Dataset = after_first(lambda: instantiate(config.data))
    ways = list(WAYS)
    while True:
        try:
            return _train(config, record, logger, dataset, devices, started, ways)
        except DepartedError as departed:
            log.warning("%s: another machine, version or number of threads rounds differently; started again", departed)
            ways.remove(departed.way)
            if is_first():
                record.checkpoint.unlink(missing_ok=True)


def _train(
    config: DictConfig,
    record: Record,
    logger: Logger | None,
    dataset: Dataset,
    devices: dict[str, Any],
    started: float,
    ways: list[Way],
) -> None:
    module = training_module(config, dataset)
    _check_processes(module.risk, slice(0, config.batch))
    module.before_update = [instantiate(adjust) for adjust in config.get("before_update", {}).values()]
    branched: dict[str, Any] = {}
    reference = Record(run_folder(reference_of(config))) if "reference" in config else None
    if reference is not None and config.get("intervention") is not None:
        _check_stateless(config)
        branched = {"branch": branch(module, reference, **config.intervention)}
    instruments: dict[str, Any] = {
        name: instantiate(instrument, risk=module.risk, record=record)
        for name, instrument in config.instruments.items()
    }
    for name, instrument in instruments.items():
        instrument.check_partners(name, instruments, config.steps)
    start, extension = agreed(lambda: begin(config, record, instruments, ways))
    extends = extension.provenance if extension else {}
    if extension is not None:
        instruments = {name: instruments[name] for name in extension.measured}
    module.instruments = list(instruments.values())
    if extension is not None and extension.way == "snapshots":
        module = ReplayedModule(module, extension.source, config.steps)
    for instrument in instruments.values():
        instrument.reference = reference
        instrument.prepare(dataset)

    def note_time() -> None:
        seconds = earlier.get("training_seconds", 0.0) + time.monotonic() - started
        record.write_provenance({**origin, "training_seconds": round(seconds, 1)})

    quieten_lightning()
    trainer = Trainer(
        **{**config.trainer, **devices},
        max_steps=config.steps,
        max_epochs=-1,
        logger=logger if logger and extension is None else False,  # taken-over results are logged with the rest
        callbacks=[
            *instruments.values(),
            *([] if extension is None else [SameTraining(extension)]),
            *(_of_first(config, record, instruments, note_time, extends) if is_first() else []),
        ],
        enable_checkpointing=is_first(),
        enable_progress_bar=False,  # our own bar shows the run's steps, not those of an endless epoch
        enable_model_summary=False,
        inference_mode=False,
        default_root_dir=record.folder,
    )
    if trainer.strategy.root_device.type == "cuda":
        set_gpu_arithmetic(config.risk.precision == "tf32", module.risk.autotune)
    elif needing := [field for field in ("autotune", "cuda_graphs") if config.risk.get(field)]:
        raise InputError(f"risk.{needing[0]}=true on {trainer.strategy.root_device.type}: expected a GPU, or false")
    module.batches.begin_at(lambda: trainer.global_step)
    earlier = _earlier(record) if start.steps else {}
    _check_same_data(record, earlier, dataset)
    agreed(lambda: record.cut(start.steps, start.rows))
    origin = {
        **environment(trainer.strategy.root_device),
        "data": {"name": dataset.name, "sha256": dataset.checksum, "examples": len(dataset)},
        **branched,
        "parameters": sum(p.numel() for p in module.risk.parameters),
        "tensors": [name for name, p in module.model.named_parameters() if p.requires_grad],
        **({"extends": extends} if extends else {}),
        **({"continues": earlier["continues"]} if "continues" in earlier else {}),
    }
    note_time()
    try:
        if extension is None or extension.measured:
            trainer.fit(module, ckpt_path=record.checkpoint if start.steps else None, weights_only=True)
    except BaseException:
        with suppress(NotWrittenError):  # if the disk is full, report the first failure, not this one
            note_time()
        raise
    note_time()
    if module.stop_reason:
        record.write_state(f"stopped: {module.stop_reason}")
        raise TrainingStoppedError(module.stop_reason)
    has_nothing_to_do = extension is not None and not extension.measured
    if trainer.global_step < config.steps and not (module.is_finished or has_nothing_to_do):
        raise Interrupted(signal.SIGINT)  # Lightning turns Ctrl-C into an early return in some versions
    if extension is not None:
        agreed(lambda: extension.complete(record))
    else:
        record.write_state("complete")


def training_module(config: DictConfig, dataset: Dataset) -> TrainingModule:
    """Model, loss, data and optimizer of ``config``, initialized from its seed."""
    torch.manual_seed(config.seed)
    model, loss = fitting(config, dataset)
    risk = EmpiricalRisk(model, loss, dataset.inputs, dataset.targets, **config.risk)
    batches = Batches(len(dataset), config.batch, config.seed)
    augmentation = instantiate(config.augmentation, seed=config.seed) if config.get("augmentation") else None
    return TrainingModule(risk, instantiate(config.optimizer), batches, augmentation)


def _check(config: DictConfig) -> None:
    if config.get("augmentation") and config.batch is None:
        raise InputError(
            "augmentation with batch=null: expected a batch size; what is measured of full-batch training is the loss "
            "of the images as they are"
        )


def _check_processes(risk: EmpiricalRisk, batch: slice) -> None:
    """Refuse more processes than there are chunks, where chunks cannot be split over them (`Chunks.split`)."""
    size, processes, reason = risk.size(batch), count(), ""
    if risk.would_split(batch):
        try:
            check_independence(risk)
        except InputError as error:
            reason = str(error)
    elif risk.some_idle(batch):
        reason = f"compiled, or with gradients of the model's own, or one with fewer than {processes} examples"
    if not reason:
        return
    raise InputError(
        f"risk.chunk={risk.chunk}: {size} examples are {-(-size // risk.chunk)} chunks, fewer than the {processes} "
        f"processes, which cannot share one ({reason}); expected at most {size // processes}"
    )


def _devices(config: DictConfig) -> dict[str, Any]:
    """Lightning's settings: in each process it trains on one device, unaware of the others.

    The risk sums gradients over processes; Lightning's own multi-device strategies would sum them again.
    """
    here = int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if count() > 1 else 1
    for field, running in (("devices", here), ("num_nodes", count() // here)):
        given = config.trainer.get(field)
        if given not in (None, running):
            raise InputError(
                f"trainer.{field}={given}: expected {running}, as it is, or null; start several processes by `torchrun "
                "--nproc-per-node 2 -m opposing_signals experiment=...`, see docs/text.md"
            )
    accelerator = config.trainer.get("accelerator", "auto")
    if accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise InputError(
            f"trainer.accelerator={accelerator}: PyTorch {torch.__version__} finds no GPU here; "
            "expected auto or cpu, or a machine with a GPU and a build of PyTorch for it"
        )
    device = int(os.environ.get("LOCAL_RANK", 0)) if count() > 1 else 0
    if accelerator not in ("auto", "gpu", "cuda") or not torch.cuda.is_available():
        return {"devices": 1, "num_nodes": 1}
    if device >= torch.cuda.device_count():
        raise InputError(
            f"{here} processes on a machine with {torch.cuda.device_count()} GPUs: expected one for each GPU at most; "
            "set --nproc-per-node, or trainer.accelerator=cpu"
        )
    return {"devices": [device], "num_nodes": 1}


def set_gpu_arithmetic(is_rounded: bool, autotune: bool = False) -> None:
    """Set whether the GPU rounds the factors of float32 products to TF32, by default done only in convolutions.

    Kernels are deterministic where PyTorch has such ones (elsewhere it warns), so that a run can be resumed, and is the
    same with and without instruments. With ``autotune`` cuDNN measures which of them are fastest.
    """
    torch.backends.cudnn.benchmark = autotune
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = is_rounded
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS is not deterministic
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Filling every new tensor would take a pass over it.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # set through a class


def _of_first(
    config: DictConfig,
    record: Record,
    instruments: dict[str, Any],
    saved: Callable[[], None],
    extends: dict[str, Any],
) -> list[Callback]:
    """Callbacks of the first process only. None of them waits for the others, which have the same state."""
    return [
        Progress(record.folder.name, config.steps, instruments),
        TimedCheckpoint(record, config.checkpoint_seconds, saved, extends),
    ]


def _check_stateless(config: DictConfig) -> None:
    """A snapshot holds only the weights, so an optimizer with other state cannot resume from it."""
    optimizer = config.optimizer
    if not optimizer._target_.endswith(".SGD") or optimizer.get("momentum", 0) or config.batch is not None:
        raise InputError(
            f"optimizer {optimizer._target_}, momentum={optimizer.get('momentum', 0)}, batch={config.batch}: expected "
            "full-batch gradient descent without momentum; an intervention branches off a snapshot of the weights"
        )


def _earlier(record: Record) -> dict[str, Any]:
    """The provenance that earlier processes have left; if it is damaged, the training time starts at zero."""
    try:
        earlier = record.provenance
        return {**earlier, "training_seconds": float(earlier.get("training_seconds", 0.0))}
    except (DamagedError, TypeError, ValueError) as error:
        log.warning("%s: the training time of earlier processes is lost; it is written anew", error)
        return {}


def _check_same_data(record: Record, earlier: dict[str, Any], dataset: Dataset) -> None:
    """Refuse to resume with other data than those that the run was begun with."""
    noted = earlier.get("data")
    begun_with = noted.get("sha256") if isinstance(noted, dict) else None
    if begun_with not in (None, dataset.checksum):
        raise DamagedError(
            f"{record.folder} was begun with other data than {dataset.name} has now: their SHA-256 began with "
            f"{str(begun_with)[:8]}, now with {dataset.checksum[:8]}"
        )


def quieten_lightning() -> None:
    """Filter Lightning's advice that does not apply: data reside on the device, and the progress bar is our own."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        getLogger(name).setLevel("ERROR")
    warnings.filterwarnings("ignore", module="lightning.*")
