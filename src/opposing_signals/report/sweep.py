"""The outcome of a sweep whose jobs check the same claims, for instance over seeds."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from opposing_signals.configuration import job_folder
from opposing_signals.errors import DamagedError, first_line
from opposing_signals.files import replacing, write_json
from opposing_signals.record import Record
from opposing_signals.report.result import VERDICTS, Result
from opposing_signals.terminal import console

FILE = "sweep.json"
PICTURE = "sweep.png"


@dataclass(frozen=True)
class Across:
    """One claim over the jobs of a sweep.

    Attributes:
        values: Job ↦ measured value; None if the run could not decide.
        mean: Mean of the known values; None if there are none.
        deviation: Their sample standard deviation, with n - 1; None for fewer than two.
        passed: Number of jobs in which the claim holds.
        jobs: Number of jobs that checked it.
    """

    id: str
    statement: str
    threshold: str
    values: dict[str, float | None]
    mean: float | None
    deviation: float | None
    passed: int
    jobs: int


def conclude_sweep(folder: Path, jobs: Mapping[str, str]) -> None:
    """Summarize the claims of an experiment across the jobs of a sweep: a table, ``sweep.json`` and ``sweep.png``.

    Args:
        folder: The experiment's folder; each concluded job has a folder in it.
        jobs: Job label, for instance ``seed=1`` ↦ folder of the run's record, empty if there is none; jobs that were
            not concluded are left out.
    """
    places = {job: folder / job_folder(job) for job in jobs}
    concluded = {job: place for job, place in places.items() if (place / "claims.json").is_file()}
    claims = across(concluded)
    if not any(claim.jobs > 1 for claim in claims):
        return
    write_json(folder / FILE, [asdict(claim) for claim in claims])
    from opposing_signals.report.sweep_figure import seeds_over_each_other  # needs matplotlib
    from opposing_signals.studies import style

    records = {job: Record(record) for job, record in jobs.items() if record and job in concluded}
    described = Result.read(next(iter(concluded.values())), "").title
    title = f"{described}, over {len(concluded)} jobs"
    with style.look(), replacing(folder / PICTURE) as unfinished:
        style.save(seeds_over_each_other(title, records, claims), unfinished)
    shown = console()
    shown.print(_table(claims, title))
    shown.print(f"figure: {folder / PICTURE}\nsweep: {folder / FILE}", soft_wrap=True)


def read_sweep(folder: Path) -> list[Across]:
    """The claims of the sweep that was concluded in ``folder``; empty without a sweep.

    Raises:
        DamagedError: ``sweep.json`` is not what `conclude_sweep` writes.
    """
    path = folder / FILE
    if not path.is_file():
        return []
    try:
        return [Across(**claim) for claim in json.loads(path.read_text(encoding="utf-8"))]
    except (ValueError, TypeError) as error:
        raise DamagedError(f"{path} cannot be read: {first_line(error)}; make the sweep again") from None


def across(folders: dict[str, Path]) -> list[Across]:
    """Every claim over the jobs that checked it, in the order of the first job.

    Args:
        folders: Job ↦ folder of its result.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for job, folder in folders.items():
        for claim in Result.read(folder, job).verdicts:
            found.setdefault(claim["id"], {})[job] = claim
    results = []
    for claim_id, by_job in found.items():
        one = next(iter(by_job.values()))
        values = {job: claim["value"] for job, claim in by_job.items()}
        known = [value for value in values.values() if value is not None]
        mean = statistics.fmean(known) if known else None
        deviation = statistics.stdev(known) if len(known) > 1 else None
        passed = sum(claim["verdict"] == VERDICTS[0] for claim in by_job.values())
        results.append(
            Across(claim_id, one["statement"], one["threshold"], values, mean, deviation, passed, len(values))
        )
    return results


def _table(claims: list[Across], title: str) -> Table:
    table = Table(title=Text(title), title_justify="left")
    for column in ("claim", "passed", "mean", "spread", "threshold", "values"):
        table.add_column(column)
    for claim in claims:
        values = ", ".join(f"{job}: {_number(value)}" for job, value in claim.values.items())
        cells = (_number(claim.mean), _number(claim.deviation), claim.threshold, values)
        table.add_row(*map(Text, (claim.id, f"{claim.passed} of {claim.jobs}", *cells)))
    return table


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
