"""How figures and the page show the followed examples: pictures or texts, classes, groups."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from opposing_signals.data.tracked import write_tracked
from opposing_signals.errors import InputError, first_line
from opposing_signals.follow.isolation import isolated

log = getLogger(__name__)

Groups = Mapping[str, Sequence[int]] | Callable[[Any], Any]
"""Name ↦ indices in the data set, or example ↦ name of its group (None: it is in none)."""


class Shown:
    """The user's description of an example.

    Args:
        show: Example ↦ picture ``[H, W]`` or ``[H, W, 3]`` uint8, or text. None shows what looks like a picture.
        label: Example ↦ its class. None takes y of a pair (x, y) if it is a whole number.
        class_names: Names of classes that are whole numbers.
        groups: Groups that are followed beside those that are found.

    Raises:
        InputError: Groups that are neither.
    """

    def __init__(
        self,
        show: Callable[[Any], Any] | None,
        label: Callable[[Any], Any] | None,
        class_names: Sequence[str] | None,
        groups: Groups | None,
    ) -> None:
        if not (groups is None or callable(groups) or isinstance(groups, Mapping)):
            raise InputError(
                f"groups is a {type(groups).__name__}: expected name ↦ indices in the data set, or example ↦ name"
            )
        self._show, self._label, self._class_names, self._groups = show, label, class_names, groups

    def write(self, folder: Path, indices: np.ndarray, examples: list[Any]) -> None:
        """Write it into the record's ``folder``; if a function of the user fails, the record omits its result.

        Args:
            folder: The record's folder.
            indices: ``[N]`` indices of the examples in the data set.
            examples: The N examples.

        Raises:
            InputError: A class has no name.
        """
        with isolated():
            classes = _tried("label", lambda: _each(self._label, examples) or _labels(examples))
            groups = _tried("groups", lambda: self._grouped(indices, examples))
            shown = _tried("show", lambda: _each(self._show, examples) or _pictures(examples))
        write_tracked(folder, indices, None, classes, self._class_names, groups)
        if shown is not None:
            _tried("show", lambda: write_tracked(folder, indices, shown, classes, self._class_names, groups))

    def _grouped(self, indices: np.ndarray, examples: list[Any]) -> list[str | None] | None:
        if self._groups is None:
            return None
        if callable(self._groups):
            given = [self._groups(example) for example in examples]
            return [None if name is None else str(name) for name in given]
        names = {int(index): str(name) for name, members in self._groups.items() for index in members}
        return [names.get(int(index)) for index in indices]


def _tried(what: str, work: Callable[[], Any]) -> Any:
    """The result of a user's function; None if it fails, since no measurement depends on it."""
    try:
        return work()
    except Exception as error:
        log.warning("%s failed, the record does without: %s", what, first_line(error))
        return None


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
    """y of each example (x, y), or its entry "label" or "labels", if all of them are whole numbers."""
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
