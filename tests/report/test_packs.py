"""The packed records beside results: each run once, from the training that was drawn, and shown in the report."""

import json
from pathlib import Path

import pytest
from fabricated import write_result
from recorded import alternating, write_record

from opposing_signals.__main__ import main
from opposing_signals.errors import InputError
from opposing_signals.packing import SUFFIX, unpacked
from opposing_signals.record import Record
from opposing_signals.report import build, write_gallery
from opposing_signals.report.packs import pack_results, packed_records

RUNS = ("a-cpu-seed1-01234567", "b-cpu-seed1-89abcdef")


@pytest.fixture
def outputs(tmp_path, monkeypatch) -> Path:
    """Two records, and three results drawn from them."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for seed, name in enumerate(RUNS):
        write_record(tmp_path / "outputs" / "runs" / name, alternating(seed=seed))
    for experiment, runs in {"fig01": RUNS[:1], "fig02": RUNS[:1], "fig03": RUNS}.items():
        records = {name: Record(tmp_path / "outputs" / "runs" / name) for name in runs}
        described = {
            name: {"folder": name, "configuration": record.configuration, "provenance": record.provenance}
            for name, record in records.items()
        }
        write_result(tmp_path / "results" / "cpu" / experiment, runs=described)
    return tmp_path / "outputs"


def names(results: Path) -> list[str]:
    return [path.name.removesuffix(SUFFIX) for path in packed_records(results)]


def test_every_run_is_packed_once_and_explored(outputs) -> None:
    results = outputs.parent / "results"
    packed = pack_results(results, [outputs], 200_000)
    assert packed.written == [results / "cpu" / "runs" / f"{name}{SUFFIX}" for name in RUNS]
    assert (packed.notes, packed.deleted) == ([], [])
    assert names(results) == list(RUNS)
    gallery, _ = write_gallery(results)
    assert gallery.read_text().count(f"[record](cpu/runs/{RUNS[0]}{SUFFIX})") == 3
    page = build([results], outputs.parent / "page" / "index.html")
    text = page.read_text()
    for name in RUNS:
        assert (page.parent / "runs" / name / "index.html").is_file()
        assert f'href="runs/{name}/index.html#step=' in text, "a figure leads to the step of a pair"
    listed = (page.parent / "runs" / "runs.js").read_text()
    assert all(f"Title of {experiment}" in listed for experiment in ("fig01", "fig02", "fig03"))


def test_a_part_of_the_examples_is_told_as_such(outputs) -> None:
    results = outputs.parent / "results"
    pack_results(results, [outputs], 40_000, ["fig01"])
    assert names(results) == [RUNS[0]]
    page = build([results], outputs.parent / "page" / "index.html")
    (described,) = (page.parent / "runs").glob("*/data-*/run.js")
    run = json.loads(described.read_text().partition(", ")[2].removesuffix(");\n"))
    kept = Record(unpacked(*packed_records(results)))["sample_loss"].values.shape[1]
    assert kept < 300
    assert f"{kept} of 300 training examples" in run["summary"]
    assert any(f"{kept} of the run's 300 training examples are kept" in notice for notice in run["notices"])
    assert run["lossIs"] == "as the training computed it", "not the mean over the part"


def test_what_is_not_the_training_that_was_drawn_is_left_alone(outputs) -> None:
    results = outputs.parent / "results"
    path = outputs / "runs" / RUNS[0] / "provenance.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "training_seconds": 2.0}))
    (outputs / "runs" / RUNS[1]).rename(outputs / "elsewhere")
    packed = pack_results(results, [outputs], 200_000)
    assert packed.written == []
    assert [note.partition(": ")[0].rpartition("/")[2] for note in packed.notes if "no record" in note] == [RUNS[1]]
    assert any(RUNS[0] in note and "of another training" in note for note in packed.notes)


def test_packs_are_taken_for_records_and_those_of_no_result_deleted(outputs, capfd) -> None:
    results = outputs.parent / "results"
    command = ["pack", str(results), str(outputs), "--kb", "200"]
    assert main(command) == 0
    stale = results / "cpu" / "runs" / f"old{SUFFIX}"
    stale.write_bytes(b"")
    (results / "cpu" / "runs").rename(outputs.parent / "sent")
    stale.parent.mkdir()
    stale.write_bytes(b"")
    assert main([*command[:2], str(outputs.parent / "sent"), "--kb", "30"]) == 0
    out = capfd.readouterr().out
    assert f"{stale} is deleted: no result is drawn from it" in out
    assert names(results) == list(RUNS)
    assert all(path.stat().st_size <= 30 * 1024 for path in packed_records(results))


def test_what_cannot_be_packed_is_refused(outputs, capfd) -> None:
    results = outputs.parent / "results"
    with pytest.raises(InputError, match=r"no results of fig99 in .*: expected folders with"):
        pack_results(results, [outputs], 200_000, ["fig99"])
    with pytest.raises(InputError, match=r"bytes when packed; expected at most 100$"):
        pack_results(results, [outputs], 100)
    assert main(["pack", str(results), "nowhere"]) == 2
    assert "pack: no folder nowhere; expected" in capfd.readouterr().err
