"""The training examples whose losses are followed."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from torch.utils.data import IterableDataset, default_collate

from opposing_signals.curvature.risk import EmpiricalRisk
from opposing_signals.curvature.untouched import ModelState
from opposing_signals.data.tracked import write_tracked
from opposing_signals.errors import InputError
from opposing_signals.follow.per_sample import CHECKED, Losses, PerSampleLoss, check_single
from opposing_signals.follow.randomness import isolated
from opposing_signals.processes import alone

log = getLogger(__name__)

AUTOMATIC = 2000
"""How many examples are followed at the most where the user does not say."""

_REREAD = 4  # examples that are read again in each epoch, to see that they are still the same
_TIMED = 256  # examples that are read at first, and timed, where the cost decides how many are followed
_PATIENCE = 0.25  # seconds after which that ends

Collate = Callable[[list[Any]], Any]
"""Examples ↦ the batch that the training step gets."""

Groups = Mapping[str, Sequence[int]] | Callable[[Any], Any]
"""Name ↦ indices in the data set, or example ↦ name of its group (None: it is in none)."""


class TrackingSet:
    """Training examples, read once, and their losses under a module that trains on them.

    Args:
        dataset: With ``len`` and an index, which must give the same example whenever it is asked for; or an
            `IterableDataset` and ``ids``, whose first examples are followed.
        per_sample_loss: See `PerSampleLoss`.
        track: How many examples, drawn at random; or their indices; or None for as many as the budget allows, and
            2,000 at the most.
        batch_size: Examples a forward pass.
        seed: Of the drawing.
        show: Example ↦ picture ``[H, W]`` or ``[H, W, 3]`` uint8, or text. None shows what looks like a picture.
        label: Example ↦ its class. None takes y of a pair (x, y) if that is a whole number.
        class_names: Names of classes that are whole numbers.
        groups: Groups that are followed beside those that are found.
        ids: Example ↦ its number, of an iterable data set.

    Raises:
        InputError: A setting that cannot work, a data set without index, or more examples than it has.
    """

    def __init__(
        self,
        dataset: Any,
        per_sample_loss: PerSampleLoss,
        track: int | Sequence[int] | None,
        batch_size: int,
        seed: int,
        show: Callable[[Any], Any] | None,
        label: Callable[[Any], Any] | None,
        class_names: Sequence[str] | None,
        groups: Groups | None,
        ids: Callable[[Any], int] | None,
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
        self._settings = (
            dataset, per_sample_loss, track, batch_size, seed, show, label, class_names, groups, ids,
        )  # fmt: skip
        self.dataset = dataset
        self.per_sample_loss = per_sample_loss
        self.is_sized_by_cost = track is None
        self._track, self._seed = track, seed
        self._ids = ids
        self._batch_size = batch_size
        self._show, self._label, self._class_names, self._groups = show, label, class_names, groups
        self._examples: list[Any] = []
        self._prints: list[str] = []
        self._opaque: set[str] = set()
        self._losses: Losses
        self.indices = _chosen(track, len(dataset), seed) if self.has_index else np.empty(0, np.int64)
        self.batch_size = batch_size

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def available(self) -> str:
        """How many examples there are to choose from, for a reader."""
        return str(len(self.dataset)) if self.has_index else "a stream of"

    def begin(
        self,
        module: nn.Module,
        collate: Collate | None,
        to_device: Callable[[Any], Any],
        context: Callable[[], AbstractContextManager[Any]],
    ) -> float:
        """Read the first examples, and see that their losses are those of single examples.

        Args:
            module: In training.
            collate: Examples ↦ batch; None: torch's own.
            to_device: Batch ↦ the batch as the training step gets it.
            context: In which a training step computes, such as the autocast of mixed precision.

        Returns:
            Seconds that reading an example takes.

        Raises:
            InputError: An index gives another example the second time; the loss is not one number an example.
        """
        self._collate, self._to_device, self._context = collate or default_collate, to_device, context
        with isolated():
            if not self.has_index:
                self._read_stream()
            began = time.perf_counter()
            first = min(_TIMED, len(self.indices)) if self.is_sized_by_cost else min(CHECKED, len(self.indices))
            while len(self._examples) < first and (
                len(self._examples) < CHECKED or time.perf_counter() - began < _PATIENCE
            ):
                self._examples.append(self._read(len(self._examples)))
            seconds = (time.perf_counter() - began) / max(1, len(self._examples))
            if self.has_index:
                self._check_rereading()
            checked = self._examples[:CHECKED]
            single = [self._batched([example]) for example in checked]
            with self.evaluation(module):
                check_single(module, self.per_sample_loss, self._batched(checked), single, context)
        return seconds

    def cost(self, module: nn.Module, device: torch.device) -> tuple[float, float]:
        """Seconds of a measurement of no examples, and of each example more; of the examples read so far."""
        count = min(len(self._examples), self._batch_size)
        few, many = self._timed(module, device, 1), self._timed(module, device, count)
        return few, max((many - few) / max(1, count - 1), many / count / 10)

    def _timed(self, module: nn.Module, device: torch.device, count: int) -> float:
        seconds = []
        with isolated(), alone():
            batch = self._batched(self._examples[:count])
            risk = _risk(Losses(module, self.per_sample_loss, [batch], count, count), device)
            for _ in range(4):
                began = time.perf_counter()
                with isolated(), risk.probe(), self._context():
                    module.eval()
                    risk.sample_losses().losses.float().cpu()
                seconds.append(time.perf_counter() - began)
        return sorted(seconds)[1]  # the first is slow

    def settle(self, module: nn.Module, indices: np.ndarray | None, multiple: int = 1) -> str:
        """Read the examples that are followed, and bring them to the device.

        Args:
            module: In training.
            indices: Which; None for all that were chosen.
            multiple: Every batch has so many companions of the same size: as many processes share the work.

        Returns:
            sha256 of the examples.
        """
        kept = self.indices if indices is None else indices
        batches_each = -(-len(kept) // (self._batch_size * multiple))
        self.batch_size = max(1, len(kept) // (batches_each * multiple)) if multiple > 1 else self._batch_size
        if multiple > 1:
            kept = kept[: self.batch_size * batches_each * multiple]
        self.batch_size = min(self.batch_size, len(kept))
        with isolated():
            places = {int(index): place for place, index in enumerate(self.indices[: len(self._examples)])}
            read = [self._examples[places[int(i)]] if int(i) in places else self.dataset[int(i)] for i in kept]
            order = np.argsort(kept) if self.is_sized_by_cost else np.arange(len(kept))
            self.indices = kept[order]
            self._examples = [read[place] for place in order]
            self._prints = [self._fingerprint(example) for example in self._examples[:_REREAD]]
            batches = [
                self._batched(self._examples[first : first + self.batch_size])
                for first in range(0, len(self), self.batch_size)
            ]
        self._losses = Losses(module, self.per_sample_loss, batches, self.batch_size, len(self))
        if self._opaque:
            log.warning(
                "fingerprints do not see inside %s: changes of such examples are not noticed", ", ".join(self._opaque)
            )
        return hashlib.sha256("".join(map(self._fingerprint, batches)).encode()).hexdigest()

    def describe(self, folder: Path) -> None:
        """Write into the record's ``folder`` what a figure shows of the examples; what cannot be shown is left out.

        Raises:
            InputError: A class has no name.
        """
        examples, self._examples = self._examples, []
        with isolated():
            classes = self._tried(
                "label", lambda: [self._label(one) for one in examples] if self._label else _labels(examples)
            )
            groups = self._tried("groups", lambda: self._grouped(examples))
            shown = self._tried(
                "show", lambda: [self._show(one) for one in examples] if self._show else _pictures(examples)
            )
        write_tracked(folder, self.indices, None, classes, self._class_names, groups)
        if shown is not None:
            self._tried("show", lambda: write_tracked(folder, self.indices, shown, classes, self._class_names, groups))

    @staticmethod
    def _tried(what: str, work: Callable[[], Any]) -> Any:
        """What a function of the user gives; None if it fails: a measurement does not depend on it."""
        try:
            return work()
        except Exception as error:
            log.warning(
                "%s failed, the record does without: %s", what, (str(error) or type(error).__name__).splitlines()[0]
            )
            return None

    def _grouped(self, examples: list[Any]) -> list[str | None] | None:
        if self._groups is None:
            return None
        if callable(self._groups):
            given = [self._groups(example) for example in examples]
            return [None if name is None else str(name) for name in given]
        names = {int(index): str(name) for name, indices in self._groups.items() for index in indices}
        return [names.get(int(index)) for index in self.indices]

    def risk(self, device: torch.device) -> EmpiricalRisk:
        """The mean loss of the examples as a function of the module's parameters, in the module's own precision."""
        return _risk(self._losses, device)

    def first_batch(self) -> Any:
        """The batch of the first examples that were read."""
        return self._batched(self._examples[:CHECKED])

    def computing_in(self, context: Callable[[], AbstractContextManager[Any]]) -> None:
        """Let every further forward pass run in ``context()``, such as the autocast of mixed precision."""
        self._losses.context = context

    def check_order(self) -> None:
        """See that indices still name the same examples.

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

    def _read(self, place: int) -> Any:
        return self.dataset[int(self.indices[place])]

    def _read_stream(self) -> None:
        assert self._ids is not None
        count = self._track if isinstance(self._track, int) else AUTOMATIC
        self._examples = list(itertools.islice(iter(self.dataset), count))
        if not self._examples:
            raise InputError("train_dataset is empty: expected at least one example")
        self.indices = np.array([int(self._ids(example)) for example in self._examples], np.int64)

    def _check_rereading(self) -> None:
        count = min(_REREAD, len(self._examples))
        if any(self._fingerprint(self._read(i)) != self._fingerprint(self._examples[i]) for i in range(count)):
            raise InputError(
                "train_dataset[i] gave another example when it was read again: expected the same each time; give "
                "the data set without random transforms (training may go on using them)"
            )

    def _fingerprint(self, example: Any) -> str:
        return fingerprint(example, self._opaque)

    def _batched(self, examples: list[Any]) -> Any:
        return self._to_device(self._collate(examples))

    @staticmethod
    def evaluation(module: nn.Module) -> AbstractContextManager[Any]:
        """Inside, ``module`` is in evaluation mode and takes no gradients; modes and buffers are put back."""
        return _Evaluation(module)

    def anew(self) -> TrackingSet:
        """The same, before anything is read."""
        return TrackingSet(*self._settings)


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


class _Evaluation:
    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._kept = ModelState().kept(module)
        self._no_grad = torch.no_grad()

    def __enter__(self) -> None:
        self._kept.__enter__()
        self._no_grad.__enter__()
        self._module.eval()

    def __exit__(self, *error: Any) -> None:
        self._no_grad.__exit__(*error)
        self._kept.__exit__(*error)


def on_device(device: torch.device) -> Callable[[Any], Any]:
    """Batch ↦ the batch with everything in it on ``device`` that can be moved: tensors, and objects with ``to``."""

    class Movable(type):
        def __instancecheck__(cls, instance: Any) -> bool:
            return callable(getattr(instance, "to", None)) and not isinstance(instance, type)

    class HasTo(metaclass=Movable):
        pass

    def moved(batch: Any) -> Any:
        return apply_to_collection(batch, dtype=HasTo, function=lambda part: part.to(device))

    return moved


def fingerprint(example: Any, opaque: set[str] | None = None) -> str:
    """sha256 of the numbers and texts in an example: tensors, arrays, pictures, and containers and objects of them.

    Args:
        example: Of any kind.
        opaque: Gets the names of types that it cannot see inside.
    """
    digest = hashlib.sha256()
    passed: set[int] = set()

    def add(part: Any) -> None:
        if isinstance(part, Tensor):
            add_tensor(part.detach())
        elif isinstance(part, (np.ndarray, np.generic)) or hasattr(part, "__array_interface__"):
            digest.update(np.ascontiguousarray(part).tobytes())
        elif part is None or isinstance(part, (str, bytes, int, float, complex)):
            digest.update(repr(part).encode())
        elif id(part) not in passed:  # an object may hold itself
            passed.add(id(part))
            add_container(part)

    def add_container(part: Any) -> None:
        if isinstance(part, Mapping):
            for key in part:
                add(str(key))
                add(part[key])
        elif isinstance(part, (list, tuple)):
            for one in part:
                add(one)
        elif isinstance(part, (set, frozenset)):
            for one in sorted(part, key=repr):
                add(one)
        elif dataclasses.is_dataclass(part) and not isinstance(part, type):
            add({field.name: getattr(part, field.name) for field in dataclasses.fields(part)})
        elif vars_of := getattr(part, "__dict__", None):
            add(vars_of)
        elif opaque is not None:
            opaque.add(type(part).__name__)

    def add_tensor(tensor: Tensor) -> None:
        if tensor.layout is not torch.strided:
            tensor = tensor.to_sparse_coo().coalesce()
            add(list(tensor.shape))
            add_tensor(tensor.indices())
            add_tensor(tensor.values())
        else:
            digest.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())

    add(example)
    return digest.hexdigest()


def _chosen(track: int | Sequence[int] | None, available: int, seed: int) -> np.ndarray:
    """Indices to follow; where the cost decides how many, in random order."""
    if available < 1:
        raise InputError("train_dataset is empty: expected at least one example")
    if track is None:
        return np.random.default_rng(seed).choice(available, min(available, AUTOMATIC), replace=False)
    if isinstance(track, int):
        if not 1 <= track <= available:
            raise InputError(f"track={track}: expected 1 to {available}, the number of training examples")
        return np.sort(np.random.default_rng(seed).permutation(available)[:track])
    indices = np.asarray(track, dtype=np.int64)
    if indices.ndim != 1 or not len(indices) or len(np.unique(indices)) < len(indices):
        raise InputError(f"track of shape {list(indices.shape)}: expected a list of different indices, at least one")
    if indices.min() < 0 or indices.max() >= available:
        wrong = indices[(indices < 0) | (indices >= available)][0]
        raise InputError(f"track holds the index {wrong}: expected 0 to {available - 1}, the data set's indices")
    return indices


def _each(work: Callable[[Any], Any] | None, examples: list[Any]) -> list[Any] | None:
    return None if work is None else [work(example) for example in examples]


def _pictures(examples: list[Any]) -> list[np.ndarray] | None:
    """The first tensor ``[1 or 3, H, W]`` of each example, scaled from the darkest to the brightest; None if none."""
    tensors = [one[0] if isinstance(one, (list, tuple)) and len(one) else one for one in examples]
    shapes = {tuple(one.shape) if isinstance(one, Tensor) else () for one in tensors}
    shape = next(iter(shapes))
    if len(shapes) > 1 or len(shape) != 3 or shape[0] not in (1, 3) or min(shape[1:]) < 4:
        return None
    stacked = torch.stack(tensors).float()
    low, high = (stacked.flatten()[:: max(1, stacked.numel() // 100_000)].quantile(q) for q in (0.005, 0.995))
    scaled = ((stacked - low) / (high - low).clamp(min=1e-12) * 255).clamp(0, 255).round().byte()
    return list(scaled.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).cpu().numpy())


def _labels(examples: list[Any]) -> list[int] | None:
    """y of each example (x, y), or what one calls "label" or "labels", if all of them are whole numbers."""
    labels = []
    for example in examples:
        label = example[1] if isinstance(example, (list, tuple)) and len(example) == 2 else None
        if isinstance(example, Mapping):
            label = example.get("label", example.get("labels"))
        if isinstance(label, Tensor) and label.ndim == 0:
            label = label.item()
        if not isinstance(label, (int, np.integer)):
            return None
        labels.append(int(label))
    return labels
