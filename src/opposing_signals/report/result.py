"""One experiment's result as the report shows it, read from the folder that the experiment wrote."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from opposing_signals.errors import InputError
from opposing_signals.networks import network_name
from opposing_signals.report.sentences import Shown

VERDICTS = ("PASS", "FAIL", "INCONCLUSIVE", "NOT RUN")
PNG_START, PNG_END = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"IEND\xaeB`\x82"
CLAIM_FIELDS = ("id", "statement", "source", "statistic", "threshold", "value", "interval", "verdict")
CHECK = "a check of the measurement"
"""The source of a claim that the paper does not make: it holds unless the code is wrong."""


@dataclass(frozen=True)
class Picture:
    """A PNG: its path, the SHA-256 of its bytes, its width and height in pixels."""

    path: Path
    sha256: str
    width: int
    height: int


@dataclass(frozen=True)
class Run:
    """One run from which a figure is drawn.

    Attributes:
        name: The experiment's name for the run.
        folder: Name of the folder that holds its record.
        settings: Its configuration, dotted field ↦ value in the notation of a command.
        provenance: The provenance in its record.
    """

    name: str
    folder: str
    settings: dict[str, str]
    provenance: Any

    def origin(self, *path: str) -> Any:
        """The entry of `provenance` at ``path``; None if there is none."""
        return entry(self.provenance, *path)

    @property
    def network(self) -> str:
        """Name of the trained network; empty if there is none."""
        model = self.settings.get("model", "")
        has_batch_norm = self.settings.get("model.batch_norm") == "true"
        return "" if model == "null" else network_name(model, self.settings.get("model.depth"), has_batch_norm)

    @property
    def trained(self) -> str:
        """The network with its width, and the number of training images, where known."""
        width, images = self.settings.get("model.width", ""), self.settings.get("data.images", "")
        parts = [self.network + (f" of width {width}" if width.isdecimal() else "")] if self.network else []
        return ", ".join([*parts, *([f"{int(images):,} images"] if images.isdecimal() else [])])

    @property
    def training_seconds(self) -> float | None:
        """Training time in seconds; None if it was not recorded."""
        seconds = self.origin("training_seconds")
        return seconds if isinstance(seconds, (int, float)) and math.isfinite(seconds) else None


@dataclass(frozen=True)
class Explorer:
    """The entry of a run's explorer on the page of all results.

    Attributes:
        folder: Name of the run's folder.
        link: Address of the explorer, relative to the page of all results; empty if there is none.
        summary: The run in a line.
        problem: Why there is no explorer.
        views: Views on which it can open, each in words and with its URL fragment; one per opposing pair.
    """

    folder: str
    link: str
    summary: str
    problem: str = ""
    views: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Result:
    """The content of one folder of an experiment.

    Attributes:
        folder: Where it was found, relative to the current folder or to the folder that was searched.
        name: The experiment's name; the folder's if the experiment's cannot be read.
        verdicts: The objects of ``claims.json``, each with every one of `CLAIM_FIELDS`.
        reasons: By claim id: why a claim has no value, or a remark on its value.
        notes: What the result says in words, one line each; leading spaces indent it.
        shown: A sentence, written by hand, on what it shows; None if there is none.
        picture: None if there is no figure.
        problems: What could not be read, one sentence each; the other attributes then hold the rest.
    """

    folder: str
    name: str
    title: str
    command: str
    scale: str
    seed: str
    drawn: str
    runs: tuple[Run, ...]
    verdicts: tuple[dict[str, Any], ...]
    reasons: dict[str, str]
    notes: tuple[str, ...]
    shown: Shown | None
    picture: Picture | None
    problems: tuple[str, ...]

    @classmethod
    def read(cls, folder: Path, label: str, shown: Shown | None = None) -> Result:
        """Read ``folder``, which the page calls ``label``. Malformed content becomes a problem, never an error.

        A sentence in ``shown`` is used only for the picture for which it was written.
        """
        problems: list[str] = []
        described = _read_json(folder / "experiment.json", dict, problems)
        if described is not None and not (described.get("name") and isinstance(described.get("runs"), dict)):
            problems.append("experiment.json does not say which experiment with which runs this is.")
        claims = _read_json(folder / "claims.json", list, problems)
        described = described or {}
        verdicts = tuple(_sound(claims or [], problems))
        given = described.get("runs")
        runs = tuple(_run(name, run) for name, run in given.items()) if isinstance(given, dict) else ()
        seeds = dict.fromkeys(run.settings["seed"] for run in runs if "seed" in run.settings)
        drawn = str(described.get("drawn", ""))
        return cls(
            folder=label,
            name=str(described.get("name") or folder.name),
            title=str(described.get("title") or described.get("name") or folder.name),
            command=str(described.get("command", "")),
            scale=str(described.get("scale", "unknown")),
            seed=", ".join(seeds) if len(seeds) > 1 else str(described.get("seed", "unknown")),
            drawn=drawn,
            runs=runs,
            verdicts=verdicts,
            reasons={str(claim["id"]): str(claim["reason"]) for claim in verdicts if claim.get("reason")},
            notes=tuple(str(note) for note in notes) if isinstance(notes := described.get("notes"), list) else (),
            shown=shown if shown and shown.drawn == drawn else None,
            picture=_read_picture(folder / "figure.png", problems),
            problems=tuple(problems),
        )

    @property
    def seeds(self) -> str:
        """For instance "seed 1" or "seeds 1, 2, 3"."""
        return f"seed{'s' if ', ' in self.seed else ''} {self.seed}"

    @property
    def networks(self) -> list[str]:
        """What its runs train, by name; empty where they train no network."""
        return sorted({network for run in self.runs if (network := run.network)})

    @property
    def outcome(self) -> str:
        """How many of the claims hold: ``all``, ``some`` or ``none``.

        ``undecided`` if none holds and none fails; empty if there are no claims except checks of the measurement.
        """
        verdicts = {claim["verdict"] for claim in self.verdicts if claim["source"] != CHECK}
        if VERDICTS[0] in verdicts:
            return "some" if len(verdicts) > 1 else "all"
        return ("none" if VERDICTS[1] in verdicts else "undecided") if verdicts else ""

    def place_in(self, folder: Path) -> str:
        """The result's path relative to ``folder``, with slashes; the result must have a picture."""
        assert self.picture is not None, "a result without one is malformed"
        return self.picture.path.parent.relative_to(folder.resolve()).as_posix()

    @cached_property
    def shared_settings(self) -> dict[str, list[tuple[str, str]]]:
        """The settings that all runs have in common: part of the configuration ↦ (field in it, value)."""
        shared: dict[str, list[tuple[str, str]]] = {}
        settings = self.runs[0].settings if self.runs else {}
        parts = {field.rpartition(".")[0] for field in settings}
        for field, value in settings.items():
            if field not in self.differing_settings:
                part, _, name = (field, "", "") if field in parts else field.rpartition(".")
                shared.setdefault(part or name, []).append((name if part else "", value))
        return shared

    @cached_property
    def differing_settings(self) -> list[str]:
        """The fields in which the runs differ."""
        fields = dict.fromkeys(field for run in self.runs for field in run.settings)
        return [field for field in fields if len({run.settings.get(field) for run in self.runs}) > 1]

    @property
    def data_sets(self) -> list[tuple[str, int | None, str]]:
        """(name, number of training examples, sha256) of every data set that the runs trained on."""
        found = [
            (str(run.origin("data", "name")), run.origin("data", "examples"), str(run.origin("data", "sha256") or ""))
            for run in self.runs
            if run.origin("data", "name")
        ]
        return list(dict.fromkeys((name, n if isinstance(n, int) else None, sha256) for name, n, sha256 in found))

    @property
    def training_seconds(self) -> float | None:
        """Training time of all runs together, in seconds; None if none was recorded."""
        noted = [run.training_seconds for run in self.runs if run.training_seconds is not None]
        return sum(noted) if noted else None

    @property
    def origins(self) -> dict[str, list[str]]:
        """Further provenance: label ↦ distinct values over the runs."""
        machines, versions = ([_entries(run.origin(part)) for run in self.runs] for part in ("machine", "versions"))
        listed = {
            "Machine": (
                ", ".join(f"{value} {name}" if isinstance(value, int) else str(value) for name, value in parts)
                for parts in machines
            ),
            "Commit": (str(run.origin("commit") or "") for run in self.runs),
            "Versions": (", ".join(f"{package} {version}" for package, version in parts) for parts in versions),
            "Records": (run.folder for run in self.runs),
        }
        distinct = {label: [value for value in dict.fromkeys(values) if value] for label, values in listed.items()}
        return {label: values for label, values in distinct.items() if values}


def _read_json(path: Path, kind: type, problems: list[str]) -> Any:
    """The content of ``path``; None, with a problem added, if it is not JSON of type ``kind``."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        problems.append(f"{path.name} is missing.")
    except OSError as error:
        problems.append(f"{path.name} cannot be read: {error.strerror}.")
    except ValueError as error:
        problems.append(f"{path.name} is not valid JSON: {error}.")
    else:
        if isinstance(content, kind):
            return content
        problems.append(f"{path.name} holds no {'object' if kind is dict else 'list'}.")
    return None


def _entries(tree: Any) -> Iterable[tuple[Any, Any]]:
    return tree.items() if isinstance(tree, dict) else ()


def _sound(claims: list[Any], problems: list[str]) -> Iterator[dict[str, Any]]:
    for number, claim in enumerate(claims, start=1):
        missing = [field for field in CLAIM_FIELDS if field not in claim] if isinstance(claim, dict) else CLAIM_FIELDS
        if missing:
            problems.append(f"claims.json: claim {number} has no {', '.join(missing)}.")
        elif claim["verdict"] not in VERDICTS:
            problems.append(f"claims.json: the verdict on {claim['id']} is none of {', '.join(VERDICTS)}.")
        else:
            yield _judged_again(claim)


def _judged_again(claim: dict[str, Any]) -> dict[str, Any]:
    """``claim``, but INCONCLUSIVE if an earlier PASS or FAIL is not decided by its interval."""
    value, interval = claim["value"], claim["interval"]
    numbers = [value, *interval] if isinstance(interval, list) and len(interval) == 2 else []
    decided = claim["verdict"] in VERDICTS[:2]
    if not decided or not numbers or not all(isinstance(x, (int, float)) and math.isfinite(x) for x in numbers):
        return claim
    from opposing_signals.studies.claim import INCONCLUSIVE, Estimate, Threshold  # needs torch

    try:
        verdict = Threshold(str(claim["threshold"])).verdict(Estimate(value, (interval[0], interval[1])))
    except InputError:
        return claim
    if verdict != INCONCLUSIVE:
        return claim
    reason = f"judged again: {claim['verdict']} by an earlier rule, but the threshold lies in the interval"
    return {**claim, "verdict": verdict, "reason": reason}


def _read_picture(path: Path, problems: list[str]) -> Picture | None:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        problems.append(f"{path.name} is missing: no figure was drawn.")
        return None
    except OSError as error:
        problems.append(f"{path.name} cannot be read: {error.strerror}.")
        return None
    if not (content.startswith(PNG_START) and content.endswith(PNG_END)):
        problems.append(f"{path.name} is not a whole PNG file.")
        return None
    width, height = struct.unpack(">II", content[len(PNG_START) :][:8])  # the first fields of the first chunk
    return Picture(path, hashlib.sha256(content).hexdigest(), width, height)


def _run(name: str, described: Any) -> Run:
    return Run(
        name=name,
        folder=str(entry(described, "folder") or ""),
        settings=dict(_settings(entry(described, "configuration") or {})),
        provenance=entry(described, "provenance"),
    )


def _settings(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """Dotted field and value of every leaf; a class or function is listed under its parent field."""
    if not isinstance(tree, dict):
        yield ".".join(path), tree if isinstance(tree, str) else json.dumps(tree, ensure_ascii=False)
        return
    for field, value in tree.items():
        if field == "_target_":
            yield ".".join(path), str(value).rpartition(".")[2]
        elif field != "_partial_" and (*path, field) not in {("job",), ("run", "name")}:
            yield from _settings(value, (*path, field))


def entry(tree: Any, *path: str) -> Any:
    """The entry of nested JSON objects at ``path``; None if there is none."""
    for name in path:
        tree = tree.get(name) if isinstance(tree, dict) else None
    return tree
