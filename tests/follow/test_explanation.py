"""A record is explained in words, and the page shows them."""

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


def recorded(folder, every=1, shown=None, labels=None, losses=True):
    """A run whose two groups alternate; from step 40 to 41 the first jumps."""
    generator = np.random.default_rng(0)
    with Record.writing(folder, CONFIGURATION) as record:
        for step in range(80):
            row = 1 + 0.001 * generator.standard_normal(POINTS)
            sign = 1 if step % 2 else -1
            row[UP] += 0.2 * sign + (step == 41)
            row[DOWN] -= 0.2 * sign
            if losses and step % every < 2:
                record.append("sample_loss", step, row.astype(np.float32))
            record.append("sharpness", step, 4.0 + 0.01 * step)
        record.write_provenance(
            {"data": {"name": "Pairs (120 of 900 examples tracked)", "sha256": "0", "examples": POINTS},
             "training_seconds": 11.0, "measuring_seconds": 1.0}
        )  # fmt: skip
    write_tracked(folder, np.arange(POINTS) + 700, shown, labels, None)


def test_the_groups_behind_a_spike_are_named_by_their_place_in_the_users_data(tmp_path):
    recorded(tmp_path, labels=["cat" if i in UP else "dog" for i in range(POINTS)])
    told = explain(tmp_path, spikes=1).splitlines()
    assert told[0] == (
        "mine: Pairs (120 of 900 examples tracked), losses at 80 of steps 0 to 79; "
        "measuring took 10.0% of the 10.0 s of training"
    )
    assert told[1].startswith("step 40: the mean loss rose from ")
    assert "8 examples, 6.7% of those followed, carried 9" in told[2]
    assert "against 7 that fell" in told[2]
    assert "8 cat" in told[3]
    assert set(told[3].split("examples ")[1].split(", ")) == {str(700 + i) for i in UP}
    assert "7 dog" in told[4]
    assert told[5] == "  in short: cats against mixed examples"  # nearly all are dogs
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
    told = explain(tmp_path, spikes=1)
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
