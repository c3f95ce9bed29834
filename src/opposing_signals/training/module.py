"""The LightningModule of every run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
from typing import Any, ClassVar, Protocol, TypeVar

import torch
from lightning.pytorch import LightningModule

from opposing_signals.curvature.chunks import Batch
from opposing_signals.curvature.differences import stored_gradient
from opposing_signals.curvature.double_backward import CurvaturePass, ForwardPass
from opposing_signals.curvature.risk import EmpiricalRisk
from opposing_signals.optim import OneSAM
from opposing_signals.training.batches import Batches

Augmentation = Callable[[torch.Tensor, int], torch.Tensor]
OptimizerFactory = Callable[[Iterable[torch.nn.Parameter]], torch.optim.Optimizer]
Adjustment = Callable[[torch.optim.Optimizer, int], None]
Request = tuple[torch.Tensor, Callable[[CurvaturePass], None]]
Shared = TypeVar("Shared")


class StepHooks(Protocol):
    """Hooks that observe a run's steps and change nothing that training depends on.

    Attributes:
        takes_from: Kinds of hooks whose results of the same step it uses (`TrainingModule.shared`, or their scalars),
            in `at_gradient` or `after_step`, so that their order does not matter.
        needs_training: Whether it reads more than θ_t, the data and the step's batch, such as the optimizer, running
            statistics or other steps. Then it cannot measure from snapshots of a run.
        ends_run: Whether it may end the run before its last step.
    """

    takes_from: ClassVar[tuple[type, ...]]
    needs_training: bool
    ends_run: ClassVar[bool]

    def is_due(self, step: int) -> bool:
        """Whether the other hooks are called at ``step``."""

    def before_step(self, module: TrainingModule, step: int) -> None:
        """Called before the step's pass, at θ_step; requests to that pass are made here."""

    def at_gradient(self, module: TrainingModule, step: int) -> None:
        """Called after the pass, if the loss is finite: ``.grad`` holds ∇L, and the weights are still θ_step."""

    def after_step(self, module: TrainingModule, step: int) -> None:
        """Called after the update: the weights are θ_{step+1}; ``module.forward_pass`` is still that of θ_step."""


class TrainingModule(LightningModule):
    """Gradient steps on an `EmpiricalRisk`: gradient descent or minibatch SGD, depending on the batches.

    Optimization is manual: a batch's gradient is accumulated in chunks with weight 1/N per sample, and then one
    optimizer step is taken, so that ``global_step`` is the paper's step t.

    Args:
        risk: What is trained.
        optimizer: Parameters ↦ optimizer.
        batches: Which examples each step uses.
        augmentation: (batch's inputs, step) ↦ the inputs that the step trains on; None leaves them as they are.

    Attributes:
        risk: What is trained.
        batches: Which examples each step uses.
        augmentation: Makes the inputs that a step trains on.
        instruments: Their hooks are called at each step, in this order.
        step: t of the last step begun.
        batch: The examples that it uses.
        forward_pass: ℓ_i(θ_t) of the step's batch, before the update.
        loss: Their mean.
        scalars: Scalars that instruments measured in this step, for the logger.
        before_update: Functions that change the gradient or step sizes between a step's pass and its update
            (`training.schedule`).
        announce: Shows the user what a long step is doing; `Progress` sets it.
        stop_reason: Why training cannot continue; empty as long as it can.
        is_finished: Whether the run has reached its purpose before its last step; see `finish`.
    """

    def __init__(
        self,
        risk: EmpiricalRisk,
        optimizer: OptimizerFactory,
        batches: Batches,
        augmentation: Augmentation | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model = risk.model
        self.risk = risk
        self.batches = batches
        self._optimizer_factory = optimizer
        self.augmentation = augmentation
        self.instruments: Sequence[StepHooks] = ()
        self.step = -1
        self.batch: Batch
        self.forward_pass: ForwardPass
        self.loss = math.nan
        self.scalars: dict[str, float] = {}
        self.before_update: list[Adjustment] = []
        self.announce: Callable[[str], None] = lambda _: None
        self.stop_reason = ""
        self.is_finished = False
        self._requests: list[Request] = []
        self._gradient_requests: list[Callable[[torch.Tensor], None]] = []
        self._observers: list[AbstractContextManager[Any]] = []
        self._shared: list[Any] = []
        self._random_state: dict[str, torch.Tensor] = {}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimizer of all parameters."""
        optimizer = self._optimizer_factory(self.model.parameters())
        if isinstance(optimizer, OneSAM):
            optimizer.follow(self.risk, lambda: self.batch)
        return optimizer

    def train_dataloader(self) -> Batches:
        """The batches; they hold indices, the data reside on the device."""
        return self.batches

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """One step of the paper: ∇L over the batch, then the optimizer's update."""
        self.step, self.batch = self.global_step, batch
        for instrument in self._due():
            instrument.before_step(self, self.step)
        with self._augmented(batch):
            self._take_step(batch)
        for instrument in self._due():
            instrument.after_step(self, self.step)
        self._shared = []

    def _due(self) -> list[StepHooks]:
        return [instrument for instrument in self.instruments if instrument.is_due(self.step)]

    def _take_step(self, batch: Batch) -> None:
        optimizer: Any = self.optimizers()
        optimizer.zero_grad(set_to_none=True)
        requests, self._requests = self._requests, []
        of_gradient, self._gradient_requests = self._gradient_requests, []
        observers, self._observers = self._observers, []
        with ExitStack() as observed:
            for observer in observers:
                observed.enter_context(observer)
            self.forward_pass = self._pass(batch, [vectors for vectors, _ in requests])
        self.loss = self.forward_pass.losses.double().mean().item()
        if math.isfinite(self.loss):
            self._answer(requests)
            for then in of_gradient:
                then(stored_gradient(self.risk))
            for instrument in self._due():
                instrument.at_gradient(self, self.step)
            for adjust in self.before_update:
                adjust(optimizer.optimizer, self.step)
            optimizer.step(self._closure(batch))
        else:
            self.stop_reason = f"the training loss is {self.loss} at step {self.step}"
            self.trainer.should_stop = True

    def _augmented(self, batch: Batch) -> AbstractContextManager[Any]:
        """Augment the step's batch; instruments' own passes before and after the step see the original data."""
        if self.augmentation is None:
            return nullcontext()
        assert isinstance(batch, torch.Tensor)
        return self.risk.seen_as(self.augmentation(self.risk.inputs[batch], self.step), batch)

    def _closure(self, batch: Batch) -> Callable[[], float]:
        """Puts ∇L of the batch at the current weights into ``.grad``, for optimizers with several gradients per step.

        The first call is made at θ_t and uses the gradient that the step's pass has left there.
        """
        is_first = True

        def closure() -> float:
            nonlocal is_first
            if is_first:
                is_first = False
                return self.loss
            self.model.zero_grad(set_to_none=True)
            return self.risk.backward(batch).losses.double().mean().item()

        return closure

    # -- what instruments request from a step, and share with each other ------------------------------------------

    def observe(self, observer: AbstractContextManager[Any]) -> None:
        """Enter ``observer`` around the coming step's own pass, for what is visible only inside it."""
        self._observers.append(observer)

    def request_products(self, vectors: torch.Tensor, then: Callable[[CurvaturePass], None]) -> None:
        """Let the coming step's pass compute ∇²L v_j of its batch as well; to be called before the step.

        Args:
            vectors: ``[k, P]``.
            then: Called with the pass's results, with products and slopes of ``vectors``, before any
                `StepHooks.at_gradient`.
        """
        self.risk.check_products()  # here, because the step's own pass is observed
        self._requests.append((vectors, then))

    def request_gradient(self, then: Callable[[torch.Tensor], None]) -> None:
        """Call ``then`` with ``[P]`` ∇L of the coming step's own batch, before any `StepHooks.at_gradient`."""
        self._gradient_requests.append(then)

    def share(self, finding: Any) -> None:
        """Make ``finding`` available to later instruments of this step; see `shared`."""
        self._shared.append(finding)

    def shared(self, kind: type[Shared]) -> Shared | None:
        """The latest finding of type ``kind`` shared in this step; None if there is none."""
        return next((finding for finding in reversed(self._shared) if isinstance(finding, kind)), None)

    def _pass(self, batch: Batch, requested: list[torch.Tensor]) -> ForwardPass:
        return self.risk.backward_with_products(torch.cat(requested), batch) if requested else self.risk.backward(batch)

    def _answer(self, requests: list[Request]) -> None:
        if isinstance(self.forward_pass, CurvaturePass):
            seen, self.forward_pass = self.forward_pass, replace(self.forward_pass, further=None)  # a graph is large
            sizes = [len(vectors) for vectors, _ in requests]
            for (_, then), *own in zip(requests, seen.products.split(sizes), seen.slopes.split(sizes), strict=True):
                then(replace(seen, products=own[0], slopes=own[1]))

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Hand one row of scalars to each logger."""
        if self.scalars:
            for logger in self.trainer.loggers:
                logger.log_metrics(self.scalars, self.step)
            self.scalars = {}

    def finish(self) -> None:
        """End the run after the current step: the record is complete."""
        self.is_finished = True
        self.trainer.should_stop = True

    # -- exact resume -------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the random state to what Lightning keeps."""
        checkpoint["random_state"] = {"cpu": torch.get_rng_state()}
        if self.risk.inputs.is_cuda:
            checkpoint["random_state"]["cuda"] = torch.cuda.get_rng_state(self.device)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Hold the random state until the fit starts; Lightning itself draws numbers in between."""
        self._random_state = checkpoint["random_state"]

    def on_fit_start(self) -> None:
        """Move the data to the weights' device and restore the random state."""
        self.risk.to(self.device)
        if "cpu" in self._random_state:
            torch.set_rng_state(self._random_state["cpu"])
        if "cuda" in self._random_state:
            torch.cuda.set_rng_state(self._random_state["cuda"], self.device)
