"""If a file cannot be written, the earlier one stays intact, and the error names the file."""

import errno
import json
import os
import resource
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from recording import opposing

from opposing_signals.__main__ import main
from opposing_signals.errors import NotWrittenError
from opposing_signals.files import replacing, write_json, write_text
from opposing_signals.follow.explanation import explain
from opposing_signals.record import Record, column
from opposing_signals.report import build

COMMAND = ("experiment=fig03_chebyshev", "scale=smoke", "logger=none", "threads=1", "steps=6")


@contextmanager
def room_for(size: int):
    """No file can grow beyond ``size`` bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("earlier", [False, True])
def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path, earlier):
    path = tmp_path / "a" / "claims.json"
    if earlier:
        write_json(path, {"old": 1})
    before = contents(tmp_path)
    kept = "the earlier claims.json is kept" if earlier else "there is no claims.json yet"
    with room_for(1000), pytest.raises(NotWrittenError, match=rf"claims.json cannot be written \(.*\); {kept}"):
        write_json(path, {"new": "x" * 10_000})
    assert contents(tmp_path) == before
    with pytest.raises(ZeroDivisionError), replacing(path) as unfinished:
        unfinished.write_text(f"half {1 / 0}")
    assert contents(tmp_path) == before
    write_json(path, {"new": 2})
    assert json.loads(path.read_text()) == {"new": 2}
    assert [one.name for one in path.parent.iterdir()] == ["claims.json"]


def test_file_and_folder_are_on_the_disk_before_the_name_is(tmp_path, monkeypatch):
    done = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda one: done.append("folder" if is_folder(one) else "file") or fsync(one))
    monkeypatch.setattr(Path, "replace", lambda *paths: done.append("name") or replace(*paths))
    write_text(tmp_path / "a", "b")
    assert done == ["file", "name", "folder"]


def is_folder(descriptor: int) -> bool:
    return Path(f"/proc/self/fd/{descriptor}").resolve().is_dir()


def test_figures_and_claims_of_an_earlier_command_stay(tmp_path, capfd):
    command = [*COMMAND, f"output_dir={tmp_path}"]
    assert main(command) == 0
    folder = tmp_path / "fig03_chebyshev"
    before = {name: (folder / name).read_bytes() for name in ("figure.png", "figure.pdf")}
    capfd.readouterr()
    with room_for(9000):
        assert main(command) == 2
    error = capfd.readouterr().err
    assert error.count("\n") == 1
    assert "figure.png cannot be written" in error
    assert "the earlier figure.png is kept" in error
    assert {name: (folder / name).read_bytes() for name in before} == before
    assert not list(folder.glob("*.part.*"))
    assert json.loads((folder / "claims.json").read_text())


@pytest.mark.parametrize(("size", "name"), [(3000, "0000.js"), (40_000, "0000.png")])
def test_the_page_of_an_earlier_report_stays(tmp_path, size, name):
    folder, page = opposing(tmp_path / "runs" / "run").folder, tmp_path / "page" / "index.html"
    build([folder.parent], page)
    before = contents(page.parent)
    opposing(folder, steps=40)
    with room_for(size), pytest.raises(NotWrittenError, match=rf"{name} cannot be written .* kept"):
        build([folder.parent], page)
    assert contents(page.parent) == before


def test_an_explanation_that_cannot_be_drawn_keeps_the_earlier_one(tmp_path):
    folder = opposing(tmp_path / "run").folder
    explain(folder)
    before = contents(folder)
    with room_for(6000), pytest.raises(NotWrittenError, match=r"figure.png cannot be written"):
        explain(folder)
    assert contents(folder) == before


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(NotWrittenError, match=r"/proc/nowhere cannot be written .* the run has no page yet"):
        build([opposing(tmp_path / "run", steps=4).folder], Path("/proc/nowhere/index.html"))


def test_a_full_disk_in_training_names_the_file_and_what_is_kept(tmp_path, capfd, monkeypatch):
    pwrite = os.pwrite

    def full(descriptor, data, offset):
        if offset > 600:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(descriptor, data, offset)

    monkeypatch.setattr(column.os, "pwrite", full)
    assert main([*COMMAND, f"output_dir={tmp_path}"]) == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line.strip() and ": step " not in line]
    assert len(lines) == 1
    for part in ("No space left on device", ".npy", "are kept", "same command goes on"):
        assert part in lines[0]
    (run,) = (tmp_path / "runs").iterdir()
    assert not Record(run).is_complete
    losses = Record(run)["sample_loss"].values
    assert len(losses) > 0
    assert np.isfinite(losses).all()
    monkeypatch.undo()
    assert main([*COMMAND, f"output_dir={tmp_path}", "conclude=false"]) == 0
