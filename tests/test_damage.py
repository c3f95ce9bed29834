"""A damaged file is repaired, or reported in one line that names it; it is never taken for a result."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from composing import composed
from recording import stopped

from opposing_signals.__main__ import main
from opposing_signals.configuration import run_folder
from opposing_signals.data.tracked import FILE
from opposing_signals.errors import DamagedError
from opposing_signals.record import Record
from opposing_signals.report import build

COMMAND = ("experiment=fig03_chebyshev", "scale=smoke", "logger=none", "threads=1", "steps=6", "conclude=false")
CONFIGURATION = {"steps": 9}


def flip(path: Path, at: float = 0.6) -> None:
    """Flip one bit."""
    data = bytearray(path.read_bytes())
    data[int(len(data) * at)] ^= 0x10
    path.write_bytes(data)


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGE = {
    "missing": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "half": halve,
    "flipped": flip,
    "garbage": lambda path: path.write_bytes(b"\x80\x04garbage\xff" * 50),
    "other array": lambda path: np.save(path, np.zeros(3)),
    "folder": lambda path: (path.unlink(), path.mkdir()),
}
COLUMNS = [("sample_loss.npy", kind) for kind in DAMAGE]
TEXTS = [(name, kind) for name in ("configuration.json", "state.json") for kind in ("empty", "half", "garbage")]


def written(folder: Path, steps: int = 9, state: str | None = "complete") -> Record:
    with Record.writing(folder, CONFIGURATION) as record:
        for step in range(steps):
            record.append("sample_loss", step, np.arange(50, dtype=np.float32) + step)
            record.append("sharpness", step, 2.0 * step)
        record.write_provenance({"training_seconds": 1.0})
        if state is not None:
            record.write_state(state)
    return Record(folder)


# -- the record -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind"), [*COLUMNS, *TEXTS, ("sharpness.npy", "flipped"), ("provenance.json", "missing")]
)
def test_what_a_complete_run_has_lost_is_named(tmp_path, name, kind):
    record = written(tmp_path)
    record.verify()
    DAMAGE[kind](tmp_path / name)
    with pytest.raises(DamagedError, match=rf"{name} is (damaged|missing)"):
        Record(tmp_path).verify()


def test_every_bit_of_a_row_counts(tmp_path):
    record = written(tmp_path, steps=2)
    path = tmp_path / "sharpness.npy"
    sound = path.read_bytes()
    start = len(sound) - 2 * np.load(path).dtype.itemsize
    for byte in range(start, len(sound)):
        for bit in (1, 16, 128):
            changed = bytearray(sound)
            changed[byte] ^= bit
            path.write_bytes(changed)
            with pytest.raises(DamagedError, match=r"sharpness\.npy is damaged"):
                record.verify()
    path.write_bytes(sound)
    record.verify()


def test_rows_that_a_header_no_longer_counts_are_missed(tmp_path):
    record = written(tmp_path)
    path = tmp_path / "sharpness.npy"
    path.write_bytes(path.read_bytes().replace(b"(9,)", b"(7,)"))
    with pytest.raises(DamagedError, match="holds 7 rows, expected 9"):
        record.verify()


def test_a_damaged_tail_is_cut_back_to_the_checkpoint(tmp_path):
    written(tmp_path, state=None)
    flip(tmp_path / "sample_loss.npy", 0.99)
    halve(tmp_path / "sharpness.npy")
    with Record.writing(tmp_path, CONFIGURATION) as record:
        with pytest.raises(DamagedError, match=r"sharpness\.npy is damaged"):
            record.cut(5, {"sample_loss": 5, "sharpness": 5})
        record.cut(5, {"sample_loss": 5})
        assert record.rows == {"sample_loss": 5}
        record.append("sample_loss", 5, np.zeros(50, np.float32))
        record.append("sharpness", 5, 1.0)
        record.verify()


@pytest.mark.parametrize("kind", ["flipped", "half", "missing", "folder"])
def test_rows_that_a_checkpoint_counts_are_missed(tmp_path, kind):
    written(tmp_path, state=None)
    DAMAGE[kind](tmp_path / "sample_loss.npy")
    counted = {"sample_loss": 8, "sharpness": 8}
    with (
        Record.writing(tmp_path, CONFIGURATION) as record,
        pytest.raises(DamagedError, match=r"sample_loss.npy is (damaged|missing)"),
    ):
        record.cut(8, counted)


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_run_that_begins_anew_needs_nothing_of_what_is_there(tmp_path, kind):
    written(tmp_path, state=None)
    DAMAGE[kind](tmp_path / "sample_loss.npy")
    with Record.writing(tmp_path, CONFIGURATION) as record:
        record.cut(0)
        record.append("sample_loss", 0, np.ones(50, np.float32))
        record.verify()
    assert Record(tmp_path).rows["sample_loss"] == 1


def test_an_emptied_column_can_go_on(tmp_path):
    written(tmp_path, state=None)
    (tmp_path / "sharpness.npy").write_bytes(b"")
    with Record.writing(tmp_path, CONFIGURATION) as record:
        record.append("sharpness", 0, 1.0)
        record.append("sharpness", 1, 2.0)
    assert Record(tmp_path)["sharpness"].values.tolist() == [1, 2]


# -- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    folder = tmp_path_factory.mktemp("complete")
    assert main([*COMMAND, f"output_dir={folder}"]) == 0
    return folder


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("interrupted")
    config = composed("fig03_chebyshev", *COMMAND[3:], output_dir=folder)
    with pytest.MonkeyPatch.context() as patch:
        stopped(run_folder(config), config, 4, patch)
    return folder


def again(source: Path, target: Path, name: str, kind: str, capfd, *more: str) -> tuple[int, str, Record]:
    shutil.copytree(source, target)
    (run,) = (target / "runs").iterdir()
    DAMAGE[kind](run / name)
    code = main([*COMMAND, f"output_dir={target}", *more])
    return code, capfd.readouterr().err, run


def assert_same(run: Path, complete: Path) -> None:
    (whole,) = (complete / "runs").iterdir()
    for quantity in Record(whole):
        np.testing.assert_array_equal(Record(run)[quantity].values, Record(whole)[quantity].values, quantity)
    assert Record(run).is_complete


@pytest.mark.parametrize(
    ("name", "kind"), [*COLUMNS, *TEXTS, *((("provenance.json", kind)) for kind in ("missing", "garbage"))]
)
def test_a_damaged_run_is_refused_and_trained_again_if_told_to(complete, tmp_path, capfd, name, kind):
    code, error, run = again(complete, tmp_path / "a", name, kind, capfd)
    assert code == 2
    assert error.count("\n") == 1
    for part in (name, "retrain_damaged=true"):
        assert part in error
    assert main([*COMMAND, f"output_dir={tmp_path / 'a'}", "retrain_damaged=true"]) == 0
    assert_same(run, complete)


def test_a_sound_run_is_not_trained_again(complete, tmp_path, capfd):
    before = {path: path.stat().st_mtime_ns for path in (complete / "runs").rglob("*.npy")}
    assert main([*COMMAND, f"output_dir={complete}", "retrain_damaged=true"]) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.parametrize(
    ("name", "kind"),
    [*(("checkpoint.ckpt", kind) for kind in ("empty", "half", "flipped", "garbage", "folder")), *COLUMNS],
)
def test_an_interrupted_run_is_refused_if_what_it_goes_on_from_is_damaged(
    interrupted, complete, tmp_path, capfd, name, kind
):
    code, error, run = again(interrupted, tmp_path / "a", name, kind, capfd)
    lines = [line for line in error.splitlines() if line.strip() and ": step " not in line]
    if code == 0:  # the damage is after the checkpoint
        assert kind == "flipped"
    else:
        assert (code, len(lines)) == (2, 1), error
        assert name in lines[0]
        assert "retrain_damaged=true" in lines[0]
        assert main([*COMMAND, f"output_dir={tmp_path / 'a'}", "retrain_damaged=true"]) == 0
    assert_same(run, complete)


def test_an_interrupted_run_goes_on_without_its_provenance(interrupted, complete, tmp_path, capfd):
    code, _, run = again(interrupted, tmp_path / "a", "provenance.json", "garbage", capfd)
    assert code == 0
    assert_same(run, complete)


@pytest.mark.parametrize("name", ["sample_loss.npy", "configuration.json", "provenance.json", FILE])
@pytest.mark.parametrize("kind", ["empty", "half", "garbage"])
def test_a_damaged_run_does_not_cost_the_page_and_is_explained_in_a_line(complete, tmp_path, capfd, name, kind):
    (sound,) = (complete / "runs").iterdir()
    for run in ("sound", "damaged"):
        shutil.copytree(sound, tmp_path / "runs" / run)
    damaged = tmp_path / "runs" / "damaged"
    if name == FILE:
        np.savez(damaged / FILE, index=np.arange(20))
    DAMAGE[kind](damaged / name)
    page = build([tmp_path], tmp_path / "page" / "index.html").read_text("utf-8")
    assert 'href="runs/sound/index.html"' in page
    assert ('href="runs/damaged/index.html"' in page) != (name in page)
    assert main(["explain", str(damaged)]) == 2
    error = capfd.readouterr().err
    assert error.count("\n") == 1
    assert name in error


def test_examples_of_another_number_are_refused(complete, tmp_path, capfd):
    (run,) = (complete / "runs").iterdir()
    shutil.copytree(run, tmp_path / "run")
    np.savez(tmp_path / "run" / FILE, index=np.arange(3))
    assert main(["explain", str(tmp_path / "run")]) == 2
    assert f"{FILE} holds 3 examples" in capfd.readouterr().err


def test_a_configuration_that_names_no_run_is_explained_in_a_line(complete, tmp_path, capfd):
    (run,) = (complete / "runs").iterdir()
    for missing in ("run", "model", "optimizer", "data"):
        folder = tmp_path / missing
        shutil.copytree(run, folder)
        configuration = json.loads((folder / "configuration.json").read_text())
        del configuration[missing]
        (folder / "configuration.json").write_text(json.dumps(configuration))
        assert main(["explain", str(folder)]) == 2
        assert capfd.readouterr().err.count("\n") == 1
