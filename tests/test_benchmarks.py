"""The benchmark for GPUs works at the first try: everything but the card itself is tested here."""

import importlib.util
import json
from pathlib import Path

import pytest

SPECIFICATION = importlib.util.spec_from_file_location("gpu", Path(__file__).parents[1] / "benchmarks" / "gpu.py")
gpu = importlib.util.module_from_spec(SPECIFICATION)
SPECIFICATION.loader.exec_module(gpu)
TINY = ("--device", "cpu", "--images", "8", "--width", "2", "--repetitions", "1", "--steps", "2")


@pytest.mark.slow
def test_rows_are_measured_kept_and_not_measured_again(tmp_path, capsys, monkeypatch):
    rows = tmp_path / "rows.jsonl"
    command = ["--networks", "vgg11bn", "--levers", "float32", "tf32", "bfloat16 compiled", "tf32 recorded"]
    monkeypatch.setitem(gpu.LEVERS, "bfloat16 compiled", {"precision": "bfloat16"})  # without the time for the compiler
    gpu.main([*command, *TINY, "--to", str(rows)])
    found = {row["lever"]: row for row in map(json.loads, rows.read_text().splitlines())}
    assert found["float32"]["gradient, last"] < 1e-4 < found["bfloat16 compiled"]["gradient, last"]
    assert found["float32"]["Hv, first"] < 1e-3
    assert "expected a GPU" in found["tf32 recorded"]["failed"]
    said = capsys.readouterr().out
    assert "vgg11bn: risk.precision=tf32: " in said or "vgg11bn: : " in said
    assert "λ by two products every" in said
    monkeypatch.setattr(gpu, "Subject", None)  # measures nothing
    gpu.main([*command, *TINY, "--to", str(rows)])
    assert len(rows.read_text().splitlines()) == 4
    assert "complete" in capsys.readouterr().out


def test_without_time_left_no_row_begins(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(gpu, "Subject", None)
    gpu.main(["--networks", "resnet56", *TINY, "--seconds", "-1", "--to", str(tmp_path / "rows")])
    assert "rows are missing: the same command goes on" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [("--device", "cuda"), ("--data", "nowhere.npz", "--device", "cpu")])
def test_what_cannot_be_measured_is_refused(arguments, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit):
        gpu.main(list(arguments))


def test_the_fastest_lever_is_taken_whose_gradient_is_as_good_as_in_tf32():
    def row(lever, seconds, error, both=10.0):
        errors = {"gradient, first": error, "gradient, last": error / 2}
        return {"network": "resnet18", "lever": lever, "images": 1000, "gradient s": seconds, "both s": both, **errors,
                "both GiB": 10.0}  # fmt: skip

    rows = [row("tf32", 1.5, 0.09), row("float16 compiled", 0.5, 0.1, 5.0), row("bfloat16 compiled", 0.4, 0.3)]
    said = gpu.advice("resnet18", rows, 80.0)
    assert said.startswith("resnet18: risk.precision=float16 risk.compile_training=true: 0.50 s a gradient")
    assert "every 51 steps" in said, "4.5 s x 0.85 / (0.15 x 0.5 s), and odd"
    assert "risk.chunk at most 7200" in said
