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
    """What looks at a run's steps, and changes nothing that training sees.

    Attributes:
        takes_from: Kinds of hooks whose findings of the same step it takes (`TrainingModule.shared`, or their scalars),
            at its gradient or behind the step: so their order does not count.
        needs_training: Whether it reads more than θ_t, the data and the step's batch, such as the optimizer, running
            statistics or other steps: then it cannot be measured from snapshots of a run.
        ends_run: Whether it may end the run before its last step.
    """

    takes_from: ClassVar[tuple[type, ...]]
    needs_training: bool
    ends_run: ClassVar[bool]

    def is_due(self, step: int) -> bool:
        """Whether the others are called at ``step``."""

    def before_step(self, module: TrainingModule, step: int) -> None:
        """The weights are θ_step, and the step's pass is to come; a request for it is made here."""

    def at_gradient(self, module: TrainingModule, step: int) -> None:
        """The pass is over, ``.grad`` holds ∇L, and the weights are still θ_step; not where the loss is not finite."""

    def after_step(self, module: TrainingModule, step: int) -> None:
        """The weights are θ_{step+1}; ``module.forward_pass`` is still that of θ_step."""


class TrainingModule(LightningModule):
    """Gradient steps on an `EmpiricalRisk`: gradient descent or minibatch SGD, as the batches say.

    Optimization is manual: a batch's gradient is accumulated in chunks with weight 1/N per sample, and then one
    optimizer step is taken. So ``global_step`` is the paper's step t.

    Args:
        risk: What is trained.
        optimizer: Parameters ↦ optimizer.
        batches: Which examples each step uses.
        augmentation: (batch's inputs, step) ↦ what the step sees of them; None leaves them as they are.

    Attributes:
        risk: What is trained.
        batches: Which examples each step uses.
        augmentation: What the step sees of them.
        instruments: Whose hooks are called at each step, in this order.
        step: t of the last step begun.
        batch: The examples that it uses.
        forward_pass: ℓ_i(θ_t) of the step's batch, seen before the step.
        loss: Their mean.
        scalars: What instruments measured in this step, for the logger.
        before_update: What changes gradient or step sizes between a step's pass and its update (`training.schedule`).
        announce: Tells who looks on what a step is doing that takes long; `Progress` sets it.
        stop_reason: Why training cannot go on; empty as long as it can.
        is_finished: Whether the run has shown what it is for, before its last step; see `finish`.
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
        """The batches; they hold indices, the data rest on the device."""
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
        """The step's view of its batch; instruments' own passes before and behind the step see the data as they are."""
        if self.augmentation is None:
            return nullcontext()
        assert isinstance(batch, torch.Tensor)
        return self.risk.seen_as(self.augmentation(self.risk.inputs[batch], self.step), batch)

    def _closure(self, batch: Batch) -> Callable[[], float]:
        """∇L of the batch into ``.grad`` at the weights of the moment, for optimizers that take several a step.

        The first call is made at θ_t and finds what the step's pass has left there.
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

    # -- what instruments ask of a step, and tell each other ------------------------------------------------------

    def observe(self, observer: AbstractContextManager[Any]) -> None:
        """Enter ``observer`` around the coming step's own pass, for what can only be seen inside it."""
        self._observers.append(observer)

    def request_products(self, vectors: torch.Tensor, then: Callable[[CurvaturePass], None]) -> None:
        """Let the coming step's pass compute ∇²L v_j of its batch as well; asked for in front of the step.

        Args:
            vectors: ``[k, P]``.
            then: Called with what the pass saw, its products and slopes those of ``vectors``, in front of all
                `StepHooks.at_gradient`.
        """
        self.risk.check_products()  # here, because the step's own pass is observed
        self._requests.append((vectors, then))

    def request_gradient(self, then: Callable[[torch.Tensor], None]) -> None:
        """Let ``then`` have the coming step's own ``[P]`` ∇L of its batch, in front of all `StepHooks.at_gradient`."""
        self._gradient_requests.append(then)

    def share(self, finding: Any) -> None:
        """Let the instruments that come later in this step take ``finding``; see `shared`."""
        self._shared.append(finding)

    def shared(self, kind: type[Shared]) -> Shared | None:
        """What was shared last in this step of the type ``kind``; None if nothing was."""
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
