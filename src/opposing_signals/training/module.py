"""The LightningModule of every run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch

from opposing_signals._lightning import LightningModule
from opposing_signals.risk import Batch, EmpiricalRisk, ForwardPass
from opposing_signals.training.batches import Batches

OptimizerFactory = Callable[[Iterable[torch.nn.Parameter]], torch.optim.Optimizer]


class TrainingModule(LightningModule):
    """Gradient steps on an `EmpiricalRisk`: gradient descent or minibatch SGD, as the batches say.

    Optimization is manual: a batch's gradient is accumulated in chunks with weight 1/N per sample, and then one
    optimizer step is taken. So ``global_step`` is the paper's iteration t.

    Attributes:
        risk: What is trained.
        batches: Which examples each step uses.
        step: Iteration t of the last forward pass.
        batch: The examples that it saw.
        forward_pass: ℓ_i(θ_t) of the step's batch, seen before the step.
        loss: Their mean.
        scalars: What instruments measured in this step, for the logger.
        stop_reason: Why training cannot go on; empty as long as it can.
    """

    def __init__(self, risk: EmpiricalRisk, optimizer: OptimizerFactory, batches: Batches) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model = risk.model
        self.risk = risk
        self.batches = batches
        self._optimizer_factory = optimizer
        self.step = -1
        self.batch: Batch
        self.forward_pass: ForwardPass
        self.loss = math.nan
        self.scalars: dict[str, float] = {}
        self.stop_reason = ""
        self._random_state: dict[str, torch.Tensor] = {}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimizer of all parameters."""
        return self._optimizer_factory(self.model.parameters())

    def train_dataloader(self) -> Batches:
        """The batches; they hold indices, the data rest on the device."""
        return self.batches

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """One step of the paper: ∇L over the batch, then the optimizer's update."""
        optimizer: Any = self.optimizers()
        optimizer.zero_grad(set_to_none=True)
        self.step, self.batch = self.global_step, batch
        self.forward_pass = self.risk.backward(batch)
        self.loss = self.forward_pass.losses.double().mean().item()
        if math.isfinite(self.loss):
            optimizer.step()
        else:
            self.stop_reason = f"the training loss is {self.loss} at step {self.step}"
            self.trainer.should_stop = True

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """After the instruments: hand one row of scalars to each logger."""
        if self.scalars:
            for logger in self.trainer.loggers:
                logger.log_metrics(self.scalars, self.step)
            self.scalars = {}

    # -- exact resume -------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the random state beside what Lightning keeps."""
        checkpoint["random_state"] = {"cpu": torch.get_rng_state()}
        if self.risk.inputs.is_cuda:
            checkpoint["random_state"]["cuda"] = torch.cuda.get_rng_state(self.device)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Hold the random state until the fit starts; Lightning itself draws numbers in between."""
        self._random_state = checkpoint["random_state"]

    def on_fit_start(self) -> None:
        """Move the data beside the weights and restore the random state."""
        self.risk.to(self.device)
        if "cpu" in self._random_state:
            torch.set_rng_state(self._random_state["cpu"])
        if "cuda" in self._random_state:
            torch.cuda.set_rng_state(self._random_state["cuda"], self.device)
