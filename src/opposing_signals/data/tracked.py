"""Training examples of a user's model, as a record keeps them: positions, classes, pictures or texts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from opposing_signals.data.dataset import Dataset
from opposing_signals.errors import DamagedError, InputError
from opposing_signals.files import replacing

FILE = "examples.npz"


def write_tracked(
    folder: Path,
    indices: np.ndarray,
    shown: Sequence[Any] | None,
    labels: Sequence[Any] | None,
    class_names: Sequence[str] | None,
    groups: Sequence[str | None] | None = None,
) -> None:
    """Store in a record's folder what `tracked` reads.

    Args:
        folder: Of the record.
        indices: ``[N]``, positions of the examples in the data set that was trained on.
        shown: A picture ``[H, W]`` or ``[H, W, 3]`` uint8, or a text, for each example; None for neither.
        labels: Class of each example; None if there are no classes.
        class_names: Names of classes 0, 1, ...; None uses the labels themselves as names.
        groups: Name of the group, among those that the user follows, of each example; None: in no group.

    Raises:
        InputError: An example is shown as neither picture nor text, the pictures differ in size, or a class has no
            name.
    """
    arrays: dict[str, np.ndarray] = {"index": np.asarray(indices, np.int64)}
    if labels is not None and class_names is not None:
        unnamed = [label for label in labels if not 0 <= int(label) < len(class_names)]
        if unnamed:
            raise InputError(f"class {unnamed[0]} has no name: class_names holds {len(class_names)}")
        arrays["label"] = np.array([int(label) for label in labels], np.int64)
        arrays["class_names"] = np.array([str(name) for name in class_names])
    elif labels is not None:
        classes = sorted(set(labels))
        arrays["label"] = np.array([classes.index(label) for label in labels], np.int64)
        arrays["class_names"] = np.array([str(name) for name in classes])
    if groups is not None:
        names = sorted({name for name in groups if name is not None})
        arrays["group"] = np.array([-1 if name is None else names.index(name) for name in groups], np.int64)
        arrays["group_names"] = np.array(names, dtype=np.str_)
    if shown is not None and all(isinstance(one, str) for one in shown):
        arrays["text"] = np.array(shown)
    elif shown is not None:
        arrays["image"] = _pictures(shown)
    with replacing(folder / FILE) as unfinished:
        np.savez_compressed(unfinished, **arrays)  # type: ignore[arg-type]


def _pictures(shown: Sequence[Any]) -> np.ndarray:
    pictures = [np.asarray(one) for one in shown]
    pictures = [np.repeat(one[..., None], 3, -1) if one.ndim == 2 else one for one in pictures]
    first = pictures[0]
    if any(
        one.dtype != np.uint8 or one.ndim != 3 or one.shape[-1] != 3 or one.shape != first.shape for one in pictures
    ):
        raise InputError(
            f"show returned an array of shape {list(first.shape)} and type {first.dtype}: expected a text, or pictures "
            "of one size, [height, width] or [height, width, 3] uint8"
        )
    return np.stack(pictures)


def tracked(folder: str | Path) -> Dataset:
    """The examples that a run of a user's model followed; example i is column i of its losses.

    Texts have the form of this package's text data, one token per character (the first token is empty, for padding),
    and ``class_names`` are the characters. Otherwise ``inputs`` ``[N, 1]`` hold each example's position in the data set
    that was trained on.

    Args:
        folder: Of the record.

    Raises:
        InputError: The record keeps no examples, or they are damaged.
    """
    arrays = _read(Path(folder) / FILE)
    checksum = hashlib.sha256(b"".join(np.ascontiguousarray(arrays[name]).tobytes() for name in sorted(arrays)))
    index = torch.from_numpy(arrays["index"])
    name = f"{len(index)} tracked examples"
    if "text" in arrays:
        tokens, names = _characters(arrays["text"].tolist())
        return Dataset(name, tokens[:, :-1], tokens[:, 1:], checksum.hexdigest(), names)
    return Dataset(
        name=name,
        inputs=index[:, None],
        targets=torch.from_numpy(arrays.get("label", np.zeros(len(index), np.int64))),
        checksum=checksum.hexdigest(),
        class_names=tuple(arrays["class_names"].tolist()) if "class_names" in arrays else ("example",),
        images=arrays.get("image"),
    )


def positions(folder: Path, examples: int) -> np.ndarray:
    """``[N]``: the position of each recorded example in the data set that was trained on.

    Args:
        folder: Of a record; without tracked examples it holds all of its data set.
        examples: N.

    Raises:
        DamagedError: The stored examples are damaged, or their number is not N.
    """
    path = folder / FILE
    if not path.exists():
        return np.arange(examples)
    index = _read(path, ("index",))["index"]
    if len(index) != examples:
        raise DamagedError(f"{path} holds {len(index)} examples, and the record losses of {examples}")
    return index


def user_groups(folder: str | Path) -> dict[str, np.ndarray]:
    """Name of each group that the user follows ↦ its columns of the losses; empty without groups.

    Args:
        folder: Of the record.

    Raises:
        DamagedError: The stored examples are damaged.
    """
    path = Path(folder) / FILE
    if not path.exists():
        return {}
    arrays = _read(path, ("index", "group", "group_names"))
    if "group" not in arrays:
        return {}
    return {str(name): np.flatnonzero(arrays["group"] == i) for i, name in enumerate(arrays["group_names"])}


_KINDS = {
    "index": ("i", 1),
    "label": ("i", 1),
    "class_names": ("U", 1),
    "group": ("i", 1),
    "group_names": ("U", 1),
    "text": ("U", 1),
    "image": ("u", 4),
}
"""Arrays that a run writes: name ↦ kind of its dtype, number of axes."""


def _read(path: Path, wanted: Sequence[str] = tuple(_KINDS)) -> dict[str, np.ndarray]:
    """The arrays among ``wanted`` that ``path`` holds, checked to be as `write_tracked` writes them."""

    def damage(said: str) -> DamagedError:
        expected = "expected what a run writes there; explain or report another record, or run the training again"
        return DamagedError(f"{path}: the examples cannot be read: {said}; {expected}")

    if not path.is_file():
        raise damage("there is no such file")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in wanted if name in file.files}
    except Exception as error:  # of many kinds: the file may be anything
        raise damage(" ".join(str(error).split()) or type(error).__name__) from None
    for name, array in arrays.items():
        if (array.dtype.kind, array.ndim) != _KINDS[name]:
            raise damage(f"{name} is {array.dtype} {array.shape}")
    rows = {len(array) for name, array in arrays.items() if name not in ("class_names", "group_names")}
    if "index" not in arrays or len(rows) != 1 or rows == {0} or (arrays["index"] < 0).any():
        raise damage("its arrays do not fit to each other")
    if "image" in arrays and (arrays["image"].dtype != np.uint8 or arrays["image"].shape[-1] != 3):
        raise damage("its pictures are no RGB")
    for numbers, names, least in (("label", "class_names", 0), ("group", "group_names", -1)):
        if numbers in arrays:
            given = arrays[numbers]
            if names not in arrays or given.min() < least or given.max() >= len(arrays[names]):
                raise damage(f"a {'class' if numbers == 'label' else 'group'} has no name")
    return arrays


def _characters(texts: list[str]) -> tuple[torch.Tensor, tuple[str, ...]]:
    """Tokens ``[N, T + 1]``, one per character and then padding, and the text of each token."""
    names = ("", *sorted({character for text in texts for character in text}))
    places = {name: place for place, name in enumerate(names)}
    tokens = torch.zeros(len(texts), max(map(len, texts)) + 1, dtype=torch.int64)
    for row, text in zip(tokens, texts, strict=True):
        row[: len(text)] = torch.tensor([places[character] for character in text])
    return tokens, names
