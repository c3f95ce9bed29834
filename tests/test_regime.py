"""The grid of benchmarks/regime: its points are distinct runs, and each network can be trained and measured."""

import json
import runpy
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
from composing import composed

from opposing_signals.configuration import decisive, run_key
from opposing_signals.record import Record
from opposing_signals.training.job import train

FOLDER = Path(__file__).parents[1] / "benchmarks" / "regime"


@pytest.fixture(scope="module")
def regime():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        import grid
        import measures
        import pictures
        import tables

        yield SimpleNamespace(**vars(grid), measured=measures.measured, draw=pictures.draw, as_table=tables.as_table)
        for name in ("grid", "measures", "pictures", "tables"):
            del sys.modules[name]


def test_each_point_is_a_run_of_its_own_with_the_sizes_it_names(regime, tmp_path):
    points = regime.grid()
    configurations = [regime.configuration(point, tmp_path) for point in points]
    assert len({run_key(config) for config in configurations}) == len(points)
    for point, config in zip(points, configurations, strict=True):
        assert (config.data.images, config.risk.chunk, config.optimizer.lr) == (point.images, point.chunk, point.eta)
        assert config.model.get("width", config.model.get("hidden", [0])[0]) == point.width
        assert config.batch is None
        assert regime.Point.of(decisive(config)) == point


@pytest.mark.parametrize(
    ("network", "eta", "is_at_edge"),
    [("mlp", 5.0, True), ("vgg11", 0.01, False), ("vgg11bn", 2.0, True), ("resnet18", 2.0, True), ("vit", 2.0, True)],
)
def test_each_network_is_trained_measured_and_drawn(regime, network, eta, is_at_edge, tmp_path):
    point = regime.Point(network, 8, images=48, chunk=24, eta=eta, steps=14)
    config = composed("fig01_group_losses", *point.overrides[1:], "data=planted")
    with Record.writing(tmp_path, decisive(config)) as record:
        train(config, record, None)
    row = regime.measured(point, Record(tmp_path))
    assert json.loads(json.dumps(row)) == row
    assert row["sharpness_steps"] == [0, 1]
    if is_at_edge:
        assert row["break_even"] in (0, 1)
        assert 0 < row["class_r2"] < 1
        assert sum(row["widest"]["rising"].values()) == 20
    else:
        assert row["break_even"] is row["class_r2"] is row["coherence"] is row["widest"] is None
    assert regime.as_table([row]).count("\n") == 2
    assert regime.draw([row]).axes


def test_runs_of_other_kinds_are_no_points(regime):
    other = ("optimizer=adam", "optimizer=sgd optimizer.momentum=0.9", "data=planted", "batch=128")
    for overrides in other:
        assert regime.Point.of(decisive(composed("fig01_group_losses", "run=regime_gd", *overrides.split()))) is None


def test_runs_are_found_in_their_folders_and_equal_ones_once(regime, tmp_path):
    point = regime.Point("mlp", 8, images=40, chunk=40, eta=0.1, steps=2)
    config = composed("fig01_group_losses", *point.overrides[1:])
    for name in ("a", "b"):
        with Record.writing(tmp_path / name / "runs" / "one", decisive(config)) as record:
            record.write_state("complete")
    found = regime.finished([tmp_path / "a", tmp_path / "b"])
    assert list(found) == [point]
    assert found[point].folder == tmp_path / "a" / "runs" / "one"


def test_rows_of_runs_that_lie_elsewhere_are_kept(regime, tmp_path, monkeypatch):
    measure = runpy.run_path(str(FOLDER))["measure"]
    monkeypatch.setitem(measure.__globals__, "measured", lambda point, run: {**asdict(point), "run": run})
    narrow, wide = (measure.__globals__["Point"]("mlp", width, 40, 40, 0.1, 2) for width in (8, 16))
    measure({wide: "first"}, tmp_path)
    assert [row["run"] for row in measure({narrow: "second"}, tmp_path)] == ["second", "first"]
    assert [row["run"] for row in measure({wide: "third"}, tmp_path)] == ["second", "third"]
    assert len(json.loads((tmp_path / "regime.json").read_text())) == 2
