"""The command line from a user's view: exit codes, one clear line for bad input, every experiment by name."""

import copy
import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from composing import composed
from matplotlib.figure import Figure
from PIL import Image

from opposing_signals.__main__ import main
from opposing_signals.choices import written
from opposing_signals.experiments import experiments
from opposing_signals.packing import unpack
from opposing_signals.record import Record

SEVERAL_SEEDS = ("bn_variance", "discovery_planted")
CLAIM_FIELDS = [
    "id", "statement", "source", "statistic", "threshold", "value", "interval", "verdict", "scale", "data", "seed",
    "reason", "by_seed",
]  # fmt: skip
PROBES = "instruments.block_probe.probes=[{}]"
RATES_56, RATES_110 = ("optimizer.lr=0.001,0.005",), ("optimizer.lr=0.0003,0.03",)
DAMPENING = "run=resnet110_split_sgd,resnet110_split_sgd_undampened"
SHORT_VALLEY = ("theory.settle=4", "theory.sharpen=2", "theory.stay=4")
"""For figure 4: each of its steps is a frame of an animation."""
ENOUGH = {  # enough to compute every claim: a part of a grid, a short run
    "fig39_sgd_grid": ("run=resnet56_sgd,resnet56_split_sgd",),
    "fig40_plain_step_sizes": ("run=resnet56_split_sgd_eta1_0,resnet56_split_sgd,resnet56_adam",),
    "fig41_learning_rates_loss": RATES_56,
    "fig42_learning_rates_accuracy": RATES_56,
    "fig43a_sgd_and_adam": RATES_110,
    "fig43b_undampened": (f"{DAMPENING},resnet110_adam",),
    "fig44a_dampened": (f"{DAMPENING},resnet110_adam",),
    "fig44b_signed_share": (DAMPENING,),
    "fig04_toy_valley": SHORT_VALLEY,
    "fig22_flow_sky_block": ("steps=8",),  # each of them takes many gradients
    "intervention": (
        "intervention=control,remove_pair,downweight_pair,relabel_pair,remove_random_1,remove_random_2",
        "intervention.spike=1",
    ),
}
TINY = ("scale=smoke", "logger=none", "steps=3", "threads=1")


@pytest.fixture
def command(tmp_path, capfd):
    """Run the command line in this process with outputs in ``tmp_path``; returns exit code, stdout and stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main([*arguments, *([f"output_dir={tmp_path}"] if "scale=smoke" in arguments else [])])
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return run


def assert_refused(result: tuple[int, str, str], *parts: str) -> None:
    code, _, error = result
    assert code == 2
    assert "Traceback" not in error
    assert "Error executing job" not in error
    message = [line for line in error.splitlines() if line.startswith("opposing-signals: ")]
    assert len(message) == 1, error
    for part in parts:
        assert part in message[0]


@pytest.fixture(scope="module")
def shared_outputs(tmp_path_factory):
    """Folder in which experiments find runs trained for earlier ones."""
    return tmp_path_factory.mktemp("outputs")


def representatives() -> list[str]:
    """One of each set of experiments that differ only in their description and the input shown."""
    different: dict[str, str] = {}
    for name in sorted(experiments()):
        described = copy.deepcopy(written("experiment", name))
        del described["experiment"]
        described.pop("seed", None)
        described["claims"] = [{**claim, "source": ""} for claim in described["claims"].values()]
        different.setdefault(json.dumps(described, sort_keys=True), name)
    return list(different.values())


@pytest.mark.parametrize(
    "experiment",
    [name if name == "fig03_chebyshev" else pytest.param(name, marks=pytest.mark.slow) for name in representatives()],
)
def test_every_experiment_runs_at_smoke_scale(shared_outputs, capfd, experiment):
    settings = "scale=smoke", "logger=none", "threads=1", f"output_dir={shared_outputs}"
    code = main([f"experiment={experiment}", *settings, *ENOUGH.get(experiment, ())])
    out = capfd.readouterr().out
    assert code == 0
    folder = shared_outputs / experiment
    claims = json.loads((folder / "claims.json").read_text())
    assert claims or experiment == "fig12_green_images"  # there the paper claims nothing
    for claim in claims:
        assert list(claim) == CLAIM_FIELDS
        assert claim["verdict"] in ("PASS", "FAIL", "INCONCLUSIVE")
        assert claim["verdict"] == "INCONCLUSIVE" or claim["value"] is not None
        assert claim["verdict"] != "INCONCLUSIVE" or claim["reason"]
        assert claim["scale"] == "smoke"
        seeds = [[1, 2, 3]] if experiment in SEVERAL_SEEDS else []
        assert claim["seed"] in [composed(experiment).seed, *seeds]
        assert claim["id"] in out
    assert (folder / "figure.png").stat().st_size > 10_000
    assert (folder / "figure.pdf").read_bytes().startswith(b"%PDF")
    described = json.loads((folder / "experiment.json").read_text())
    assert described["command"].startswith(f"opposing-signals experiment={experiment}")
    assert described["runs"]


@pytest.fixture
def shown(monkeypatch, capfd):
    """The output of the command on a screen of 80 columns."""

    def run(*arguments: str, **environment: str) -> str:
        with monkeypatch.context() as patched:
            for name, value in {"COLUMNS": "80", **environment}.items():
                patched.setenv(name, value)
            try:
                code = main([*arguments])
            except SystemExit as ended:
                code = ended.code
        captured = capfd.readouterr()
        assert (code, captured.err) == (0, "")
        return captured.out

    return run


def test_help_fits_a_screen_and_comes_within_three_seconds(shown):
    def seconds() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    before = seconds()
    subprocess.run([sys.executable, "-m", "opposing_signals", "--help"], stdout=subprocess.DEVNULL, check=True)
    assert seconds() - before < 3
    text = shown("--help")
    assert text == shown() == shown("experiment=fig03_chebyshev", "-h")
    assert len(text.splitlines()) <= 26
    assert max(map(len, text.splitlines())) <= 80
    for expected in ("list", "sweep", "report", "gallery", "explain", "fig01 to fig54", "theorem31", "intervention"):
        assert expected in text


@pytest.mark.parametrize("name", ["list", "sweep", "report", "gallery", "explain"])
def test_each_command_has_help_of_its_own(shown, name):
    assert shown(name, "--help").startswith(f"usage: opposing-signals {name}")
    assert shown(name, "-h") == shown(name, "--help")


def test_the_list_has_every_experiment_and_its_costs_in_the_width_of_the_screen(shown):
    text = shown("list")
    assert max(map(len, text.splitlines())) <= 80
    for name, (title, cost) in experiments().items():
        assert title
        assert {"smoke", "cpu"} <= set(cost) <= {"smoke", "cpu", "paper"}
        assert text.count(f"{name} ") == 1

    def listed(word: str) -> list[str]:
        return [line.split()[0] for line in shown("list", word).splitlines() if line[0] != " "]

    with_transformers = [name for name, (title, _) in experiments().items() if "transformer" in title.lower()]
    assert listed("transformer") == with_transformers
    assert listed("fig6") == listed("fig06") == ["fig06a_sgd_groups", "fig06b_projection"]
    assert listed("fig1") == ["fig01_group_losses"]


THEOREMS = ["theorem31", "theorem32", "theorem_map"]


@pytest.mark.parametrize(
    ("line", "proposed"),
    [
        ("experiment=theorem", [f"experiment={name}" for name in THEOREMS]),
        ("theorem", THEOREMS),
        ("fig6", ["fig6a_sgd_groups", "fig6b_projection"]),
        ("rep", ["report", "reproduce"]),
        ("list theorem", THEOREMS),
        ("reproduce --scale cpu --only fig3 theorem", THEOREMS),
        ("report theorem", []),
        ("fig3 scale=", ["scale=cpu", "scale=paper", "scale=smoke"]),
        ("-m fig3 scale=s", ["scale=smoke"]),
        ("fig99 scale=", []),
    ],
)
def test_shells_complete_commands_experiments_and_fields(shown, line, proposed):
    assert shown("-sc", "query=bash", COMP_LINE=f"opposing-signals {line}").split() == proposed


@pytest.mark.parametrize("option", ["-sc", "--shell-completion"])
def test_shells_learn_to_complete(shown, option):
    assert "complete -o nospace" in shown(option, "install=bash")


def test_options_of_hydra_work_before_and_behind_fields(shown):
    before, behind = shown("--cfg", "job", "fig3", "steps=7"), shown("fig3", "--cfg", "job", "steps=7")
    assert before == behind
    assert "steps: 7" in before
    assert "Config search path" in shown("fig3", "--info")


def test_several_experiments_follow_each_other_and_each_has_its_own_verdicts(command, tmp_path):
    code, out, error = command("-m", "experiment=fig38b,theorem_map,linear_depth", *TINY[:2], f"output_dir={tmp_path}")
    assert code == 0, error
    for name in ("fig38b_linear_model", "theorem_map", "linear_depth"):
        described = json.loads((tmp_path / name / "experiment.json").read_text())
        assert described["name"] == name
        assert (tmp_path / name / "figure.png").is_file()
        claims = json.loads((tmp_path / name / "claims.json").read_text())
        assert [claim["id"] for claim in claims] == list(composed(name).claims)
        assert out.count(f"{name} at scale=smoke") == 1
    depths = json.loads((tmp_path / "linear_depth" / "experiment.json").read_text())["runs"]
    assert list(depths) == ["linear_depth2", "linear_depth3", "linear_depth4"]


def test_an_experiment_that_cannot_work_leaves_the_others_of_the_command(command, tmp_path):
    code, _, error = command("-m", "experiment=theorem_map,fig3", *TINY, f"output_dir={tmp_path}")
    assert_refused((code, "", error), "Could not override 'steps'")  # a map of models trains nothing
    assert (tmp_path / "fig03_chebyshev" / "steps=3" / "claims.json").is_file()


def test_the_first_line_says_what_is_done_and_nothing_else_is_said_in_a_fresh_home(command, tmp_path, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    fig4 = ["fig4", "scale=smoke", *SHORT_VALLEY]
    environment = {name: value for name, value in os.environ.items() if name != "MPLCONFIGDIR"}
    first = subprocess.run(
        [sys.executable, "-m", "opposing_signals", *fig4, f"output_dir={tmp_path}"],
        capture_output=True, text=True, check=True, env={**environment, "HOME": str(tmp_path)},
    )  # fmt: skip
    for doing, out, error in (("new run", first.stdout, first.stderr), ("reusing", *command(*fig4)[1:])):
        lines = out.splitlines()
        assert lines[0].startswith(f"fig04_toy_valley: {doing} {tmp_path}/runs/toy_valley-smoke-seed1-")
        assert lines[1].startswith("fig04_toy_valley at scale=smoke, seed=1")
        assert [line.split(": ")[0] for line in lines[2:] if line[0] not in "┏┃┡│└"] == ["figure", "claims"]
        assert error == ""


def test_a_complete_run_is_reused(command, tmp_path):
    command("experiment=fig01_group_losses", *TINY)
    (folder,) = (tmp_path / "runs").iterdir()
    before = (folder / "sample_loss.npy").stat().st_mtime_ns
    code, out, _ = command("experiment=talk_loss_change_distribution", *TINY)
    assert code == 0
    assert "talk_kurtosis" in out
    assert (folder / "sample_loss.npy").stat().st_mtime_ns == before
    assert len(list((tmp_path / "runs").iterdir())) == 1


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        # by the command line itself
        (["experiment=fig03_chebishev"], ["did you mean fig03_chebyshev?"]),
        (["fig06", "scale=smoke"], ["experiment 'fig06'", "fig06a_sgd_groups or fig06b_projection"]),
        (["fig3", "scale", "smoke"], ["fig3 scale smoke", "scale=smoke, without spaces"]),
        (["fig3,fig4"], ["experiment=fig3,fig4: several experiments; add -m"]),
        (["fig3", "--scale=smoke"], ["--scale=smoke", "without dashes"]),
        (["fig3", "optimizer.lr=[1,"], ["optimizer.lr=[1,: cannot be read", "FIELD=VALUE"]),
        (["fig3", "a=b=c,"], ["a=b=c,: cannot be read"]),
        (["fig3", "-m", "--cfg", "job"], ["--multirun --cfg: expected one of them"]),
        (["fig3", "--cfg", "jobs"], ["--cfg", "jobs"]),
        (["fig3", "--resolve"], ["--resolve", "--cfg job"]),
        (["--cfg", "job"], ["no experiment given, only --cfg job"]),
        (["-sc", "install=csh"], ["-sc install=csh", "bash"]),
        (["sweep", "fig3"], ["sweep fig03_chebyshev: it trains one run", "fig39_sgd_grid"]),
        (["fig3", "run=resnt18_gd"], ["run=resnt18_gd: unknown; did you mean resnet18_gd"]),
        # by Hydra
        (["fig3", "seed=1,2"], ["seed=1,2: several values; add -m", "seed=[1,2]"]),
        (["fig3", "optimizer.lrr=1"], ["optimizer.lrr", "did you mean lr?"]),
        (["fig3", "optimiser.lr=1"], ["optimiser", "did you mean optimizer?", "--cfg job prints the fields there are"]),
        # before anything is trained
        (["fig3", *TINY, "risk.chunk=ten"], ["risk.chunk=ten", "a whole number"]),
        (["fig8", *TINY, "model.vocabulary=7"], ["model.vocabulary=7", "at least as many"]),
        (["fig5", *TINY, "experiment.probe=blue", PROBES.format("blue")], ["probe 'blue': unknown", "sky, red, green"]),
        (
            ["fig5", *TINY, "experiment.probe=/nowhere/mine.png", PROBES.format("/nowhere/mine.png")],
            ["mine.png", "No such file"],
        ),
        (
            ["fig5", *TINY, "experiment.probe=red", "instruments.block_probe.probes=sky"],
            ["block_probe.probes=sky: expected a list, each of it a text"],
        ),
        # with the data
        (["fig3", *TINY, "risk.chunk=21"], ["risk.chunk=21", "1 to 20"]),
        (["fig3", *TINY, "batch=21"], ["batch=21", "1 to 20"]),
        (["fig3", *TINY, "data.points=1"], ["points"]),
        (["fig1", *TINY, "data=cifar10", "data.root=/nowhere"], ["data.root=/nowhere"]),
        (["fig1", *TINY, "data=cifar10", "data.images=50001"], ["data.images=50001", "50000"]),
        (["fig8", *TINY, "data.block=100000"], ["data.block=100000", "text_demo", "tokens"]),
        (["fig12", "scale=smoke", "logger=none", "neighbours.colours=[blue]"], ["'blue'", "green"]),
        (
            ["fig3", *TINY, "run=planted_mlp"],
            ["run planted_mlp: planted", "[3, 32, 32]", "expected one number for each", "choose run=chebyshev_gd"],
        ),
        # by a sweep, or after the training
        (["fig41", *TINY, "optimizer.lr=range(1,1)"], ["grid", "is empty", "range(1,1)"]),
        (["fig41", *TINY, "optimizer.lr=choice()"], ["optimizer.lr=choice()", "empty"]),
        (["fig3", *TINY, "~instruments.sharpness"], ["no 'sharpness' (written by Sharpness)", "train_loss"]),
        (["fig3", *TINY, "~instruments.sharpnes"], ["~instruments.sharpnes: there is no such field", "--cfg job"]),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_2(command, arguments, parts):
    assert_refused(command(*arguments), *parts)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_refused(command):
    assert_refused(command("experiment=fig03_chebyshev", *TINY, "trainer.accelerator=gpu"), "accelerator=gpu", "no GPU")


@pytest.mark.parametrize("refused", ["experiment.probe=purple", "seed=many", "data.images=-1", "optimizer.lr=0"])
def test_what_is_refused_leaves_no_run_behind(command, tmp_path, refused):
    assert_refused(command("experiment=fig05_sky_block", *TINY, refused), refused.split("=")[1])
    assert not list((tmp_path / "runs").glob("*/configuration.json"))


def test_an_image_of_ones_own_is_passed_through_and_one_of_another_size_refused(command, tmp_path):
    picture = tmp_path / "mine.png"
    own = ["experiment=fig16_vgg11bn_sky_block", *TINY, f"experiment.probe={picture}", PROBES.format(picture)]
    Image.new("RGB", (32, 32), (200, 10, 90)).save(picture)
    assert command(*own)[0] == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert Record(folder)["probe_image"].values[0, 0, 0, 0].tolist() == [200, 10, 90]
    Image.new("RGB", (64, 48)).save(picture)
    assert_refused(command(*own, "seed=2"), "mine.png", "64x48 pixels; expected 32x32")


def test_a_record_of_another_configuration_is_refused(command, tmp_path):
    run_dir = f"run_dir={tmp_path / 'mine'}"
    assert command("experiment=fig03_chebyshev", *TINY, run_dir)[0] == 0
    assert_refused(command("experiment=fig03_chebyshev", *TINY, run_dir, "seed=2"), "another configuration", "seed = 1")


def test_a_diverging_run_says_so_and_is_not_trained_again(command):
    diverging = ["experiment=fig03_chebyshev", *TINY, "steps=60", "optimizer.lr=1000"]
    for _ in range(2):
        code, _, error = command(*diverging)
        assert code == 1
        assert "training stopped: the training loss is" in error
        assert "smaller optimizer.lr" in error


def test_a_failed_job_does_not_stop_a_sweep(command, tmp_path):
    code, out, error = command("experiment=fig36_share_increasing", *TINY, "optimizer.lr=1e20")
    assert code == 1
    assert error.count("failed:") >= 1
    assert "fig36_vgg11bn_sgd" in out
    claims = json.loads((tmp_path / "fig36_share_increasing" / "claims.json").read_text())
    assert {claim["verdict"] for claim in claims} <= {"INCONCLUSIVE", "NOT RUN"}


def test_a_sweep_names_in_its_figure_what_failed_and_goes_on_with_what_is_missing(command, tmp_path, monkeypatch):
    notes = []
    save = Figure.savefig

    def save_noting(figure, *arguments, **settings):
        notes.append(figure.get_supxlabel())
        save(figure, *arguments, **settings)

    monkeypatch.setattr(Figure, "savefig", save_noting)
    sweep = "experiment=fig43a_sgd_and_adam", *TINY, "run=resnet110_sgdm"
    code, out, error = command(*sweep, "optimizer.lr=0.01,1e30,-1")
    assert code == 1
    assert "fig43a_range" in out
    for shown in (error, notes[-1]):
        assert "run=resnet110_sgdm,optimizer.lr=1e+30 failed: the training loss is nan" in shown
        assert "run=resnet110_sgdm,optimizer.lr=-1 failed: optimizer.lr=-1: expected a finite number, above 0" in shown
        assert "run=resnet110_sgdm,optimizer.lr=0.01 failed" not in shown
    trained = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("*/train_loss.npy")}
    assert len(trained) == 2
    code, _, _ = command(*sweep, "optimizer.lr=0.01,0.02")
    assert code == 0
    assert "failed" not in notes[-1]
    assert all(path.stat().st_mtime_ns == before for path, before in trained.items())
    assert len(list((tmp_path / "runs").glob("*/train_loss.npy"))) == 3


def test_a_sweep_of_which_every_job_fails_is_drawn_as_such(command, tmp_path):
    code, _, error = command("experiment=fig39_sgd_grid", *TINY, "run=resnet56_split_sgd", "optimizer.sgd_lr=-1")
    assert code == 1
    assert "resnet56_split_sgd failed: optimizer.sgd_lr=-1: expected a finite number, at least 0" in error
    assert "Traceback" not in error
    assert (tmp_path / "fig39_sgd_grid" / "figure.png").is_file()


def dashboards(folder):
    """Contents of the dashboard's offline runs, as text, unordered: names within one second are random."""
    contents = []
    for log in (folder / "wandb").glob("offline-run-*/*.wandb"):
        inspected = subprocess.run(
            [Path(sys.executable).with_name("wandb"), "leet", "inspect", "--json", log],
            capture_output=True,
            text=True,
            check=True,
        )
        contents.append(inspected.stdout)
    return contents


def test_a_sweep_has_a_dashboard_run_for_each_job_and_one_for_its_figure(command, tmp_path):
    code, _, error = command("experiment=linear_depth", "scale=smoke", "threads=1", "logger=wandb")
    assert code == 0, error
    contents = dashboards(tmp_path)
    assert len(contents) == len(list((tmp_path / "runs").iterdir())) + 1
    assert len([content for content in contents if "media/table/claims" in content]) == 1


def test_one_dashboard_run_a_job_holds_scalars_figure_and_claims(command, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/proc")  # not writable
    code, _, _ = command("experiment=fig03_chebyshev", "scale=smoke", "steps=12", "threads=1", "logger=wandb")
    assert code == 0
    (content,) = dashboards(tmp_path)
    for expected in (
        "sharpness",
        "train_loss",
        "fig03_chebyshev",
        "chebyshev_gd-smoke-seed1-lr",
        "largest_rise",
        "share_rising",
        "2/η",
        "claim/fig03c",
        "verdict/fig03b",
        "media/table/claims",
        "media/images/figure",
        "seed1",
    ):
        assert expected in content, expected
    (run,) = (tmp_path / "runs").iterdir()
    artifacts = [entry["artifact"] for entry in map(json.loads, content.splitlines()) if entry["type"] == "artifact"]
    (kept,) = (artifact for artifact in artifacts if artifact["type"] == "record")
    assert kept["name"] == run.name
    (packed,) = kept["manifest"]["contents"]
    unpack(Path(packed["local_path"]), tmp_path / "unpacked")
    assert np.array_equal(Record(tmp_path / "unpacked")["sample_loss"].values, Record(run)["sample_loss"].values)


def test_what_is_refused_leaves_no_dashboard_run(command, tmp_path):
    code, _, error = command("experiment=fig03_chebyshev", "scale=smoke", "steps=0", "logger=wandb")
    assert code == 2
    assert "steps=0: expected" in error
    assert not (tmp_path / "wandb").exists()


@pytest.mark.parametrize(
    ("field", "value", "sweep"),
    [
        ("run.name", "../../escaped", False),
        *(("experiment.name", value, False) for value in ("../escaped", "/tmp/escaped")),
        ("seed", "../../escaped", False),
        ("output_dir", "", False),
        ("run_dir", "", False),
        ("run.name", "../../escaped", True),
        ("experiment.name", "../escaped", True),
        ("output_dir", "", True),
        ("run_dir", "", True),
    ],
)
def test_names_stay_inside_the_output_folder(tmp_path, monkeypatch, capfd, field, value, sweep):
    outside = tmp_path / "outside"
    inside = outside / "inside"
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside)
    arguments = ["experiment=fig03_chebyshev", *TINY, "output_dir=outputs", f"{field}={value}"]
    if sweep:
        arguments = ["--multirun", *arguments, "optimizer.momentum=0,0.1"]
    code, error = main(arguments), capfd.readouterr().err
    assert code == (1 if sweep and field not in ("experiment.name", "output_dir") else 2)  # 1: each job refuses it
    assert f"{field}={value}: expected" in error
    assert not {"Traceback", "Warning"} & {*re.findall(r"\w+", error)}
    assert not list((inside / "outputs").glob("runs/*/*"))
    assert [path.name for path in outside.iterdir()] == ["inside"]
    assert {path.name for path in inside.iterdir()} <= {"outputs"}
    assert not Path("/fig03_chebyshev").exists()
    assert not Path("/tmp/escaped").exists()
