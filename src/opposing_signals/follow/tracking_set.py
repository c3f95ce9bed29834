"""The training examples whose losses are followed."""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from logging import getLogger
from typing import Any

import numpy as np
import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import nn
from torch.utils.data import IterableDataset, default_collate

from opposing_signals.curvature.risk import EmpiricalRisk
from opposing_signals.curvature.untouched import ModelState
from opposing_signals.errors import InputError, first_line
from opposing_signals.follow.fingerprint import fingerprint
from opposing_signals.follow.isolation import isolated
from opposing_signals.follow.per_sample import CHECKED, Losses, PerSampleLoss, check_single, sharded_parts
from opposing_signals.processes import alone

log = getLogger(__name__)

AUTOMATIC = 2000
"""Maximum number of followed examples if the user gives none."""

_REREAD = 4  # examples that are read again in each epoch, to check that they have not changed
_TIMED = 256  # first examples, read and timed if the cost decides how many are followed
_PATIENCE = 0.25  # seconds after which that ends

Collate = Callable[[list[Any]], Any]
"""Examples ↦ the batch that the training step gets."""


class TrackingSet:
    """Training examples, read once, and their losses under a module in training.

    Args:
        dataset: Has ``len`` and indexing, and must return the same example for the same index; or an
            `IterableDataset` with ``ids``, whose first examples are followed.
        per_sample_loss: See `PerSampleLoss`.
        track: Number of examples, drawn at random; or their indices; or None for as many as the budget allows, at most
            2,000.
        batch_size: Examples per forward pass.
        seed: Seed for drawing the examples.
        ids: Example ↦ its number, for an iterable data set.
        wanted: Indices of preferred examples: half of those drawn are taken from them, as long as they last.

    Raises:
        InputError: A setting that cannot work, a data set without indexing, or more examples than it has.
    """

    def __init__(
        self,
        dataset: Any,
        per_sample_loss: PerSampleLoss,
        track: int | Sequence[int] | None,
        batch_size: int,
        seed: int,
        ids: Callable[[Any], int] | None,
        wanted: Iterable[int] = (),
    ) -> None:
        if batch_size < 1:
            raise InputError(f"batch_size={batch_size}: expected at least 1")
        self.has_index = not isinstance(dataset, IterableDataset) and all(
            hasattr(dataset, name) for name in ("__len__", "__getitem__")
        )
        if not self.has_index and (ids is None or not hasattr(dataset, "__iter__")):
            raise InputError(
                f"train_dataset is a {type(dataset).__name__}: expected a data set with len() and an index, so that an "
                "example can be named; give a list of the examples to follow, or ids=, example ↦ its number"
            )
        self.dataset = dataset
        self.per_sample_loss = per_sample_loss
        self.is_sized_by_cost = track is None
        self._track, self._seed = track, seed
        self._ids = ids
        self._batch_size = batch_size
        self.examples: list[Any] = []
        self._prints: list[str] = []
        self._opaque: set[str] = set()
        self._batches: list[Any] = []
        self.indices = _chosen(track, len(dataset), seed, wanted) if self.has_index else np.empty(0, np.int64)
        self.batch_size = batch_size

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def available(self) -> str:
        """The number of examples to choose from, as text."""
        return str(len(self.dataset)) if self.has_index else "a stream of"

    def begin(
        self,
        module: nn.Module,
        collate: Collate | None,
        to_device: Callable[[Any], Any],
        context: Callable[[], AbstractContextManager[Any]],
    ) -> float:
        """Read the first examples, and check that their losses are those of single examples.

        Args:
            module: The module in training.
            collate: Examples ↦ batch; None: torch's own.
            to_device: Batch ↦ the batch as the training step gets it.
            context: Context in which a training step computes, such as the autocast of mixed precision.

        Returns:
            Seconds to read one example.

        Raises:
            InputError: An index returns a different example the second time; the loss is not one number per example.
        """
        self._collate, self._to_device, self._context = collate or default_collate, to_device, context
        with isolated():
            if not self.has_index:
                self._read_stream()
            began = time.perf_counter()
            first = min(_TIMED, len(self.indices)) if self.is_sized_by_cost else min(CHECKED, len(self.indices))
            while len(self.examples) < first and (
                len(self.examples) < CHECKED or time.perf_counter() - began < _PATIENCE
            ):
                self.examples.append(self._read(int(self.indices[len(self.examples)])))
            seconds = (time.perf_counter() - began) / max(1, len(self.examples))
            if self.has_index:
                self._check_rereading()
            checked = self.examples[:CHECKED]
            single = [self._batched([example]) for example in checked]
            with evaluation(module):
                check_single(module, self.per_sample_loss, self._batched(checked), single, context)
        return seconds

    def cost(self, module: nn.Module, device: torch.device) -> tuple[float, float]:
        """Seconds of a measurement: its fixed cost, and the cost per example.

        The examples read so far are timed while caches hold them. A measurement of all followed examples reads them
        from memory, which took twice as long with examples of 12 KB.
        """
        count = min(len(self.examples), self._batch_size)
        few, many = self._timed(module, device, 1), self._timed(module, device, count)
        return few, 2 * max((many - few) / max(1, count - 1), many / count / 10)

    def _timed(self, module: nn.Module, device: torch.device, count: int) -> float:
        seconds = []
        with isolated(), alone():
            batch = self._batched(self.examples[:count])
            risk = _risk(Losses(module, self.per_sample_loss, [batch], count, count, self._context), device)
            for _ in range(4):
                began = time.perf_counter()
                with isolated(), risk.probe():
                    module.eval()
                    risk.sample_losses().losses.float().cpu()
                seconds.append(time.perf_counter() - began)
        return sorted(seconds)[1]  # the median, because the first is slow

    def settle(self, kept: np.ndarray, multiple: int = 1) -> str:
        """Read the followed examples, and move them to the device.

        Args:
            kept: Their indices.
            multiple: Batches of one size come in multiples of this number, that of the processes that share the work.

        Returns:
            sha256 of the examples.
        """
        batches_each = -(-len(kept) // (self._batch_size * multiple))
        self.batch_size = max(1, len(kept) // (batches_each * multiple)) if multiple > 1 else self._batch_size
        if multiple > 1:
            kept = kept[: self.batch_size * batches_each * multiple]
        self.batch_size = min(self.batch_size, len(kept))
        with isolated():
            places = {int(index): place for place, index in enumerate(self.indices[: len(self.examples)])}
            read = [self.examples[places[int(i)]] if int(i) in places else self._read(int(i)) for i in kept]
            order = np.argsort(kept) if self.is_sized_by_cost else np.arange(len(kept))
            self.indices = kept[order]
            self.examples = [read[place] for place in order]
            self._prints = [self._fingerprint(example) for example in self.examples[:_REREAD]]
            self._batches = [
                self._batched(self.examples[first : first + self.batch_size])
                for first in range(0, len(self), self.batch_size)
            ]
        if self._opaque:
            log.warning(
                "fingerprints do not see inside %s: changes of such examples are not noticed", ", ".join(self._opaque)
            )
        return hashlib.sha256("".join(map(self._fingerprint, self._batches)).encode()).hexdigest()

    def risk(
        self,
        module: nn.Module,
        device: torch.device,
        context: Callable[[], AbstractContextManager[Any]],
        failed: Callable[[Exception], None] | None = None,
    ) -> EmpiricalRisk:
        """The mean loss of the examples as a function of the parameters of ``module``, in its own precision.

        Args:
            module: The module in training, or a copy of it.
            device: The module's device.
            context: Context in which every forward pass runs, such as the autocast of mixed precision.
            failed: See `Losses`.
        """
        form = Losses(module, self.per_sample_loss, self._batches, self.batch_size, len(self), context, failed)
        return _risk(form, device)

    def first_batch(self) -> Any:
        """The batch of the first examples that were read."""
        return self._batched(self.examples[:CHECKED])

    def check_order(self) -> None:
        """Check that indices still refer to the same examples.

        Raises:
            InputError: They do not.
        """
        if not self.has_index:
            return
        with isolated():
            again = [self._fingerprint(self.dataset[int(index)]) for index in self.indices[:_REREAD]]
        changed = [int(i) for i, one, other in zip(self.indices, self._prints, again, strict=False) if one != other]
        if changed:
            raise InputError(
                f"train_dataset[{changed[0]}] is another example than at the start of training: expected an order that "
                "stays; shuffle in the DataLoader (shuffle=True), not in the data set"
            )

    def _read(self, index: int) -> Any:
        try:
            return self.dataset[index]
        except Exception as error:
            raise InputError(
                f"train_dataset[{index}] fails ({type(error).__name__}: {first_line(error)}): expected an example at "
                f"each index from 0 to {len(self.dataset) - 1}"
            ) from None

    def _read_stream(self) -> None:
        assert self._ids is not None
        count = self._track if isinstance(self._track, int) else AUTOMATIC
        self.examples = list(itertools.islice(iter(self.dataset), count))
        if not self.examples:
            raise InputError("train_dataset is empty: expected at least one example")
        self.indices = np.array([int(self._ids(example)) for example in self.examples], np.int64)

    def _check_rereading(self) -> None:
        count = min(_REREAD, len(self.examples))
        if any(
            self._fingerprint(self._read(int(self.indices[i]))) != self._fingerprint(self.examples[i])
            for i in range(count)
        ):
            raise InputError(
                "train_dataset[i] gave another example when it was read again: expected the same each time; give "
                "the data set without random transforms (training may go on using them)"
            )

    def _fingerprint(self, example: Any) -> str:
        return fingerprint(example, self._opaque)

    def _batched(self, examples: list[Any]) -> Any:
        return self._to_device(self._collate(examples))


def _risk(losses: Losses, device: torch.device) -> EmpiricalRisk:
    positions = torch.arange(losses.examples, device=device)
    return EmpiricalRisk(
        losses,
        lambda outputs, _: outputs[:, 0],
        positions,
        positions,
        chunk=losses.batch_size,
        precision="unchanged",
        channels_last=False,
    )


@contextmanager
def evaluation(module: nn.Module) -> Iterator[None]:
    """Inside, ``module`` is in evaluation mode without gradients; modes and buffers are restored on exit."""
    with ModelState().kept(module), torch.no_grad():
        module.eval()
        try:
            yield
        finally:
            for part in sharded_parts(module):
                part.reshard()


def on_device(device: torch.device) -> Callable[[Any], Any]:
    """Batch ↦ the batch with everything movable in it on ``device``: tensors, and objects with a method ``to``."""

    class Movable(type):
        def __instancecheck__(cls, instance: Any) -> bool:
            return callable(getattr(instance, "to", None)) and not isinstance(instance, type)

    class HasTo(metaclass=Movable):
        pass

    def moved(batch: Any) -> Any:
        return apply_to_collection(batch, dtype=HasTo, function=lambda part: part.to(device))

    return moved


def _chosen(track: int | Sequence[int] | None, available: int, seed: int, wanted: Iterable[int] = ()) -> np.ndarray:
    """Indices to follow; in random order if the cost decides how many."""
    if available < 1:
        raise InputError("train_dataset is empty: expected at least one example")
    if track is None:
        return _drawn(min(available, AUTOMATIC), available, seed, wanted)
    if isinstance(track, int):
        if not 1 <= track <= available:
            raise InputError(f"track={track}: expected 1 to {available}, the number of training examples")
        return np.sort(_drawn(track, available, seed, wanted))
    indices = np.asarray(track, dtype=np.int64)
    if indices.ndim != 1 or not len(indices) or len(np.unique(indices)) < len(indices):
        raise InputError(f"track of shape {list(indices.shape)}: expected a list of different indices, at least one")
    if indices.min() < 0 or indices.max() >= available:
        wrong = indices[(indices < 0) | (indices >= available)][0]
        raise InputError(f"track holds the index {wrong}: expected 0 to {available - 1}, the data set's indices")
    return indices


def _drawn(count: int, available: int, seed: int, wanted: Iterable[int]) -> np.ndarray:
    """``[count]`` indices in random order, every other one from ``wanted`` until these are used up."""
    generator = np.random.default_rng(seed)
    drawn = generator.choice(available, count, replace=False)
    first = generator.permutation(np.unique(np.fromiter(wanted, np.int64)))
    if not len(first):
        return drawn
    if first.min() < 0 or first.max() >= available:
        wrong = first[(first < 0) | (first >= available)][0]
        raise InputError(f"groups holds the index {wrong}: expected 0 to {available - 1}, the data set's indices")
    turns = [turn for pair in itertools.zip_longest(first[:count], drawn) for turn in pair if turn is not None]
    return np.fromiter(dict.fromkeys(map(int, turns)), np.int64)[:count]
