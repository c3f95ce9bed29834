"""The combined result of a sweep over seeds."""

import json
import statistics

import numpy as np
import pytest
from fabricated import verdict, write_result
from PIL import Image
from recorded import alternating, write_record

from opposing_signals.__main__ import main
from opposing_signals.record import Record
from opposing_signals.report.sweep import across, conclude_sweep
from opposing_signals.report.sweep_figure import seeds_over_each_other
from opposing_signals.studies import style


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
    conclude_sweep(tmp_path, {"seed=1": "", "seed=2": ""})
    assert not (tmp_path / "sweep.json").exists(), "one job is no sweep"
    write_result(tmp_path / "data.root=x_y,seed=3", [verdict("a", "PASS", value=3.0), verdict("b", "FAIL", value=0.0)])
    conclude_sweep(tmp_path, {"seed=1": "", "seed=2": "", "data.root=x/y,seed=3": ""})
    claims = {claim["id"]: claim for claim in json.loads((tmp_path / "sweep.json").read_text())}
    assert claims["a"]["values"] == {"seed=1": 1.0, "data.root=x/y,seed=3": 3.0}
    assert (claims["a"]["mean"], claims["a"]["passed"], claims["a"]["jobs"]) == (2.0, 2, 2)
    assert (claims["b"]["deviation"], claims["b"]["passed"], claims["b"]["jobs"]) == (None, 0, 1)
    assert "2 of 2" in capsys.readouterr().out


def test_a_sweep_over_seeds_ends_with_one_table(tmp_path, capfd) -> None:
    arguments = ["fig03", "-m", "seed=1,2,3", "scale=smoke", "threads=1", "logger=none", f"output_dir={tmp_path}"]
    assert main(arguments) == 0
    out = capfd.readouterr().out
    claims = json.loads((tmp_path / "fig03_chebyshev" / "sweep.json").read_text())
    with Image.open(tmp_path / "fig03_chebyshev" / "sweep.png") as picture:
        assert picture.width == 10 * style.DPI
    seeds = [json.loads((tmp_path / f"fig03_chebyshev/seed={seed}/claims.json").read_text()) for seed in (1, 2, 3)]
    for claim, checked in zip(claims, zip(*seeds, strict=True), strict=True):
        assert {found["id"] for found in checked} == {claim["id"]}
        assert list(claim["values"]) == ["seed=1", "seed=2", "seed=3"]
        assert list(claim["values"].values()) == [found["value"] for found in checked]
        assert claim["passed"] == sum(found["verdict"] == "PASS" for found in checked)
        known = [value for value in claim["values"].values() if value is not None]
        assert claim["mean"] == pytest.approx(statistics.fmean(known))
        assert f"{claim['passed']} of 3" in out


def test_the_figure_has_each_jobs_curves_and_values(tmp_path) -> None:
    records = {}
    for seed in (1, 2):
        folder = write_record(tmp_path / "runs" / str(seed), alternating(seed=seed))
        write_result(tmp_path / f"seed={seed}", [verdict("a", "PASS", value=float(seed), threshold="in [0.5, 1.5]")])
        records[f"seed={seed}"] = Record(folder)
    figure = seeds_over_each_other("two seeds", records, across({job: tmp_path / job for job in records}))
    loss, sharpness, claim = figure.axes
    for line, record in zip(loss.lines, records.values(), strict=True):
        np.testing.assert_allclose(line.get_ydata(), record["sample_loss"].values.mean(1, dtype=np.float64))
    assert [line.get_label() for line in sharpness.lines][:2] == list(records)
    assert sharpness.lines[2].get_ydata()[0] == 2 / 0.05
    bounds, values = [0.5, 1.5], [1.0, 2.0]
    assert [float(line.get_xdata()[0]) for line in claim.lines] == bounds + values
    (shade,) = claim.patches
    assert [shade.get_x(), shade.get_x() + shade.get_width()] == bounds
    statement, said = (claim.get_title(loc="left") + claim.get_title()).splitlines()
    assert statement.startswith("What a states")
    assert said == "a: 2 of 2 pass, claimed in [0.5, 1.5], mean 1.50, standard deviation 0.71"
