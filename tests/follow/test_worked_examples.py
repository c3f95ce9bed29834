"""The worked examples run as their users run them, and their records can be explained."""

import runpy
import sys
from pathlib import Path

import pytest

from opposing_signals.follow.explanation import explain
from opposing_signals.record import Record

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize(
    ("example", "arguments", "told"),
    [
        ("digits", ("--epochs", "6"), ("1797 of 1797", "measured 42 of 42 steps")),
        ("torchvision_resnet", ("--epochs", "2", "--images", "64"), ("64 of 64",)),
        ("language_model", ("--steps", "60"), ("256 of 460",)),
        ("plain_loop", ("--steps", "60"), ("of 460", "of 60 steps")),
        ("fabric", ("--epochs", "8"), ("of 1797", "of 64 steps")),
        ("transformers_finetune", ("--steps", "40"), ("of 460", "of 40 steps")),
    ],
)
def test_an_example_runs_and_is_explained(tmp_path, monkeypatch, example, arguments, told):
    monkeypatch.setattr(sys, "argv", [example, "--folder", str(tmp_path / example), *arguments])
    runpy.run_path(str(EXAMPLES / f"{example}.py"), run_name="__main__")
    record = Record(tmp_path / example)
    assert record.is_complete
    assert len(record["train_loss"]) == record["train_loss"].steps[-1] + 1
    explanation = str(explain(record.folder))
    for part in told:
        assert part in explanation
