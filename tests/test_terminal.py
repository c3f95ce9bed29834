"""Terminal output is plain text; a command ends well without a terminal, an output, or a home folder."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from recording import opposing

from opposing_signals.__main__ import main
from opposing_signals.data.tracked import write_tracked
from opposing_signals.errors import printable
from opposing_signals.record import Record

COMMAND = ("experiment=fig03_chebyshev", "scale=smoke", "logger=none", "threads=1", "steps=3")
ESCAPE = "\x1b]0;owned\x07\x1b[2J\r\x9b31m\u202e"


def started(*arguments: str, shell: str = "", **environment: str | None) -> subprocess.CompletedProcess:
    """The command line in its own process; ``shell`` follows it on the shell's command line."""
    given = {**os.environ, **environment}
    given = {name: value for name, value in given.items() if value is not None}
    command = f'"$0" -m opposing_signals "$@" {shell}'
    return subprocess.run(
        ["bash", "-c", command, sys.executable, *arguments], env=given, capture_output=True, check=False, timeout=300
    )


def test_control_characters_are_written_out():
    assert printable("η ≥ 2/λ, “a” 7") == "η ≥ 2/λ, “a” 7"
    assert printable(ESCAPE) == r"\x1b]0;owned\x07\x1b[2J\r\x9b31m\u202e"
    assert printable("a\nb\udcff") == r"a\nb\udcff"


@pytest.mark.parametrize(
    "arguments",
    [
        (f"experiment={ESCAPE}",),
        (ESCAPE,),
        ("report", f"/nowhere/{ESCAPE}"),
        ("explain", f"/nowhere/{ESCAPE}"),
        (*COMMAND, f'run.name="{ESCAPE}"'),
        (*COMMAND, f'experiment.name="{ESCAPE}"'),
        (*COMMAND, f'output_dir="{ESCAPE}"'),
        (*COMMAND, f'run_dir="{ESCAPE}"'),
    ],
)
def test_escapes_in_what_is_given_are_shown_as_text(tmp_path, monkeypatch, capfd, arguments):
    monkeypatch.chdir(tmp_path)
    assert main(list(arguments)) == 2
    captured = capfd.readouterr()
    assert not {"\x1b", "\x07", "\r", "\x9b"} & {*captured.out, *captured.err}
    assert captured.err.count("\n") == 1


def test_escapes_in_a_record_are_shown_as_text(tmp_path, capfd):
    unknown = {"run": {"name": ESCAPE}, "data": {"_target_": "opposing_signals.data.tracked"}}
    opposing(tmp_path, points=60, name=ESCAPE, **unknown, model={"_target_": f"script.{ESCAPE}"})
    write_tracked(tmp_path, np.arange(60), None, [ESCAPE] * 30 + ["b"] * 30, None)
    assert main(["explain", str(tmp_path)]) == 0
    out = capfd.readouterr().out
    assert printable(ESCAPE) in out
    assert not {"\x1b", "\x07", "\r", "\x9b"} & {*out}


@pytest.mark.parametrize("shell", [">&-", ">&- 2>&-", "<&- >&- 2>&-", "| head -c 1"])
def test_help_without_a_reader(shell):
    ended = started("--help", shell=shell)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == b""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("home", "shell", "mode"),
    [(None, "<&- >&- 2>&-", None), ("/proc", "", "1")],
    ids=["no home, and everything closed", "ascii, a home that cannot be written, and every warning shown"],
)
def test_a_run_without_a_home_and_without_a_warning_of_ours(tmp_path, home, shell, mode):
    environment = {"HOME": home, "XDG_CACHE_HOME": None, "PYTHONIOENCODING": "ascii", "PYTHONDEVMODE": mode}
    ended = started(*COMMAND, f"output_dir={tmp_path}", shell=shell, **environment)
    error = ended.stderr.decode()
    assert ended.returncode == 0, error
    assert "Traceback" not in error
    source = str(Path(__file__).parents[1] / "src")
    assert not [line for line in error.splitlines() if "Warning" in line and source in line]
    (run,) = (tmp_path / "runs").iterdir()
    Record(run).verify()
    assert json.loads((tmp_path / "fig03_chebyshev" / "claims.json").read_text())
    assert (tmp_path / "fig03_chebyshev" / "figure.png").is_file()


def test_a_cache_that_cannot_be_written_is_told_in_a_line(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc")
    text = tmp_path / "text.txt"
    text.write_text("a text of one's own " * 300)
    own = ["data=openwebtext", "data.vocabulary=null", f"data.path={text}", "data.tokenizer=characters"]
    code = main(["experiment=fig07_text_quotes", "scale=smoke", "logger=none", *own, f"output_dir={tmp_path / 'o'}"])
    error = capfd.readouterr().err
    assert code == 2
    assert "XDG_CACHE_HOME" in error.splitlines()[-1]
    assert "Traceback" not in error


@pytest.mark.parametrize("given", [{}, {"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "ACTIVE"}])
def test_threads_do_not_spin_for_long_unless_the_user_says_so(monkeypatch, capfd, given):
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "environ", {**os.environ, **given})
    assert main(["list", "fig3"]) == 0
    expected = given.get("GOMP_SPINCOUNT", None if given else "1000")
    assert os.environ.get("GOMP_SPINCOUNT") == expected
