import numpy as np
import pytest
import torch

from opposing_signals.data import planted
from opposing_signals.errors import InputError

CLASS_NAMES = ("plane", "bird", "car", "truck", "frog", "cat")
BEARERS = {"sky": ("plane", "bird"), "wheels": ("car", "truck"), "texture": ("frog", "cat")}


@pytest.fixture(scope="module")
def data():
    return planted(images=1200)


def members(data, name: str) -> np.ndarray:
    return data.targets.numpy() == CLASS_NAMES.index(name)


def test_form(data) -> None:
    assert data.class_names == CLASS_NAMES
    assert data.inputs.shape == (1200, 3, 32, 32)
    assert data.inputs.dtype == torch.float32
    assert data.targets.dtype == torch.int64
    assert data.images.shape == (1200, 32, 32, 3)
    assert data.images.dtype == np.uint8
    assert data.test_inputs.shape == (600, 3, 32, 32)
    assert {feature: (bears.shape, bears.dtype) for feature, bears in data.truth.items()} == {
        feature: ((1200,), np.dtype(bool)) for feature in BEARERS
    }


def test_classes_are_equally_large(data) -> None:
    assert np.bincount(data.targets).tolist() == [200] * 6


def test_inputs_are_the_images_normalized_per_channel(data) -> None:
    std, mean = torch.std_mean(data.inputs, dim=(0, 2, 3), correction=0)
    torch.testing.assert_close(mean, torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(std, torch.ones(3), atol=1e-5, rtol=0)
    pixels = torch.from_numpy(data.images).permute(0, 3, 1, 2).float()
    for channel in range(3):
        pair = torch.stack([pixels[:, channel].flatten(), data.inputs[:, channel].flatten()]).double()
        assert torch.corrcoef(pair)[0, 1] > 1 - 1e-6


def test_the_seed_decides_everything() -> None:
    first, again, other = planted(60, seed=1), planted(60, seed=1), planted(60, seed=2)
    assert first.checksum == again.checksum
    assert torch.equal(first.inputs, again.inputs)
    assert torch.equal(first.test_inputs, again.test_inputs)
    assert first.checksum != other.checksum


def test_drawing_is_the_same_on_every_machine() -> None:
    assert planted(60, seed=0).checksum == "7007dd85fa10b2df90e47f021733bebdf1e3571bfd00fde8e49c27cdc9bac773"


def test_test_images_are_not_training_images(data) -> None:
    train = {image.numpy().tobytes() for image in data.inputs}
    assert not any(image.numpy().tobytes() in train for image in data.test_inputs)


def test_prevalence_is_what_is_asked_for(data) -> None:
    asked = {"plane": 0.6, "bird": 0.15, "car": 0.5, "truck": 0.4, "frog": 0.6, "cat": 0.15}
    for feature, names in BEARERS.items():
        for name in CLASS_NAMES:
            found = data.truth[feature][members(data, name)].mean()
            expected = asked[name] if name in names else 0
            assert abs(found - expected) <= 4 * np.sqrt(expected * (1 - expected) / 200)


@pytest.mark.parametrize(("probability", "expected"), [(0.0, 0), (1.0, 10)])
def test_extreme_prevalences_are_exact(probability: float, expected: int) -> None:
    data = planted(60, sky_in_plane=probability)
    assert data.truth["sky"][members(data, "plane")].sum() == expected


def test_truth_is_what_the_images_show(data) -> None:
    colour = data.images.astype(float)
    red, green, blue = (colour[..., channel].mean(axis=(1, 2)) for channel in range(3))
    sky, wheels, texture = (data.truth[feature] for feature in BEARERS)
    assert (blue - red)[sky].min() > (blue - red)[~sky].max()
    assert (green - blue)[texture].min() > (green - blue)[~texture].max()
    tyre = (colour.max(axis=-1) < 30).sum(axis=(1, 2))
    vehicles = members(data, "car") | members(data, "truck")
    assert tyre[wheels].min() > np.quantile(tyre[vehicles & ~wheels], 0.95)


def test_bearers_of_background_features_are_outliers(data) -> None:
    size = data.inputs.flatten(1).norm(dim=1).numpy()
    plain = ~(data.truth["sky"] | data.truth["texture"])
    for feature in ("sky", "texture"):
        assert np.median(size[data.truth[feature]]) > np.quantile(size[plain], 0.99)


def test_too_few_images() -> None:
    with pytest.raises(InputError, match="images=5"):
        planted(5)
