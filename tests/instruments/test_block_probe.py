"""What the probes write, against a forward pass by hand, and that training is unchanged."""

import numpy as np
import pytest
import torch
from composing import composed
from hydra.utils import instantiate
from omegaconf import OmegaConf
from recording import assert_same_weights, stopped, trained
from torch import nn

from opposing_signals.curvature.risk import EmpiricalRisk
from opposing_signals.data import chebyshev
from opposing_signals.data.probes import probe_images
from opposing_signals.errors import InputError
from opposing_signals.instruments.block_probe import BlockProbe
from opposing_signals.record import Record
from opposing_signals.training.job import training_module

PROBES, STEPS, CHUNK = ["sky", "white", "grass"], 4, 8
QUANTITIES = ("probe_logits", "probe_feature_norm", "mean_feature_norm")


def configured(*overrides: str, probes=PROBES):
    """ResNet-18 of width 2 on 20 drawn images in chunks of 8, 8 and 4."""
    config = composed(
        "fig05_sky_block", "data=planted", "data.images=20", f"risk.chunk={CHUNK}", "model.width=2", f"steps={STEPS}",
        "threads=1", f"instruments.block_probe.probes=[{','.join(probes)}]", *overrides,
    )  # fmt: skip
    OmegaConf.set_struct(config, False)
    kept = ("train_loss", "sharpness", "block_probe")
    config.instruments = {name: config.instruments[name] for name in kept if name in config.instruments}
    config.instruments.sharpness = {**config.instruments.sharpness, "every": 2, "consecutive": 1, "max_products": 2}
    return config


@pytest.fixture(scope="module")
def record(tmp_path_factory) -> Record:
    return trained(tmp_path_factory.mktemp("run"), configured())


def test_each_quantity_has_its_shape_at_its_steps(record):
    assert record["probe_logits"].values.shape == (STEPS, 3, 6)
    assert record["probe_feature_norm"].values.shape == (STEPS, 3)
    assert record["mean_feature_norm"].steps.tolist() == list(range(STEPS))
    assert record["probe_image"].steps.tolist() == [0]
    assert record["probe_image"].values[0, 0, 5, 7].tolist() == [135, 206, 235]


def test_probes_see_the_first_chunks_normalization_and_the_mean_is_over_all_data(tmp_path):
    """The oracle sets a chunk's statistics as running statistics for evaluation, and descends in its own loop."""
    config = configured("risk.precision=float64", "risk.channels_last=false")
    record = trained(tmp_path, config)
    dataset = instantiate(config.data)
    model = training_module(config, dataset).risk.model
    inputs, targets = dataset.inputs.double(), dataset.targets
    pictures = probe_images(PROBES, dataset)
    images = (torch.from_numpy(pictures).permute(0, 3, 1, 2).double() - _mean(dataset)) / _deviation(dataset)
    for step in range(STEPS):
        features, logits = _as_one_more_of(inputs[:CHUNK], images, model)
        chunks = inputs.split(CHUNK)
        with torch.no_grad():
            norms = torch.cat([_features(model, chunk).norm(dim=1) for chunk in chunks])
        # Rows are float32, and the picture of a data set is normalized in float32.
        np.testing.assert_allclose(record["probe_logits"].at(step), logits, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(record["probe_feature_norm"].at(step), features.norm(dim=1), rtol=1e-4)
        assert record["mean_feature_norm"].at(step) == pytest.approx(norms.mean().item(), rel=1e-9)
        model.zero_grad()
        for chunk, labels in zip(chunks, targets.split(CHUNK), strict=True):
            (nn.functional.cross_entropy(model(chunk), labels, reduction="sum") / len(inputs)).backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= config.optimizer.lr * parameter.grad


def _mean(dataset):
    return torch.from_numpy(dataset.images.reshape(-1, 3).mean(0)).view(3, 1, 1)


def _deviation(dataset):
    return torch.from_numpy(dataset.images.reshape(-1, 3).std(0)).view(3, 1, 1)


def _features(model, images):
    return model.pool(model.stages(model.stem(images)))


def _as_one_more_of(chunk, images, model):
    """Penultimate features and logits of ``images`` with the statistics of ``chunk``, in evaluation mode."""
    layers = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    sizes = {}
    hooks = [
        layer.register_forward_pre_hook(lambda layer, seen: sizes.update({layer: seen[0].numel() / seen[0].shape[1]}))
        for layer in layers
    ]
    with torch.no_grad():
        for layer in layers:
            layer.momentum = 1.0
        model(chunk)
        for hook in hooks:
            hook.remove()
        for layer in layers:
            layer.momentum = 0.1
            layer.running_var *= (sizes[layer] - 1) / sizes[layer]  # training divides by n, not by n − 1
        model.eval()
        features, logits = _features(model, images), model(images)
        model.train()
    return features, logits


def test_training_is_bit_identical_with_and_without_probes(record, tmp_path):
    config = configured()
    del config.instruments["block_probe"]
    assert_same_weights(record, trained(tmp_path, config))


def test_a_probe_does_not_depend_on_the_others(record, tmp_path):
    alone = trained(tmp_path, configured("steps=2", probes=["white"]))["probe_logits"].values[:, 0]
    np.testing.assert_allclose(alone, record["probe_logits"].values[:2, 1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("step", [1, 3])
def test_a_resumed_run_writes_what_an_uninterrupted_one_does(record, step, tmp_path, monkeypatch):
    config = configured()
    stopped(tmp_path, config, step, monkeypatch)
    resumed = trained(tmp_path, config)
    for quantity in (*QUANTITIES, "probe_image"):
        np.testing.assert_array_equal(resumed[quantity].steps, record[quantity].steps, quantity)
        np.testing.assert_array_equal(resumed[quantity].values, record[quantity].values, quantity)


def test_beside_a_compiled_pass_the_batch_is_passed_once_more(record, tmp_path, monkeypatch):
    """The compiler changes rounding; without it the second pass must find what a hook in the first one does."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    compiled = trained(tmp_path, configured("risk.compile_training=true"))
    for quantity in QUANTITIES:
        np.testing.assert_allclose(compiled[quantity].values, record[quantity].values, rtol=1e-4, atol=1e-5)


def test_of_several_gradients_in_a_step_the_first_counts(record, tmp_path):
    """SAM takes a second gradient away from θ_t."""
    twice = trained(tmp_path, configured("optimizer=sam", "optimizer.lr=0.05", "steps=2"))
    for quantity in QUANTITIES:
        assert twice[quantity].steps.tolist() == [0, 1]
        np.testing.assert_array_equal(twice[quantity].values[0], record[quantity].values[0], quantity)


def test_under_minibatch_training_the_mean_is_over_the_batch(tmp_path):
    config = configured("batch=5", "steps=2")
    del config.instruments["sharpness"]
    minibatch = trained(tmp_path, config)
    dataset = instantiate(config.data)
    module = training_module(config, dataset)
    with torch.no_grad():
        norms = _features(module.risk.model, module.risk.inputs[next(iter(module.batches))]).norm(dim=1)
    assert minibatch["mean_feature_norm"].at(0) == pytest.approx(norms.mean().item(), rel=1e-5)


def _instrument(model: nn.Module, folder, probes=("sky",)) -> BlockProbe:
    with Record.writing(folder, {}) as record:
        risk = EmpiricalRisk(model, nn.CrossEntropyLoss(reduction="none"), torch.zeros(2, 3), torch.zeros(2), chunk=2)
        return BlockProbe(risk, record, probes)


def test_a_model_without_a_penultimate_feature_is_refused(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 10, 1), nn.Flatten())
    with pytest.raises(InputError, match=r"last layer with parameters is '2', Conv2d: expected torch.nn.Linear"):
        _instrument(model, tmp_path)


def test_probes_have_to_be_named_and_need_pictures(tmp_path):
    with pytest.raises(InputError, match=r"probes=\[\]: expected a list of one or more"):
        _instrument(nn.Linear(3, 2), tmp_path, probes=[])
    with pytest.raises(InputError, match="probes need training data with pictures, and chebyshev"):
        _instrument(nn.Linear(3, 2), tmp_path).prepare(chebyshev(5, 20))
