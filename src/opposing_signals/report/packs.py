"""The packed records of committed results, from which their explorers are built."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from opposing_signals.configuration import folder_name
from opposing_signals.errors import InputError
from opposing_signals.packing import SUFFIX, pack_run
from opposing_signals.record import Record
from opposing_signals.report.page import PACKS, find_records, find_results


@dataclass(frozen=True)
class Packed:
    """The outcome of `pack_results`.

    Attributes:
        written: The packed records.
        notes: For each run that was not packed, or packed without its training examples: the reason.
        deleted: Packed records of runs from which no result is drawn any more.
    """

    written: list[Path]
    notes: list[str]
    deleted: list[Path]


def pack_results(folder: Path, records: Sequence[Path], limit: int, only: Collection[str] = ()) -> Packed:
    """Pack the record of every run from which a result in ``folder`` is drawn, beside the result.

    A result in ``folder/cpu/fig01_group_losses`` has its runs' records in ``folder/cpu/runs``. A run is left as it is
    if its record is missing, or if another training of the same name is found in its place.

    Args:
        folder: Folder of the results.
        records: Folders with records, also packed ones; searched as for the report.
        limit: Maximum size of a packed record in bytes.
        only: Names of the experiments; empty for all.

    Raises:
        InputError: There are no results, or a record is damaged or does not fit.
        NotWrittenError: A packed record cannot be written.
    """
    results = find_results([folder])
    chosen = [result for result in results if result.picture and (not only or result.name in only)]
    if not chosen:
        wanted = f"results of {', '.join(only)}" if only else "results"
        raise InputError(f"no {wanted} in {folder}: expected folders with experiment.json, claims.json and figure.png")
    found = {place.resolve().name: place for place in find_records(records)}
    written, notes = [], []
    for result in chosen:
        for run in result.runs:
            name = folder_name(run.folder, f"{result.folder}/experiment.json: folder")
            path = (folder / result.place_in(folder)).parent / PACKS / f"{name}{SUFFIX}"
            if path in written:
                continue
            if name not in found:
                notes.append(f"{name}: there is no record of it in {', '.join(map(str, records))}")
                continue
            record = Record(found[name])
            if {field: value for field, value in record.provenance.items() if field != "packed"} != run.provenance:
                notes.append(f"{found[name]} is the record of another training than {result.folder} is drawn from")
                continue
            if why := pack_run(record, path, limit):
                notes.append(why)
            written.append(path)
    runs = {run.folder for result in results for run in result.runs}
    stale = [path for path in packed_records(folder) if path.name.removesuffix(SUFFIX) not in runs]
    for path in stale:
        path.unlink()
    return Packed(written, list(dict.fromkeys(notes)), stale)


def packed_records(folder: Path) -> list[Path]:
    """Every packed record beside the results in ``folder``."""
    return sorted(folder.glob(f"*/{PACKS}/*{SUFFIX}"))
