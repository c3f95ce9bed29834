"""Train what a configuration describes and write its record."""

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
from omegaconf import DictConfig, ListConfig

from opposing_signals.configuration import reference_of, run_folder
from opposing_signals.curvature.risk import EmpiricalRisk
from opposing_signals.data import Dataset
from opposing_signals.errors import DamagedError, InputError, NotWrittenError, TrainingStoppedError
from opposing_signals.interruption import Interrupted
from opposing_signals.processes import after_first, agreed, count, is_first
from opposing_signals.provenance import environment
from opposing_signals.record import Record
from opposing_signals.training.allocation import keep_freed_memory
from opposing_signals.training.batches import Batches
from opposing_signals.training.checkpoint import TimedCheckpoint, progress_of
from opposing_signals.training.fit import fitting
from opposing_signals.training.intervention import branch
from opposing_signals.training.module import StepHooks, TrainingModule
from opposing_signals.training.progress import Progress

log = getLogger(__name__)

SIZES = ("width", "depth", "heads", "patch", "hidden", "vocabulary")
"""Fields of our models that count something."""


def train(config: DictConfig, record: Record, logger: Logger | None) -> None:
    """Train from the record's checkpoint, or from the start if there is none, until ``config.steps`` are taken.

    Args:
        config: data, model, loss, optimizer, risk, batch, instruments, steps, seed, trainer, threads and
            checkpoint_seconds; with reference, the record of that run must be complete; augmentation and before_update
            may be left out.
        record: Open for writing.
        logger: Of Lightning, to which scalars are mirrored; None: nowhere.

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
    module = training_module(config, dataset)
    module.risk.parts(slice(0, config.batch))  # refuses more processes than it has chunks for
    module.before_update = [instantiate(adjust) for adjust in config.get("before_update", {}).values()]
    branched: dict[str, Any] = {}
    reference = Record(run_folder(reference_of(config))) if "reference" in config else None
    if reference is not None and config.get("intervention") is not None:
        _check_stateless(config)
        branched = {"branch": branch(module, reference, config.intervention)}
    module.instruments = instruments = [
        instantiate(instrument, risk=module.risk, record=record) for instrument in config.instruments.values()
    ]
    for instrument in instruments:
        instrument.reference = reference
        instrument.prepare(dataset)

    def note_time() -> None:
        seconds = seconds_before + time.monotonic() - started
        record.write_provenance({**origin, "training_seconds": round(seconds, 1)})

    quieten_lightning()
    trainer = Trainer(
        **{**config.trainer, **devices},
        max_steps=config.steps,
        max_epochs=-1,
        logger=logger or False,
        callbacks=[*instruments, *(_of_first(config, record, instruments, note_time) if is_first() else [])],
        enable_checkpointing=is_first(),
        enable_progress_bar=False,  # ours shows the run's steps, not those of an endless epoch
        enable_model_summary=False,
        inference_mode=False,
        default_root_dir=record.folder,
    )
    if trainer.strategy.root_device.type == "cuda":
        set_gpu_arithmetic(config.risk.precision == "tf32")
    module.batches.begin_at(lambda: trainer.global_step)
    resuming = agreed(record.checkpoint.exists)
    agreed(lambda: record.cut(*(progress_of(record.checkpoint) if resuming else (0,))))
    seconds_before = _seconds(record) if resuming else 0.0
    origin = {
        **environment(trainer.strategy.root_device),
        "data": {"name": dataset.name, "sha256": dataset.checksum, "examples": len(dataset)},
        **branched,
        "parameters": sum(p.numel() for p in module.risk.parameters),
        "tensors": [name for name, p in module.model.named_parameters() if p.requires_grad],
    }
    note_time()
    try:
        trainer.fit(module, ckpt_path=record.checkpoint if resuming else None, weights_only=True)
    except BaseException:
        with suppress(NotWrittenError):  # where the disk is full, the failure that said so is the one to tell
            note_time()
        raise
    note_time()
    if module.stop_reason:
        record.write_state(f"stopped: {module.stop_reason}")
        raise TrainingStoppedError(module.stop_reason)
    if trainer.global_step < config.steps and not module.is_finished:
        raise Interrupted(signal.SIGINT)  # Lightning turns Ctrl-C into an early return in some versions
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
    for name, least, bits, may_be_null in (
        ("steps", 1, 63, False),
        ("seed", 0, 32, False),  # PyTorch's generators on the CPU take the last 32 bits
        ("batch", 1, 63, True),
        ("threads", 1, 31, True),
    ):
        given = config[name]
        if not (given is None and may_be_null) and not (isinstance(given, int) and least <= given < 2**bits):
            expected = f"expected a whole number, at least {least} and below 2^{bits}"
            raise InputError(f"{name}={given}: {expected}" + (", or null" if may_be_null else ""))
    if not isinstance(config.checkpoint_seconds, int | float) or config.checkpoint_seconds < 0:
        raise InputError(f"checkpoint_seconds={config.checkpoint_seconds}: expected a number of seconds, at least 0")
    if str(config.model.get("_target_")).startswith("opposing_signals.models."):
        for name, value in config.model.items():
            sizes = value if isinstance(value, ListConfig) else [value]
            if name in SIZES and any(size is not None and not (isinstance(size, int) and size >= 1) for size in sizes):
                raise InputError(f"model.{name}={value}: expected whole numbers, at least 1")
    if config.get("augmentation") and config.batch is None:
        raise InputError(
            "augmentation with batch=null: expected a batch size; what is measured of full-batch training is the loss "
            "of the images as they are"
        )
    lr = config.optimizer.get("lr", 1.0)  # a rule of one's own may have none
    if not isinstance(lr, int | float) or not lr > 0:
        raise InputError(f"optimizer.lr={lr}: expected a step size larger than 0")


def _devices(config: DictConfig) -> dict[str, Any]:
    """Lightning's settings: in each process it trains on one device, and knows nothing of the others.

    The risk adds up what they find, so Lightning's own strategies for several devices would add it up again.
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


def set_gpu_arithmetic(is_rounded: bool) -> None:
    """Say whether the GPU rounds the factors of float32 products to TF32, as by itself it does in convolutions alone.

    Its kernels give the same bits each time, where PyTorch has such (elsewhere it warns): a run can be resumed, and
    goes the same way with and without instruments.
    """
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = is_rounded
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS gives other bits now and then
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Filling every new tensor would take a pass over it.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # set through a class


def _of_first(
    config: DictConfig, record: Record, instruments: list[StepHooks], saved: Callable[[], None]
) -> list[Callback]:
    """What only the first process has. Nothing here waits for the others, which have the same state."""
    named = dict(zip(config.instruments, instruments, strict=True))
    return [
        Progress(record.folder.name, config.steps, named),
        TimedCheckpoint(record, config.checkpoint_seconds, saved),
    ]


def _check_stateless(config: DictConfig) -> None:
    """A snapshot holds the weights alone, so an optimizer that remembers more than they cannot go on from it."""
    optimizer = config.optimizer
    if not optimizer._target_.endswith(".SGD") or optimizer.get("momentum", 0) or config.batch is not None:
        raise InputError(
            f"optimizer {optimizer._target_}, momentum={optimizer.get('momentum', 0)}, batch={config.batch}: expected "
            "full-batch gradient descent without momentum; an intervention branches off a snapshot of the weights"
        )


def _seconds(record: Record) -> float:
    """What earlier processes have trained, in seconds; without a sound note the run's time begins here."""
    try:
        return float(record.provenance.get("training_seconds", 0.0))
    except (DamagedError, TypeError, ValueError) as error:
        log.warning("%s: the training time of earlier processes is lost; it is written anew", error)
        return 0.0


def quieten_lightning() -> None:
    """Drop advice that does not fit: data rest on the device, and ours is the progress bar."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        getLogger(name).setLevel("ERROR")
    warnings.filterwarnings("ignore", module="lightning.*")
