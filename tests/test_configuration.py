import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from composing import composed
from omegaconf import DictConfig, OmegaConf

from opposing_signals.__main__ import experiments
from opposing_signals.configuration import UNDECISIVE, configuration_folder, decisive, run_folder, run_key
from opposing_signals.studies.claim import Threshold

SCALES = ("smoke", "cpu", "paper")
ADAM = "run=resnet56_adam"


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("experiment", sorted(experiments()))
def test_every_experiment_composes_at_every_scale(experiment, scale):
    config = composed(experiment, f"scale={scale}")
    assert config.experiment.name == experiment
    assert config.scale.name == scale
    assert json.loads(json.dumps(decisive(config))) == decisive(config)
    for claim in config.claims:
        Threshold(claim.threshold if isinstance(claim.threshold, str) else claim.threshold[scale])
    if "probe" in config.experiment:
        assert config.experiment.probe in config.instruments.block_probe.probes


def trained_by_experiments() -> dict[str, str]:
    """Each run once for every way in which experiments change it, with one of those that do."""
    found: dict[str, str] = {}
    for name in sorted(experiments()):
        described = OmegaConf.load(configuration_folder() / "experiment" / f"{name}.yaml")
        grid = OmegaConf.select(described, "hydra.sweeper.params.run")
        chosen = next(choice["override /run"] for choice in described.defaults if "override /run" in choice)
        changes = {
            field: value for field, value in described.items() if field not in UNDECISIVE | {"defaults", "hydra"}
        }
        others = [choice for choice in described.defaults if choice != "_self_" and "override /run" not in choice]
        for run in grid.split(",") if grid else [chosen]:
            found.setdefault(OmegaConf.to_yaml([run.strip(), changes, others]), f"{name} run={run.strip()}")
    return {arguments: arguments.split("=")[1] for arguments in found.values()}


def scale_files(run: str, scale: str) -> Iterator[Path]:
    """Those that the run's file, or one that it goes on from, chooses by ``${scale}``."""
    described = OmegaConf.load(configuration_folder() / "run" / f"{run}.yaml")
    for choice in described.defaults:
        if isinstance(choice, DictConfig):
            (group, chosen), *_ = OmegaConf.to_container(choice).items()
            if chosen == "${scale}":
                yield configuration_folder() / group.lstrip("/") / f"{scale}.yaml"
        elif choice != "_self_":
            yield from scale_files(choice, scale)


def settings(path: Path) -> dict[str, Any]:
    """What a scale's file sets, with what it takes over from another run's: field ↦ value."""
    described = OmegaConf.to_container(OmegaConf.load(path))
    found: dict[str, Any] = {}
    for choice in described.pop("defaults", []):
        if isinstance(choice, str) and choice.startswith("/run/"):
            found |= settings(configuration_folder() / f"{choice.lstrip('/')}.yaml")
    return found | flat(described)


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in tree.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(("arguments", "run"), trained_by_experiments().items())
def test_what_a_scale_sets_is_what_the_run_has(arguments, run, scale):
    config = OmegaConf.to_container(composed(*arguments.split(), f"scale={scale}"))
    composed_settings = flat(config)
    files = list(scale_files(run, scale))
    assert files
    for path in files:
        for field, value in settings(path).items():
            assert composed_settings.get(field) == value, f"{path.parent.name}/{path.name} sets {field}={value}"
    if scale == "smoke":
        sizes = [config.get("model", {}).get("width", 8), *config.get("model", {}).get("hidden", [])]
        assert min(sizes) >= 8, "torch takes other kernels for narrower networks than those that runs meet"


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("network", ["resnet18", "vgg11", "vit"])
def test_the_runs_of_figures_46_to_54_train_as_those_of_the_other_figures(network, scale):
    settings = [
        decisive(composed("fig01_group_losses", f"run={network}_{rule}", f"scale={scale}"))
        for rule in ("gd", "predictions")
    ]
    theirs, ours = (
        {name: value for name, value in one.items() if name not in ("run", "instruments")} for one in settings
    )
    if (network, scale) == ("resnet18", "cpu"):  # smaller, because there are three seeds of it
        for sizes in (ours, theirs):
            del sizes["data"]["images"], sizes["model"]["width"], sizes["optimizer"]["lr"]
    assert ours == theirs


def test_claim_identifiers_are_unique():
    identifiers = [claim.id for name in experiments() for claim in composed(name).claims]
    assert len(identifiers) == len(set(identifiers))


def test_every_file_says_what_it_is():
    for path in configuration_folder().rglob("*.yaml"):
        if path.parent.parent.name == "run":  # the sizes of a run, named by their folder and file
            continue
        head = next(line for line in path.read_text().splitlines() if line != "# @package _global_")
        assert head.startswith("# "), path


def test_a_number_has_one_key_however_it_is_written():
    keys = {run_key(composed("fig39_sgd_grid", "run=resnet56_sgd", f"optimizer.lr={lr}")) for lr in ("2", "2.0", "2e0")}
    assert len(keys) == 1
    assert keys != {run_key(composed("fig39_sgd_grid", "run=resnet56_sgd", "optimizer.lr=2.5"))}


def test_the_key_ignores_what_does_not_decide_the_numbers():
    key = run_key(composed("fig01_group_losses", "data=cifar10"))
    for override in (
        "trainer.accelerator=cpu",
        "logger=wandb",
        "data.root=/elsewhere",
        "threads=3",
        "output_dir=other",
    ):
        assert run_key(composed("fig01_group_losses", "data=cifar10", override)) == key, override
    assert run_key(composed("talk_loss_change_distribution", "data=cifar10")) == key


@pytest.mark.parametrize(
    "override",
    ["seed=2", "steps=25", "optimizer.lr=0.3", "risk.chunk=31", "model.width=5", "data.images=97", "batch=9"],
)
def test_the_key_changes_with_what_decides_the_numbers(override):
    assert run_key(composed("fig01_group_losses", override)) != run_key(composed("fig01_group_losses"))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["fig41_learning_rates_loss", ADAM], ["fig42_learning_rates_accuracy", ADAM]),
        (["fig39_sgd_grid", "run=resnet56_split_sgd"], ["fig41_learning_rates_loss", "optimizer.lr=0.001"]),
        (["fig40_plain_step_sizes", ADAM], ["fig41_learning_rates_loss", ADAM, "optimizer.lr=0.005"]),
        (["fig43b_undampened", "run=resnet110_adam"], ["fig43a_sgd_and_adam", "optimizer.lr=0.0003"]),
        (["fig44a_dampened", "optimizer.sgd_lr=10.0"], ["fig44b_signed_share", "run=resnet110_split_sgd_eta1_10"]),
    ],
)  # fmt: skip
def test_grids_share_their_runs(one, other):
    assert run_key(composed(*one, "scale=cpu")) == run_key(composed(*other, "scale=cpu"))


def test_no_two_points_of_a_grid_are_one_run():
    name = "fig40_plain_step_sizes"
    experiment = OmegaConf.load(configuration_folder() / "experiment" / f"{name}.yaml")
    points = [run.strip() for run in experiment.hydra.sweeper.params.run.split(",")]
    assert len({run_key(composed(name, f"run={run}")) for run in points}) == len(points) == 10


def test_a_run_is_kept_below_the_output_folder_unless_a_field_says_otherwise(tmp_path):
    config = composed("fig03_chebyshev", output_dir=tmp_path)
    assert run_folder(config).parent == tmp_path / "runs"
    assert run_folder(config).name.startswith("chebyshev_gd-smoke-seed1-")
    OmegaConf.update(config, "run_dir", str(tmp_path / "mine"))
    assert run_folder(config) == tmp_path / "mine"
