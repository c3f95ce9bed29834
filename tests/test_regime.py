"""The grid of benchmarks/regime.py: its points are runs of their own, and each network can be trained and measured."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
from composing import composed

from opposing_signals.configuration import decisive, run_key
from opposing_signals.record import Record
from opposing_signals.training.job import train

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "regime.py"


@pytest.fixture(scope="module")
def regime():
    spec = importlib.util.spec_from_file_location("regime", SCRIPT)
    module = sys.modules["regime"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_each_point_is_a_run_of_its_own_with_the_sizes_it_names(regime, tmp_path):
    points = regime.grid()
    configurations = [regime.configuration(point, tmp_path) for point in points]
    assert len({run_key(config) for config in configurations}) == len(points)
    for point, config in zip(points, configurations, strict=True):
        assert (config.data.images, config.risk.chunk, config.optimizer.lr) == (point.images, point.chunk, point.eta)
        assert config.model.get("width", config.model.get("hidden", [0])[0]) == point.width
        assert config.batch is None


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
