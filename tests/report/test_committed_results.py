"""What stands under results/ is what its gallery and its sentences say."""

import json
from pathlib import Path

from opposing_signals.report import check_gallery
from opposing_signals.report.sentences import shown

RESULTS = Path(__file__).parents[2] / "results"


def test_the_gallery_is_up_to_date() -> None:
    check_gallery(RESULTS)


def test_a_result_is_described_as_it_is_now() -> None:
    assert len(shown(RESULTS)) > 0
    for folder, entry in shown(RESULTS).items():
        described = json.loads((folder / "experiment.json").read_text())
        assert entry.drawn == described["drawn"], f"{folder}: drawn again; look at it, and renew the sentence"
