import base64
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fabricated import run, write_result
from PIL import Image
from recorded import GROUPS, PLANTED, alternating, write_record

from opposing_signals.data import chebyshev, planted, text_demo
from opposing_signals.data.tokenizers import decode
from opposing_signals.errors import InputError
from opposing_signals.record import Record
from opposing_signals.report import build
from opposing_signals.report.explorer import build_explorer, data
from opposing_signals.report.explorer.data import BLOCK, SHOWN, STEPS
from opposing_signals.report.explorer.examples import COLUMNS, Examples
from opposing_signals.signals import OpposingPair, Trajectory


class Written:
    """An explorer's data, read in the same way as by the page."""

    def __init__(self, folder: Path) -> None:
        self.page = (folder / "index.html").read_text(encoding="utf-8")
        (self.place,) = folder.glob("data-*")
        self.run = self.file("run")

    def file(self, name: str) -> Any:
        match = re.fullmatch(r'explorer\.receive\("(.*?)", (.*)\);\n', (self.place / f"{name}.js").read_text("ascii"))
        assert match
        assert match[1] == name
        return json.loads(match[2])

    def examples(self, field: str) -> list[Any]:
        parts = [self.file(f"examples/{path.stem}")[field] for path in sorted(self.place.glob("examples/*.js"))]
        return [one for part in parts for one in (part if field == "captions" else numbers(part, "u4").tolist())]


def numbers(text: str, kind: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), f"<{kind}")


def largest(values: np.ndarray, count: int) -> list[int]:
    """Indices of the ``count`` largest positive values, the largest first, by plain sorting."""
    order = sorted(range(len(values)), key=lambda i: -values[i])
    return [i for i in order[:count] if values[i] > 0]


@pytest.fixture(scope="module")
def losses() -> np.ndarray:
    return alternating()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, losses) -> Path:
    return write_record(tmp_path_factory.mktemp("record") / "planted_mlp", losses)


@pytest.fixture(scope="module")
def written(tmp_path_factory, folder) -> Written:
    target = tmp_path_factory.mktemp("explorer")
    build_explorer(folder, target)
    return Written(target)


def test_risers_and_fallers_are_those_of_the_record(written, losses) -> None:
    ids = written.examples("ids")
    steps = numbers(written.run["changes"]["steps"], "i4")
    assert steps.tolist() == list(range(59))
    for step in steps:
        content = written.file(f"steps/{step // STEPS:04d}")
        counts = numbers(content["counts"], "u1").astype(int)
        first = 2 * (step % STEPS)
        start = counts[:first].sum()
        for side, sign in enumerate((1, -1)):
            part = slice(start, start + counts[first + side])
            start = part.stop
            chosen = [ids[rank] for rank in numbers(content["ranks"], "u4")[part]]
            change = losses[step + 1] - losses[step]
            assert chosen == largest(sign * change, SHOWN)
            np.testing.assert_array_equal(numbers(content["before"], "f4")[part], losses[step, chosen])
            np.testing.assert_array_equal(numbers(content["after"], "f4")[part], losses[step + 1, chosen])
            mean = numbers(written.run["changes"]["fall" if side else "rise"], "f4")[step]
            assert mean == pytest.approx(change[chosen].mean(), rel=1e-5)
        share = numbers(written.run["changes"]["share"], "f4")[step]
        assert share == np.float32((change > 0).mean())


def test_curves_are_those_of_the_record(written, losses) -> None:
    loss, sharpness = written.run["loss"], written.run["sharpness"]
    np.testing.assert_array_equal(numbers(loss["values"], "f4"), losses.mean(1, dtype=np.float64).astype("f4"))
    assert numbers(sharpness["steps"], "i4").tolist() == list(range(0, 60, 7))
    assert numbers(sharpness["values"], "f4").tolist() == [20 + step for step in range(0, 60, 7)]
    assert written.run["threshold"] == 2 / 0.05
    assert written.run["breakEven"] == 21
    assert written.run["notices"] == []


def found_in(folder: Path, losses: np.ndarray, steps: Any = None) -> list[OpposingPair]:
    """The dominant pairs of a run with only these losses recorded."""
    with Record.writing(folder, {}) as record:
        for step, row in zip(range(len(losses)) if steps is None else steps, losses, strict=True):
            record.append("sample_loss", step, row)
    return Trajectory(Record(folder)).pairs


def test_pairs_are_those_that_are_found(written, losses, tmp_path) -> None:
    found = found_in(tmp_path, losses)
    ids = np.array(written.examples("ids"))
    assert len(written.run["pairs"]) == len(found) >= 1
    for pair, expected in zip(written.run["pairs"], found, strict=True):
        for side, group in (("rising", expected.rising), ("falling", expected.falling)):
            np.testing.assert_array_equal(ids[numbers(pair[side], "u4")], group)
        assert (pair["step"], pair["correlation"], pair["amplitude"]) == (
            expected.step,
            expected.correlation,
            expected.amplitude,
        )
        assert pair["window"] == [expected.window[0], expected.window[1] + 1]
        for line, group in zip(pair["losses"], expected.groups, strict=True):
            mean = losses[:, group].mean(1, dtype=np.float64).astype("f4")
            np.testing.assert_array_equal(numbers(line, "f4"), mean)
    first = {*found[0].rising.tolist(), *found[0].falling.tolist()}
    assert first == {*range(GROUPS[0].start, GROUPS[1].stop)}


def test_losses_of_examples_are_those_of_the_record(written, losses) -> None:
    ids, steps = written.examples("ids"), len(losses)
    assert written.run["examples"]["withSeries"] == len(ids)
    assert len(set(ids)) == len(ids)
    for number in range(len(ids) // BLOCK):
        kept = numbers(written.file(f"series/{number:04d}")["values"], "f4").reshape(-1, steps)
        np.testing.assert_array_equal(kept, losses[:, ids[BLOCK * number : BLOCK * (number + 1)]].T)


def test_losses_are_kept_for_members_and_as_many_others_as_fit(tmp_path, folder, losses, monkeypatch) -> None:
    monkeypatch.setattr(data, "SERIES_BYTES", 4 * len(losses) * 50)
    build_explorer(folder, tmp_path)
    found = Written(tmp_path)
    assert found.run["examples"]["withSeries"] == 50
    rises, falls = (np.array(found.examples(field)) for field in ("rises", "falls"))
    groups = [pair[side] for pair in found.run["pairs"] for side in ("rising", "falling")]
    members = {rank for group in groups for rank in numbers(group, "u4")}
    assert members == set(range(len(members)))
    others = (rises + falls)[len(members) :]
    assert (np.diff(others) <= 0).all(), "those that are selected most often come first"
    assert len(list(found.place.glob("series/*.js"))) == 2
    monkeypatch.setattr(data, "SERIES_BYTES", 0)
    build_explorer(folder, tmp_path / "none")
    assert Written(tmp_path / "none").run["examples"]["withSeries"] == len(members)


def test_appearances_are_counted(written, losses) -> None:
    changes = np.diff(losses, axis=0)
    for field, sign in (("rises", 1), ("falls", -1)):
        counts = np.zeros(300, int)
        for change in changes:
            counts[largest(sign * change, SHOWN)] += 1
        assert written.examples(field) == counts[written.examples("ids")].tolist()


def test_pictures_and_classes_are_those_of_the_data(written) -> None:
    dataset = planted(300)
    assert dataset.images is not None
    ids = written.examples("ids")
    assert written.examples("captions") == [dataset.class_names[int(dataset.targets[i])] for i in ids]
    assert written.run["examples"]["picture"] == [32, 32, COLUMNS]
    sheets = [np.asarray(Image.open(path)) for path in sorted(written.place.glob("images/*.png"))]
    for rank, point in enumerate(ids):
        row, column = divmod(rank % BLOCK, COLUMNS)
        picture = sheets[rank // BLOCK][32 * row :, 32 * column :][:32, :32]
        np.testing.assert_array_equal(picture, dataset.images[point])


def test_large_pictures_are_reduced(tmp_path, losses) -> None:
    trajectory = Trajectory(Record(write_record(tmp_path / "run", losses)))
    examples = Examples.of(trajectory)
    assert examples.dataset is not None
    examples.dataset.__dict__["images"] = np.full((300, 100, 400, 3), 7, np.uint8)
    assert examples.picture_size == (96, 24)
    sheet = np.asarray(examples.sheet(np.arange(9)))
    assert sheet.shape == (48, 8 * 96, 3)
    assert (sheet[:24] == 7).all()
    assert (sheet[24:, 96:] == 255).all()


def test_texts(tmp_path) -> None:
    data = {"_target_": "opposing_signals.data.text_demo", "sentences": 500}
    dataset = text_demo(500)
    found = written_with(tmp_path, alternating(points=len(dataset)), data=data)
    assert found.run["examples"]["kind"] == "text"
    assert found.run["classes"] == []
    for point, caption in zip(found.examples("ids"), found.examples("captions"), strict=True):
        assert caption == decode(dataset.inputs[point].tolist(), dataset.class_names)


def test_numbers_of_a_regression(tmp_path) -> None:
    data = {"_target_": "opposing_signals.data.chebyshev"}
    found = written_with(tmp_path, alternating(points=20), data=data)
    assert chebyshev().targets[0].item() == -1
    captions = dict(zip(found.examples("ids"), found.examples("captions"), strict=True))
    assert captions[0] == "x = −1; y = −1"


def test_one_build_is_enough_until_the_record_changes(tmp_path, losses) -> None:
    folder, target = write_record(tmp_path / "run", losses[:40], state=None), tmp_path / "page"
    build_explorer(folder, target)
    first = Written(target)
    assert "has not ended; the losses of 40 steps" in first.run["notices"][0]
    touched = (first.place / "run.js").stat().st_mtime_ns
    build_explorer(folder, target)
    assert (first.place / "run.js").stat().st_mtime_ns == touched
    with Record.writing(folder, Record(folder).configuration) as record:
        for step in range(40, 60):
            record.append("sample_loss", step, losses[step])
        record.write_state("complete")
    build_explorer(folder, target)
    second = Written(target)  # there is only one
    assert second.place != first.place
    assert second.place.name in second.page
    assert len(numbers(second.run["changes"]["steps"], "i4")) == 59
    assert second.run["notices"] == []


def test_strides(tmp_path, losses) -> None:
    steps = [step for step in range(200) if step % 10 < 3][:60]
    adam = {"_target_": "torch.optim.Adam", "lr": 0.1}
    found = written_with(tmp_path, losses, steps=steps, batch=128, optimizer=adam)
    assert numbers(found.run["changes"]["steps"], "i4").tolist() == [step for step in steps if step % 10 < 2]
    assert "Losses were recorded at 60 steps, and at the step after it for 40 of them" in found.run["notices"][0]
    assert found.run["threshold"] is None
    pair = found.run["pairs"][0]
    expected = found_in(tmp_path / "losses", losses, steps)[0]
    assert pair["step"] == expected.step
    assert pair["window"] == [expected.window[0], expected.window[1] + 1]


def written_with(tmp_path: Path, *arguments: Any, **configuration: Any) -> Written:
    build_explorer(write_record(tmp_path / "run", *arguments, **configuration), tmp_path / "page")
    return Written(tmp_path / "page")


def test_no_two_successive_steps(tmp_path, losses) -> None:
    found = written_with(tmp_path, losses, steps=range(0, 300, 5))
    assert "never recorded at two successive steps" in found.run["notices"][0]
    assert len(numbers(found.run["changes"]["steps"], "i4")) == 0
    assert found.run["pairs"] == []


def test_no_sharpness_and_no_losses(tmp_path, losses) -> None:
    found = written_with(tmp_path, losses, sharpness=False)
    assert any("sharpness was not recorded" in notice for notice in found.run["notices"])
    assert found.run["sharpness"] is None
    empty = written_with(tmp_path / "empty", None, state=None)
    assert any("No losses of training examples were recorded" in notice for notice in empty.run["notices"])
    assert empty.run["loss"]["steps"] == ""


def test_losses_that_are_not_finite(tmp_path, losses) -> None:
    broken = losses.copy()
    broken[50:, 7] = np.nan
    found = written_with(tmp_path, broken, state="stopped: the training loss is nan at step 59")
    assert any("From step 50 on there are losses that are not finite" in notice for notice in found.run["notices"])
    assert any("The run has stopped: the training loss is nan" in notice for notice in found.run["notices"])
    assert len(found.run["pairs"]) == len(found_in(tmp_path / "losses", losses[:50]))


@pytest.mark.parametrize(
    ("configuration", "said"),
    [
        ({"data": {"_target_": "somebody.elses.data"}}, "the run has data of its own"),
        ({"data": {"_target_": "subprocess.run", "args": ["touch", "x"]}}, "the run has data of its own"),
        ({"data": None}, "the run has data of its own"),
        ({"data": {**PLANTED, "images": 0}}, "data.images"),
        ({"data": {**PLANTED, "images": 299}}, "the data set has 299 of them"),
        ({"sha256": "f" * 64}, "is not the one that the run trained on"),
    ],
)
def test_without_its_data_a_run_is_shown_by_numbers(tmp_path, losses, configuration, said) -> None:
    found = written_with(tmp_path, losses, **configuration)
    assert any("by their numbers" in notice and said in notice for notice in found.run["notices"])
    assert found.run["examples"]["kind"] == "none"
    assert set(found.examples("captions")) == {""}
    assert found.place.name.endswith("-incomplete"), "the data may be there the next time"
    assert sorted(found.examples("ids"))[:30] == list(range(30))


def test_examples_of_a_part_of_the_data_have_their_own_numbers(tmp_path, losses) -> None:
    folder = write_record(tmp_path / "run", losses)
    np.savez(folder / "examples.npz", index=np.arange(300) * 7)
    build_explorer(folder, tmp_path / "page")
    found = Written(tmp_path / "page")
    assert set(found.examples("ids")) <= set(range(0, 2100, 7))
    assert sorted(found.examples("ids"))[:30] == list(range(0, 210, 7))
    assert found.run["examples"]["among"] == 299 * 7 + 1


def test_text_of_a_record_is_data(tmp_path, losses) -> None:
    attack = "</script><script>alert(1)</script>\u2028"
    found = written_with(tmp_path, losses, run={"name": attack})
    assert "<script>alert" not in found.page
    assert "<title>&lt;/script&gt;" in found.page
    assert attack not in (found.place / "run.js").read_text()  # escaped: the file is ASCII
    assert found.run["name"] == attack


@pytest.mark.parametrize("damage", ["configuration.json", "sample_loss.npy", "flat", "state.json"])
def test_damaged_records_are_refused(tmp_path, losses, damage) -> None:
    folder = write_record(tmp_path / "run", losses)
    if damage == "flat":
        np.save(folder / "sample_loss.npy", np.zeros(3))
    else:
        (folder / damage).write_bytes((folder / damage).read_bytes()[:9])
    with pytest.raises(InputError, match=r"run/(configuration.json|state.json|sample_loss.npy) is damaged: "):
        build_explorer(folder, tmp_path / "page")
    assert not (tmp_path / "page").exists()


def test_page_of_all_results_links_the_runs(tmp_path, losses) -> None:
    write_record(tmp_path / "outputs" / "runs" / "a b", losses)
    damaged = write_record(tmp_path / "outputs" / "runs" / "damaged", losses)
    (damaged / "sharpness.npy").write_bytes(b"")
    write_record(tmp_path / "elsewhere" / "runs" / "a b", losses[:30])
    page = build([tmp_path / "outputs", tmp_path / "elsewhere"], tmp_path / "report" / "index.html")
    text = page.read_text(encoding="utf-8")
    assert 'href="runs/a%20b/index.html"' in text
    assert 'href="runs/a%20b-2/index.html"' in text
    assert "damaged: sharpness.npy is damaged" in text
    assert str(tmp_path) not in text
    assert sorted(path.name for path in (page.parent / "runs").iterdir()) == ["a b", "a b-2", "runs.js"]


def test_a_result_links_the_explorers_of_its_runs(tmp_path, losses) -> None:
    name = run()["folder"]
    write_record(tmp_path / "outputs" / "runs" / name, losses)
    write_result(tmp_path / "outputs" / "fig01")
    runs = {"seed1": run(), "seed2": {**run(), "folder": "not-here"}}
    write_result(tmp_path / "outputs" / "fig02", runs=runs)
    text = build([tmp_path / "outputs"], tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert text.count(f'<a href="runs/{name}/index.html">') == 3
    assert "Explore the run →" in text.partition('<section id="fig01"')[2].partition("</section>")[0]
    assert "Explore seed1 →" in text.partition('<section id="fig02"')[2]
    assert "Explore seed2" not in text


@pytest.mark.parametrize(
    ("optimizer", "threshold"),
    [
        ({"_target_": "torch.optim.sgd.SGD", "lr": 0.05}, 40.0),
        ({"_target_": "torch.optim.SGD", "lr": 0.05, "momentum": 0.9}, None),
        ({"_target_": "opposing_signals.optim.SplitSGD", "lr": 0.05}, None),
        ({"_target_": "torch.optim.SGD"}, None),
        (None, None),
    ],
)
def test_the_edge_is_drawn_where_there_is_one(tmp_path, losses, optimizer, threshold) -> None:
    assert written_with(tmp_path, losses[:20], optimizer=optimizer).run["threshold"] == threshold
