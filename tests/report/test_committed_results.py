"""The results under results/ agree with their gallery and sentences."""

import json
from pathlib import Path

import pytest

from opposing_signals.packing import SUFFIX, unpack
from opposing_signals.record import Record
from opposing_signals.record.quantities import SAMPLE_LOSS
from opposing_signals.report import check_gallery
from opposing_signals.report.packs import packed_records
from opposing_signals.report.page import find_results
from opposing_signals.report.sentences import shown

RESULTS = Path(__file__).parents[2] / "results"


def test_the_gallery_is_up_to_date() -> None:
    check_gallery(RESULTS)


def test_a_result_is_described_as_it_is_now() -> None:
    assert len(shown(RESULTS)) > 0
    for folder, entry in shown(RESULTS).items():
        described = json.loads((folder / "experiment.json").read_text())
        assert entry.drawn == described["drawn"], f"{folder}: drawn again; look at it, and renew the sentence"


def test_no_picture_is_larger_than_the_repository_should_carry() -> None:
    assert {path.name: size for path in RESULTS.rglob("*.png") if (size := path.stat().st_size) > 1_000_000} == {}


@pytest.mark.parametrize("path", packed_records(RESULTS), ids=lambda path: path.name)
def test_a_packed_record_is_of_the_run_that_a_result_is_drawn_from(path, tmp_path) -> None:
    assert path.stat().st_size <= 300 * 1024
    unpack(path, tmp_path / "run")
    record = Record(tmp_path / "run")
    record.verify()
    packed = record.provenance["packed"]
    if SAMPLE_LOSS in record:  # a run under gradient flow records none
        assert packed["examples"] >= packed["exact"] > 0
    name = path.name.removesuffix(SUFFIX)
    runs = [run for result in find_results([path.parents[1]]) for run in result.runs if run.folder == name]
    assert runs
    assert all({**run.provenance, "packed": packed} == record.provenance for run in runs)
