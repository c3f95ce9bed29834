import pytest

from opposing_signals.networks import network_name


@pytest.mark.parametrize(
    ("built", "expected"),
    [
        ({"function": "resnet18", "width": 64}, "ResNet-18"),
        ({"function": "resnet18", "width": 16}, "ResNet-18 (width 16 of 64)"),
        ({"function": "vgg11", "batch_norm": True, "width": 8}, "VGG-11-BN (width 8 of 64)"),
        ({"function": "cifar_resnet", "depth": 56, "width": 16}, "ResNet-56"),
        ({"function": "vit", "width": 32}, "ViT (width 32)"),
        ({"function": "mlp"}, "MLP"),
        ({"function": "MyNet", "width": 7}, "MyNet"),
    ],
)
def test_a_network_is_named_with_its_width_unless_that_is_the_standard_one(built, expected):
    assert network_name(**built) == expected
