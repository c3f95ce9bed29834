"""The base class of instruments: when to measure, and where results are written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from lightning.pytorch import Callback

from opposing_signals.curvature.risk import EmpiricalRisk
from opposing_signals.data import Dataset
from opposing_signals.errors import InputError
from opposing_signals.record import Record
from opposing_signals.signals.edge import edge_of_rule
from opposing_signals.training.module import TrainingModule
from opposing_signals.values import Count

Products = Callable[[torch.Tensor], torch.Tensor]
Rule = TypeVar("Rule", bound=torch.optim.Optimizer)


class Instrument(Callback):
    """Measures one quantity along a run; an instrument implements some of `before_step`, `at_gradient`, `after_step`.

    An instrument changes nothing that training depends on: passes of its own go through `EmpiricalRisk`, whose probes
    leave no trace. It is a callback so that Lightning keeps its ``state_dict`` in checkpoints; the training module
    calls it.

    Attributes:
        reference: The record of the run that this run is compared with (the field ``reference``), if there is one.
        takes_from: See `StepHooks`.
        needs_training: See `StepHooks`.
        ends_run: See `StepHooks`.

    Args:
        risk: The risk being trained.
        record: Where rows are written.
        every: Measure at steps t with t mod ``every`` < ``consecutive``.
        consecutive: Successive steps to measure each time. Two show a one-step change, and both phases of the
            period-two oscillation at the edge of stability.

    Raises:
        InputError: ``consecutive`` is larger than ``every``.
    """

    reference: Record | None = None
    takes_from: ClassVar[tuple[type, ...]] = ()
    needs_training: bool = False
    ends_run: ClassVar[bool] = False

    def __init__(self, risk: EmpiricalRisk, record: Record, every: Count = 1, consecutive: Count = 1) -> None:
        self.risk = risk
        self.record = record
        self.every = every
        self.consecutive = consecutive
        if consecutive > every:
            raise InputError(f"{type(self).__name__}: consecutive={consecutive}: expected 1 to every={every}")

    def check_partners(self, name: str, instruments: Mapping[str, Instrument], steps: int) -> None:
        """Refuse a run in which no instrument measures what this one takes, at the steps that it needs.

        Args:
            name: Of the instrument in the configuration.
            instruments: All of the run, by name.
            steps: Of the run.

        Raises:
            InputError: There is no such instrument, or it measures at other steps.
        """
        for kind in self.takes_from:
            partners = {other: one for other, one in instruments.items() if isinstance(one, kind)}
            there = "".join(f"; {other} has {one.stride}" for other, one in partners.items()) or "; there is none"
            for step in range(steps):
                if not partners or self.misses(step, any(one.is_due(step) for one in partners.values())):
                    raise InputError(
                        f"instruments.{name} has {self.stride}, and takes what {kind.__name__} measures in the same "
                        f"step{there}: step {step} is due for one of them alone; expected every and consecutive that "
                        f"fit (+instruments@instruments={kind.__name__.lower()} adds one)"
                    )

    @property
    def stride(self) -> str:
        """``every`` and ``consecutive``, as in a message."""
        return f"every={self.every}, consecutive={self.consecutive}"

    def misses(self, step: int, is_measured: bool) -> bool:
        """Whether it lacks at ``step`` what it takes from others, given whether that is measured there."""
        return self.is_due(step) and not is_measured

    def prepare(self, dataset: Dataset) -> None:
        """Prepare what the measurement needs from the training data, before the run begins."""

    def before_step(self, module: TrainingModule, step: int) -> None:
        """Measure θ_step with passes of its own, or request something from the step's pass."""

    def at_gradient(self, module: TrainingModule, step: int) -> None:
        """Measure after the step's pass, while the weights are still θ_step."""

    def after_step(self, module: TrainingModule, step: int) -> None:
        """Record results of the step's own forward pass at θ_step: ``module.forward_pass`` over ``module.batch``."""

    def check_outputs(self, name: str) -> None:
        """Refuse a run whose passes keep no outputs, for an instrument that takes them.

        Args:
            name: Of the instrument in the configuration.

        Raises:
            InputError: ``risk.keep_outputs`` is false.
        """
        if not self.risk.keep_outputs:
            raise InputError(
                f"{type(self).__name__}: risk.keep_outputs=false: expected true; leave {name} out of instruments"
            )

    def plain_step_size(self, module: TrainingModule, hint: str) -> float:
        """η of gradient descent without momentum and weight decay, for an instrument that is defined only for it.

        Args:
            module: Of the run.
            hint: Advice for the error message.

        Raises:
            InputError: The run has another.
        """
        lightning_optimizer: Any = module.optimizers()
        rule, group = type(lightning_optimizer.optimizer).__name__, lightning_optimizer.param_groups[0]
        if edge_of_rule(rule, group) is None:
            raise InputError(
                f"{type(self).__name__}: optimizer {rule}: expected SGD without momentum and weight decay; {hint}"
            )
        return group["lr"]

    def required_optimizer(self, module: TrainingModule, kind: type[Rule], name: str) -> Rule:
        """The run's optimizer, for an instrument that is defined for one kind only.

        Args:
            module: Of the run.
            kind: Of optimizer.
            name: Of the instrument in the configuration.

        Raises:
            InputError: The run has another.
        """
        lightning_optimizer: Any = module.optimizers()
        optimizer = lightning_optimizer.optimizer
        if not isinstance(optimizer, kind):
            raise InputError(
                f"{type(self).__name__}: the optimizer is {type(optimizer).__name__}: expected {kind.__name__}; leave "
                f"{name} out of instruments"
            )
        return optimizer

    def write(self, module: TrainingModule, step: int, quantity: str, value: np.ndarray | float) -> None:
        """Append to the record; scalars go to the run's logger as well."""
        self.record.append(quantity, step, value)
        if np.ndim(value) == 0:
            module.scalars[quantity] = float(value)

    def is_due(self, step: int) -> bool:
        """Whether the step is to be measured."""
        return step % self.every < self.consecutive


def announcing(products: Products, module: TrainingModule, most: int, spent: int = 0) -> Products:
    """``products`` with progress messages: on a large model or a slow machine each product takes a while.

    Args:
        products: Vectors ↦ their products with the Hessian.
        module: Of the run.
        most: Products at most, for the message.
        spent: Products before these.
    """

    def announced(vectors: torch.Tensor) -> torch.Tensor:
        nonlocal spent
        spent += len(vectors)
        module.announce(f"curvature, product {spent} of {most}")
        return products(vectors)

    return announced
