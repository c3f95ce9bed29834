"""Following a training without any framework: what a plain loop, and every adapter, calls at each batch."""

from __future__ import annotations

import atexit
import json
import math
import os
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial, wraps
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from opposing_signals.curvature import EigenTracker
from opposing_signals.curvature.risk import EmpiricalRisk, flatten
from opposing_signals.errors import InputError
from opposing_signals.follow import quantities
from opposing_signals.follow.batch_losses import BatchLosses, outermost_calls
from opposing_signals.follow.budget import Budget
from opposing_signals.follow.jumps import Jumps
from opposing_signals.follow.per_sample import PerSampleLoss
from opposing_signals.follow.randomness import isolated
from opposing_signals.follow.sampling import DrawnIndices
from opposing_signals.follow.tracking_set import Collate, Groups, TrackingSet, on_device
from opposing_signals.processes import agreed, count, is_first
from opposing_signals.provenance import environment
from opposing_signals.record import Record, WrittenElsewhere

log = getLogger(__name__)

LOSSES, SHARPNESS = "losses", "sharpness"
CONSECUTIVE = 4
"""Successive steps of a window: three changes for four measurements."""

WIDEST = 1024
"""Rows of a batch whose losses are kept, at the most: those of the largest loss."""

_BUFFERED = 200  # steps that are kept on the device before they are written
_TIMED = 6  # steps that are timed before it is decided how many examples are followed
_SHARED_LOOK = 8  # steps between decisions that several processes take together


@dataclass
class Step:
    """One step of training, while it runs.

    Attributes:
        loss: The training step's own loss; a plain loop may set it. None: the mean over the batch's rows.
    """

    loss: Tensor | float | None = None
    gradient_norm: Tensor | float | None = None
    _number: int = -1
    _learning_rate: float = math.nan
    _losses: list[Tensor] = field(default_factory=list)
    _indices: list[np.ndarray | None] = field(default_factory=list)
    _given: list[np.ndarray | None] = field(default_factory=list)
    _size: int = 0

    def record(self, losses: Tensor, indices: Any = None) -> None:
        """Note the losses of examples that the step trains on, in place of what is found out by itself.

        Args:
            losses: ``[n]``, with or without a graph.
            indices: ``[n]``, where they stand in the data set; None: not known.
        """
        self._given.append(_numbers(indices, len(losses)))
        self._losses.append(losses.detach().reshape(-1))
        self._indices.append(self._given[-1])


class Follower:
    """Follows the losses of training examples, step by step, and writes the record that figures and claims read.

    Use it around each step of a plain loop::

        follower = Follower(dataset, per_sample_loss, folder="outputs/mine", steps=1000)
        for x, y in follower.batches(loader):
            with follower.step(model, optimizer, batch=(x, y)):
                ...  # forward, backward, optimizer.step()
        follower.close()

    At each step it writes the losses of the batch's own rows, from the training's forward pass, with their indices,
    the batch size, the learning rate, the gradient's norm and the train loss. At some steps, as its budget allows and
    where something jumps, it measures the losses of a tracking set at θ_t, before the step, in evaluation mode. It
    changes nothing that training sees: modes, buffers, gradients and random states are afterwards what they were.

    It refuses what cannot work before the first step; from then on nothing that fails here reaches training: the
    record ends with the reason.

    Args:
        dataset: With ``len`` and an index, without random transforms; or an iterable data set and ``ids``.
        per_sample_loss: (model, batch) ↦ ``[n]``, one loss an example. The batch is what the training step gets.
        folder: Where the record is written; where another run's stands, the next free of folder-2, folder-3, …
        steps: How many the training will have; None if that is not known. The budget is spread over them.
        track: How many examples to follow, drawn at random; or their indices; None for as many as the budget allows,
            2,000 at the most.
        every: Measure at the first ``consecutive`` of each so many steps, as long as the budget allows.
        consecutive: How many successive steps to measure each time; None: 4, or ``every`` if that is less.
        budget: The largest share of the training time that measuring may take; None for no limit.
        sharpness_every: Measure λ of the followed examples' mean loss in each so many-th window; None for never.
        batch_size: Examples a forward pass of a measurement.
        collate: Examples ↦ batch; None takes that of the loader given to `batches`, or torch's own.
        show: Example ↦ picture ``[H, W]`` or ``[H, W, 3]`` uint8, or text, for figures and the report; None shows
            tensors ``[1 or 3, H, W]``.
        label: Example ↦ its class; None takes y of a pair (x, y) if that is a whole number.
        class_names: Names of classes that are whole numbers.
        groups: Name ↦ indices, or example ↦ name: groups that are followed beside those that are found.
        ids: Example ↦ its number, of an iterable data set.
        seed: Of the drawing of examples.

    Raises:
        InputError: A setting that cannot work.
    """

    def __init__(
        self,
        dataset: Any,
        per_sample_loss: PerSampleLoss,
        *,
        folder: str | Path = "outputs/own_model",
        steps: int | None = None,
        track: int | Sequence[int] | None = None,
        every: int | None = None,
        consecutive: int | None = None,
        budget: float | None = 0.05,
        sharpness_every: int | None = None,
        batch_size: int = 256,
        collate: Collate | None = None,
        show: Callable[[Any], Any] | None = None,
        label: Callable[[Any], Any] | None = None,
        class_names: Sequence[str] | None = None,
        groups: Groups | None = None,
        ids: Callable[[Any], int] | None = None,
        seed: int = 0,
    ) -> None:
        if consecutive is None:
            consecutive = CONSECUTIVE if every is None else min(CONSECUTIVE, every)
        every = consecutive if every is None else every
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
            dataset, per_sample_loss, track, batch_size, seed, show, label, class_names, groups, ids
        )
        self.drawn = DrawnIndices(dataset)
        self.budget = Budget(budget, steps)
        self.record: Record
        self.risk: EmpiricalRisk
        self._per_sample_loss = per_sample_loss
        self._collate = collate
        self._wanted_folder = self.folder
        self._tracker = EigenTracker(tolerance=0.05)
        self._open = ExitStack()
        self._origin: dict[str, Any] = {}
        self._state: dict[str, Any] | None = None  # of the checkpoint that training goes on from
        self._continuation: dict[str, Any] | None = None  # what a second call of fit goes on from
        self._checksum = ""
        self._number = 0
        self._first = 0
        self._window: int | None = None  # the step at which the last measurement began
        self._windows = 0
        self._has_jumped = False
        self._considered = -1
        self._parameters = 0
        self._current: Step | None = None
        self._has_stepped = False
        self._buffer: list[Step] = []
        self._pending: list[tuple[Tensor, Any]] = []
        self._jumps = Jumps()
        self._width: int | None = None
        self._stopped = ""
        self._ended = ""
        self._rows: BatchLosses | None = None
        self._is_watching = self._seen_rows = False
        self._hooks: list[Any] = []
        self._clipped: list[Tensor] = []
        self._optimizers: list[Optimizer] = []
        self._context: Callable[[], AbstractContextManager[Any]] = nullcontext
        self._device = torch.device("cpu")

    # -- a plain loop -------------------------------------------------------------------------------------------

    def batches(self, loader: DataLoader[Any]) -> Iterator[Any]:
        """The batches of ``loader``, of which the follower then knows the indices."""
        self._collate = self._collate or _collate_of(loader)
        self.drawn.watch(loader)
        yield from loader

    @contextmanager
    def step(
        self,
        model: nn.Module,
        optimizer: Optimizer | Iterable[Optimizer],
        *,
        batch: Any = None,
        batch_indices: Any = None,
    ) -> Iterator[Step]:
        """Around forward, backward and ``optimizer.step()`` of a batch.

        Of batches whose gradients are accumulated each has one of these; they are one step, which ends with the one in
        which an optimizer steps.

        Args:
            model: That ``per_sample_loss`` gets.
            optimizer: Or several.
            batch: That ``per_sample_loss`` gets, to tell the losses of its rows; None takes the arguments that the
                model is called with, as fits a model that gets inputs and targets.
            batch_indices: ``[n]``, where the batch's examples stand in the data set; None asks the loader given to
                `batches`.

        Raises:
            InputError: At the first step: data, a loss function or a setting that cannot work.
        """
        model = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
        if not self._origin and not self._ended:
            optimizers = [optimizer] if isinstance(optimizer, Optimizer) else list(optimizer)
            self.begin(model, optimizers)
        step = self.open(batch, batch_indices)
        try:
            yield step
        except BaseException:
            self.shut(failed=True)
            raise
        self.shut()

    # -- the run ------------------------------------------------------------------------------------------------

    def begin(
        self,
        model: nn.Module,
        optimizers: Sequence[Optimizer],
        *,
        step: int | None = None,
        to_device: Callable[[Any], Any] | None = None,
        context: Callable[[], AbstractContextManager[Any]] = nullcontext,
        loader: Any = None,
        iterator: Any = None,
        described: dict[str, Any] | None = None,
        hooks: bool = True,
    ) -> None:
        """Training begins, or goes on: read the first examples, check the losses, and begin the record.

        Args:
            model: In training.
            optimizers: At least one.
            step: That training goes on at; None: at the follower's own count.
            to_device: Batch ↦ the batch as the training step gets it; None moves it to the model's device.
            context: In which a training step computes, such as the autocast of mixed precision.
            loader: Of the training: its sampler tells a batch's indices, its ``collate_fn`` puts a batch together.
            iterator: Of the loader, if it has begun to draw.
            described: What else the record's configuration says.
            hooks: Whether optimizers tell by themselves when they step.

        Raises:
            InputError: Data, a loss function or a folder that cannot work.
        """
        if not optimizers:
            raise InputError("no optimizer: expected at least one, whose steps are counted")
        if any(hasattr(parameter, "full_tensor") for parameter in model.parameters()):
            raise InputError(
                "the model's parameters are sharded over processes (FSDP): expected whole ones, as "
                "DistributedDataParallel keeps them"
            )
        if count() > 1 and self.sharpness_every is not None:
            raise InputError(
                f"sharpness_every={self.sharpness_every}: {count()} processes train: expected None, because measuring "
                "the sharpness would change what DistributedDataParallel trains"
            )
        goes_on = self._goes_on(step)
        self._optimizers = [_innermost(optimizer) for optimizer in optimizers]
        self._context = context
        parameter = next(model.parameters(), None)
        self._device = torch.device("cpu") if parameter is None else parameter.device
        self._stopped, self._ended = self._restored("stopped") or "", ""
        self.budget.begin()
        try:
            with self.budget.measuring("reading"):
                reading = self.examples.begin(
                    model, self._collate or _collate_of(loader), to_device or on_device(self._device), context
                )
                calls = self._calls_of(model)
                self._choose_folder(goes_on)
                configuration = self._configuration(model, goes_on, described or {})
                self.record = self._open.enter_context(_writing(self.folder, configuration))
        except BaseException:
            self.budget.end()
            self._open.close()
            raise
        try:
            with self.budget.measuring("reading"):
                self._origin = self._origin_of(model)
                self._number = self._first if goes_on is None else goes_on
                self.record.cut(self._number, self._counted())
                self.record.write_state("running")
                self._rows = BatchLosses(model, self._per_sample_loss, calls, self._take_rows, context)
                if hooks:
                    self._hook_optimizers()
                if loader is not None:
                    self.drawn.watch(loader, iterator)
                self._model = model
                self._reading = reading
                if not self._waits_to_plan:
                    self._settle(self._restored("indices"))
        except BaseException:
            self._close(None)
            raise
        self._state = None
        _open_followers.add(self)

    def _goes_on(self, step: int | None) -> int | None:
        """The step that an earlier record is cut back to; None for a new one."""
        state = self._state
        if state is not None and state["begun"] and (self.folder / "configuration.json").is_file():
            return int(state["number"] if step is None else step)
        if self._continuation is not None and step is not None and step == self._number > 0:
            self._state = self._continuation  # fit is called again, and goes on
            return step
        self._first = step or (int(state["number"]) if state is not None and state["begun"] else 0)
        if state is None or not state["begun"]:
            self._forget()
        return None

    def _forget(self) -> None:
        """Another training begins with the same follower."""
        self._window, self._windows, self._considered = None, 0, -1
        self._width, self._checksum = None, ""
        if self._ended:
            self.examples = self.examples.anew()
            self.budget = Budget(self.budget.share, self.budget.steps)
        self.folder = self._wanted_folder

    def _choose_folder(self, goes_on: int | None) -> None:
        """A folder of an earlier run is left alone: the next free one is taken."""
        if goes_on is None and is_first():
            for number in range(1, 10_000):
                name = self._wanted_folder.name + (f"-{number}" if number > 1 else "")
                self.folder = self._wanted_folder.with_name(name)
                if not (self.folder / "configuration.json").exists() and not any(self.folder.glob("*.npy")):
                    break
            if self.folder != self._wanted_folder:
                log.warning("%s holds an earlier run: this one is written to %s", self._wanted_folder, self.folder)
        if count() > 1:
            self.folder = Path(agreed(lambda: str(self.folder)))

    def _configuration(self, model: nn.Module, goes_on: int | None, described: dict[str, Any]) -> dict[str, Any]:
        """The configuration of the record; a resumed run has the one that it began with."""
        if goes_on is not None:
            return Record(self.folder).configuration
        group = self._optimizers[0].param_groups[0]
        settings = {name: value for name, value in group.items() if isinstance(value, (bool, int, float, str))}
        settings.pop("initial_lr", None)
        seed = os.environ.get("PL_GLOBAL_SEED")
        return json.loads(
            json.dumps(
                {
                    "run": {"name": self.folder.name},
                    "seed": None if seed is None else int(seed),
                    "data": {"_target_": "opposing_signals.data.tracked"},
                    "model": {"_target_": _qualified(model)},
                    "optimizer": {
                        "_target_": _qualified(self._optimizers[0]),
                        **settings,
                        "lr": float(group.get("initial_lr", group["lr"])),
                    },
                    "every": self.every,
                    "consecutive": self.consecutive,
                    "budget": self.budget.share,
                    "sharpness_every": self.sharpness_every,
                    **described,
                }
            )
        )

    def _origin_of(self, model: nn.Module) -> dict[str, Any]:
        return {
            **environment(self._device),
            "data": {"name": type(self.examples.dataset).__name__, "sha256": "", "examples": 0},
            "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
            "tensors": [name for name, p in model.named_parameters() if p.requires_grad],
        }

    def _calls_of(self, model: nn.Module) -> list[nn.Module]:
        """The modules whose outputs per_sample_loss needs."""
        batch = self.examples.first_batch()

        def evaluate() -> None:
            with self.examples.evaluation(model), self._context():
                self._per_sample_loss(model, batch)

        with isolated():
            return outermost_calls(model, evaluate)

    @property
    def _waits_to_plan(self) -> bool:
        """Whether a few steps are timed before it is decided how many examples are followed."""
        return self.examples.is_sized_by_cost and self.budget.share is not None and not self._restored("indices")

    def _restored(self, name: str) -> Any:
        return self._state[name] if self._state is not None and self._state["begun"] else None

    def _counted(self) -> dict[str, int] | None:
        return self._restored("rows")

    def _settle(self, indices: Sequence[int] | None, size: int | None = None) -> None:
        """Decide which examples are followed, read them, and note it."""
        chosen = None if indices is None else np.asarray(indices, np.int64)
        if size is not None:
            chosen = self.examples.indices[:size]
        checksum = self.examples.settle(self._model, chosen, count())
        theirs = self.record.provenance.get("data", {}).get("sha256") or checksum
        if theirs != checksum:
            raise InputError(
                f"{self.folder} was written with other examples than train_dataset and track give now: resume with the "
                "same, or choose another folder for a new run"
            )
        self._checksum = checksum
        if is_first():
            self.examples.describe(self.folder)
        self.risk = self.examples.risk(self._device)
        self._parameters = sum(p.numel() for p in self.risk.parameters)
        self._origin["data"] = {
            "name": f"{type(self.examples.dataset).__name__} ({len(self.examples)} of {self.examples.available} "
            "examples tracked)",
            "sha256": checksum,
            "examples": len(self.examples),
        }
        self._write_origin()

    def _plan(self) -> None:
        """Follow as many examples as the budget allows, now that a step's time is known."""
        with self.budget.measuring("reading"):
            fixed, each = self.examples.cost(self._model, self._device)

            def size() -> int:
                return self.budget.examples(
                    self._reading, fixed, each, len(self.examples), self.consecutive, self._number
                )

            self._settle(None, agreed(size) if count() > 1 else size())

    def close(self, state: str | None = "complete") -> None:
        """The training is over, and the record complete.

        Args:
            state: None leaves the record as that of an interrupted run.
        """
        if self._origin:
            self._safely("closing the record", lambda: self._close(self._stopped or state))
        self._let_go()

    def _close(self, state: str | None) -> None:
        try:
            if self._current is not None and self._has_stepped:
                self._advance()
            self._flush()
            if not self._checksum and state is not None and self._origin:
                self._note_batches_only()
            if self._rows is not None and self._rows.failure:
                self._origin["batch_rows"] = f"not recorded: {self._rows.failure}"
            self._write_origin()
            if state is not None:
                self.record.write_state(state)
                self._continuation = self._as_state()
        finally:
            self._let_go()

    def _note_batches_only(self) -> None:
        """A run that ended before a measurement still has the losses of its batches."""
        self._origin["data"]["name"] = f"{type(self.examples.dataset).__name__} (none tracked: too short a training)"

    def _let_go(self) -> None:
        self.budget.end()
        self._ended = self._ended or "closed"
        self._origin, self._current, self._has_stepped = {}, None, False
        self._buffer.clear()
        self._pending.clear()
        _clip_norms.pop(id(self), None)
        for handle in self._hooks:
            handle.remove()
        self._hooks.clear()
        self.drawn.forget()
        self._open.close()
        _open_followers.discard(self)

    def _write_origin(self) -> None:
        seconds = {"training_seconds": self.budget.seconds, "measuring_seconds": self.budget.spent}
        self.record.write_provenance(
            {
                **self._origin,
                **{name: round(value, 3) for name, value in seconds.items()},
                "steps": self._number,
                "measured": len(self.record["sample_loss"]) if "sample_loss" in self.record else 0,
            }
        )

    def _safely(self, what: str, work: Callable[[], Any]) -> Any:
        """What ``work`` gives; if it fails, the record ends with the reason and training goes on."""
        try:
            return work()
        except Exception as error:
            self._give_up(f"stopped: {what} failed at step {self._number}: {_first_line(error)}")
            return None

    def _give_up(self, reason: str) -> None:
        log.warning("opposing signals: %s; training goes on, the record ends here", reason)
        self._ended = self._stopped = reason
        try:
            self.record.write_state(reason)
        except Exception as error:  # a full disk, maybe
            log.warning("opposing signals: %s", _first_line(error))
        self._let_go()

    # -- the steps ----------------------------------------------------------------------------------------------

    def open(self, batch: Any = None, batch_indices: Any = None) -> Step:
        """A batch begins: measure θ_t if it is the first of its step and its turn; watch the training step."""
        if self._ended:
            return Step()
        if self._current is None:
            self._current = Step(_number=self._number)
            self._safely("measuring", self._measure)
        if self._ended:
            return Step()
        step = self._current
        return self._safely("watching the batch", lambda: self._watch(step, batch, batch_indices)) or Step()

    def _watch(self, step: Step, batch: Any, batch_indices: Any) -> Step:
        step._learning_rate = float(self._optimizers[0].param_groups[0]["lr"])
        self._batch_indices = self.drawn.next if batch_indices is None else lambda: _numbers(batch_indices, None)
        self._seen_rows = False
        self._is_watching = True
        if self._rows is not None:
            self._rows.open(batch)
        _note_norms_of_clipping()
        _clip_norms[id(self)] = self._clipped
        return step

    def shut(self, failed: bool = False) -> None:
        """The batch is over; if an optimizer has stepped, so is the step."""
        _clip_norms.pop(id(self), None)
        if self._rows is not None and self._is_watching:
            self._safely("taking the batch's losses", self._rows.close)
            if not self._seen_rows:
                self._safely("taking the batch's indices", self._batch_indices)
        self._is_watching = False
        if not failed and self._origin and self._current is not None and self._has_stepped:
            self._safely("noting the step", self._advance)

    def _take_rows(self, losses: Tensor) -> None:
        step = self._current
        if step is None or step._given:
            return
        self._seen_rows = True
        indices = self._batch_indices()
        if indices is not None and len(indices) != len(losses):
            indices = None
        step._losses.append(losses)
        step._indices.append(indices)

    def expect(self, steps: int | None) -> None:
        """Training will have so many steps; None: unknown."""
        self.budget.steps = steps

    def at_gradient(self, optimizer: Optimizer) -> None:
        """``optimizer`` has its gradient and steps now; for adapters of frameworks that tell it."""
        if self._current is not None:
            self.add_norm(self._safely("taking the gradient's norm", lambda: self.norm_of(optimizer)))
            self._has_stepped = True

    def add_loss(self, loss: Any) -> None:
        """Add a batch's share of the step's own loss; for adapters of frameworks that give it."""
        if self._current is not None and isinstance(loss, Tensor) and loss.numel() == 1:
            before = self._current.loss
            loss = loss.detach().reshape(())
            self._current.loss = loss if before is None else before + loss

    def norm_of(self, optimizer: Optimizer) -> Tensor | None:
        """Euclidean norm of the gradient that ``optimizer`` has."""
        gradients = [
            p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None
        ]  # fmt: skip
        if not gradients or any(gradient.layout is not torch.strided for gradient in gradients):
            return None
        return torch.nn.utils.get_total_norm(gradients)

    def _hook_optimizers(self) -> None:
        follower = weakref.ref(self)

        def before(optimizer: Optimizer, arguments: Any, named: Any) -> None:
            me = follower()
            if me is not None and me._current is not None and not me._clipped and len(arguments) <= 1 and not named:
                norm = me._safely("taking the gradient's norm", lambda: me.norm_of(optimizer))
                me.add_norm(norm)

        def after(*_: Any) -> None:
            me = follower()
            if me is not None:
                me._has_stepped = True

        for optimizer in self._optimizers:
            self._hooks += [optimizer.register_step_pre_hook(before), optimizer.register_step_post_hook(after)]

    def add_norm(self, norm: Tensor | None) -> None:
        """Add the norm of a part of the step's gradient, such as one optimizer's."""
        if norm is None or self._current is None:
            return
        before = self._current.gradient_norm
        norm = norm.detach()
        self._current.gradient_norm = norm if before is None else torch.hypot(torch.as_tensor(before).to(norm), norm)

    def _advance(self) -> None:
        """The step is complete: buffer it, without waiting for the device."""
        step, self._current, self._has_stepped = self._current, None, False
        assert step is not None
        if self._clipped and self._hooks:  # otherwise the framework has told it
            step.gradient_norm = torch.stack([norm.detach().float() for norm in self._clipped]).norm()
        self._clipped.clear()
        step._size = sum(len(losses) for losses in step._losses)
        if step.loss is None and step._losses:
            step.loss = torch.cat([losses.float() for losses in step._losses]).mean()
        self._number += 1
        self._buffer.append(step)
        self._look_for_jumps(step)
        if len(self._buffer) >= _BUFFERED:
            with self.budget.measuring("writing"):
                self._flush()

    def _look_for_jumps(self, step: Step) -> None:
        """See whether train loss, gradient or the largest loss of a row jumped; on a GPU as soon as that is known."""
        if not self._checksum or self.budget.share is None:
            return
        largest = [losses.max() for losses in step._losses if len(losses)]
        values = [step.loss, step.gradient_norm, torch.stack(largest).max() if largest else None]
        there = torch.stack(
            [torch.as_tensor(math.nan if v is None else v, device=self._device).detach().float() for v in values]
        )  # on the CPU nothing is waited for
        event = None
        if there.is_cuda:
            there = there.to("cpu", non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self._pending.append((there, event))
        while self._pending and (self._pending[0][1] is None or self._pending[0][1].query()):
            seen, _ = self._pending.pop(0)
            for name, value in zip(("loss", "gradient", "row"), seen.tolist(), strict=True):
                if not math.isnan(value) and self._jumps.add(name, value):
                    self._has_jumped = True

    def _measure(self) -> None:
        """Measure θ_t where it is its turn."""
        step = self._number
        if step == self._considered:
            return
        self._considered = step
        self.budget.count_step()
        if not self._checksum:
            if step - self._first < _TIMED:
                return
            self._plan()
        if self._stopped:
            return
        begins, wants_sharpness = self._begins_window(step)
        if not begins and (self._window is None or step - self._window >= self.consecutive):
            return
        with self.budget.measuring(LOSSES, self._device):
            self._measure_losses(step)
        if wants_sharpness and not self._stopped:
            with self.budget.measuring(SHARPNESS, self._device):
                self._measure_sharpness(step)

    def _begins_window(self, step: int) -> tuple[bool, bool]:
        """Whether a window of measurements begins at ``step``, and whether it measures λ too."""
        if self._window is not None and step - self._window < self.consecutive:
            return False, self._wants_sharpness(self._windows - 1)
        wants_sharpness = self._wants_sharpness(self._windows)
        if count() > 1 and step % _SHARED_LOOK and self.budget.share is not None:
            return False, wants_sharpness
        begins = agreed(partial(self._is_due, step, wants_sharpness))
        if begins:
            self._window, self._has_jumped = step, False
            self._windows += 1
        return begins, wants_sharpness

    def _wants_sharpness(self, window: int) -> bool:
        return self.sharpness_every is not None and window % self.sharpness_every == 0

    def _is_due(self, step: int, wants_sharpness: bool) -> bool:
        wanted = {LOSSES: self.consecutive, **({SHARPNESS: self.consecutive} if wants_sharpness else {})}
        if not self.budget.allows(wanted, step, is_urgent=self._has_jumped):
            return False
        if self._window is None or self._has_jumped:
            return True
        cost = sum(number * self.budget.costs.get(kind, 0.0) for kind, number in wanted.items())
        return step - self._window >= max(self.every, self.budget.stride(cost, self.consecutive - 1, step))

    def _measure_losses(self, step: int) -> None:
        self.examples.computing_in(self._context)
        with isolated(), self.risk.probe():
            self._model.eval()
            losses = self.risk.sample_losses().losses.float().cpu().numpy()
        if not np.isfinite(losses).all():
            example = int(self.examples.indices[np.flatnonzero(~np.isfinite(losses))[0]])
            self._stopped = f"stopped: the loss of train_dataset[{example}] is not finite at step {step}"
            log.warning("opposing signals %s; training goes on, the record of losses ends here", self._stopped)
            return
        self.record.append(quantities.SAMPLE_LOSS, step, losses)

    def _measure_sharpness(self, step: int) -> None:
        self.examples.computing_in(nullcontext)
        parameters = flatten([parameter.detach() for parameter in self.risk.parameters])
        if len(parameters) != self._parameters:  # layers were frozen or freed: another space
            self._tracker = EigenTracker(tolerance=self._tracker.tolerance)
            self._parameters = len(parameters)
        try:
            with isolated(), self.risk.probe():
                self._model.eval()
                pairs = self._tracker(lambda vectors: self.risk.hessian_products(vectors).products, parameters)
        except Exception as error:
            log.warning("the sharpness is not measured any more: %s", _first_line(error))
            self.sharpness_every = None
            self._origin["sharpness"] = f"ended at step {step}: {_first_line(error)}"
            return
        if math.isfinite(pairs.value):
            self.record.append("sharpness", step, pairs.value)
            self.record.append("sharpness_quotient", step, pairs.quotient)
            self.record.append("sharpness_residual", step, pairs.residual)
            self.record.append("sharpness_bound", step, pairs.bound)
            self.record.append("sharpness_products", step, pairs.products)

    def check_order(self) -> None:
        """An epoch begins: see that an index still names the same example."""
        if self._ended or not self._checksum:
            return
        try:
            with self.budget.measuring("order"):
                self.examples.check_order()
        except Exception as error:
            self._give_up(f"stopped: {_first_line(error)}")

    # -- writing ------------------------------------------------------------------------------------------------

    def _flush(self) -> None:
        """Write what the steps in the buffer showed; one wait for the device."""
        steps, self._buffer = self._buffer, []
        if not steps:
            return
        rows = list(zip(_losses_of(steps), map(_indices_of, steps), strict=True))
        loss, norm = (_to_floats([getattr(step, name) for step in steps]) for name in ("loss", "gradient_norm"))
        if count() > 1:
            rows, loss = _gathered(rows, loss)
        if self._width is None:
            self._width = min(WIDEST, max(len(losses) for losses, _ in rows))
            if quantities.BATCH_LOSS in self.record:
                self._width = self.record[quantities.BATCH_LOSS].values.shape[1]
        numbers = np.array([step._number for step in steps], np.int64)
        sizes = np.array([len(losses) or -1 for losses, _ in rows], np.int64)
        self.record.extend(quantities.LEARNING_RATE, numbers, np.array([step._learning_rate for step in steps]))
        self.record.extend(quantities.BATCH_SIZE, numbers, sizes)
        for quantity, values, known in (
            (quantities.TRAIN_LOSS, loss, [step.loss is not None for step in steps]),
            (quantities.GRADIENT_NORM, norm, [step.gradient_norm is not None for step in steps]),
        ):
            self.record.extend(quantity, numbers[known], np.array(values)[known])
        has_rows = sizes > 0
        if self._width and has_rows.any():
            shape = int(has_rows.sum()), self._width
            losses, indices = np.full(shape, np.nan, np.float32), np.full(shape, -1, np.int64)
            for place, (row, index) in enumerate(row for row in rows if len(row[0])):
                kept = _largest(row, self._width)
                losses[place, : len(row[kept])], indices[place, : len(row[kept])] = row[kept], index[kept]
            self.record.extend(quantities.BATCH_LOSS, numbers[has_rows], losses)
            self.record.extend(quantities.BATCH_INDEX, numbers[has_rows], indices)

    # -- exact resume -------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to measure at the steps at which an uninterrupted one would.

        The record then holds every step before: a checkpoint never claims one that it lacks.
        """
        if self._origin and self._current is not None and self._has_stepped:
            self._safely("noting the step", self._advance)
        if self._origin:
            self._safely("writing", self._flush)
        if self._origin:
            self._safely("writing", self.record.sync)
        return self._as_state()

    def _as_state(self) -> dict[str, Any]:
        begun = bool(self._origin)
        return {
            "begun": begun,
            "number": self._number,
            "budget": self.budget.state_dict(),
            "tracker": self._tracker.state_dict(),
            "window": self._window,
            "windows": self._windows,
            "stopped": self._stopped,
            "indices": self.examples.indices.tolist() if self._checksum else None,
            "rows": dict(self.record.rows) if begun else None,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore `state_dict`, before training goes on."""
        if not state_dict["begun"]:
            return
        self.budget.load_state_dict(state_dict["budget"])
        self._tracker.load_state_dict(state_dict["tracker"])
        self._window, self._windows = state_dict["window"], state_dict["windows"]
        self._stopped = state_dict["stopped"]
        self._number = self._first = state_dict["number"]
        self._considered = -1
        self._buffer.clear()
        self._state = state_dict


_clip_norms: dict[int, list[Tensor]] = {}
"""Where the norms go that are computed for clipping, while a step is watched."""


def _note_norms_of_clipping() -> None:
    """Let `torch.nn.utils.clip_grad_norm_` tell the norm that it computes: the one before clipping, for nothing.

    Plain loops and transformers clip between backward and the optimizer's step, where nothing else can be seen of it.
    """
    if hasattr(torch.nn.utils.clip_grad_norm_, "noted"):
        return
    original = torch.nn.utils.clip_grad_norm_

    @wraps(original)
    def clip_grad_norm_(parameters: Any, max_norm: float, norm_type: float = 2.0, *more: Any, **named: Any) -> Tensor:
        norm = original(parameters, max_norm, norm_type, *more, **named)
        if _clip_norms and float(norm_type) == 2.0:
            for norms in _clip_norms.values():
                norms.append(norm)
        return norm

    clip_grad_norm_.noted = True  # type: ignore[attr-defined]
    for place in (torch.nn.utils, torch.nn.utils.clip_grad):
        setattr(place, "clip_grad_norm_", clip_grad_norm_)  # noqa: B010  # of a module


_open_followers: weakref.WeakSet[Follower] = weakref.WeakSet()


@atexit.register
def _close_at_exit() -> None:
    """A script that ends without `Follower.close` leaves a whole record; complete only if it did not fail."""
    for follower in list(_open_followers):
        follower.close(None if hasattr(sys, "last_value") else "complete")


@contextmanager
def _writing(folder: Path, configuration: dict[str, Any]) -> Iterator[Record]:
    """The record of the first process; of the others one that writes nothing."""
    if is_first():
        with Record.writing(folder, configuration) as record:
            if count() > 1:
                agreed(lambda: None)  # the others wait for its folder
            yield record
    else:
        agreed(lambda: None)
        yield WrittenElsewhere(folder)


def _gathered(rows: list[tuple[np.ndarray, np.ndarray]], loss: list[float]) -> tuple[list[Any], Any]:
    """The batches of all processes together, and the mean of their losses."""
    shares: list[Any] = [None] * count()
    torch.distributed.all_gather_object(shares, (rows, loss))
    together = [
        tuple(np.concatenate([share[0][place][part] for share in shares]) for part in (0, 1))
        for place in range(len(rows))
    ]
    return together, np.mean([share[1] for share in shares], axis=0).tolist()


def _largest(losses: np.ndarray, width: int) -> np.ndarray | slice:
    """Places of the ``width`` largest losses, or of all; what is not finite counts as the largest."""
    if len(losses) <= width:
        return slice(None)
    return np.sort(np.argpartition(-np.where(np.isnan(losses), np.inf, losses), width - 1)[:width])


def _numbers(indices: Any, expected: int | None) -> np.ndarray | None:
    if indices is None:
        return None
    array = indices.detach().cpu().numpy() if isinstance(indices, Tensor) else np.asarray(indices)
    array = array.astype(np.int64).reshape(-1)
    return array if expected is None or len(array) == expected else None


def _losses_of(steps: list[Step]) -> list[np.ndarray]:
    """``[n]`` losses of the rows of each step; one transfer from the device for all."""
    parts = [losses.float() for step in steps for losses in step._losses]
    flat = torch.cat(parts).cpu().numpy() if parts else np.empty(0, np.float32)
    return np.split(flat, np.cumsum([step._size for step in steps])[:-1])


def _indices_of(step: Step) -> np.ndarray:
    parts = [
        np.full(len(losses), -1, np.int64) if indices is None else indices
        for losses, indices in zip(step._losses, step._indices, strict=True)
    ]
    return np.concatenate(parts) if parts else np.empty(0, np.int64)


def _to_floats(values: list[Tensor | float | None]) -> list[float]:
    tensors = [torch.as_tensor(math.nan if value is None else value).detach().reshape(()).float() for value in values]
    devices = {tensor.device for tensor in tensors}
    return torch.stack([tensor.to(max(devices, key=str)) for tensor in tensors]).tolist()


def _innermost(optimizer: Any) -> Optimizer:
    """The optimizer within what frameworks wrap around it."""
    while not type(optimizer).__module__.startswith("torch.optim") and isinstance(
        getattr(optimizer, "optimizer", None), Optimizer
    ):
        optimizer = optimizer.optimizer
    return optimizer


def _collate_of(loader: Any) -> Collate | None:
    """How a loader puts examples together; None for one that does not."""
    return loader.collate_fn if isinstance(loader, DataLoader) and loader.batch_size is not None else None


def _qualified(thing: Any) -> str:
    kind = type(thing)
    return f"{kind.__module__}.{kind.__qualname__}"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0] or type(error).__name__
