"""The callback that records opposing signals while any LightningModule trains."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng

from opposing_signals.curvature import EigenTracker
from opposing_signals.curvature.risk import EmpiricalRisk, flatten
from opposing_signals.errors import InputError
from opposing_signals.follow.budget import Budget
from opposing_signals.follow.tracking_set import PerSampleLoss, TrackingSet
from opposing_signals.provenance import environment
from opposing_signals.record import Record

log = getLogger(__name__)

LOSSES, SHARPNESS = "losses", "sharpness"
_BUFFERED = 200  # steps whose training losses are kept on the device before they are written


class OpposingSignals(Callback):
    """Follows the losses of training examples, step by step, and writes the record that figures and claims read.

    It measures θ_t before step t, in evaluation mode, and changes nothing that training sees: mode, buffers, gradients
    and random state are afterwards what they were before. Where measuring at every step would cost more than the
    ``budget``, the stride is stretched; two successive steps are measured each time, which is what a one-step change
    needs.

    The record holds ``sample_loss`` ``[N]``, ``train_loss`` of every step (the mean over accumulated batches, where the
    training step returns a loss), ``learning_rate`` at the measured steps, and ``sharpness`` if it is asked for.

    Args:
        train_dataset: With ``len`` and an index, without random transforms.
        per_sample_loss: (module, batch) ↦ ``[n]``, one loss an example. The batch is what the training step gets.
        folder: Where the record is written; empty, or left by the run that is resumed.
        track: How many examples to follow, drawn at random; or their indices; None for all, and 2,000 of a larger set.
        every: Measure at steps t with t mod ``every`` < ``consecutive``, as long as the budget allows.
        consecutive: How many successive steps to measure each time.
        budget: The largest share of the training time that measuring may take; None for no limit. The first
            measurement is always made: it tells the cost.
        sharpness_every: Measure λ of the followed examples' mean loss at each so many-th time; None for never.
        batch_size: Examples a forward pass of a measurement.
        show: Example ↦ picture ``[H, W]`` or ``[H, W, 3]`` uint8, or text, for figures and the report; None shows
            tensors ``[1 or 3, H, W]``.
        label: Example ↦ its class; None takes y of a pair (x, y) if that is a whole number.
        class_names: Names of classes that are whole numbers.
        seed: Of the drawing of examples.

    Raises:
        InputError: A setting that cannot work (when it is made); data, a loss function, a folder or a trainer that
            cannot (when training begins).
    """

    def __init__(
        self,
        train_dataset: Any,
        per_sample_loss: PerSampleLoss,
        *,
        folder: str | Path = "outputs/own_model",
        track: int | Sequence[int] | None = None,
        every: int = 2,
        consecutive: int = 2,
        budget: float | None = 0.05,
        sharpness_every: int | None = None,
        batch_size: int = 256,
        show: Callable[[Any], Any] | None = None,
        label: Callable[[Any], Any] | None = None,
        class_names: Sequence[str] | None = None,
        seed: int = 0,
    ) -> None:
        if not 1 <= consecutive <= every:
            raise InputError(f"consecutive={consecutive}: expected 1 to every={every}")
        if budget is not None and not budget > 0:
            raise InputError(f"budget={budget}: expected a share of the training time above 0, such as 0.05, or None")
        if sharpness_every is not None and sharpness_every < 1:
            raise InputError(f"sharpness_every={sharpness_every}: expected at least 1, or None")
        self.folder = Path(folder)
        self.every = every
        self.consecutive = consecutive
        self.sharpness_every = sharpness_every
        self.examples = TrackingSet(
            train_dataset, per_sample_loss, track, batch_size, seed, show, label, class_names
        )  # fmt: skip
        self.budget = Budget(budget)
        self.tracker = EigenTracker(tolerance=0.05)
        self.record: Record
        self.risk: EmpiricalRisk
        self._open = ExitStack()
        self._origin: dict[str, Any] = {}
        self._resumes = False
        self._counted: dict[str, int] | None = None  # rows that the record had at the checkpoint
        self._window: int | None = None  # the step at which the last measurement began
        self._windows = 0
        self._considered = -1
        self._parameters = 0
        self._losses: list[tuple[int, torch.Tensor]] = []
        self._stopped = ""

    @property
    def state_key(self) -> str:
        """One for each folder, so that several of these can watch one training."""
        return self._generate_state_key(folder=self.folder.name)

    # -- the run ------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the examples and begin the record, or cut it back to the checkpoint that training goes on from."""
        if trainer.world_size != 1:
            raise InputError(f"OpposingSignals: {trainer.world_size} processes train: expected one (devices=1)")
        if len(trainer.optimizers) != 1:
            raise InputError(
                f"OpposingSignals: the module has {len(trainer.optimizers)} optimizers: expected one, because each "
                "step of each counts as a step of training"
            )
        self.budget.begin()
        with self.budget.measuring("reading"):
            configuration = self._begin(trainer)
            checksum = self.examples.read(trainer, pl_module)
            self.record = self._open.enter_context(Record.writing(self.folder, configuration))
            self._check_resumed(checksum)
            self.examples.describe(self.folder)
            self.record.cut(trainer.global_step, self._counted)
            self.record.write_state("running")
            self.risk = self.examples.risk()
            self._parameters = sum(p.numel() for p in self.risk.parameters)
            self._origin = {
                **environment(pl_module.device),
                "data": {
                    "name": f"{type(self.examples.dataset).__name__} ({len(self.examples)} of "
                    f"{len(self.examples.dataset)} examples tracked)",
                    "sha256": checksum,
                    "examples": len(self.examples),
                },
                "parameters": self._parameters,
                "tensors": [name for name, p in pl_module.named_parameters() if p.requires_grad],
            }
        self._write_origin()

    def _begin(self, trainer: Trainer) -> dict[str, Any]:
        """The configuration of the record; a resumed run has the one that it began with."""
        path = self.folder / "configuration.json"
        if self._resumes:
            return Record(self.folder).configuration
        if path.exists():
            raise InputError(
                f"{self.folder} holds the record of an earlier run: choose another folder, delete it, or go on with "
                "that run by trainer.fit(ckpt_path=...)"
            )
        group = trainer.optimizers[0].param_groups[0]
        settings = {name: value for name, value in group.items() if isinstance(value, (bool, int, float, str))}
        settings.pop("initial_lr", None)
        module, optimizer = type(trainer.lightning_module), type(trainer.optimizers[0])
        seed = os.environ.get("PL_GLOBAL_SEED")
        return json.loads(
            json.dumps(
                {
                    "run": {"name": self.folder.name},
                    "seed": None if seed is None else int(seed),
                    "data": {"_target_": "opposing_signals.data.tracked"},
                    "model": {"_target_": f"{module.__module__}.{module.__qualname__}"},
                    "optimizer": {
                        "_target_": f"{optimizer.__module__}.{optimizer.__qualname__}",
                        **settings,
                        "lr": float(group.get("initial_lr", group["lr"])),
                    },
                    "batch": getattr(trainer.train_dataloader, "batch_size", None),
                    "accumulate_grad_batches": trainer.accumulate_grad_batches,
                    "precision": str(trainer.precision),
                    "every": self.every,
                    "consecutive": self.consecutive,
                    "budget": self.budget.share,
                    "sharpness_every": self.sharpness_every,
                }
            )
        )

    def _check_resumed(self, checksum: str) -> None:
        theirs = self.record.provenance.get("data", {}).get("sha256", checksum)
        if theirs != checksum:
            raise InputError(
                f"{self.folder} was written with other examples than train_dataset and track give now: resume with the "
                "same, or choose another folder for a new run"
            )

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See that an index still names the same example."""
        if trainer.current_epoch:
            with self.budget.measuring("order"):
                self.examples.check_order()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The record is complete."""
        self._close(self._stopped or "complete")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Keep what was measured."""
        self._close(None)

    def _close(self, state: str | None) -> None:
        if self._origin:
            self._flush(self._considered + (state is not None))
            self._write_origin()
            if state is not None:
                self.record.write_state(state)
        self.budget.end()
        self._origin = {}
        self._open.close()

    def _write_origin(self) -> None:
        seconds = {"training_seconds": self.budget.seconds, "measuring_seconds": self.budget.spent}
        self.record.write_provenance({**self._origin, **{name: round(value, 3) for name, value in seconds.items()}})

    # -- the steps ----------------------------------------------------------------------------------------------

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Measure θ_t where a step begins; of the batches that it accumulates this is the first."""
        step = trainer.global_step
        if step == self._considered or self._stopped:
            return
        self._considered = step
        begins = self._window is None or step - self._window >= self.every
        wants_sharpness = self.sharpness_every is not None and self._windows % self.sharpness_every == 0
        if begins:
            wanted = {LOSSES: self.consecutive, **({SHARPNESS: self.consecutive} if wants_sharpness else {})}
            if not self.budget.allows(wanted):
                return
            self._window = step
            self._windows += 1
        elif self._window is None or step - self._window >= self.consecutive:
            return
        else:
            wants_sharpness = self.sharpness_every is not None and (self._windows - 1) % self.sharpness_every == 0
        with self.budget.measuring(LOSSES, pl_module.device):
            self._measure_losses(trainer, pl_module, step)
        if wants_sharpness and not self._stopped:
            with self.budget.measuring(SHARPNESS, pl_module.device):
                self._measure_sharpness(pl_module, step)

    def _measure_losses(self, trainer: Trainer, module: LightningModule, step: int) -> None:
        self.examples.computing_in(trainer.precision_plugin.forward_context)
        with isolate_rng(), self.risk.probe():
            module.eval()
            losses = self.risk.sample_losses().losses.float().cpu().numpy()
        if not np.isfinite(losses).all():
            example = int(self.examples.indices[np.flatnonzero(~np.isfinite(losses))[0]])
            self._stopped = f"stopped: the loss of train_dataset[{example}] is not finite at step {step}"
            log.warning("OpposingSignals %s; training goes on, the record ends here", self._stopped)
            return
        self.record.append("sample_loss", step, losses)
        self.record.append("learning_rate", step, trainer.optimizers[0].param_groups[0]["lr"])

    def _measure_sharpness(self, module: LightningModule, step: int) -> None:
        self.examples.computing_in(nullcontext)
        parameters = flatten([parameter.detach() for parameter in self.risk.parameters])
        if len(parameters) != self._parameters:  # layers were frozen or freed: another space
            self.tracker = EigenTracker(tolerance=self.tracker.tolerance, max_products=self.tracker.max_products)
            self._parameters = len(parameters)
        with isolate_rng(), self.risk.probe():
            module.eval()
            pairs = self.tracker(lambda vectors: self.risk.hessian_products(vectors).products, parameters)
        if math.isfinite(pairs.value):
            self.record.append("sharpness", step, pairs.value)
            self.record.append("sharpness_quotient", step, pairs.quotient)
            self.record.append("sharpness_residual", step, pairs.residual)
            self.record.append("sharpness_bound", step, pairs.bound)
            self.record.append("sharpness_products", step, pairs.products)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the training step's own loss, without waiting for the device."""
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if isinstance(loss, torch.Tensor) and loss.numel() == 1:
            self._losses.append((self._considered, loss.detach().reshape(())))
        if len(self._losses) >= _BUFFERED * trainer.accumulate_grad_batches:
            with self.budget.measuring("writing"):
                self._flush(trainer.global_step)

    def _flush(self, stop: int) -> None:
        """Write the training losses of the steps before ``stop``, which are over."""
        due = [(step, loss) for step, loss in self._losses if step < stop]
        if not due:
            return
        self._losses = self._losses[len(due) :]
        losses: dict[int, float] = {}
        values = torch.stack([loss.float() for _, loss in due]).tolist()  # one wait for the device
        for (step, _), value in zip(due, values, strict=True):
            losses[step] = losses.get(step, 0.0) + value  # Lightning has divided by the number of accumulated batches
        for step, value in losses.items():
            self.record.append("train_loss", step, value)

    # -- exact resume -------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """A checkpoint never claims a step that the record lacks."""
        if self._origin:
            self._flush(trainer.global_step)
            self.record.sync()
            checkpoint["callbacks"][self.state_key]["rows"] = self.record.rows

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to measure at the steps at which an uninterrupted one would."""
        return {
            "budget": self.budget.state_dict(),
            "tracker": self.tracker.state_dict(),
            "window": self._window,
            "windows": self._windows,
            "stopped": self._stopped,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        self.budget.load_state_dict(state_dict["budget"])
        self.tracker.load_state_dict(state_dict["tracker"])
        self._window, self._windows = state_dict["window"], state_dict["windows"]
        self._stopped = state_dict["stopped"]
        self._counted = state_dict.get("rows")
        self._considered = -1
        self._losses.clear()
        self._resumes = True
