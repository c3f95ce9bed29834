"""The one answer of a sweep over seeds."""

import json
import statistics

import pytest
from fabricated import verdict, write_result

from opposing_signals.__main__ import main
from opposing_signals.report.sweep import across, conclude_sweep


def test_a_claim_has_its_mean_spread_and_number_of_passes(tmp_path) -> None:
    values = {"seed=1": 0.5, "seed=2": 0.75, "seed=3": None}
    for (job, value), found in zip(values.items(), ("PASS", "FAIL", "INCONCLUSIVE"), strict=True):
        write_result(tmp_path / job, [verdict("a", found, value=value)])
    (claim,) = across({job: tmp_path / job for job in values})
    assert claim.values == values
    assert (claim.passed, claim.jobs) == (1, 3)
    assert claim.mean == pytest.approx(0.625)
    assert claim.deviation == pytest.approx(statistics.stdev([0.5, 0.75]))


def test_jobs_without_verdicts_are_left_out(tmp_path, capsys) -> None:
    write_result(tmp_path / "seed=1", [verdict("a", "PASS", value=1.0)])
    conclude_sweep(tmp_path, ["seed=1", "seed=2"])
    assert not (tmp_path / "sweep.json").exists(), "one job is no sweep"
    write_result(tmp_path / "data.root=x_y,seed=3", [verdict("a", "PASS", value=3.0), verdict("b", "FAIL", value=0.0)])
    conclude_sweep(tmp_path, ["seed=1", "seed=2", "data.root=x/y,seed=3"])
    claims = {claim["id"]: claim for claim in json.loads((tmp_path / "sweep.json").read_text())}
    assert claims["a"]["values"] == {"seed=1": 1.0, "data.root=x/y,seed=3": 3.0}
    assert (claims["a"]["mean"], claims["a"]["passed"], claims["a"]["jobs"]) == (2.0, 2, 2)
    assert (claims["b"]["deviation"], claims["b"]["passed"], claims["b"]["jobs"]) == (None, 0, 1)
    assert "2 of 2" in capsys.readouterr().out


def test_a_sweep_over_seeds_ends_with_one_table(tmp_path, capfd) -> None:
    arguments = ["fig04", "-m", "seed=1,2,3", "scale=smoke", "logger=none", f"output_dir={tmp_path}"]
    assert main(arguments) == 0
    claims = json.loads((tmp_path / "fig04_toy_valley" / "sweep.json").read_text())
    seeds = [json.loads((tmp_path / f"fig04_toy_valley/seed={seed}/claims.json").read_text()) for seed in (1, 2, 3)]
    for claim, checked in zip(claims, zip(*seeds, strict=True), strict=True):
        assert {found["id"] for found in checked} == {claim["id"]}
        assert list(claim["values"]) == ["seed=1", "seed=2", "seed=3"]
        assert list(claim["values"].values()) == [found["value"] for found in checked]
        assert claim["passed"] == sum(found["verdict"] == "PASS" for found in checked)
        assert claim["mean"] == pytest.approx(statistics.fmean(claim["values"].values()))
    assert "3 of 3" in capfd.readouterr().out
