"""Packed records: selected data are kept, the file respects its limit, and a hostile file does nothing."""

import io
import json
import zipfile

import numpy as np
import pytest

from opposing_signals import packing
from opposing_signals.data import planted
from opposing_signals.errors import DamagedError, InputError, NotWrittenError
from opposing_signals.packing import SUFFIX, pack, rounded, unpack, unpacked
from opposing_signals.record import Record
from opposing_signals.signals import Trajectory

POINTS, STEPS = 300, 60


@pytest.fixture(scope="module")
def dataset():
    return planted(POINTS)


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    """A run in which the examples 7 to 11 and 50 to 54 oppose each other."""
    generator = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("outputs") / "mine-smoke-seed1-0badcafe"
    data = {"_target_": "opposing_signals.data.planted", "images": POINTS}
    configuration = {"run": {"name": "mine"}, "data": data, "optimizer": {"_target_": "torch.optim.SGD", "lr": 0.5}}
    with Record.writing(folder, configuration) as run:
        for step in range(STEPS):
            losses = 1 + 0.01 * generator.standard_normal(POINTS)
            losses[7:12] += 0.2 * (-1) ** step
            losses[50:55] -= 0.2 * (-1) ** step
            run.append("sample_loss", step, losses.astype(np.float32))
            run.append("train_loss", step, losses.mean())
            if step % 7 == 0:
                run.append("sharpness", step, 4 + generator.standard_normal())
                run.append("prediction", step, generator.integers(6, size=POINTS).astype(np.uint8))
        run.append("outputs", 3, generator.standard_normal((300, 200)))
        run.write_provenance({"data": {"name": "planted", "examples": POINTS}, "training_seconds": 1.0})
        run.write_state("complete")
    return Record(folder)


def round_trip(record, tmp_path, *more):
    path = tmp_path / f"{record.folder.name}{SUFFIX}"
    pack(record, path, *more)
    unpack(path, tmp_path / "unpacked")
    return path, Record(tmp_path / "unpacked")


def test_where_all_fits_all_is_kept(record, tmp_path):
    _, read = round_trip(record, tmp_path)
    read.verify()
    assert read.configuration == record.configuration
    assert read.state == "complete"
    assert read.provenance == {**record.provenance, "packed": {"left_out": ["outputs"]}}
    for quantity in set(record) - {"outputs"}:
        assert read[quantity].values.dtype == record[quantity].values.dtype
        assert np.array_equal(read[quantity].steps, record[quantity].steps)
        assert np.array_equal(read[quantity].values, record[quantity].values)


def test_a_limit_keeps_pairs_and_series_exactly(record, dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "_TABLE", 2**12)  # smaller than the kept losses, as in a long run
    limit = 40_000
    path, read = round_trip(record, tmp_path, dataset, limit)
    assert 0.8 * limit < path.stat().st_size <= limit
    for quantity in ("train_loss", "sharpness"):
        assert np.array_equal(read[quantity].values, record[quantity].values)
    trajectory = Trajectory(read)
    kept = trajectory.dataset.inputs[:, 0].numpy()
    assert {*range(7, 12), *range(50, 55)} < {*kept}
    ours, theirs = read["sample_loss"].values, record["sample_loss"].values[:, kept]
    exact = (ours == theirs).all(0)
    assert exact.sum() >= read.provenance["packed"]["exact"] >= 20
    assert exact[np.isin(kept, [7, 11, 50, 54])].all()
    assert np.allclose(ours, theirs, rtol=2**-11, atol=0)
    assert not exact.all()
    assert np.array_equal(read["prediction"].values, record["prediction"].values[:, kept])
    groups = [{*kept[group]} for group in trajectory.pairs[0].groups]
    assert sorted(groups, key=min) == [{*range(7, 12)}, {*range(50, 55)}]
    difference = trajectory.dataset.images.astype(float) - dataset.images[kept]
    assert trajectory.dataset.images.shape == (len(kept), 32, 32, 3)
    assert np.abs(difference).mean() < 8
    assert np.array_equal(trajectory.dataset.targets, dataset.targets[kept])


def test_examples_that_all_fit_are_shown_without_the_data(record, dataset, tmp_path):
    _, read = round_trip(record, tmp_path, dataset)
    shown = Trajectory(read).dataset
    assert shown.images.shape == (POINTS, 32, 32, 3)
    assert np.array_equal(read["sample_loss"].values, record["sample_loss"].values)
    assert read.provenance["packed"]["exact"] == read.provenance["packed"]["examples"] == POINTS


def test_a_packed_record_is_packed_smaller_and_still_tells_who_is_who(record, dataset, tmp_path):
    _, larger = round_trip(record, tmp_path, dataset, 50_000)
    path = tmp_path / f"smaller{SUFFIX}"
    pack(larger, path, Trajectory(larger).dataset, 30_000)
    assert path.stat().st_size <= 30_000
    unpack(path, tmp_path / "smaller")
    read = Record(tmp_path / "smaller")
    kept, before = (Trajectory(one).dataset.inputs[:, 0].numpy() for one in (read, larger))
    assert {*kept} < {*before}
    assert {*range(7, 12), *range(50, 55)} < {*kept}
    assert np.allclose(read["sample_loss"].values, record["sample_loss"].values[:, kept], rtol=2**-10, atol=0)
    described = read.provenance["packed"]
    assert described["examples"] == POINTS
    assert described["data"] == record.configuration["data"]
    assert described["exact"] <= larger.provenance["packed"]["exact"]


def test_a_run_whose_data_are_not_here_is_packed_without_examples_and_says_so(record, tmp_path, monkeypatch):
    data = {"_target_": "opposing_signals.data.cifar10", "images": POINTS}
    monkeypatch.setattr(Record, "configuration", {**record.configuration, "data": data})
    monkeypatch.setattr(packing, "recorded", refuse)
    path = tmp_path / f"a{SUFFIX}"
    assert packing.pack_run(record, path) == f"{path} is without training examples: no cifar10 here"
    assert path.is_file()


def refuse(described, _):
    raise InputError(f"no {described['_target_'].rpartition('.')[2]} here")


def test_without_data_to_show_the_series_alone_are_kept(record, tmp_path):
    path, read = round_trip(record, tmp_path, None, 10_000)
    assert path.stat().st_size <= 10_000
    assert "sample_loss" not in read
    assert np.array_equal(read["train_loss"].values, record["train_loss"].values)


def test_what_cannot_fit_is_refused_and_nothing_is_written(record, dataset, tmp_path):
    with pytest.raises(InputError, match=r"bytes when packed; expected at most 100$"):
        pack(record, tmp_path / f"a{SUFFIX}", dataset, 100)
    assert not list(tmp_path.iterdir())


def test_equal_records_give_equal_files(record, dataset, tmp_path):
    for name in ("a", "b"):
        pack(record, tmp_path / f"{name}{SUFFIX}", dataset, 40_000)
    assert (tmp_path / f"a{SUFFIX}").read_bytes() == (tmp_path / f"b{SUFFIX}").read_bytes()


def test_numbers_are_rounded_to_the_nearest_with_so_many_bits():
    generator = np.random.default_rng(0)
    for kind in (np.float32, np.float64):
        values = (generator.standard_normal(1000) * 10.0 ** generator.integers(-30, 30, 1000)).astype(kind)
        special = np.array([np.inf, -np.inf, np.nan, 0, -0.0, np.finfo(kind).max], kind)
        assert np.all(np.abs(rounded(values) - values) <= np.abs(values) * 2.0**-11)
        assert np.array_equal(rounded(special), special, equal_nan=True)
        assert np.array_equal(rounded(rounded(values)), rounded(values))
    whole = np.arange(5)
    assert rounded(whole) is whole


def test_a_packed_record_is_unpacked_once_into_the_cache(record, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / f"mine{SUFFIX}"
    pack(record, path)
    folder = unpacked(path)
    assert folder.name == "mine"
    assert Record(folder).is_complete
    written = (folder / "sample_loss.npy").stat().st_mtime_ns
    assert unpacked(path) == folder
    assert (folder / "sample_loss.npy").stat().st_mtime_ns == written
    assert unpacked(record.folder) == record.folder


def test_a_cache_that_cannot_be_written_is_named(record, tmp_path, monkeypatch):
    path = tmp_path / f"mine{SUFFIX}"
    pack(record, path)
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc")
    with pytest.raises(NotWrittenError, match=r"mine.* cannot be unpacked to /proc.*; let .* XDG_CACHE_HOME name a"):
        unpacked(path)


def rewritten(path, change):
    """The file with its members changed by ``change``: a list of name and content."""
    with zipfile.ZipFile(path) as archive:
        members = [[name, archive.read(name)] for name in archive.namelist()]
    members = change(members) or members
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            archive.writestr(name, data)


def changed(name, content):
    def change(members):
        for member in members:
            if member[0] == name:
                member[1] = content(member[1]) if callable(content) else content

    return change


def as_npy(array):
    file = io.BytesIO()
    np.lib.format.write_array(file, array)
    return file.getvalue()


HUGE = as_npy(np.zeros(1)).replace(b"(1,)", b"(9999999999,)").replace(b" " * 12, b"   ", 1)
HOSTILE = {
    "path": lambda members: [*members, ["../../outside.npy", b""]],
    "absolute path": lambda members: [*members, ["/tmp/outside.npy", b""]],
    "nested path": lambda members: [*members, ["value/../../outside.npy", b""]],
    "other file": lambda members: [*members, ["checkpoint.ckpt", b""]],
    "twice": lambda members: [*members, members[0]],
    "many": lambda members: [*members, *([f"step/a{i}.npy", b""] for i in range(1000))],
    "bomb": lambda members: [*members, ["value/bomb.npy", bytes(2**28)]],
    "no configuration": lambda members: members[:-3],
    "no JSON": changed("configuration.json", b"{"),
    "a list": changed("state.json", b"[]"),
    "no state": changed("state.json", b"{}"),
    "objects": changed("value/train_loss.npy", as_npy(np.array([{}], dtype=object))),
    "longer than it is": changed("value/train_loss.npy", HUGE),
    "no array": changed("value/train_loss.npy", b"nothing"),
    "short": changed("value/train_loss.npy", lambda data: data[:-8]),
    "other steps": changed("step/train_loss.npy", as_npy(np.ones(7, np.int64))),
    "falling steps": changed("step/train_loss.npy", as_npy(-np.ones(STEPS, np.int64))),
    "type": changed("state.json", lambda data: data.replace(b'"f4"', b'"O8"')),
    "no picture": changed("image.webp", b"RIFFxxxxWEBP"),
    "indices": changed("example/index.npy", as_npy(np.arange(3))),
    "tile": changed("provenance.json", json.dumps({"packed": {"thumbnail": [9, 10**9]}}).encode()),
}


def read_all(path, folder):
    unpack(path, folder)
    return Trajectory(Record(folder)).dataset


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_is_refused_in_one_line_and_leaves_nothing(record, dataset, tmp_path, monkeypatch, kind):
    monkeypatch.setattr(packing, "LARGEST_CONTENT", 2**24)
    path = tmp_path / "in" / f"a{SUFFIX}"
    pack(record, path, dataset, 40_000)
    rewritten(path, HOSTILE[kind])
    with pytest.raises(DamagedError) as error:
        read_all(path, tmp_path / "out" / "run")
    assert "\n" not in str(error.value)
    assert [place.name for place in tmp_path.iterdir() if place.name not in ("in", "out")] == []
    assert not list((tmp_path / "out").glob("*")) or kind == "indices"


@pytest.mark.parametrize("content", [b"", b"PK\x05\x06", b"nothing of the kind" * 100])
def test_what_is_no_packed_record_is_refused(content, tmp_path):
    (tmp_path / f"a{SUFFIX}").write_bytes(content)
    with pytest.raises(DamagedError, match="no packed record"):
        unpack(tmp_path / f"a{SUFFIX}", tmp_path / "run")


def test_a_damaged_byte_is_found(record, tmp_path):
    path = tmp_path / f"a{SUFFIX}"
    pack(record, path)
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 4
    path.write_bytes(data)
    with pytest.raises(DamagedError, match="no packed record"):
        unpack(path, tmp_path / "run")
