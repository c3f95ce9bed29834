import pytest
import torch

from opposing_signals.models import mlp, resnet18, vgg11


def parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("model", "count"),
    [
        (lambda: resnet18((3, 32, 32), 10), 11_173_962),  # the usual CIFAR ResNet-18
        (lambda: vgg11((3, 32, 32), 10, batch_norm=False), 9_750_922),
        (lambda: vgg11((3, 32, 32), 10, batch_norm=True), 9_756_426),
        (lambda: mlp((3, 32, 32), 10, (200, 200), "relu"), 656_810),
        (lambda: mlp((1,), 1, (50, 50), "tanh"), 2_701),
    ],
)
def test_sizes_are_the_standard_ones(model, count):
    assert parameters(model()) == count


@pytest.mark.parametrize("model", [resnet18, vgg11])
@pytest.mark.parametrize("channels", [1, 3])
def test_image_models_map_images_to_logits(model, channels):
    network = model((channels, 32, 32), 7, width=4)
    assert network(torch.randn(2, channels, 32, 32)).shape == (2, 7)


def test_width_scales_every_stage():
    assert parameters(resnet18((3, 32, 32), 10, width=16)) == 701_466


def test_equal_seeds_give_equal_weights():
    def drawn():
        torch.manual_seed(5)
        return resnet18((3, 32, 32), 10, width=4).state_dict()

    one, other = drawn(), drawn()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
