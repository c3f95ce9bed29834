"""An experiment in a user's folder, with the unmodified package: examples/own_experiment."""

import json
import multiprocessing
import shutil
import sys
from pathlib import Path

import pytest

from opposing_signals.__main__ import main
from opposing_signals.record import Record

ROOT = Path(__file__).parents[1]
OWN = ROOT / "examples" / "own_experiment"
SETTINGS = ("experiment=spirals", "scale=smoke", "steps=6", "threads=1", "logger=none")


def assert_concluded(folder: Path) -> None:
    claims = json.loads((folder / "spirals" / "claims.json").read_text())
    assert [claim["id"] for claim in claims] == ["spirals_growth", "spirals_edge"]
    assert {claim["verdict"] for claim in claims} <= {"PASS", "FAIL"}
    assert (folder / "spirals" / "figure.png").is_file()
    (run,) = (folder / "runs").iterdir()
    record = Record(run)
    assert record.configuration["model"] == {"_target_": "spirals.residual_mlp", "width": 8, "depth": 2}
    assert len(record["weight_norm"]) == 2  # of the run's own instrument
    assert len(record["gradient_norm"]) == 6  # of the one that the experiment adds


@pytest.mark.parametrize("where", [("--config-dir", str(OWN)), (f"hydra.searchpath=[file://{OWN}]",)])
def test_a_folder_of_ones_own_runs(where, tmp_path):
    assert main([*where, *SETTINGS, f"output_dir={tmp_path}"]) == 0
    assert_concluded(tmp_path)


def test_its_choices_and_those_of_the_package_go_together(tmp_path):
    where = ("--config-dir", str(OWN))
    assert main([*where, *SETTINGS, "model=mlp", "conclude=false", f"output_dir={tmp_path}"]) == 0
    mlp = ("fig3", "model=residual_mlp", "data=spirals", "loss=cross_entropy", "risk.chunk=60", "conclude=false")
    assert main([*where, *mlp, *SETTINGS[1:], f"output_dir={tmp_path}"]) == 0
    assert {record.configuration["run"]["name"] for record in map(Record, (tmp_path / "runs").iterdir())} == {
        "spirals_gd",
        "chebyshev_gd",
    }


def command_with(package: Path, *arguments: str) -> None:
    sys.path.insert(0, str(package))
    raise SystemExit(main(list(arguments)))


@pytest.mark.slow
def test_a_plugin_of_an_installed_package_makes_its_choices_known(tmp_path):
    (tmp_path / "site" / "hydra_plugins").mkdir(parents=True)
    (tmp_path / "site" / "my_experiments").mkdir()
    (tmp_path / "site" / "my_experiments" / "__init__.py").touch()
    (tmp_path / "site" / "my_experiments" / "conf").symlink_to(OWN)
    (tmp_path / "site" / "hydra_plugins" / "my_experiments.py").write_text(
        "from hydra.plugins.search_path_plugin import SearchPathPlugin\n"
        "class MyExperiments(SearchPathPlugin):\n"
        "    def manipulate_search_path(self, search_path):\n"
        "        search_path.append('my_experiments', 'pkg://my_experiments.conf')\n"
    )
    process = multiprocessing.get_context("forkserver").Process(
        target=command_with, args=(tmp_path / "site", *SETTINGS, f"output_dir={tmp_path / 'outputs'}")
    )
    process.start()
    process.join()
    assert process.exitcode == 0
    assert_concluded(tmp_path / "outputs")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--config-dir", "/no/where", *SETTINGS], ["--config-dir=/no/where: no such folder"]),
        (["hydra.searchpath=[file:///no/where]", *SETTINGS], ["hydra.searchpath=file:///no/where: no such folder"]),
        (["hydra.searchpath=[pkg://no.such.package]", *SETTINGS], ["pkg://no.such.package: no such folder"]),
        (["--config-dir", str(OWN), "experiment=spirels"], ["did you mean spirals?"]),
        (["--config-dir", str(OWN), *SETTINGS, "model=residual"], ["did you mean residual_mlp?", "vit"]),
        (
            ["--config-dir", str(OWN), *SETTINGS, "+settings.residual_mlp.widht=3"],
            ["did you mean", "residual_mlp.width"],
        ),
        (["--config-dir", str(OWN), *SETTINGS, "scale=huge"], ["scale=huge: unknown", "paper"]),
        (["--config-dir", str(OWN), *SETTINGS, "+claims.mine.treshold=3"], ["claims.mine.treshold", "threshold"]),
        (["--config-dir", str(OWN), *SETTINGS, "+claims.mine.threshold='> 3'"], ["claims.mine: no statement"]),
        (["--config-dir", str(OWN), *SETTINGS, "loss=square", "data=text_demo"], ["do not fit", "model=gpt"]),
    ],
)
def test_what_is_not_there_is_refused_in_one_line(arguments, parts, tmp_path, capfd):
    assert main([*arguments, f"output_dir={tmp_path}"]) == 2
    message = [line for line in capfd.readouterr().err.splitlines() if line.startswith("opposing-signals: ")]
    assert len(message) == 1
    for part in parts:
        assert part in message[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("_partial_: true", "_partial_: false"), "figure: expected _partial_: true"),
        (("title:", "text:"), "experiment.title: missing"),
        (("spirals.norm_growth}", "spirals.norm_growth, run: a}"), "statistic.run: no such field"),
        (
            ("spirals.norm_growth", "opposing_signals.studies.curvature.claims.jacobian_growth"),
            "claims.spirals_growth.statistic: missing a required argument: 'run'",
        ),
        (("claims:", "claimz: {}\nclaims:"), "claimz: no training reads such a field; did you mean claims?"),
        (
            ("experiment:\n", "instruments: {mine: {_target_: spirals.Block, width: 3}}\nexperiment:\n"),
            "instruments.mine._target_=spirals.Block: expected a class that derives from Instrument",
        ),
    ],
)
def test_a_wrong_experiment_is_refused_in_one_line_before_it_trains(change, message, tmp_path, capfd):
    shutil.copytree(OWN, tmp_path / "own")
    file = tmp_path / "own" / "experiment" / "spirals.yaml"
    file.write_text(file.read_text().replace(*change, 1))
    assert main(["--config-dir", str(tmp_path / "own"), *SETTINGS, f"output_dir={tmp_path}"]) == 2
    assert message in capfd.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_an_instrument_that_is_not_there_is_refused_in_one_line(tmp_path, capfd):
    (tmp_path / "experiment").mkdir()
    text = (OWN / "experiment" / "spirals.yaml").read_text().replace("spirals_gd", "chebyshev_gd")
    (tmp_path / "experiment" / "mine.yaml").write_text(text.replace("[gradient_norms]", "[gradient_norm]"))
    assert main(["--config-dir", str(tmp_path), "experiment=mine", f"output_dir={tmp_path}"]) == 2
    error = capfd.readouterr().err
    assert "experiment/mine: instruments=gradient_norm: unknown; did you mean gradient_norms" in error


def test_overrides_in_front_of_other_defaults_are_refused_in_one_line(tmp_path, capfd):
    (tmp_path / "experiment").mkdir()
    text = (OWN / "experiment" / "spirals.yaml").read_text()
    run = "  - override /run: spirals_gd\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(
        text.replace(run, "").replace("defaults:\n", f"defaults:\n{run}").replace("spirals_gd", "chebyshev_gd")
    )
    arguments = ["--config-dir", str(tmp_path), "experiment=mine", f"output_dir={tmp_path}"]
    assert main(arguments) == 2
    error = capfd.readouterr().err
    assert "expected its overrides, as override /run, behind all others" in error
    assert "Traceback" not in error
