"""Invalid settings are refused before anything is trained: one line with field, value and what is expected."""

import re
from functools import cache

import pytest
from composing import composed
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict

from opposing_signals.__main__ import main
from opposing_signals.app.job import begin
from opposing_signals.arguments import completed
from opposing_signals.configuration import configuration_folder
from opposing_signals.errors import InputError
from opposing_signals.schema import check_training

BASES = {
    "mlp": ["demo_planted"],
    "adam": ["demo_planted", "optimizer=adam"],
    "sam": ["demo_planted", "optimizer=sam"],
    "one_sam": ["demo_planted", "optimizer=one_sam"],
    "split_sgd": ["demo_planted", "optimizer=split_sgd"],
    "clipped_sgd": ["demo_planted", "optimizer=clipped_sgd"],
    "sign_sgd": ["demo_planted", "optimizer=sign_sgd"],
    "flow": ["fig22_flow_sky_block"],
    "chebyshev": ["fig03_chebyshev"],
    "vgg": ["vgg11_group_losses"],
    "vit": ["fig34_curvature_share_vit"],
    "resnet": ["fig39_sgd_grid", "run=resnet56_sgd"],
    "text": ["fig07_text_quotes"],
    "file": ["fig07_text_quotes", "data=openwebtext"],
    "stream": ["fig07_text_quotes", "data=text_stream"],
    "cifar": ["demo_planted", "data=cifar10"],
    "intervention": ["intervention"],
    "projection": ["fig06b_projection"],
    "outliers": ["fig46_outliers_resnet18_seed1"],
    "curvature": ["fig32_curvature_share_resnet18"],
    "wandb": ["demo_planted", "logger=wandb"],
    "theorems": ["theorem31"],
}
"""Name ↦ experiment and overrides."""
NOT_COUNTS = ("0", "-1", "1.5", "nan", "inf", "abc", '"3"', "true", "[1,2]", "1e30", "99999999999999999999")
NOT_NUMBERS = ("abc", '"0.1"', "nan", "inf", "-inf", "true", "null", "[0.1]", "{a: 1}", "1e400")
NOT_SWITCHES = ("maybe", "1", "0.5", "null", "[]", '"true"')
NOT_TEXTS = ("3", "true", "[a]", "null")
VALUES = {
    "mlp": {
        "steps": (*NOT_COUNTS, "null", ""),
        "seed": (*NOT_COUNTS[1:], "null", "4294967296"),
        "batch": (*NOT_COUNTS, ""),
        "threads": (*NOT_COUNTS, "100000"),
        "checkpoint_seconds": (*NOT_NUMBERS, "-1", ""),
        "conclude": (*NOT_SWITCHES, ""),
        "retrain_damaged": NOT_SWITCHES,
        "job": ("os.getcwd", "os.nothing", "nothing", "", "3", "null"),
        "output_dir": ("", "null", "[a]"),
        "run_dir": ("", "[a]"),
        "run.name": ("../../escape", "a/b", "", ".", "..", "[a]"),
        "experiment.name": ("../escape", ""),
        "+experiment.figure_seeds": ("both", "null", "1"),
        "scale.name": ("../s", "huge", "null"),
        "model.hidden": ("abc", "3", "[0]", "[-1]", "[1.5]", "[abc]", "null", "[true]"),
        "model.activation": ("nope", "3", "null", "[relu]"),
        "model._target_": ("os.nothing", "torch.nn.NopeLoss", "", "3", "null", "math.pi"),
        "optimizer.lr": (*NOT_NUMBERS, "0", "-1"),
        "optimizer.momentum": (*NOT_NUMBERS, "2", "1", "-1"),
        "optimizer._target_": ("torch.optim.Nope", "os"),
        "risk.chunk": (*NOT_COUNTS, "null"),
        "risk.precision": ("float8", "", "null", "32"),
        "risk.channels_last": NOT_SWITCHES,
        "risk.compile_training": NOT_SWITCHES,
        "loss.label_smoothing": (*NOT_NUMBERS, "2", "-0.1"),
        "loss.reduction": ("mean", "sum", "null", "3"),
        "loss._target_": ("torch.nn.NopeLoss",),
        "data.images": (*NOT_COUNTS, "null"),
        "data.seed": ("-1", "1.5", "abc", "null", "4294967296"),
        "data.sky_in_plane": (*NOT_NUMBERS, "2", "-0.5"),
        "instruments.gradient_sketch.every": NOT_COUNTS,
        "instruments.gradient_sketch.dimensions": NOT_COUNTS,
        "instruments.gradient_sketch": ("null", "3", "abc", "[]"),
        "instruments.gradient_sketch._target_": ("opposing_signals.instruments.Nope",),
        "instruments": ("null", "3", "[sharpness]"),
        "settings": ("null", "3"),
        "claims": ("null", "3"),
        "signals": ("null", "3"),
        "trainer": ("null",),
        "trainer.accelerator": ("quantum", "3", "null", "tpu"),
        "trainer.devices": ("abc", "0", "-1", "[0]", "1.5"),
        "+trainer.max_steps": ("7",),
        "+trainer.max_time": ("00:00:00:01",),
        "+trainer.precision": ("16-true",),
        "+trainer.fast_dev_run": ("true",),
        "+trainer.limit_train_batches": ("0",),
        "+trainer.gradient_clip_val": ("0.1",),
        "+trainer.num_nodes": ("0", "abc"),
        "+signals.count": ("1",),
        "+signals.level": ("2", "nan", "abc"),
        "+signals.smallest_group": ("0", "1.5"),
        "+model.widht": ("4",),
        "+model.outputs": ("3",),
        "+model.input_shape": ("[1]",),
        "+risk.foo": ("1",),
        "+risk.inputs": ("3",),
        "+data.foo": ("1",),
        "+loss.foo": ("1",),
        "+optimizer.foo": ("1",),
        "+optimizer.params": ("[1]",),
        "+optimizer.nesterov": ("maybe",),
        "+optimizer.weight_decay": ("-1", "nan"),
        "+instruments.foo": ("1", "null"),
        "+instruments.gradient_sketch.foo": ("1",),
        "+instruments.gradient_sketch.risk": ("1",),
        "+figure.foo": ("1",),
        "figure.features": ("3", "sky", "null"),
        "figure": ("null", "3"),
        "figure._target_": ("opposing_signals.studies.nope",),
        "claims.planteda.threshold": ("nope", "'> abc'", "3", "null", "'>'", "'> nan'"),
        "claims.planteda.statistic": ("null", "3", "{_target_: os.nothing}"),
        "+claims.planteda.statistic.foo": ("1",),
        "+claims.planteda.foo": ("1",),
        "claims.planteda": ("null", "3"),
    },
    "adam": {
        "optimizer.lr": ("0", "abc"),
        "optimizer.betas": ("[2,3]", "[0.9]", "0.9", "abc", "[0.9,nan]", "null", "[0.9,0.99,0.999]"),
        "optimizer.eps": ("-1", "nan", "abc", "null"),
        "+optimizer.amsgrad": ("maybe",),
    },
    "sam": {"optimizer.rho": ("-1", "nan", "abc", "null"), "optimizer.lr": ("0",)},
    "one_sam": {"optimizer.rho": ("-1", "inf"), "optimizer.momentum": ("1",)},
    "split_sgd": {
        "optimizer.quantile": ("2", "-1", "abc"),
        "optimizer.sgd_lr": ("-1", "abc"),
        "optimizer.threshold": ("-1", "abc", "nan"),
        "optimizer.dampening": ("1", "abc"),
        "optimizer.fused": ("maybe",),
    },
    "clipped_sgd": {"optimizer.bound": ("0", "-1", "abc", "nan")},
    "sign_sgd": {"optimizer.lr": ("-3",), "optimizer.momentum": ("abc",)},
    "flow": {"optimizer.lr": ("0",), "optimizer.tolerance": ("0", "-1", "nan", "abc")},
    "chebyshev": {
        "data.points": NOT_COUNTS,
        "data.degree": ("0", "-1", "abc", "1.5"),
        "instruments.sharpness.every": NOT_COUNTS,
        "instruments.sharpness.consecutive": ("0", "abc"),
        "instruments.sharpness.tolerance": ("-1", "nan", "abc", "null"),
        "instruments.sharpness.max_products": ("0", "abc", "null"),
        "instruments.sharpness.k": ("0", "1.5"),
        "instruments.sharpness.which": ("middle", "3"),
        "instruments.sharpness.examples": ("0", "-1", "all"),
        "instruments.sample_losses.every": ("0",),
    },
    "vgg": {"model.width": (*NOT_COUNTS, "null"), "model.batch_norm": NOT_SWITCHES},
    "vit": dict.fromkeys(("model.patch", "model.depth", "model.heads", "model.width"), ("0", "abc", "1.5", "null")),
    "resnet": {
        "model.depth": ("0", "abc"),
        "augmentation.padding": ("-1", "abc", "1.5", "null"),
        "+augmentation.seed": ("3",),
        "augmentation._target_": ("opposing_signals.data.Nope",),
        "instruments.test_accuracy.every": ("0",),
    },
    "text": {
        "data.block": NOT_COUNTS,
        "data.sentences": ("0", "-1", "abc", "1.5"),
        "data.period_inside": ("2", "nan", "abc"),
        "model.vocabulary": ("0", "abc"),
        "model.heads": ("0",),
        "before_update": ("null", "3"),
        "before_update.clipping.norm": ("0", "-1", "nan", "abc"),
        "before_update.schedule.warm_up": ("-1", "abc", "1.5"),
        "before_update.schedule.floor": ("2", "nan"),
        "+before_update.clipping.foo": ("1",),
        "instruments.token_losses.sequences": ("0", "abc"),
        "instruments.token_losses.with_pattern": ("-1", "abc"),
        "instruments.token_losses.keep": ("0",),
        "instruments.token_losses.sample": ("-1", "null"),
        "data.newline_after_colon": ("-0.1", "nan"),
        "risk.keep_outputs": ("maybe",),
    },
    "file": {
        "data.tokenizer": ("nope", "null", "3"),
        "data.vocabulary": ("0", "abc", "1.5"),
        "data.sequences": ("0", "abc"),
        "data.path": ("3", "[a]", "true"),
        "data.root": ("3", "[a]"),
    },
    "stream": {"data.hub": NOT_TEXTS, "data.documents": ("0", "abc"), "data.column": NOT_TEXTS},
    "cifar": {"data.images": ("0", "-1", "1.5", "true", "abc"), "data.root": ("5", "[a]")},
    "intervention": {
        "intervention.kind": ("nope", "3", "null"),
        "intervention.spike": ("0", "abc"),
        "intervention.lead": ("-1", "abc"),
        "intervention.window": ("0", "abc"),
        "+intervention.foo": ("1",),
        "reference": ("3",),
        "reference.steps": ("0", "abc"),
        "reference.instruments.snapshots.every": ("0",),
        "+reference.instruments.foo": ("1",),
    },
    "projection": {"reference.optimizer.lr": ("0", "abc"), "reference.batch": ("0",)},
    "outliers": {"+instruments.predictions.foo": ("1",)},
    "curvature": {"+instruments.sample_curvature.expansion": ("maybe",)},
    "wandb": {
        "logger.mode": ("sometimes", "3"),
        "logger.project": ("3", "[a]"),
        "+logger.foo": ("1",),
        "+logger.name": ("mine",),
        "logger.settings.silent": ("maybe",),
        "+logger.settings.foo": ("1",),
    },
    "theorems": {"theory.grid.d1": ("nan", "inf"), "theory.paths.beta_norm": ("inf",), "steps": ("0",)},
}
"""Base ↦ field ↦ invalid values; a key that begins with ``+`` is not a field."""
ELSEWHERE = {
    "settings.sgd.lr=abc": "optimizer.lr=abc: ",
    "settings.mlp.hidden=[0]": r"model.hidden=\[0\]: ",
    "+settings.mlp.widht=3": "settings.mlp.widht: ",
    "+settings.nope=3": "settings.nope: ",
    "~claims.planteda.statistic": "claims.planteda: no statistic; ",
    "~optimizer": "optimizer: left out; expected optimizer=VALUE",
    "~scale": "scale: left out; expected scale=VALUE",
    "~trainer": "trainer: left out; expected trainer=VALUE",
    "~steps": "steps: left out; expected steps=VALUE",
    "seed=${nope}": "Interpolation key 'nope' not found",
    "seed=${oc.env:NOPE_NOT_SET}": ".Environment variable 'NOPE_NOT_SET' not found",
}
"""Override ↦ beginning of the message, if it names another field than the one that was set."""
COMMANDS = {
    "nope": "experiment 'nope': ",
    "experiment=nope": "experiment 'nope': ",
    "experiment=": "experiment",
    "fig3 scale=huge": "scale=huge: unknown; there are cpu, paper, smoke",
    "fig3 run=nope": "run=nope: ",
    "fig3 data=nope": "data=nope: unknown; there are chebyshev, cifar10",
    "fig3 model=nope": "model=nope: unknown; there are .*mlp, resnet110, resnet18",
    "fig3 loss=nope": "loss=nope: ",
    "fig3 optimizer=nope": "optimizer=nope: ",
    "fig3 optimizer=null": "optimizer=null: unknown; there are adam",
    "fig3 logger=nope": "logger=nope: ",
    "fig3 risk=nope": "risk=nope: ",
    "fig3 trainer=nope": "trainer=nope: ",
    "fig3 augmentation=nope": "augmentation=nope: ",
    "fig3 intervention=nope": "intervention=nope: ",
    "fig3 instruments=null": "instruments=null: ",
    "fig3 +foo.bar=1": r"\+foo.bar=1: ",
    "fig3 +optimiser.lr=1": r"\+optimiser.lr=1: no job reads a field optimiser; did you mean optimizer",
    "fig3 +steep=1": r"\+steep=1: .* did you mean steps",
    "fig3 demo_planted": "fig3 demo_planted: ",
    "fig3 seed=[1": r"seed=\[1: ",
    "fig3 =3": "=3: ",
    "fig3 seed==": "seed==",
    "fig3 hydra/launcher=nope": "hydra/launcher=nope: ",
    "fig3 --nope": ".*--nope",
    "fig3 --config-dir=nowhere": "--config-dir=.*nowhere: ",
    "scale=smoke": "no experiment given",
}
"""Command ↦ message of its refusal."""
OTHERS = {
    "list nothing_has_this_name": "list nothing_has_this_name: ",
    "list a b": "list: unrecognized arguments: b",
    "sweep": "sweep: one of the arguments experiment --all is required",
    "sweep nope": "experiment 'nope': unknown",
    "sweep fig39 --scale huge": "sweep: argument --scale: invalid choice: 'huge'",
    "report nowhere": "report: no folder nowhere",
    "report --nope": "report: unrecognized arguments: --nope",
    "gallery a b": "gallery: unrecognized arguments: b",
    "explain": "explain: the following arguments are required",
    "explain nowhere": "no record of a run in nowhere",
    "explain nowhere --json=yes": "explain: argument --json: ignored explicit argument",
    "reproduce --budget 0": "reproduce: argument --budget: invalid _seconds value: '0'",
    "reproduce --budget soon": "reproduce: argument --budget: invalid _seconds value: 'soon'",
    "reproduce --budget nan": "reproduce: argument --budget: invalid _seconds value: 'nan'",
    "reproduce --scale huge": "reproduce: argument --scale: invalid choice: 'huge'",
    "reproduce --only nope": "experiment 'nope': unknown",
    "reproduce --pack out --kb 0": "reproduce: argument --kb: invalid _kilobytes value: '0'",
    "reproduce --pack out --kb 99999": "reproduce: argument --kb: invalid _kilobytes value: '99999'",
    "demo seed=3": "demo: seed=3 is a setting",
    "demo a b": "demo: unrecognized arguments: b; expected opposing-signals demo [FOLDER]",
    "demo --fast": "demo: unrecognized arguments: --fast",
    "reprot": "reprot: unknown; did you mean report",
}
"""Other commands ↦ message of their refusal."""


@cache
def of_base(base: str) -> DictConfig:
    experiment, *choices = BASES[base]
    return composed(experiment, *choices)


def set_in(base: str, text: str) -> DictConfig:
    """The base's configuration with an override, parsed as by the command line."""
    config = of_base(base).copy()
    override = OverridesParser.create().parse_override(text)
    with open_dict(config):
        if override.is_delete():
            parent, _, name = override.key_or_group.rpartition(".")
            del (OmegaConf.select(config, parent) if parent else config)[name]
        else:
            OmegaConf.update(config, override.key_or_group, override.value(), merge=False)
    return config


def refused(config: DictConfig) -> str:
    with pytest.raises(InputError) as error:
        begin(config, [configuration_folder()], "a run")
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 600
    return message


@pytest.mark.parametrize(("base", "field"), [(base, field) for base, fields in VALUES.items() for field in fields])
def test_a_value_that_a_field_cannot_have_is_refused_by_name(base, field):
    for value in VALUES[base][field]:
        message = refused(set_in(base, f"{field}={value}"))
        name = field.lstrip("+")
        assert re.match(rf"{re.escape(name)}(\.\w+)*(=|: )", message), f"{field}={value}: {message}"
        assert re.search("expected|no such field", message), message


@pytest.mark.parametrize("override", ELSEWHERE)
def test_a_setting_is_refused_where_it_is_used(override):
    assert re.match(ELSEWHERE[override], refused(set_in("mlp", override)))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_names_what_is_not_there_is_refused(command):
    with pytest.raises(InputError, match=f"^{COMMANDS[command]}") as error:
        completed(command.split(" "))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("command", ["report", "gallery", "demo", "reproduce --pack", "reproduce --to", "pack results"])
def test_an_empty_folder_is_not_this_one(command, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert main([*command.split(" "), ""]) == 2
    assert "FOLDER=: expected the path of a folder, of printable characters; . is this one" in capfd.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", OTHERS)
def test_other_commands_refuse_what_they_cannot_do(command, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert main(command.split(" ")) == 2
    said = capfd.readouterr().err
    assert said.startswith(f"opposing-signals: {OTHERS[command]}")
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "field",
    ["model.hidden", "model.activation", "optimizer.lr", "data.images", "trainer.accelerator", "loss.reduction"],
)
def test_a_plain_value_is_made_by_no_function(field):
    config = set_in("mlp", f"{field}={{_target_: builtins.abs, _args_: [3]}}")
    assert re.match(rf"{re.escape(field)}=\{{'_target_': 'builtins.abs'.*: expected", refused(config))


def test_own_functions_are_checked_by_their_signatures():
    config = set_in("mlp", "+model.deep=3")
    config.model._target_ = f"{__name__}.own_model"
    assert refused(config) == "model.deep=3: expected true or false"
    config.model.deep = True
    check_training(config)
    assert instantiate(config.model, input_shape=(3,), outputs=2) == (True, [16, 16])


def own_model(input_shape, outputs, deep: bool, **others):
    return deep, others["hidden"]
