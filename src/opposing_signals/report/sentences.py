"""The two sentences beside a figure: what the paper's figure shows, and what ours shows. Neither can be computed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from opposing_signals.errors import InputError

FILE = "sentences.yaml"
"""File beside the results: path of a result's folder, relative to the file's ↦ ``shows`` and ``drawn``."""


@dataclass(frozen=True)
class Shown:
    """What a result shows.

    Attributes:
        sentence: The sentence.
        drawn: The time in ``experiment.json`` at which the picture of the sentence was drawn.
    """

    sentence: str
    drawn: str


@cache
def paper() -> dict[str, str]:
    """Experiment ↦ what the paper's figure shows; experiments without a figure in the paper are left out."""
    with resources.as_file(resources.files("opposing_signals.report") / "paper.yaml") as path:
        return {str(name): str(sentence) for name, sentence in OmegaConf.load(path).items()}


def shown(folder: Path) -> dict[Path, Shown]:
    """A result's folder ↦ what it shows, from the file `FILE` in ``folder``; empty without such a file.

    Raises:
        InputError: The file is malformed.
    """
    path = folder / FILE
    if not path.is_file():
        return {}
    try:
        return {
            (folder / str(place)).resolve(): Shown(str(entry["shows"]), str(entry["drawn"]))
            for place, entry in OmegaConf.load(path).items()
        }
    except (YAMLError, OmegaConfBaseException, OSError, ValueError, KeyError, TypeError) as error:
        said = " ".join(str(error).split())
        raise InputError(
            f"{path}: expected the folder of each result with the fields shows and drawn ({said})"
        ) from None
