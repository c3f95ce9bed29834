"""Records are explained in words, and the page shows the explanation."""

import json

import numpy as np
import pytest

from opposing_signals.__main__ import main
from opposing_signals.data.tracked import tracked, write_tracked
from opposing_signals.errors import InputError
from opposing_signals.follow.explanation import explain
from opposing_signals.record import Record
from opposing_signals.report import build

UP, DOWN, POINTS = np.arange(10, 18), np.arange(50, 57), 120
CONFIGURATION = {
    "run": {"name": "mine"},
    "seed": None,
    "data": {"_target_": "opposing_signals.data.tracked"},
    "model": {"_target_": "script.Model"},
    "optimizer": {"_target_": "torch.optim.sgd.SGD", "lr": 0.5, "momentum": 0},
}


def recorded(folder, every=1, shown=None, labels=None, losses=True, jump=1.0, groups=None):
    """A run whose two groups alternate; from step 40 to 41 the first group jumps."""
    generator = np.random.default_rng(0)
    with Record.writing(folder, CONFIGURATION) as record:
        for step in range(80):
            row = 1 + 0.001 * generator.standard_normal(POINTS)
            sign = 1 if step % 2 else -1
            row[UP] += 0.2 * sign + jump * (step == 41)
            row[DOWN] -= 0.2 * sign
            if losses and step % every < 2:
                record.append("sample_loss", step, row.astype(np.float32))
            record.append("sharpness", step, 4.0 + 0.01 * step)
        record.write_provenance(
            {"data": {"name": "Pairs (120 of 900 examples tracked)", "sha256": "0", "examples": POINTS},
             "training_seconds": 11.0, "measuring_seconds": 1.0}
        )  # fmt: skip
    write_tracked(folder, np.arange(POINTS) + 700, shown, labels, None, groups)


def named(line):
    """The examples that a line names, sorted."""
    return sorted(int(index) for index in line.split("examples ")[-1].split("; ")[0].split(", ") if index != "…")


def test_the_groups_behind_a_spike_are_named_by_their_place_in_the_users_data(tmp_path):
    recorded(tmp_path, labels=["cat" if i in UP else "dog" for i in range(POINTS)])
    told = explain(tmp_path, spikes=1).lines
    assert told[0] == (
        "mine: measured 80 of 80 steps (0 to 79), 79 changes; Pairs (120 of 900 examples tracked); "
        "measuring took 10.0% of the 10.0 s of training"
    )
    pair = next(i for i, line in enumerate(told) if line.startswith("pair 1: "))
    sides = sorted([named(told[pair + 1]), named(told[pair + 2])])
    assert sides == [[700 + i for i in UP], [700 + i for i in DOWN]]
    spike = next(i for i, line in enumerate(told) if line.startswith("step 40: the mean loss rose from "))
    assert "8 examples, 6.7% of those followed, carried 9" in told[spike + 1]
    assert "against 7 that fell" in told[spike + 1]
    assert "8 cat" in told[spike + 2]
    assert named(told[spike + 2]) == [700 + i for i in UP]
    assert "7 dog" in told[spike + 3]
    assert (tmp_path / "figure.png").is_file()
    verdicts = {claim["id"]: claim for claim in json.loads((tmp_path / "claims.json").read_text())}
    assert verdicts["own_opposition"]["verdict"] == "PASS"
    assert verdicts["own_amplitude"]["verdict"] == "PASS"
    assert verdicts["own_edge"]["value"] == pytest.approx(1.1, abs=0.02)


def test_the_page_shows_the_explanation(tmp_path, capsys):
    recorded(tmp_path / "run", every=4)
    assert main(["explain", str(tmp_path / "run")]) == 0
    told = capsys.readouterr().out.strip()
    page = build([tmp_path], tmp_path / "page.html").read_text()
    assert told.splitlines()[2].strip() in page
    assert "incomplete" not in page.split("<main")[1]


def test_texts_are_quoted(tmp_path):
    recorded(tmp_path, shown=[f"sentence {i}" for i in range(POINTS)])
    told = str(explain(tmp_path, spikes=1))
    assert any(f"'sentence {i}'" in told for i in UP)
    assert any(f"'sentence {i}'" in told for i in DOWN)


def test_what_a_record_keeps_of_its_examples_can_be_read_again(tmp_path):
    pictures = [np.full((5, 4), i, np.uint8) for i in range(3)]
    write_tracked(tmp_path, np.array([4, 9, 2]), pictures, [1, 0, 1], ("no", "yes"))
    dataset = tracked(tmp_path)
    assert dataset.images.shape == (3, 5, 4, 3)
    assert (dataset.images[2] == 2).all()
    assert dataset.targets.tolist() == [1, 0, 1]
    assert (dataset.class_names, dataset.inputs.tolist()) == (("no", "yes"), [[4], [9], [2]])
    (tmp_path / "examples.npz").write_bytes(b"no archive")
    with pytest.raises(InputError, match="cannot be read"):
        tracked(tmp_path)


@pytest.mark.parametrize(
    ("settings", "parts"),
    [({"losses": False}, ["no per-sample losses", "it holds sharpness"]), (None, ["no record of a run"])],
    ids=["without losses", "nothing"],
)
def test_a_record_that_cannot_be_explained_is_refused(tmp_path, settings, parts, capsys):
    if settings is not None:
        recorded(tmp_path, **settings)
    assert main(["explain", str(tmp_path)]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    for part in parts:
        assert part in message
    assert main(["explain"]) == 2
    assert "expected opposing-signals explain" in capsys.readouterr().err


def test_lone_steps_are_refused(tmp_path):
    with Record.writing(tmp_path, CONFIGURATION) as record:
        for step in (0, 5):
            record.append("sample_loss", step, np.ones(3, np.float32))
    with pytest.raises(InputError, match="no two of them successive"):
        explain(tmp_path)


def test_what_is_no_spike_is_not_told_as_one_and_the_groups_are_named_all_the_same(tmp_path):
    recorded(tmp_path, jump=0.0, groups=["stripes" if i in UP else None for i in range(POINTS)])
    told = explain(tmp_path)
    assert told.findings["spikes"] == []
    assert any(line.startswith("no spike in the measured steps: the largest rise") for line in told.lines)
    (pair,) = told.findings["pairs"]
    assert sorted([sorted(pair["rising"]), sorted(pair["falling"])]) == [[700 + i for i in g] for g in (UP, DOWN)]
    assert any("8 of them in group stripes (8)" in line for line in told.lines)
    assert told.findings["groups"]["stripes"]["examples"] == len(UP)


def test_json_holds_what_the_text_says(tmp_path, capsys):
    recorded(tmp_path)
    assert main(["explain", "--json", str(tmp_path)]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "explanation.json").read_text())
    assert printed["measured"] == printed["steps"] == 80
    assert printed["spikes"][0]["step"] == 40
    assert printed["lines"] == list(explain(tmp_path).lines)


ROWS = 16


def batches(folder, steps=60, **unusual):
    """A run with recorded batches only; ``unusual`` maps quantity to {step: value}."""
    generator = np.random.default_rng(0)
    with Record.writing(folder, CONFIGURATION) as record:
        for step in range(steps):
            size = unusual.get("batch_size", {}).get(step, ROWS)
            losses = 1 + 0.1 * generator.random(ROWS)
            for row, loss in unusual.get("rows", {}).get(step, {}).items():
                losses[row] = loss
            losses[size:] = np.nan
            index = np.where(np.arange(ROWS) < size, np.arange(ROWS) + 100 * step, -1)
            mean = unusual.get("train_loss", {}).get(step, np.mean(losses[:size]))
            record.append("batch_loss", step, losses.astype(np.float32))
            record.append("batch_index", step, index)
            record.append("batch_size", step, size)
            record.append("train_loss", step, mean)
            record.append(
                "batch_gradient_norm", step, unusual.get("batch_gradient_norm", {}).get(step, 1 + 0.01 * (step % 3))
            )
            record.append("learning_rate", step, unusual.get("learning_rate", {}).get(step, 0.1))
        record.write_provenance({"data": {"name": "Batches", "sha256": "0", "examples": 0}})


def test_the_row_that_made_a_spike_is_named(tmp_path):
    batches(tmp_path, rows={40: {3: 30.0, 9: 20.0}})
    told = explain(tmp_path)
    (spike,) = told.findings["batch_spikes"]
    assert spike["step"] == 40
    assert spike["rows"][:2] == (4003, 4009)
    assert spike["share"] > 0.95
    assert not spike["reasons"]
    assert "train_dataset[4003] 30" in str(told)


@pytest.mark.parametrize(
    ("unusual", "reason"),
    [
        ({"batch_size": {40: 5}, "train_loss": {40: 3.0}}, "its batch holds 5 examples, others 16"),
        ({"learning_rate": dict.fromkeys(range(39, 60), 1.0), "train_loss": {40: 3.0}},
         "the learning rate went from 0.1 to 1 at step 39"),
        ({"batch_gradient_norm": {39: 50.0}, "train_loss": {40: 3.0}}, "a gradient of norm 50"),
        ({"batch_gradient_norm": {39: np.inf}, "train_loss": {40: 3.0}}, "a gradient that is not finite"),
        ({"batch_gradient_norm": {39: np.nan}, "train_loss": {40: 3.0}}, "a gradient that is not finite"),
    ],
)  # fmt: skip
def test_a_spike_is_told_with_what_was_unusual(tmp_path, unusual, reason):
    batches(tmp_path, **unusual)
    (spike,) = explain(tmp_path).findings["batch_spikes"]
    assert spike["step"] == 40
    assert [reason in told for told in spike["reasons"]] == [True]


def test_an_even_run_has_no_spike_and_no_divergence(tmp_path):
    batches(tmp_path)
    findings = explain(tmp_path).findings
    assert findings["batch_spikes"] == []
    assert findings["divergence"] is None


def test_a_divergence_is_told_with_the_first_row_and_what_was_before(tmp_path):
    batches(
        tmp_path,
        rows={50: {2: np.inf}},
        train_loss={48: 4.0, 49: 90.0, **dict.fromkeys(range(50, 60), np.nan)},
        learning_rate=dict.fromkeys(range(48, 60), 3.0),
    )
    told = explain(tmp_path)
    divergence = told.findings["divergence"]
    assert (divergence["step"], divergence["row"], divergence["row_step"]) == (50, 5002, 50)
    assert divergence["before"]["train_loss"][1:] == [4.0, 90.0]
    assert divergence["reasons"] == ("the learning rate went from 0.1 to 3 at step 48",)
    assert "not finite from step 50 on" in str(told)


def test_a_loss_that_stays_high_is_a_divergence_too(tmp_path):
    batches(tmp_path, train_loss={step: 1.0 if step < 30 else 1e9 if step == 50 else 50.0 for step in range(60)})
    findings = explain(tmp_path).findings
    assert (findings["divergence"]["step"], findings["divergence"]["is_finite"]) == (30, True)
    assert [spike["step"] for spike in findings["batch_spikes"]] == [30]  # step 50 is due to the divergence
