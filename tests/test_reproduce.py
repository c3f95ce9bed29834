"""Reproducing the paper within a time limit: jobs run in order, are resumed, interrupted and counted."""

import json

import pytest

from opposing_signals.__main__ import main
from opposing_signals.errors import InputError
from opposing_signals.experiments import experiments
from opposing_signals.reproduce import Job, Plan, chosen, reproduce, show

SETTINGS = ("logger=none", "threads=1")


def test_every_experiment_has_its_place_and_those_of_one_network_stand_together():
    order = chosen([])
    assert sorted(order) == sorted(experiments())
    place = {name.split("_")[0]: i for i, name in enumerate(order)}
    assert place["fig03"] < place["fig16"] < place["fig01"] < place["fig39"] < place["fig28"] < place["fig22"]
    assert {place[f"fig{n}"] - place["fig16"] for n in range(16, 22)} == set(range(6))


@pytest.mark.slow
def test_what_is_named_is_reproduced_passed_over_the_next_time_and_packed(tmp_path, capfd, monkeypatch):
    command = ["reproduce", "--scale", "smoke", "--to", str(tmp_path), "--only", "fig38b", "fig3", "--", *SETTINGS]
    assert main(command) == 0
    told = capfd.readouterr().out
    assert "2 done" in told
    assert told.index("fig03_chebyshev: begins") < told.index("fig38b_linear_model: begins")
    first = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/claims.json")}
    assert len(first) == 2
    assert main(command) == 0
    assert {path: path.stat().st_mtime_ns for path in first} == first
    claims = json.loads((tmp_path / "fig03_chebyshev" / "claims.json").read_text())
    plan = Plan(tmp_path, "smoke")
    assert len(plan.result("fig03_chebyshev").verdicts) == len(claims) > 0
    assert Plan(tmp_path, "cpu").job("fig03_chebyshev").state == "open"
    sent = tmp_path / "sent"
    assert main([*command[:-3], "--pack", str(sent)]) == 0
    assert "2 experiments at scale=smoke packed" in capfd.readouterr().out
    packed = sorted((sent / "runs").iterdir())
    assert len(packed) == 2
    assert all((sent / name / "figure.png").is_file() for name in ("fig03_chebyshev", "fig38b_linear_model"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert main(["explain", "--json", str(packed[0])]) == 0
    (tmp_path / "fig03_chebyshev" / "claims.json").write_text("[{}")
    assert plan.job("fig03_chebyshev").state == "begun", "what can no longer be read is done again"


TRAINING = """#!/bin/sh
trap 'echo "interrupted: the same command goes on from the last checkpoint"; exit 143' TERM
echo "gd-smoke-seed1: step 0 of 440"
echo "gd-smoke-seed1: step 12 of 440, 1:03:20 left, loss 2.1"
while true; do sleep 0.05; done
"""


def test_what_the_time_does_not_suffice_for_is_told_to_end_and_goes_on_with_the_next_command(
    tmp_path, monkeypatch, capfd
):
    python = tmp_path / "python"
    python.write_text(TRAINING)
    python.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(python))
    monkeypatch.setattr("opposing_signals.reproduce.GRACE", 0.0)
    begun, behind = reproduce(["fig01_group_losses", "fig03_chebyshev"], "smoke", tmp_path, budget=2)
    assert (begun.state, begun.left, behind.state) == ("begun", 3800, "open")
    assert begun.seconds >= 1
    assert Plan(tmp_path, "smoke").job("fig01_group_losses") == begun
    reproduce(["fig01_group_losses", "fig03_chebyshev"], "smoke", tmp_path, budget=0.5)
    assert f"goes on; {begun.seconds:.0f} s so far, 63 min left" in capfd.readouterr().out
    assert Plan(tmp_path, "smoke").job("fig01_group_losses").seconds > begun.seconds
    log = (tmp_path / "reproduce" / "smoke" / "fig01_group_losses.log").read_text()
    assert log.count("interrupted") == 2


def test_a_job_that_does_not_end_is_killed_and_goes_on_with_the_next_command(tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\ntrap '' TERM\nwhile true; do sleep 0.05; done\n")
    python.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(python))
    monkeypatch.setattr("opposing_signals.reproduce.ENDING", 0.3)
    monkeypatch.setattr("opposing_signals.reproduce.GRACE", 0.0)
    (begun,) = reproduce(["fig03_chebyshev"], "smoke", tmp_path, budget=0.5)
    assert begun.state == "begun"


@pytest.mark.slow
def test_a_job_that_fails_is_told_and_the_next_begins(tmp_path):
    jobs = reproduce(["fig03_chebyshev", "fig38b_linear_model"], "smoke", tmp_path, settings=(*SETTINGS, "steps=0"))
    assert [job.state for job in jobs] == ["failed", "failed"]
    assert "steps=0" in jobs[0].said


def test_notes_that_somebody_else_wrote_are_refused(tmp_path):
    (tmp_path / "reproduce").mkdir()
    for note in ({"what": 1}, {"seconds": "long"}, {"said": 3}):
        (tmp_path / "reproduce" / "smoke.json").write_text(json.dumps({"fig03_chebyshev": note}))
        with pytest.raises(InputError, match="no notes of jobs"):
            Plan(tmp_path, "smoke").job("fig03_chebyshev")


def test_what_a_job_said_reaches_the_terminal_as_text(tmp_path, capfd):
    show([Job("fig03_chebyshev", "failed", said="\x1b]0;a\x07")], "smoke", tmp_path)
    assert r"\x1b]0;a\x07" in capfd.readouterr().out
