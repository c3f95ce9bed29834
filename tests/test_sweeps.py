"""Grids of experiments on every launcher, and the same grids as W&B sweeps."""

import itertools
import json
import os
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import yaml
from composing import composed
from matplotlib.figure import Figure
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from opposing_signals.__main__ import main
from opposing_signals.app.sweep import UNFINISHED
from opposing_signals.arguments import LAUNCHERS, completed
from opposing_signals.configuration import run_key
from opposing_signals.experiments import experiments
from opposing_signals.record import Record
from opposing_signals.sweeps import grid

DEPTHS = ("experiment=linear_depth", "scale=smoke", "logger=none", "threads=1")
RUNS = ["linear_depth2", "linear_depth3"]
TWO = (*DEPTHS, f"run={','.join(RUNS)}")


def needs(launcher: str) -> None:
    if launcher in LAUNCHERS:
        package = LAUNCHERS[launcher]
        if find_spec("hydra_plugins") is None or find_spec(f"hydra_plugins.{package.replace('-', '_')}") is None:
            pytest.skip(f"{package} is not installed: pip install {package}")


def records(folder: Path) -> dict[str, Record]:
    return {path.name.split("-")[0]: Record(path) for path in sorted((folder / "runs").iterdir())}


@pytest.fixture(scope="module")
def one_by_one(tmp_path_factory) -> dict[str, Record]:
    """The runs, trained sequentially in this process."""
    folder = tmp_path_factory.mktemp("basic")
    assert main([*TWO, f"output_dir={folder}", "conclude=false"]) == 0
    return records(folder)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local", "ray"])
def test_jobs_on_a_launcher_give_the_numbers_of_jobs_in_this_process(
    launcher, one_by_one, tmp_path, capfd, monkeypatch
):
    needs(launcher)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    runs = RUNS[:1] if launcher == "submitit_local" else RUNS  # one process each; its queue is tested below
    code = main(["-m", *DEPTHS, f"run={','.join(runs)}", f"output_dir={tmp_path}", f"hydra/launcher={launcher}"])
    if launcher == "ray":
        sys.modules["ray"].shutdown()
    captured = capfd.readouterr()
    assert code == 0, captured.err
    assert "linear_depth_a" in captured.out
    described = json.loads((tmp_path / "linear_depth" / "experiment.json").read_text())
    assert list(described["runs"]) == runs
    assert (tmp_path / "linear_depth" / "figure.png").is_file()
    found = records(tmp_path)
    assert list(found) == runs
    for name, record in found.items():
        assert record.is_complete
        np.testing.assert_array_equal(record["sharpness"].values, one_by_one[name]["sharpness"].values)


@pytest.mark.slow
def test_slurm_gets_a_job_array_whose_jobs_conclude_the_experiment(tmp_path, capfd, monkeypatch):
    """A cluster emulated by four shell scripts: submitted jobs run at once on this machine."""
    needs("submitit_slurm")
    commands = {
        "sbatch": """
            script="${@: -1}"; cp "$script" "$FAKE_SLURM/submitted"; echo "Submitted batch job 7"
            export SLURM_ARRAY_JOB_ID=7 SLURM_NTASKS=1 SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NODEID=0
            export SLURM_JOB_NUM_NODES=1 SLURM_JOB_NODELIST=here
            { for task in 0 1; do SLURM_JOB_ID=$((7 + task)) SLURM_ARRAY_TASK_ID=$task bash "$script"; done
              touch "$FAKE_SLURM/ended"; } > "$FAKE_SLURM/log" 2>&1 &""",
        "srun": """while [[ "$1" != */python* ]]; do shift; done; exec "$@" """,
        "sacct": """
            state=$([ -f "$FAKE_SLURM/ended" ] && echo FAILED || echo RUNNING)
            echo 'JobID|State|NodeList'; echo "7_0|$state|here"; echo "7_1|$state|here" """,
        "scontrol": "echo here",
    }
    for name, text in commands.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("FAKE_SLURM", str(tmp_path))
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    queue = ["hydra.launcher.partition=gpu", "hydra.launcher.array_parallelism=1"]
    settings = [f"output_dir={tmp_path}", "hydra/launcher=submitit_slurm", *queue]
    code = main([*TWO, *settings])
    assert code == 0, capfd.readouterr().err + (tmp_path / "log").read_text()
    options = (tmp_path / "submitted").read_text().splitlines()
    for expected in ("--partition=gpu", "--array=0-1%1", "--gpus-per-node=1", "--time=240", "--job-name=linear_depth"):
        assert f"#SBATCH {expected}" in options
    described = json.loads((tmp_path / "linear_depth" / "experiment.json").read_text())
    assert list(described["runs"]) == RUNS


@pytest.mark.parametrize("launcher", sorted(LAUNCHERS))
def test_a_launcher_that_is_not_installed_names_its_package(launcher, capsys, monkeypatch):
    monkeypatch.setattr("opposing_signals.arguments.find_spec", lambda _: None)
    assert main([*DEPTHS, f"hydra/launcher={launcher}"]) == 2
    error = capsys.readouterr().err
    assert f"hydra/launcher={launcher}" in error
    assert f"pip install {LAUNCHERS[launcher]}" in error
    assert "Traceback" not in error
    assert main([*DEPTHS, "hydra/launcher=nonsense"]) == 2
    assert "joblib, ray, submitit_local" in capsys.readouterr().err


@pytest.mark.slow
def test_a_job_that_raises_leaves_the_others_and_is_named(tmp_path, capfd):
    code = main([*DEPTHS, f"output_dir={tmp_path}", "job=killing.descent_or_error"])
    error = capfd.readouterr().err
    assert code == 1
    assert "opposing-signals: linear_depth3 failed: ZeroDivisionError: a bug" in error
    described = json.loads((tmp_path / "linear_depth" / "experiment.json").read_text())
    assert list(described["runs"]) == ["linear_depth2", "linear_depth4"]


def test_a_job_whose_instrument_refuses_its_settings_says_so_in_one_line(tmp_path, capfd):
    values = "instruments.sharpness.consecutive=1,5"
    tiny = ["scale=smoke", "logger=none", "threads=1", "steps=2", "instruments.sharpness.every=2", "conclude=false"]
    assert main(["fig3", *tiny, values, "-m", f"output_dir={tmp_path}"]) == 1
    shown = capfd.readouterr()
    assert "failed: Sharpness: consecutive=5: expected 1 to every=2" in shown.err
    assert "Traceback" not in shown.out + shown.err


@pytest.mark.slow
def test_a_job_whose_process_dies_is_named_and_the_others_are_concluded(tmp_path, capfd):
    needs("joblib")
    parallel = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.launcher.batch_size=1"]
    code = main([*DEPTHS, f"output_dir={tmp_path}", *parallel, "job=killing.descent_or_death"])
    error = capfd.readouterr().err
    assert code == 1
    assert "the launcher gave up: " in error
    assert "linear_depth3" in error
    assert UNFINISHED in error
    described = json.loads((tmp_path / "linear_depth" / "experiment.json").read_text())
    assert list(described["runs"]) == ["linear_depth2", "linear_depth4"]


@pytest.mark.slow
def test_each_job_of_a_sweep_of_ones_own_is_concluded_by_itself(tmp_path, capfd):
    seeds = ["--multirun", "experiment=fig03_chebyshev", "scale=smoke", "steps=12", "threads=1", "logger=none"]
    assert main([*seeds, "seed=1,2", f"output_dir={tmp_path}"]) == 0
    folders = sorted(path.parent for path in (tmp_path / "fig03_chebyshev").glob("*/experiment.json"))
    each = [json.loads((folder / "claims.json").read_text()) for folder in folders]
    assert [claims[0]["seed"] for claims in each] == [1, 2]


@pytest.mark.slow
def test_a_grid_over_seeds_draws_each_seed_by_itself(tmp_path, monkeypatch):
    below = {}
    save = Figure.savefig

    def save_noting(figure, path, **settings):
        below[Path(path).parent] = figure.get_supxlabel()
        save(figure, path, **settings)

    monkeypatch.setattr(Figure, "savefig", save_noting)
    assert main(["-m", *TWO, "seed=1,2", f"output_dir={tmp_path}"]) == 0
    folder = tmp_path / "linear_depth"
    assert below[folder].startswith("Shown is seed 1. The other seeds: seed=2/figure.png\n")
    assert "of 2 seeds" in below[folder]
    assert below[folder / "seed=2"].startswith("Shown is seed 2.\n")
    assert "of 2 seeds" not in below[folder / "seed=2"]
    assert {path.name for path in (folder / "seed=2").iterdir()} == {"figure.png", "figure.pdf"}
    claims = json.loads((folder / "claims.json").read_text())
    assert [one["seed"] for one in claims[0]["by_seed"]] == [1, 2]
    both = ["+experiment.figure_seeds=together", "experiment.name=together"]
    assert main(["-m", *TWO, "seed=1,2", f"output_dir={tmp_path}", *both]) == 0
    assert "Shown is" not in below[tmp_path / "together"]
    assert not (tmp_path / "together" / "seed=2").exists()


@pytest.mark.slow
def test_a_job_that_is_only_trained_leaves_no_verdicts(tmp_path):
    assert main([*DEPTHS, f"output_dir={tmp_path}", "run=linear_depth2", "hydra.mode=RUN", "conclude=false"]) == 0
    assert records(tmp_path)["linear_depth2"].is_complete
    assert not (tmp_path / "linear_depth" / "claims.json").exists()
    assert run_key(composed("linear_depth", "conclude=false")) == run_key(composed("linear_depth"))


# -- W&B sweeps -------------------------------------------------------------------------------------------------------


def rendered(sweep: dict, point: tuple) -> list[str]:
    """The command that W&B's agent starts at a point of the grid."""
    chosen = {field: {"value": value} for field, value in zip(sweep["parameters"], point, strict=True)}
    arguments = create_sweep_command_args({"args": chosen})
    command = []
    for part in create_sweep_command(list(sweep["command"])):
        command += arguments[part[2:-1]] if part.startswith("${") else [part]
    return command


GRIDS = [name for name in experiments() if grid(name)]
SWEEPS = Path(__file__).parents[1] / "sweeps"


def test_the_files_of_sweeps_are_the_grids(tmp_path, capsys):
    assert main(["sweep", GRIDS[0]]) == 0
    assert capsys.readouterr().out == (SWEEPS / f"{GRIDS[0]}.yaml").read_text()
    assert main(["sweep", "--all", str(tmp_path)]) == 0
    assert {path.stem for path in tmp_path.iterdir()} == set(GRIDS)
    for path in SWEEPS.iterdir():
        assert (tmp_path / path.name).read_text() == path.read_text(), "make gallery writes it anew"


@pytest.mark.parametrize("name", GRIDS)
def test_a_sweep_has_its_experiments_grid_and_renders_commands_that_compose(name):
    sweep = yaml.safe_load((SWEEPS / f"{name}.yaml").read_text())
    values = {field: described["values"] for field, described in sweep["parameters"].items()}
    config = composed(name, "scale=paper", with_hydra=True)
    described = config.hydra.sweeper.params
    assert {field: [str(value) for value in listed] for field, listed in values.items()} == {
        field: [value.strip() for value in str(listed).split(",")] for field, listed in described.items()
    }
    metric = sweep.get("metric", {}).get("name")
    assert (metric == "train_loss") == ("train_loss" in config.instruments)
    points = list(itertools.product(*values.values()))
    commands = [rendered(sweep, point) for point in points]
    assert not [part for command in commands for part in command if part.endswith(("=None", "=null", "="))]
    for program, *arguments in commands:
        assert program == sweep["program"] == "opposing-signals"
        assert {"hydra.mode=RUN", "conclude=false", f"experiment={name}"} <= set(arguments)
    assert [sorted(command) for command in completed(arguments)] == [sorted(arguments)]
    ours = composed(name, "logger=wandb", *(argument for argument in arguments if not argument.startswith("hydra.")))
    at_the_last_point = (f"{field}={value}" for field, value in zip(values, points[-1], strict=True))
    assert run_key(ours) == run_key(composed(name, "scale=paper", *at_the_last_point))
