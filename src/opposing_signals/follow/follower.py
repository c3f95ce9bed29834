"""Following a training without a framework: the calls that a plain loop, and every adapter, makes for each batch."""

from __future__ import annotations

import atexit
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from logging import getLogger
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from opposing_signals.errors import InputError, first_line
from opposing_signals.follow.budget import Budget
from opposing_signals.follow.meeting import Meeting
from opposing_signals.follow.optimizers import innermost
from opposing_signals.follow.per_sample import PerSampleLoss
from opposing_signals.follow.run_folder import configuration_of, free_folder, writing
from opposing_signals.follow.sampling import DrawnIndices
from opposing_signals.follow.schedule import SHARED_LOOK, Schedule
from opposing_signals.follow.shown import Groups, Shown
from opposing_signals.follow.step import Step, StepBuffer
from opposing_signals.follow.tracking import Tracking
from opposing_signals.follow.tracking_set import Collate, TrackingSet, on_device
from opposing_signals.follow.watch import StepWatch
from opposing_signals.provenance import environment
from opposing_signals.record import Record, quantities

log = getLogger(__name__)

_CLOSED = "closed"


class Follower:
    """Follows the losses of training examples, step by step, and writes the record that figures and claims read.

    Use it around each step of a plain loop::

        follower = Follower(dataset, per_sample_loss, folder="outputs/mine", steps=1000)
        for x, y in follower.batches(loader):
            with follower.step(model, optimizer, batch=(x, y)):
                ...  # forward, backward, optimizer.step()
        follower.close()

    At each step it writes the losses of the batch's own rows, from the training's forward pass, with their indices,
    the batch size, the learning rate, the gradient norm and the train loss. At some steps, as its budget allows and
    where something jumps, it measures the losses of a tracking set at θ_t, before the step, in evaluation mode. It
    changes nothing that training sees: modes, buffers, gradients and random states are restored.

    It refuses what cannot work before the first step. After that, no failure here reaches training: the record ends
    with the reason.

    Args:
        dataset: Has ``len`` and indexing, without random transforms; or is an iterable data set, with ``ids``.
        per_sample_loss: (model, batch) ↦ ``[n]``, one loss per example. The batch is what the training step gets.
        folder: Where the record is written; if it holds another run, the next free of folder-2, folder-3, …
        steps: Number of training steps, over which the budget is spread; None if unknown.
        track: Number of examples to follow, drawn at random; or their indices; None for as many as the budget allows,
            at most 2,000.
        every: Measure the first ``consecutive`` of every ``every`` steps, as long as the budget allows.
        consecutive: How many successive steps to measure each time; None: 4, or ``every`` if that is less.
        budget: Largest fraction of the training time that measuring may take; None for no limit.
        sharpness_every: Measure λ of the followed examples' mean loss once per this many windows; None for never.
        batch_size: Examples per forward pass of a measurement.
        collate: Examples ↦ batch; None takes that of the loader given to `batches`, or torch's own.
        show: Example ↦ picture ``[H, W]`` or ``[H, W, 3]`` uint8, or text, for figures and the report; None shows
            tensors ``[1 or 3, H, W]``.
        label: Example ↦ its class; None takes y of a pair (x, y) if it is a whole number.
        class_names: Names of classes that are whole numbers.
        groups: Name ↦ indices, or example ↦ name: groups that are followed beside those that are found. Half of the
            drawn examples are taken from groups given by indices, as long as these last.
        ids: Example ↦ its number, for an iterable data set. A function that also maps a batch to ``[n]``, such as
            ``lambda example: example["id"]``, also identifies the rows of a training batch.
        seed: Seed for drawing the examples.

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
        if steps is not None and not (isinstance(steps, int) and steps > 0):
            raise InputError(f"steps={steps!r}: expected the number of the training's steps, or None")
        if budget is not None and not (isinstance(budget, int | float) and budget > 0):
            raise InputError(f"budget={budget!r}: expected a share of the training time above 0, such as 0.05, or None")
        self.folder = self._wanted_folder = Path(folder)
        self.budget = Budget(budget, steps)
        wanted = [int(index) for members in groups.values() for index in members] if isinstance(groups, Mapping) else []
        self._meeting = Meeting()
        self._tracking = Tracking(
            partial(TrackingSet, dataset, per_sample_loss, track, batch_size, seed, ids, wanted),
            Schedule(every, consecutive, sharpness_every, self.budget),
            Shown(show, label, class_names, groups),
            self._meeting.wait,
        )
        self._watch = StepWatch(dataset, ids, self._safely)
        self.record: Record
        self._steps = steps
        self._per_sample_loss = per_sample_loss
        self._collate = collate
        self._open = ExitStack()
        self._origin: dict[str, Any] = {}  # empty while no training runs
        self._state: dict[str, Any] | None = None  # from the checkpoint that training resumes from
        self._continuation: dict[str, Any] | None = None  # state from which a second call of fit continues
        self._number = self._first = 0
        self._optimizer: Any = None  # of the last step
        self._buffer = StepBuffer()
        self._ended = ""  # why recording has ended

    @property
    def examples(self) -> TrackingSet:
        """The examples that are followed."""
        return self._tracking.examples

    @property
    def drawn(self) -> DrawnIndices:
        """The indices that the loader has drawn."""
        return self._watch.drawn

    # -- a plain loop -------------------------------------------------------------------------------------------

    def batches(self, loader: DataLoader[Any]) -> Iterator[Any]:
        """The batches of ``loader``, whose indices the follower then knows."""
        self._collate = self._collate or _collate_of(loader)
        self.drawn.watch(loader)
        yield from loader

    def step(
        self,
        model: nn.Module,
        optimizer: Optimizer | Iterable[Optimizer],
        *,
        batch: Any = None,
        batch_indices: Any = None,
    ) -> AbstractContextManager[Step]:
        """Context around forward, backward and ``optimizer.step()`` of a batch.

        With gradient accumulation, each micro-batch has a context of its own. Together they are one step, which ends
        with the micro-batch at which an optimizer steps.

        Args:
            model: Passed to ``per_sample_loss``.
            optimizer: One optimizer or several.
            batch: Passed to ``per_sample_loss`` for the losses of the batch's rows; None takes the arguments of the
                model's call, which suits a model that gets inputs and targets.
            batch_indices: ``[n]`` indices of the batch's examples in the data set; None asks the loader given to
                `batches`.

        Raises:
            InputError: At the first step: data, a loss function or a setting that cannot work.
        """
        return _Block(self, partial(self._enter, model, optimizer, batch, batch_indices))

    def _enter(self, model: nn.Module, optimizer: Any, batch: Any, batch_indices: Any) -> Step:
        if not self._origin and self._ended in ("", _CLOSED):
            model = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
            self.begin(model, _listed(optimizer))
        elif optimizer is not self._optimizer:
            self._safely("following the optimizers", self._watch.optimizers.follow, _listed(optimizer))
        self._optimizer = optimizer
        return self.open(batch, batch_indices)

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
        """Begin or resume the training: read the first examples, check the losses, and open the record.

        Args:
            model: The model in training.
            optimizers: At least one.
            step: Step at which training resumes; None: at the follower's own count.
            to_device: Batch ↦ the batch as the training step gets it; None moves it to the model's device.
            context: Context in which a training step computes, such as the autocast of mixed precision.
            loader: The training's loader: its sampler gives a batch's indices, its ``collate_fn`` builds a batch.
            iterator: The loader's iterator, if it has already begun to draw.
            described: Further entries of the record's configuration.
            hooks: Whether the optimizers' own hooks report their steps.

        Raises:
            InputError: Data, a loss function or a folder that cannot work.
        """
        if not isinstance(model, nn.Module):
            raise InputError(f"model is a {type(model).__name__}: expected a torch.nn.Module")
        if not optimizers:
            raise InputError("no optimizer: expected at least one, whose steps are counted")
        goes_on = self._goes_on(step)
        parameter = next(model.parameters(), None)
        device = torch.device("cpu") if parameter is None else parameter.device
        self._ended, self._tracking.stopped = "", self._restored("stopped") or ""
        self._meeting.begin()
        self.budget.begin()
        try:
            with self.budget.measuring("reading"):
                collate = self._collate or _collate_of(loader)
                calls = self._tracking.read(model, device, collate, to_device or on_device(device), context)
                if goes_on is None:
                    self.folder = free_folder(self._wanted_folder)
                    schedule, budget = self._tracking.schedule, self.budget.share
                    settings = {"every": schedule.every, "consecutive": schedule.consecutive, "budget": budget}
                    settings |= {"sharpness_every": schedule.sharpness_every, **(described or {})}
                    configuration = configuration_of(self.folder.name, model, innermost(optimizers[0]), settings)
                else:
                    configuration = Record(self.folder).configuration
                self.record = self._open.enter_context(writing(self.folder, configuration))
        except BaseException:
            self.budget.end()
            self._open.close()
            raise
        try:
            with self.budget.measuring("reading"):
                self._origin = {
                    **environment(device),
                    "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
                    "tensors": [name for name, p in model.named_parameters() if p.requires_grad],
                }
                self._number = self._first if goes_on is None else goes_on
                self.record.cut(self._number, self._restored("rows"))
                self.record.write_state("running")
                self._watch.begin(model, self._per_sample_loss, calls, context, optimizers, hooks)
                if loader is not None:
                    self.drawn.watch(loader, iterator)
                self._tracking.begin(self.record, self.folder, self._first, self._restored("indices"))
                self._write_origin()
        except BaseException:
            self._close(None, has_others=False)
            raise
        self._state = None
        _open_followers.add(self)

    def expect(self, steps: int | None) -> None:
        """Set the number of steps that a framework expects, unless the user has given one."""
        self.budget.steps = steps if self._steps is None else self._steps

    def _goes_on(self, step: int | None) -> int | None:
        """The step to which an earlier record is cut back; None for a new record."""
        state = self._state
        if state is not None and state["begun"] and (self.folder / "configuration.json").is_file():
            return int(state["number"] if step is None else step)
        if self._continuation is not None and step is not None and step == self._number > 0:
            self._state = self._continuation  # fit is called again and continues
            return step
        self._first = step or (int(state["number"]) if state is not None and state["begun"] else 0)
        if state is None or not state["begun"]:  # a new training begins
            self._buffer = StepBuffer()
            self._tracking.forget(is_read=bool(self._ended))
        return None

    def _restored(self, name: str) -> Any:
        return self._state[name] if self._state is not None and self._state["begun"] else None

    def close(self, state: str | None = "complete") -> None:
        """End the training and complete the record.

        Args:
            state: None leaves the record as that of an interrupted run.
        """
        if self._origin:
            ended = self._tracking.stopped or state
            self._safely("closing the record", lambda: self._close(ended, has_others=state is not None))
        self._let_go()

    def _close(self, state: str | None, has_others: bool = True) -> None:
        """End the record with ``state``; ``has_others`` if other processes do the same now and can be waited for."""
        try:
            if self._watch.is_complete:
                self._note_step()
            self._buffer.write(self.record, with_others=has_others and self._have_others_ended())
            if self._watch.missing:
                self._origin["batch_rows"] = self._watch.missing
            self._write_origin()
            if state is not None:
                self.record.write_state(state)
                self._continuation = self._as_state()
        finally:
            self._let_go()

    def _have_others_ended(self) -> bool:
        try:
            self._meeting.wait(f"the end, step {self._number}", is_end=True)
        except InputError as error:
            log.warning("opposing signals: %s; its rows of the last steps are not written", error)
            return False
        return True

    def _let_go(self) -> None:
        self._meeting.leave(self._ended or "it has ended")
        self.budget.end()
        self._ended = self._ended or _CLOSED
        self._origin, self._optimizer = {}, None
        self._buffer.clear()
        self._watch.end()
        self._open.close()
        _open_followers.discard(self)

    def _write_origin(self) -> None:
        seconds = {"training_seconds": self.budget.seconds, "measuring_seconds": self.budget.spent}
        self.record.write_provenance(
            {
                **self._origin,
                **self._tracking.described,
                **{name: round(value, 3) for name, value in seconds.items()},
                "steps": self._number,
                "measured": len(self.record[quantities.SAMPLE_LOSS]) if quantities.SAMPLE_LOSS in self.record else 0,
            }
        )

    def _safely(self, what: str, work: Callable[..., Any], *arguments: Any) -> Any:
        """The result of ``work``; if it fails, the record ends with the reason and training goes on."""
        try:
            return self.budget.watching(work, *arguments)
        except Exception as error:
            self._give_up(f"stopped: {what} failed at step {self._number}: {first_line(error)}")
            return None

    def _give_up(self, reason: str) -> None:
        log.warning("opposing signals: %s; training goes on, the record ends here", reason)
        self._ended = self._tracking.stopped = reason
        try:
            self._close(reason, has_others=False)
        except Exception as error:  # for instance a full disk
            log.warning("opposing signals: %s", first_line(error))

    # -- the steps ----------------------------------------------------------------------------------------------

    def open(self, batch: Any = None, batch_indices: Any = None) -> Step:
        """A batch begins: measure θ_t if a measurement is due and this is the step's first batch; observe the step."""
        if self._origin:
            self._safely("watching the batch", self._open_batch, batch, batch_indices)
        return self._watch.step or Step()

    def shut(self, failed: bool = False) -> None:
        """The batch is over; the step is, too, if an optimizer has stepped."""
        if self._origin:
            self._safely("noting the batch", self._shut_batch, failed)

    def at_gradient(self, optimizer: Optimizer) -> None:
        """``optimizer`` has its gradient and steps now; for adapters of frameworks that report it."""
        self._watch.optimizers.at_gradient(optimizer)

    def add_loss(self, loss: Any) -> None:
        """Add a batch's part of the step's own loss; for adapters of frameworks that report it."""
        self._watch.add_loss(loss)

    def check_order(self) -> None:
        """An epoch begins: check that an index still refers to the same example."""
        if self._origin:
            try:
                self._tracking.check_order()
            except Exception as error:
                self._give_up(f"stopped: {first_line(error)}")

    def _open_batch(self, batch: Any, batch_indices: Any) -> None:
        if self._watch.is_complete:  # an optimizer has stepped after the last batch
            self._advance()
        if self._watch.step is None:
            self.budget.count_step()
            if self._number % SHARED_LOOK == 0:
                self._meeting.wait(f"step {self._number}")
            if self._tracking.is_turn(self._number):
                self._safely("measuring", self._measure)
        if self._origin:
            self._watch.open(self._number, batch, batch_indices)

    def _shut_batch(self, failed: bool) -> None:
        self._watch.shut()
        if not failed and self._watch.is_complete:
            self._advance()

    def _measure(self) -> None:
        self._meeting.wait(f"measuring, step {self._number}")
        if self._tracking.measure(self._number):
            self._write_origin()

    def _note_step(self) -> bool:
        """The step is complete: buffer it, without synchronizing with the device. True if it is time to write."""
        step = self._watch.take()
        self._number += 1
        is_full = self._buffer.add(step)
        self._tracking.look(step)
        return is_full

    def _advance(self) -> None:
        if self._note_step():
            with self.budget.measuring("writing"):
                self._write_steps()

    def _write_steps(self) -> None:
        if self._watch.is_complete:
            self._note_step()
        self._meeting.wait(f"writing, step {self._number}")
        self._buffer.write(self.record)

    # -- exact resume -------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The state that lets a resumed run measure at the same steps as an uninterrupted one.

        The record is written up to this step first, so that a checkpoint never claims a step that the record lacks. All
        processes must call this together.
        """
        if self._origin:
            self._safely("writing", self._write_steps)
        if self._origin:
            self._safely("writing", self.record.sync)
        return self._as_state()

    def _as_state(self) -> dict[str, Any]:
        begun = bool(self._origin)
        return {
            "begun": begun,
            "number": self._number,
            "budget": self.budget.state_dict(),
            **self._tracking.state_dict(),
            "rows": self.record.rows if begun else None,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore `state_dict`, before training goes on."""
        if not state_dict["begun"]:
            return
        self.budget.load_state_dict(state_dict["budget"])
        self._tracking.load_state_dict(state_dict)
        self._number = self._first = state_dict["number"]
        self._buffer.clear()
        self._state = state_dict


class _Block(AbstractContextManager[Step]):
    """`Follower.step`. A generator would take longer than much of the work inside it."""

    def __init__(self, follower: Follower, enter: Callable[[], Step]) -> None:
        self._follower = follower
        self._enter = enter

    def __enter__(self) -> Step:
        return self._enter()

    def __exit__(self, kind: Any, *_: Any) -> None:
        self._follower.shut(failed=kind is not None)


_open_followers: weakref.WeakSet[Follower] = weakref.WeakSet()


@atexit.register
def _close_at_exit() -> None:
    """If a script ends without `Follower.close`, close its record, as complete only if the script did not fail."""
    for follower in list(_open_followers):
        follower.close(None if hasattr(sys, "last_value") else "complete")


def _listed(optimizer: Optimizer | Iterable[Optimizer]) -> list[Optimizer]:
    return [optimizer] if isinstance(optimizer, Optimizer) else list(optimizer)


def _collate_of(loader: Any) -> Collate | None:
    """The collate function of a loader; None if it has none."""
    return loader.collate_fn if isinstance(loader, DataLoader) and loader.batch_size is not None else None
