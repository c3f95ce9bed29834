"""Any model, data, loss and optimizer with any run: they work, or are refused in one line that says what fits."""

from functools import cache

import pytest
import torch
from composing import composed
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from opposing_signals import choices
from opposing_signals.data import Dataset
from opposing_signals.errors import InputError
from opposing_signals.training.fit import fitting
from opposing_signals.training.job import training_module

FITS = {
    "planted": {("images", loss) for loss in ("cross_entropy", "label_smoothing", "logistic", "square")},
    "chebyshev": {("numbers", "square")},
    "text_demo": {("tokens", "sequence")},
}
"""Data sets without files ↦ input kind for models, and fitting losses."""
TAKES = {"gpt": {"tokens"}, "mlp": {"images", "numbers"}}
"""Model ↦ input kinds; all other models take images."""
OFFLINE = sorted(FITS)


RUNS = [
    name
    for name in choices.choices("run")
    if any("/model" in choice for choice in choices.written("run", name).get("defaults", [])) and "eta1" not in name
]
"""The runs that train; for a grid over one number, the first."""


@cache
def of_run(run: str) -> DictConfig:
    return composed("fig01_group_losses", f"run={run}")


@cache
def dataset(name: str) -> Dataset:
    return instantiate(chosen(of_run("chebyshev_gd"), data=name).data)


def chosen(config: DictConfig, **groups: str) -> DictConfig:
    """``config`` composed with other choices."""
    config = OmegaConf.create({**config, **{group: choices.written(group, name) for group, name in groups.items()}})
    OmegaConf.resolve(config)
    return config


def fit(model: str, data: str, loss: str) -> bool:
    return any(kind in TAKES.get(model, {"images"}) and loss == other for kind, other in FITS[data])


@pytest.mark.parametrize("loss", choices.choices("loss"))
@pytest.mark.parametrize("data", OFFLINE)
@pytest.mark.parametrize("model", choices.choices("model"))
def test_what_fits_gives_a_loss_an_example_and_what_does_not_says_what_would(model, data, loss):
    config = chosen(of_run("chebyshev_gd"), model=model, data=data, loss=loss)
    torch.manual_seed(0)
    if fit(model, data, loss):
        module, of_examples = fitting(config, dataset(data))
        losses = of_examples(module(dataset(data).inputs[:3]), dataset(data).targets[:3])
        assert losses.shape == (3,)
        assert torch.isfinite(losses).all()
        assert module.training
        return
    with pytest.raises(InputError) as refused:
        fitting(config, dataset(data))
    assert "\n" not in str(refused.value)
    assert "model=" in str(refused.value) or "loss=" in str(refused.value)


def nothing(input_shape, outputs):
    """No model."""


def mean_loss(logits, targets):
    return torch.nn.functional.cross_entropy(logits, targets)


OWN = [
    ("model", "nothing", {}, f"model: {__name__}.nothing returned NoneType; expected a torch.nn.Module"),
    ("loss", "mean_loss", {"_partial_": True}, r"the shape \[\], expected one loss an example: \[2\]; "),
    ("loss", "mean_loss", {}, "loss mean_loss do not fit: TypeError: .* missing 2 required positional arguments"),
]


@pytest.mark.parametrize(("field", "name", "settings", "message"), OWN)
def test_what_is_of_ones_own_and_does_not_fit_is_refused(field, name, settings, message):
    config = chosen(of_run("chebyshev_gd"), model="mlp", data="planted", loss="cross_entropy")
    config[field] = {"_target_": f"{__name__}.{name}", **settings}
    with pytest.raises(InputError, match=message):
        fitting(config, dataset("planted"))


@pytest.mark.parametrize("run", RUNS)
def test_a_run_takes_other_choices(run):
    """Its settings for its own choices are under `settings`, and do not reach others, which lack these fields."""
    assert not {*choices.written("run", run)} & {"model", "data", "loss", "optimizer"}
    for data, model, loss in (("planted", "mlp", "cross_entropy"), ("text_demo", "gpt", "sequence")):
        config = chosen(of_run(run), data=data, model=model, loss=loss, optimizer="adam")
        config.risk.chunk, config.batch, config.augmentation = 10, None, None
        module = training_module(config, dataset(data))
        assert torch.isfinite(module.risk.backward(torch.arange(4)).losses).all()


@pytest.mark.parametrize("optimizer", choices.choices("optimizer"))
def test_every_rule_takes_the_parameters_of_a_run(optimizer):
    config = chosen(of_run("chebyshev_gd"), optimizer=optimizer)
    assert training_module(config, dataset("chebyshev")).configure_optimizers().param_groups


def test_the_trial_leaves_no_trace():
    config = of_run("resnet18_gd")
    states = []
    for trial in (True, False):
        torch.manual_seed(3)
        if trial:
            model, _ = fitting(config, dataset("planted"))
        else:
            model = instantiate(config.model, input_shape=(3, 32, 32), outputs=6)
        states.append([*model.state_dict().values(), torch.get_rng_state()])
    assert all(torch.equal(one, other) for one, other in zip(*states, strict=True))


def test_data_of_other_kinds_do_not_pass_an_augmentation():
    config = chosen(of_run("resnet56_sgd"), data="chebyshev", model="mlp", loss="square")
    with pytest.raises(InputError, match="expected images"):
        fitting(config, dataset("chebyshev"))
