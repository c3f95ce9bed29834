"""What a dashboard shows of a run, compared with the run's record."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from composing import composed
from recorded import alternating, write_record

from opposing_signals.app.dashboard import Dashboard, dashboard, steps
from opposing_signals.app.workspace import PAIRS, STEP, workspace
from opposing_signals.errors import InputError
from opposing_signals.record import Record
from opposing_signals.signals import Trajectory
from opposing_signals.studies.claim import Verdict


@pytest.fixture
def trajectory(tmp_path) -> Trajectory:
    return Trajectory(Record(write_record(tmp_path / "run", alternating())))


def test_the_rows_are_the_records(trajectory) -> None:
    losses = alternating()
    rows = steps(trajectory, with_scalars=True)
    for step in (0, 21, 58):
        change = losses[step + 1] - losses[step]
        row = rows[step]
        assert row["train_loss"] == pytest.approx(losses[step].mean(), rel=1e-6)
        assert (row["largest_rise"], row["largest_fall"]) == (change.max(), change.min())
        assert row["share_rising"] == pytest.approx((change > 0).mean())
        assert row.get("2/η") == (40.0 if step % 7 == 0 else None)
        assert row.get("sharpness") == (20.0 + step if step % 7 == 0 else None)
        for number, pair in enumerate(trajectory.pairs, start=1):
            for side, group in zip("ab", pair.groups, strict=True):
                assert row[f"pair/{number}{side}"] == pytest.approx(losses[step, group].mean(), rel=1e-6)
    assert trajectory.pairs
    assert "train_loss" not in steps(trajectory, with_scalars=False)[0]


def test_a_table_holds_the_steps_and_the_claims_values(trajectory, tmp_path) -> None:
    config = composed("fig01_group_losses", "logger=csv", output_dir=tmp_path)
    verdict = Verdict("a", "It holds", "§2", "a mean", "> 0", 0.25, None, "PASS", "smoke", "drawn", 1)
    with dashboard(config, "seed=2,optimizer.momentum=0.9") as mirror:
        mirror.show(tmp_path, [verdict], {"run": trajectory})
    (path,) = tmp_path.glob("csv/*/version_0/metrics.csv")
    assert path.parts[-3].startswith("resnet18_gd-smoke-seed1-lr")
    assert path.parts[-3].endswith("-optimizer.momentum=0.9")
    with path.open() as file:
        rows = list(csv.DictReader(file))
    losses = [float(row["train_loss"]) for row in rows if row["train_loss"]]
    np.testing.assert_allclose(losses, alternating().mean(1), rtol=1e-6)
    assert [row["claim/a"] for row in rows if row["claim/a"]] == ["0.25"]
    assert (path.parent / "hparams.yaml").is_file()


def test_nothing_is_begun_before_there_is_something_to_show(tmp_path) -> None:
    for logger in ("wandb", "csv", "tensorboard"):
        with dashboard(composed("fig01_group_losses", f"logger={logger}", output_dir=tmp_path)) as mirror:
            assert isinstance(mirror, Dashboard)
    assert not list(tmp_path.iterdir())
    with dashboard(composed("fig01_group_losses", "logger=none")) as mirror:
        assert mirror is None


def test_a_setting_that_a_logger_does_not_have_is_refused_in_a_line(tmp_path) -> None:
    config = composed("fig01_group_losses", "logger=csv", "+logger.colour=red", output_dir=Path(tmp_path))
    with pytest.raises(InputError, match=r"logger=csv: .*'colour'; --cfg job prints its settings"):
        _ = Dashboard(config).logger


def test_a_workspace_has_a_panel_for_what_is_logged(trajectory) -> None:
    pytest.importorskip("wandb_workspaces", reason="the extra `workspaces` is not installed")
    described = workspace("fig1", "somebody")
    assert (described.name, described.project) == ("fig01_group_losses", "opposing-signals")
    panels = {section.name: section.panels for section in described.sections}
    assert all(panels.values())
    drawn = {name for shown in panels.values() for panel in shown for name in getattr(panel, "y", None) or ()}
    logged = set().union(*steps(trajectory, with_scalars=True).values())
    of_further_pairs = {f"pair/{number}{side}" for number in PAIRS for side in "ab"} - logged
    assert drawn - of_further_pairs - {"sharpness_bound", "test_accuracy"} == logged
    assert {panel.x for shown in panels.values() for panel in shown if hasattr(panel, "y")} == {STEP}
    claims = [panel.metrics[0].name for panel in panels["Claims"]]
    assert claims == [f"claim/fig01{letter}" for letter in "abcdef"]
    sent = json.loads(described._to_model().model_dump_json(by_alias=True))  # what save() sends
    (runs,) = sent["spec"]["section"]["runSets"]
    assert [(test["key"]["name"], test["value"]) for test in runs["filters"]["filters"]] == [
        ("tags", ["fig01_group_losses"])
    ]
