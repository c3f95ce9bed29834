"""The demo at a small scale: its files, its output, and the effect of a second call."""

import json
import re
from contextlib import redirect_stdout
from io import StringIO

import pytest

from opposing_signals.__main__ import main
from opposing_signals.demo import demo
from opposing_signals.record import Record

pytestmark = pytest.mark.slow

SMALL = {"planted": ("scale=smoke",), "curve": ("scale=smoke",)}


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    return tmp_path_factory.mktemp("demo") / "demo"


@pytest.fixture(scope="module")
def said(ran):
    """Output of the first call."""
    with redirect_stdout(StringIO()) as out:
        assert demo(ran, **SMALL) == 0
    return out.getvalue()


def test_the_end_tells_the_numbers_that_were_measured(ran, said):
    end = " ".join(said.split("What was seen")[1].split())
    for name in ("demo_planted", "fig03_chebyshev"):
        for claim in json.loads((ran / name / "claims.json").read_text()):
            value = "unknown" if claim["value"] is None else f"{claim['value']:.3g}"
            assert f"{value} ({claim['threshold']}: {claim['verdict']})" in end
    for word in ("PASS:", "FAIL:", "INCONCLUSIVE:"):
        assert word in end
    assert "explain outputs/mine" in end
    assert "opposing-signals fig6a" in end


def test_the_digits_are_explained(ran, said):
    told = re.search(r"step (\d+): the mean loss rose", said)
    assert told is not None
    notes = json.loads((ran / "digits" / "experiment.json").read_text())["notes"]
    assert any(note.startswith(told[0]) for note in notes)
    assert "rising: " in said


def test_the_page_shows_the_three_results_and_their_runs(ran, said):
    page = (ran / "report" / "index.html").read_text()
    assert page.count("<img ") == len(list((ran / "report" / "pictures").iterdir())) == 3
    assert len(list((ran / "report" / "runs").glob("*/index.html"))) == 3
    assert "is missing" not in page


def test_a_second_call_trains_nothing_again_but_what_was_interrupted(ran, said, monkeypatch):
    monkeypatch.setattr("opposing_signals.report.build", lambda _, page: page)
    digits = ran / "digits"
    written = {path: path.stat().st_mtime_ns for path in ran.rglob("sample_loss.npy")}
    assert len(written) == 3
    demo(ran, **SMALL)
    assert all(path.stat().st_mtime_ns == time for path, time in written.items())
    losses = (digits / "sample_loss.npy").read_bytes()
    (digits / "state.json").write_text('{"state": "running"}')
    monkeypatch.setattr("opposing_signals.demo._experiment", lambda *_: None)  # both are done
    demo(ran, **SMALL)
    assert Record(digits).is_complete
    assert (digits / "sample_loss.npy").stat().st_mtime_ns > written[digits / "sample_loss.npy"]
    assert (digits / "sample_loss.npy").read_bytes() == losses


def test_help_says_what_it_does_and_where_it_writes(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["demo", "--help"])
    assert "outputs/demo" in capsys.readouterr().out
