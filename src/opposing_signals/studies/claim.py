"""A claim: a statement with its source, a statistic of the runs, and a threshold fixed before any run."""

from __future__ import annotations

import inspect
import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, Literal

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from opposing_signals.errors import InputError, MissingQuantityError
from opposing_signals.signals.trajectory import Runs, Trajectory

PASS, FAIL, INCONCLUSIVE, NOT_RUN = "PASS", "FAIL", "INCONCLUSIVE", "NOT RUN"
_LEAST_TEXT = 30
"""Minimum width of a statement in a table, in columns."""
_FRAME = 3
"""Columns of frame and padding per cell of a table."""
COLOURS = {PASS: "green", FAIL: "red", INCONCLUSIVE: "yellow", NOT_RUN: "dim"}


class CannotTellError(Exception):
    """The statistic cannot be computed from the runs; the message says why."""


@dataclass(frozen=True)
class Estimate:
    """A measured statistic.

    Attributes:
        value: Value of the statistic.
        interval: 95% interval of the value; None if none was computed.
        reason: A remark on the value.
        decides: False if the value has no known interval and is too uncertain for a verdict.
    """

    value: float
    interval: tuple[float, float] | None = None
    reason: str = ""
    decides: bool = True


Statistic = Callable[[Mapping[str, Trajectory]], Estimate]


class Threshold:
    """``"< -0.8"``, ``"> 5"``, ``">= 0.5"``, ``"<= 1"`` or ``"in [0.8, 2.0]"``.

    Raises:
        InputError: The text has another form.
    """

    _COMPARISONS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}  # noqa: RUF012

    def __init__(self, text: str) -> None:
        self.text = text
        number = r"([-+\d.eE]+)"
        if match := re.fullmatch(rf"(<|<=|>|>=) *{number}", text):
            compare, bound = self._COMPARISONS[match[1]], float(match[2])
            self._holds: Callable[[float], bool] = lambda value: compare(value, bound)
            self._inside = math.inf if ">" in match[1] else -math.inf
        elif match := re.fullmatch(rf"in \[{number}, *{number}\]", text):
            low, high = float(match[1]), float(match[2])
            self._holds = lambda value: low <= value <= high
            self._inside = (low + high) / 2
        else:
            raise InputError(f"threshold={text}: expected something like '< -0.8' or 'in [0.8, 2.0]'")

    def holds(self, value: float) -> bool:
        return self._holds(value)

    def verdict(self, estimate: Estimate) -> str:
        """PASS if all of the estimate's interval meets the threshold, FAIL if none of it does, else INCONCLUSIVE.

        A value without an interval is exact and decides by itself, unless `Estimate.decides` is False.
        """
        low, high = estimate.interval or (estimate.value, estimate.value)
        if not estimate.decides or not all(map(math.isfinite, (estimate.value, low, high))):
            return INCONCLUSIVE
        if self.holds(low) and self.holds(high):
            return PASS
        meets_nowhere = not self.holds(low) and not self.holds(high) and not low <= self._inside <= high
        return FAIL if meets_nowhere else INCONCLUSIVE


@dataclass(frozen=True)
class Verdict:
    """The outcome of a claim: the fields of ``claims.json``, in its order.

    Attributes:
        value: Value of the statistic; over several seeds their median. None if it is unknown.
        seed: Seed of the run, or the seeds.
        reason: Why there is no value or no decision, or a remark on the value.
        by_seed: Over several seeds: seed, value, interval and verdict of each.
    """

    id: str
    statement: str
    source: str
    statistic: str
    threshold: str
    value: float | None
    interval: list[float] | None
    verdict: str
    scale: str
    data: str
    seed: int | list[int]
    reason: str = ""
    by_seed: list[dict[str, Any]] = field(default_factory=list)

    def of_seed(self, seed: int) -> Verdict:
        """The verdict at one of several seeds; this one, if the claim is about all of them."""
        for one in self.by_seed:
            if one["seed"] == seed:
                return replace(self, **one, reason="", by_seed=[])
        return self

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Claim:
    """A statement that the runs confirm or refute.

    Attributes:
        id: For instance ``"fig01a"``.
        statement: What is claimed, in a sentence.
        source: Where the paper claims it.
        statistic: Runs by name ↦ `Estimate`, or raises CannotTellError; the first line of its docstring describes it.
        threshold: One text, or one per scale.
        seeds: For runs that differ in their seed: ``"each"`` evaluates the statistic per seed, ``"together"`` on all of
            them, to compare seeds.
    """

    id: str
    statement: str
    source: str
    statistic: Statistic
    threshold: str | Mapping[str, str]
    seeds: Literal["each", "together"] = "each"

    def bound(self, scale: str) -> Threshold:
        """The threshold at a scale.

        Raises:
            InputError: There is none, or its text is malformed.
        """
        by_scale = {scale: self.threshold} if isinstance(self.threshold, str) else self.threshold
        if scale not in by_scale:
            raise InputError(f"claims.{self.id}.threshold: none at scale={scale}; there are {', '.join(by_scale)}")
        try:
            return Threshold(by_scale[scale])
        except InputError as error:
            raise InputError(f"claims.{self.id}.{error}") from None

    def check(self, trajectories: Mapping[str, Trajectory], scale: str, seed: int) -> Verdict:
        """The verdict on these runs.

        INCONCLUSIVE: the runs cannot decide, or the interval of the value contains the threshold. NOT RUN: there are no
        runs.
        """
        runs = Runs.of(trajectories)
        seeds = runs.by_seed()
        if self.seeds == "together" or len(seeds) < 2:
            return self._check(runs, scale, seed)
        checked = over_seeds([self._check(runs_of_one, scale, one) for one, runs_of_one in seeds.items()])
        lost = [name for name in runs.failures if name not in runs.stopped]  # their seed is unknown
        if lost and checked.verdict == PASS:
            return replace(checked, verdict=INCONCLUSIVE, reason=f"{checked.reason}; failed: {', '.join(lost)}")
        return checked

    def _check(self, trajectories: Runs, scale: str, seed: int) -> Verdict:
        threshold = self.bound(scale)
        estimate, verdict = Estimate(math.nan), NOT_RUN
        reason = "; ".join(trajectories.failures.values()) or "the run is missing"
        if trajectories:
            try:
                with np.errstate(divide="ignore", invalid="ignore"):  # a non-finite value decides nothing
                    estimate = self.statistic(trajectories)
            except ZeroDivisionError:
                estimate = Estimate(math.inf)
            except (CannotTellError, MissingQuantityError) as error:
                estimate = Estimate(math.nan, reason=str(error))
            if not isinstance(estimate, Estimate):
                raise InputError(f"claims.{self.id}.statistic gave {estimate!r}: expected an Estimate")
            verdict, reason = threshold.verdict(estimate), estimate.reason
        known = [estimate.value, *(estimate.interval or ())]
        if verdict == INCONCLUSIVE and not reason:
            finite = all(map(math.isfinite, known))
            reason = "the threshold lies in the interval" if finite else "the value or its interval is not finite"
        return Verdict(
            id=self.id,
            statement=self.statement,
            source=self.source,
            statistic=_description(self.statistic),
            threshold=threshold.text,
            value=estimate.value if math.isfinite(estimate.value) else None,
            interval=list(estimate.interval) if estimate.interval and all(map(math.isfinite, known)) else None,
            verdict=verdict,
            scale=scale,
            data=", ".join(dict.fromkeys(t.record.provenance["data"]["name"] for t in trajectories.values())),
            seed=seed,
            reason=reason,
        )


def over_seeds(verdicts: Sequence[Verdict]) -> Verdict:
    """Merge the verdicts on one claim at several seeds: it passes if every seed passes, and fails if any seed fails.

    The reason gives the number of seeds at which the claim passes.
    """
    passed = sum(verdict.verdict == PASS for verdict in verdicts)
    values = [verdict.value for verdict in verdicts if verdict.value is not None]
    together = INCONCLUSIVE
    if passed == len(verdicts):
        together = PASS
    elif any(verdict.verdict == FAIL for verdict in verdicts):
        together = FAIL
    reasons = [f"seed {one.seed}: {one.reason}" for one in verdicts if one.reason]
    return replace(
        verdicts[0],
        value=float(np.median(values)) if values else None,
        interval=None,
        verdict=together,
        data=", ".join(dict.fromkeys(verdict.data for verdict in verdicts)),
        seed=[seed for verdict in verdicts if isinstance(seed := verdict.seed, int)],
        reason="; ".join([f"passes in {passed} of {len(verdicts)} seeds", *reasons]),
        by_seed=[{name: getattr(one, name) for name in ("seed", "value", "interval", "verdict")} for one in verdicts],
    )


def _description(statistic: Statistic) -> str:
    function = statistic.func if isinstance(statistic, partial) else statistic
    first_line = (inspect.getdoc(function) or "").split("\n")[0].rstrip(".")
    keywords = statistic.keywords if isinstance(statistic, partial) else {}
    return first_line + "".join(f"; {name} = {value}" for name, value in keywords.items())


def verdict_table(verdicts: Sequence[Verdict], title: str, console: Console) -> RenderableType:
    """The verdicts for a terminal: as a table, or as a few lines each if a table is too narrow for the statements."""
    headings = ["claim", "threshold", "value", "95% interval", "verdict"]
    rows = [
        [
            verdict.id,
            verdict.threshold,
            "-" if verdict.value is None else f"{verdict.value:.3g}",
            "-" if verdict.interval is None else "{:.3g} to {:.3g}".format(*verdict.interval),
            verdict.verdict,
        ]
        for verdict in verdicts
    ]
    if all(verdict.interval is None for verdict in verdicts):
        for row in (headings, *rows):
            del row[3]
    statements = [escape(v.statement) + (f" [dim]({escape(v.reason)})[/]" if v.reason else "") for v in verdicts]
    whole = sum(max(map(len, column)) for column in zip(headings, *rows, strict=True))
    if whole + _LEAST_TEXT + _FRAME * (len(headings) + 1) + 1 <= console.width:
        table = Table(title=title, title_justify="left")
        for heading in (headings[0], "statement", *headings[1:]):
            table.add_column(heading, no_wrap=heading != "statement")
        for row, statement in zip(rows, statements, strict=True):
            table.add_row(row[0], statement, *row[1:-1], _coloured(row[-1]))
        return table
    lines: list[RenderableType] = [f"[italic]{title}[/]"]
    for (name, threshold, value, *interval, verdict), statement in zip(rows, statements, strict=True):
        details = [f"{value}, expected {threshold}", *(f"95% interval {it}" for it in interval if it != "-"), statement]
        lines += [f"[bold]{name}[/]  {_coloured(verdict)}", Padding("\n".join(details), (0, 0, 0, 2))]
    return Group(*lines)


def _coloured(verdict: str) -> str:
    return f"[{COLOURS[verdict]}]{verdict}[/]"
