import inspect
import json
import re
from functools import cache

import pytest
from composing import composed
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError

from opposing_signals.choices import check_settings, choices, written
from opposing_signals.configuration import SCALES, configuration_folder, decisive, run_folder, run_key
from opposing_signals.errors import InputError
from opposing_signals.experiments import experiments
from opposing_signals.schema import check, check_training
from opposing_signals.studies.claim import Threshold
from opposing_signals.sweeps import grid

ADAM = "run=resnet56_adam"
USED_BY = {
    run: experiment
    for experiment in experiments()
    for entry in written("experiment", experiment)["defaults"]
    for run in ([entry["override /run"]] if isinstance(entry, dict) and "override /run" in entry else [])
}
"""Run ↦ an experiment that uses it."""


@cache
def at_scale(scale: str, experiment: str, *overrides: str) -> DictConfig:
    """Compose and resolve once; the result is read only."""
    config = composed(experiment, f"scale={scale}", *overrides)
    OmegaConf.resolve(config)
    return config


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("experiment", sorted(experiments()))
def test_every_experiment_composes_at_every_scale_and_fits_the_schema(experiment, scale):
    config = at_scale(scale, experiment)
    check(config)
    check_training(config)
    assert config.experiment.name == experiment
    assert config.scale.name == scale
    assert json.loads(json.dumps(decisive(config))) == decisive(config)
    for claim in config.claims.values():
        Threshold(claim.threshold if isinstance(claim.threshold, str) else claim.threshold[scale])
    if "probe" in config.experiment:
        assert config.experiment.probe in config.instruments.block_probe.probes


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("run", choices("run"))
def test_what_a_run_sets_for_its_choices_is_what_they_have(run, scale):
    """Each setting must be requested by the choice that it names; `settings.images` is for every image data set."""
    chosen = (USED_BY[run],) if run in USED_BY else ("fig01_group_losses", f"run={run}")
    config = at_scale(scale, *chosen)
    check_settings(config.settings, [configuration_folder()])
    described = written("run", run).get("settings", {})
    for name, fields in described.items():
        if name in config.instruments:
            assert {field: config.instruments[name][field] for field in fields} == dict(config.settings[name])
        elif name == "images":
            assert config.data.images == config.settings.images
    if scale == "smoke":
        sizes = [config.get("model", {}).get("width", 8), *config.get("model", {}).get("hidden", [])]
        assert min(sizes) >= 8, "torch takes other kernels for narrower networks than those that runs meet"


@pytest.mark.parametrize("group", ["model", "data", "optimizer"])
def test_a_choice_asks_for_settings_of_its_own_name(group):
    for name in choices(group):
        asked = re.findall(r"setting:([\w.]+)", json.dumps(written(group, name)))
        assert {field.split(".")[0] for field in asked} <= {name, "images"}


def test_instruments_have_the_fields_of_their_constructors():
    """Except keyword-only fields that a run adds: a run without them keeps its earlier key."""
    for name in choices("instruments"):
        ((key, described),) = written("instruments", name).items()
        accepted = inspect.signature(get_class(described.pop("_target_"))).parameters
        assert key == name
        added = {field for field, parameter in accepted.items() if parameter.kind is parameter.KEYWORD_ONLY}
        assert list(described) == [field for field in accepted if field not in {"risk", "record"} | added]
        resolved = OmegaConf.create({"settings": {}, "scale": "smoke", "described": described})
        for field, value in OmegaConf.to_container(resolved.described, resolve=True).items():
            default = accepted[field].default
            assert value == (list(default) if isinstance(default, tuple) else default)


def test_a_family_has_a_member_for_each_row(tmp_path):
    (tmp_path / "tables").mkdir()
    table = tmp_path / "tables" / "family.yaml"
    table.write_text(
        "group: run\n"
        "template: {run: {name: <rule>}, steps: <steps>, text: 'of <rule>: ${steps}', batch: null, <rule>: <more>}\n"
        "rows:\n"
        "  - all: {rule: sgd, more: null}\n"
        "    a_one: {steps: 3}\n"
        "    a_two: {steps: 4, more: {lr: 0.1}, rule: <id>}\n"
    )
    one, two = (written("run", name, [tmp_path]) for name in choices("run", [tmp_path]))
    assert one == {"run": {"name": "sgd"}, "steps": 3, "text": "of sgd: ${steps}", "batch": None}
    assert two == {"run": {"name": "a"}, "steps": 4, "text": "of a: ${steps}", "batch": None, "a": {"lr": 0.1}}
    other = tmp_path / "other"
    (other / "tables").mkdir(parents=True)
    (other / "tables" / "family.yaml").write_text(table.read_text().replace("steps: 3", "step: 3"))
    with pytest.raises(InputError, match="a_one: no cell steps"):
        choices("run", [other])


def test_there_is_a_value_for_each_scale():
    values = OmegaConf.create({"scale": "cpu", "a": "${by_scale:1,[2],3}", "b": "${by_scale:1,2}", "settings": {}})
    assert values.a == [2]
    with pytest.raises(InterpolationResolutionError, match="expected a value for each of smoke, cpu, paper"):
        _ = values.b
    values.scale = "mine"
    with pytest.raises(InterpolationResolutionError, match=r"scale.name=mine: expected smoke, cpu, paper"):
        _ = values.a


def test_the_configurations_of_runs_and_experiments_are_few():
    """A family is a table: an experiment or run that differs in a number or two is a row."""
    folders = [configuration_folder() / name for name in ("run", "experiment", "tables", "study")]
    assert sum(len(list(folder.rglob("*.yaml"))) for folder in folders) <= 110


def test_claim_identifiers_are_unique():
    identifiers = [identifier for name in experiments() for identifier in written("experiment", name)["claims"]]
    assert len(identifiers) == len(set(identifiers))


def test_every_file_says_what_it_is():
    for path in configuration_folder().rglob("*.yaml"):
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
    points = grid(name)["run"]
    assert len({run_key(composed(name, f"run={run}")) for run in points}) == len(points) == 10


def test_a_run_is_kept_below_the_output_folder_unless_a_field_says_otherwise(tmp_path):
    config = composed("fig03_chebyshev", output_dir=tmp_path)
    assert run_folder(config).parent == tmp_path / "runs"
    assert run_folder(config).name.startswith("chebyshev_gd-smoke-seed1-")
    OmegaConf.update(config, "run_dir", str(tmp_path / "mine"))
    assert run_folder(config) == tmp_path / "mine"
