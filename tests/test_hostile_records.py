"""Files from others are read but never executed: records, checkpoints, packed arrays, notes."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from composing import composed
from recording import opposing, stopped

from opposing_signals.__main__ import main
from opposing_signals.app.sweep import SweepNote, job_notes
from opposing_signals.configuration import decisive
from opposing_signals.data import openwebtext, planted, recorded
from opposing_signals.data.tracked import FILE, tracked
from opposing_signals.errors import InputError
from opposing_signals.follow.explanation import explain
from opposing_signals.record import Record
from opposing_signals.report import build
from opposing_signals.signals import Trajectory
from opposing_signals.training.job import train

PLANTED, TEXT, STREAM = (f"opposing_signals.data.{name}" for name in ("planted", "openwebtext", "text_stream"))
POINTS = 96
RUN = {"_target_": "os.system", "_args_": ["touch HERE/ran"]}
HOSTILE: dict[str, Any] = {
    "direct": RUN,
    "argument": {"_target_": PLANTED, "images": RUN},
    "keyword": {"_target_": PLANTED, "images": POINTS, "seed": {"_target_": "os.mkdir", "path": "HERE/ran"}},
    "write": {
        "_target_": PLANTED,
        "images": {
            "_target_": "pathlib.Path.write_text",
            "_args_": [{"_target_": "pathlib.Path", "_args_": ["HERE/ran"]}, "x"],
        },
    },
    "torch.load": {
        "_target_": PLANTED,
        "images": {"_target_": "torch.load", "f": "HERE/extra.bin", "weights_only": False},
    },
    "numpy.load": {
        "_target_": PLANTED,
        "images": {"_target_": "numpy.load", "file": "HERE/extra.npy", "allow_pickle": True},
    },
    "partial": {"_target_": PLANTED, "_partial_": True, "images": POINTS},
    "arguments": {"_target_": PLANTED, "_args_": [POINTS]},
    "interpolation": {"_target_": PLANTED, "images": "${oc.env:HOME}"},
    "type": {"_target_": PLANTED, "images": True},
    "target": {"_target_": ["os.system"]},
    "other function": {"_target_": "opposing_signals.data.recorded"},
    "file": {"_target_": TEXT, "tokenizer": "characters", "block": 8, "path": "HERE/secret.txt"},
    "hub": {"_target_": STREAM, "hub": "somebody/else"},
    "stream": {"_target_": STREAM},
    "list": [RUN],
    "text": "os.system",
}


class Code:
    """Creates the file ``ran`` in the place where it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return open, (str(self.folder / "ran"), "w")


@pytest.fixture
def folder(tmp_path):
    """Folder of a sound record, with files beside it that a hostile record can point to."""
    run = opposing(tmp_path / "outputs" / "run", points=POINTS).folder
    torch.save(Code(tmp_path), tmp_path / "extra.bin")
    np.save(tmp_path / "extra.npy", np.array([Code(tmp_path)], dtype=object), allow_pickle=True)
    (tmp_path / "secret.txt").write_text("tell nobody " * 200)
    return run


def placed(text: Any, here: Path) -> Any:
    return json.loads(json.dumps(text).replace("HERE", str(here)))


@pytest.mark.parametrize("kind", HOSTILE)
def test_nothing_that_a_record_names_is_run_or_read(folder, tmp_path, capfd, kind):
    data = placed(HOSTILE[kind], tmp_path)
    configuration = json.loads((folder / "configuration.json").read_text())
    (folder / "configuration.json").write_text(json.dumps({**configuration, "data": data}))
    page = build([folder.parent], tmp_path / "page" / "index.html")
    assert "tell nobody" not in "".join(path.read_text("utf-8") for path in page.parent.rglob("*.js"))
    assert main(["explain", str(folder)]) == 2
    assert capfd.readouterr().err.count("\n") == 1
    with pytest.raises(InputError):
        _ = Trajectory(Record(folder)).dataset
    assert not (tmp_path / "ran").exists()


def test_a_text_that_a_record_names_is_read_if_the_user_says_so(folder, tmp_path):
    data = placed(HOSTILE["file"], tmp_path)
    with pytest.raises(InputError, match=r"secret.txt.*--read-named-data"):
        recorded(data, folder)
    allowed = recorded(data, folder, named_data=True)
    expected = openwebtext("characters", None, 8, None, str(tmp_path / "secret.txt"))
    assert allowed.checksum == expected.checksum


def test_the_data_of_a_sound_record_are_made_from_plain_values(folder):
    described = {"_target_": PLANTED, "images": 60, "sky_in_plane": 1, "root": "/nowhere"}
    assert recorded(described, folder).checksum == planted(60, sky_in_plane=1).checksum


def test_a_commands_own_data_may_be_a_function_of_the_users(folder):
    own = {"_target_": "test_hostile_records.mine", "images": 60}
    configuration = json.loads((folder / "configuration.json").read_text())
    (folder / "configuration.json").write_text(json.dumps({**configuration, "data": own}))
    assert Trajectory(Record(folder), own_data=own).dataset.checksum == planted(60).checksum
    with pytest.raises(InputError, match="no data set of this package"):
        _ = Trajectory(Record(folder), own_data={**own, "images": 61}).dataset


def mine(images):
    return planted(images)


@pytest.mark.parametrize("name", ["sample_loss.npy", "sharpness.npy"])
def test_pickled_objects_in_a_column_are_refused(folder, tmp_path, name, capfd):
    shutil.copy(tmp_path / "extra.npy", folder / name)
    build([folder.parent], tmp_path / "page" / "index.html")
    assert main(["explain", str(folder)]) == 2
    assert capfd.readouterr().err.count("\n") == 1
    assert not (tmp_path / "ran").exists()


def test_pickled_objects_among_tracked_examples_are_refused(folder, tmp_path):
    np.savez(folder / FILE, index=np.array([Code(tmp_path)], dtype=object))
    with pytest.raises(InputError, match="cannot be read"):
        tracked(folder)
    build([folder.parent], tmp_path / "page" / "index.html")
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_with_code_is_refused(tmp_path, monkeypatch):
    config = composed("fig03_chebyshev", "steps=6", "threads=1")
    stopped(tmp_path / "run", config, 3, monkeypatch)
    sound = torch.load(tmp_path / "run" / "checkpoint.ckpt", weights_only=True)
    torch.save({**sound, "more": Code(tmp_path)}, tmp_path / "run" / "checkpoint.ckpt")
    with pytest.raises(InputError, match=r"checkpoint.ckpt"), Record.writing(tmp_path / "run", decisive(config)) as run:
        train(config, run, None)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("is_link", [False, True])
def test_notes_that_somebody_left_are_not_taken_for_those_of_a_sweep(folder, tmp_path, is_link):
    config = composed("linear_depth", output_dir=tmp_path / "mine")
    jobs, elsewhere = tmp_path / "mine" / "linear_depth" / "jobs", tmp_path / "elsewhere"
    left = elsewhere if is_link else jobs
    left.mkdir(parents=True)
    (left / "99.json").write_text(json.dumps({"name": "a", "job": "a", "folder": str(folder), "failure": ""}))
    if is_link:
        jobs.parent.mkdir(parents=True)
        jobs.symlink_to(elsewhere)
    SweepNote().on_multirun_start(config)
    assert not job_notes(config)
    assert (elsewhere / "99.json").is_file() == is_link, "what a link points to is not ours to delete"


@pytest.mark.parametrize("text", ["[1]", "{", '{"name": {"_target_": "os.system"}}', '{"folder": 3}'])
def test_a_malformed_note_is_refused(tmp_path, text):
    config = composed("linear_depth", output_dir=tmp_path)
    (tmp_path / "linear_depth" / "jobs").mkdir(parents=True)
    (tmp_path / "linear_depth" / "jobs" / "0.json").write_text(text)
    with pytest.raises(InputError, match=r"0.json"):
        job_notes(config)


def test_a_record_that_is_explained_is_only_read_as_text(folder):
    told = str(explain(folder, spikes=1))
    assert told.startswith("mine: measured ")
    assert "; planted" in told
