"""The training examples whose losses are followed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.data import DataLoader, IterableDataset, Subset

from opposing_signals.curvature.risk import EmpiricalRisk
from opposing_signals.data.tracked import write_tracked
from opposing_signals.errors import InputError

PerSampleLoss = Callable[[Any, Any], Tensor]
"""(module, batch) ↦ ``[n]``, one loss an example of the batch."""

AUTOMATIC = 2000
"""How many examples are followed where the user does not say."""

_REREAD = 4  # examples that are read again in each epoch, to see that they are still the same


class TrackingSet:
    """Training examples, read once, and their losses under a module that trains on them.

    Args:
        dataset: With ``len`` and an index. An index must give the same example whenever it is asked for.
        per_sample_loss: See `PerSampleLoss`.
        track: How many examples, drawn at random; or their indices; or None for all, and 2,000 of a larger set.
        batch_size: Examples a forward pass.
        seed: Of the drawing.
        show: Example ↦ picture ``[H, W]`` or ``[H, W, 3]`` uint8, or text. None shows what looks like a picture.
        label: Example ↦ its class. None takes y of a pair (x, y) if that is a whole number.
        class_names: Names of classes that are whole numbers.

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
    ) -> None:
        if isinstance(dataset, IterableDataset) or not (
            hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
        ):
            raise InputError(
                f"train_dataset is a {type(dataset).__name__}: expected a data set with len() and an index, so that an "
                "example can be named; give a list of the examples to follow"
            )
        if batch_size < 1:
            raise InputError(f"batch_size={batch_size}: expected at least 1")
        self.dataset = dataset
        self.per_sample_loss = per_sample_loss
        self.indices = _chosen(track, len(dataset), seed)
        self.batch_size = min(batch_size, len(self.indices))
        self._show, self._label, self._class_names = show, label, class_names
        self._prints: list[str] = []
        self._losses: _Losses
        self._shown: Sequence[Any] | None = None
        self._classes: Sequence[Any] | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, trainer: Trainer, module: LightningModule) -> str:
        """Read the examples and bring them to the device.

        Args:
            trainer: Of the fit.
            module: In training.

        Returns:
            sha256 of the examples.

        Raises:
            InputError: An index gives another example the second time; the loss is not one number an example.
        """
        with isolate_rng():
            examples = [self.dataset[int(index)] for index in self.indices]
            prints = [fingerprint(example) for example in examples]
            again = [fingerprint(self.dataset[int(index)]) for index in self.indices[:_REREAD]]
            self._prints = prints[:_REREAD]
            if again != self._prints:
                raise InputError(
                    "train_dataset[i] gave another example when it was read again: expected the same each time; give "
                    "the data set without random transforms (training may go on using them)"
                )
            collate = getattr(trainer.train_dataloader, "collate_fn", None)
            few: Any = Subset(examples, range(len(examples)))  # type: ignore[arg-type]
            loader: DataLoader[Any] = DataLoader(few, self.batch_size, collate_fn=collate)
            batches = [_on_device(trainer, batch) for batch in loader]
            self._losses = _Losses(module, self.per_sample_loss, batches, self.batch_size, len(self))
            self._check_losses(trainer, module, collate)
            self._shown = [self._show(one) for one in examples] if self._show else _pictures(examples)
            self._classes = [self._label(one) for one in examples] if self._label else _labels(examples)
        return hashlib.sha256("".join(prints).encode()).hexdigest()

    def describe(self, folder: Path) -> None:
        """Write into the record's ``folder`` what a figure shows of the examples."""
        write_tracked(folder, self.indices, self._shown, self._classes, self._class_names)

    def risk(self) -> EmpiricalRisk:
        """The mean loss of the examples as a function of the module's parameters, in the module's own precision."""
        positions = torch.arange(len(self), device=self._losses.module.device)
        return EmpiricalRisk(
            self._losses,
            lambda outputs, _: outputs[:, 0],
            positions,
            positions,
            chunk=self.batch_size,
            precision="unchanged",
            channels_last=False,
        )

    def computing_in(self, context: Callable[[], AbstractContextManager[Any]]) -> None:
        """Let every further forward pass run in ``context()``, such as the autocast of mixed precision."""
        self._losses.context = context

    def check_order(self) -> None:
        """See that indices still name the same examples.

        Raises:
            InputError: They do not.
        """
        with isolate_rng():
            again = [fingerprint(self.dataset[int(index)]) for index in self.indices[:_REREAD]]
        changed = [int(i) for i, one, other in zip(self.indices, self._prints, again, strict=False) if one != other]
        if changed:
            raise InputError(
                f"train_dataset[{changed[0]}] is another example than at the start of training: expected an order that "
                "stays; shuffle in the DataLoader (shuffle=True), not in the data set"
            )

    def _check_losses(self, trainer: Trainer, module: LightningModule, collate: Callable[..., Any] | None) -> None:
        """Refuse a loss whose entries are not those of single examples, such as a mean that was spread out."""
        self._losses.context = trainer.precision_plugin.forward_context
        risk = self.risk()
        with risk.probe(), torch.no_grad():
            module.eval()
            first = self._losses(torch.arange(self.batch_size))[:, 0]
            if self.batch_size < 2 or not (first == first[0]).all():
                return
            loader: DataLoader[Any] = DataLoader([self.dataset[int(self.indices[0])]], 1, collate_fn=collate)  # type: ignore[arg-type]
            self._losses.context = nullcontext
            (alone,) = self._losses.of(_on_device(trainer, next(iter(loader))), 1)
        if not torch.isclose(alone, first[0], rtol=1e-2, atol=1e-6):
            raise InputError(
                f"per_sample_loss returned {float(first[0]):.4g} for each of {self.batch_size} examples, but "
                f"{float(alone):.4g} for the first of them alone: expected the loss of each example, not the batch's "
                "mean; use reduction='none'"
            )


class _Losses(nn.Module):
    """Positions in the tracking set ↦ ``[n, 1]`` losses: the form that `EmpiricalRisk` takes a model in."""

    def __init__(
        self,
        module: LightningModule,
        per_sample_loss: PerSampleLoss,
        batches: list[Any],
        batch_size: int,
        examples: int,
    ) -> None:
        super().__init__()
        self.module = module
        self.per_sample_loss = per_sample_loss
        self.batch = batches.__getitem__  # a list of them would count as state of the model
        self.batch_size = batch_size
        self.examples = examples
        self.context: Callable[[], AbstractContextManager[Any]] = nullcontext

    def forward(self, positions: Tensor) -> Tensor:
        number = int(positions[0]) // self.batch_size
        first = number * self.batch_size
        losses = self.of(self.batch(number), min(self.batch_size, self.examples - first))
        return (losses if len(losses) == len(positions) else losses[positions - first])[:, None]

    def of(self, batch: Any, count: int) -> Tensor:
        with self.context():
            losses = self.per_sample_loss(self.module, self._in_float64(batch))
        shape = list(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
        if shape == [count]:
            return losses
        hint = "pass reduction='none' to the loss function"
        if isinstance(shape, list) and count in shape[:1]:
            hint = "take the mean over the other axes, for instance losses.flatten(1).mean(1)"
        elif isinstance(shape, list) and len(shape) == 1 and shape[0] % count == 0:
            hint = f"take the mean over what an example holds, for instance losses.view({count}, -1).mean(1)"
        raise InputError(
            f"per_sample_loss returned {f'shape {shape}' if isinstance(shape, list) else f'a {shape}'} for a batch of "
            f"{count} examples: expected [{count}], one loss an example; {hint}"
        )

    def _in_float64(self, batch: Any) -> Any:
        """The batch in the precision of the parameters while these are checked in float64."""
        if next(self.module.parameters()).dtype is not torch.float64:
            return batch

        def exact(part: Any) -> Any:
            return part.double() if isinstance(part, Tensor) and part.is_floating_point() else part

        return tree_map(exact, batch)


def fingerprint(example: Any) -> str:
    """sha256 of the numbers and texts in an example: tensors, arrays, pictures, and containers of them."""
    digest = hashlib.sha256()

    def add(part: Any) -> None:
        if isinstance(part, Mapping):
            for key in part:
                add(str(key))
                add(part[key])
        elif isinstance(part, (list, tuple)):
            for one in part:
                add(one)
        elif isinstance(part, Tensor):
            digest.update(part.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(part, (np.ndarray, np.generic)) or hasattr(part, "__array_interface__"):
            digest.update(np.ascontiguousarray(part).tobytes())
        elif isinstance(part, (str, bytes, int, float)):
            digest.update(repr(part).encode())

    add(example)
    return digest.hexdigest()


def _chosen(track: int | Sequence[int] | None, available: int, seed: int) -> np.ndarray:
    if available < 1:
        raise InputError("train_dataset is empty: expected at least one example")
    if track is None:
        track = min(available, AUTOMATIC)
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


def _on_device(trainer: Trainer, batch: Any) -> Any:
    """What Lightning's training loop does to a batch."""
    batch = trainer.precision_plugin.convert_input(batch)
    batch = trainer.lightning_module._on_before_batch_transfer(batch, dataloader_idx=0)
    return trainer.strategy.batch_to_device(batch, dataloader_idx=0)


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
    """y of each example (x, y), if all of them are whole numbers."""
    labels = []
    for example in examples:
        label = example[1] if isinstance(example, (list, tuple)) and len(example) == 2 else None
        if isinstance(label, Tensor) and label.ndim == 0:
            label = label.item()
        if not isinstance(label, (int, np.integer)):
            return None
        labels.append(int(label))
    return labels
