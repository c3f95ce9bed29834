"""How training examples are shown: by picture, text or numbers, or by their index alone."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from opposing_signals.data import Dataset
from opposing_signals.data.recorded import is_known
from opposing_signals.data.tokenizers import decode
from opposing_signals.data.tracked import FILE as TRACKED
from opposing_signals.errors import InputError
from opposing_signals.record.quantities import SAMPLE_LOSS
from opposing_signals.report.result import entry
from opposing_signals.signals import Trajectory

LONGEST_SIDE = 96
"""Largest side of a picture in pixels."""
COLUMNS = 8
"""Pictures per row of a sheet."""
LONGEST_TEXT = 600
"""Maximum number of characters of a text."""


@dataclass(frozen=True)
class Examples:
    """Pictures or captions of a run's training examples.

    Attributes:
        dataset: None if it is not available.
        problem: Why it is not available.
        kind: ``"image"``, ``"text"``, ``"number"`` or ``"none"``.
    """

    dataset: Dataset | None
    problem: str
    kind: str

    @classmethod
    def of(cls, trajectory: Trajectory) -> Examples:
        """The examples of a run, loaded again if they are one of the package's data sets and unchanged."""
        try:
            dataset = _same_data(trajectory)
        except InputError as error:
            said = without_place(error, trajectory.record.folder)
            return cls(None, f"Training examples are shown by their numbers: {said}.", "none")
        if dataset.images is not None:
            return cls(dataset, "", "image")
        if dataset.is_classification and dataset.targets.ndim == 2:
            return cls(dataset, "", "text")
        is_number = dataset.inputs.is_floating_point() and dataset.inputs[0].numel() <= 4
        return cls(dataset, "", "number" if is_number else "none")

    @property
    def class_names(self) -> list[str]:
        """Names of the classes; empty where a point has no class."""
        if self.dataset is None or not self.dataset.is_classification or self.dataset.targets.ndim > 1:
            return []
        return list(self.dataset.class_names) if len(self.dataset.class_names) > 1 else []

    def caption(self, point: int) -> str:
        """The class of training example ``point``, its numbers, or its text."""
        if self.dataset is None:
            return ""
        if self.class_names:
            return self.class_names[int(self.dataset.targets[point])]
        if self.kind == "text":
            text = decode(self.dataset.inputs[point].tolist(), self.dataset.class_names)
            return text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 1] + "…"
        if self.kind != "number":
            return ""
        x, y = (part[point].ravel()[:4].tolist() for part in (self.dataset.inputs, self.dataset.targets))
        return f"x = {', '.join(f'{v:.3g}' for v in x)}; y = {', '.join(f'{v:.3g}' for v in y)}".replace("-", "−")

    def sheet(self, points: np.ndarray) -> Image.Image:
        """The pictures of ``points``, `COLUMNS` per row, none larger than `LONGEST_SIDE`."""
        assert self.dataset is not None
        assert self.dataset.images is not None
        pictures = self.dataset.images[points]
        width, height = self.picture_size
        sheet = Image.new("RGB", (COLUMNS * width, -(-len(points) // COLUMNS) * height), "white")
        for place, picture in enumerate(pictures):
            image = Image.fromarray(picture)
            if image.size != (width, height):
                image = image.resize((width, height), Image.Resampling.LANCZOS)
            sheet.paste(image, (place % COLUMNS * width, place // COLUMNS * height))
        return sheet

    @property
    def picture_size(self) -> tuple[int, int]:
        """Width and height of a picture in a sheet."""
        assert self.dataset is not None
        assert self.dataset.images is not None
        height, width = self.dataset.images.shape[1:3]
        scale = min(1, LONGEST_SIDE / max(width, height))
        return max(1, round(width * scale)), max(1, round(height * scale))


def _same_data(trajectory: Trajectory) -> Dataset:
    """The data set on which the run was trained.

    Raises:
        InputError: It is not available, or has changed.
    """
    record = trajectory.record
    if not is_known(trajectory.configuration.get("data")):
        raise InputError("the run has data of its own")
    dataset = trajectory.dataset
    recorded = entry(record.provenance, "data", "sha256")
    if recorded is not None and not (record.folder / TRACKED).is_file() and recorded != dataset.checksum:
        raise InputError(
            "the data set found here is not the one that the run trained on "
            f"(sha256 {dataset.checksum[:12]}…, expected {str(recorded)[:12]}…)"
        )
    points = trajectory.losses.values.shape[1] if SAMPLE_LOSS in record else len(dataset)
    if points != len(dataset):
        raise InputError(f"the data set has {len(dataset):,} of them, and the record losses of {points:,}")
    return dataset


def without_place(error: InputError, folder: Path) -> str:
    """The message of ``error`` without the path of the record's ``folder``, which the page must not reveal."""
    name = folder.resolve().name
    return str(error).replace(f"{folder}{os.sep}", f"{name}: ").replace(str(folder), name)
