from functools import partial

import pytest
import torch
from layers import CROSS_ENTROPY, plain_curvature, plain_gradient, plain_hessian, plain_losses

from opposing_signals.curvature import gradient_norms, sample_curvature
from opposing_signals.curvature.risk import EmpiricalRisk
from opposing_signals.errors import InputError
from opposing_signals.models import cifar_resnet, mlp, resnet18, vgg11, vit
from opposing_signals.models.resnet import PaddedShortcut
from opposing_signals.models.transformer import Block

resnet56, resnet110 = (partial(cifar_resnet, depth=depth) for depth in (56, 110))


def parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("model", "count"),
    [
        (lambda: resnet18((3, 32, 32), 10), 11_173_962),  # the usual CIFAR ResNet-18
        (lambda: resnet56((3, 32, 32), 10), 853_018),  # 0.85M and 1.7M in table 6 of He et al.
        (lambda: resnet110((3, 32, 32), 10), 1_727_962),
        (lambda: vgg11((3, 32, 32), 10, batch_norm=False), 9_750_922),
        (lambda: vgg11((3, 32, 32), 10, batch_norm=True), 9_756_426),
        (lambda: vit((3, 32, 32), 10, width=192, depth=8), 3_583_306),
        (lambda: mlp((3, 32, 32), 10, (200, 200), "relu"), 656_810),
        (lambda: mlp((1,), 1, (50, 50), "tanh"), 2_701),
    ],
)
def test_sizes_are_the_standard_ones(model, count):
    assert parameters(model()) == count


@pytest.mark.parametrize("model", [resnet18, resnet56, vgg11])
@pytest.mark.parametrize("channels", [1, 3])
def test_image_models_map_images_to_logits(model, channels):
    network = model((channels, 32, 32), 7, width=4)
    assert network(torch.randn(2, channels, 32, 32)).shape == (2, 7)


def test_width_scales_every_stage():
    assert parameters(resnet18((3, 32, 32), 10, width=16)) == 701_466


@pytest.mark.parametrize(("model", "layers"), [(resnet18, 18), (resnet56, 56), (resnet110, 110)])
def test_a_residual_network_is_as_deep_as_its_name_says(model, layers):
    network = model((3, 32, 32), 10, width=2)
    weights = [module for module in network.modules() if isinstance(module, torch.nn.Conv2d | torch.nn.Linear)]
    projections = [module for module in weights if getattr(module, "kernel_size", None) == (1, 1)]
    assert len(weights) - len(projections) == layers


@pytest.mark.parametrize("depth", [2, 18, 57])
def test_a_depth_that_no_such_network_has_is_refused(depth):
    with pytest.raises(InputError, match=f"model.depth={depth}: expected 2 more than a multiple of 6"):
        cifar_resnet((3, 32, 32), 10, depth)


def test_the_shortcut_without_parameters_passes_every_second_pixel_and_adds_channels_of_zeros():
    torch.manual_seed(0)
    network = resnet56((3, 32, 32), 10, width=2).eval()
    entrance = network.stages[9]  # into the second stage
    torch.nn.init.zeros_(entrance.bn2.weight)  # the block's own branch is then 0
    images = torch.rand(2, 2, 32, 32)
    with torch.no_grad():
        passed = entrance(images)
    assert passed.shape == (2, 4, 16, 16)
    assert torch.equal(passed[:, :2], images[:, :, ::2, ::2])
    assert not passed[:, 2:].any()


def test_derivatives_through_that_shortcut():
    torch.manual_seed(0)
    layers = torch.nn.Conv2d(2, 3, 3, padding=1), PaddedShortcut(2), torch.nn.GELU(), torch.nn.Flatten()
    model = torch.nn.Sequential(*layers, torch.nn.Linear(20, 3))
    inputs, targets = torch.randn(5, 2, 4, 4), torch.randint(3, (5,))
    risk = EmpiricalRisk(model, CROSS_ENTROPY, inputs, targets, chunk=3, precision="float64")
    losses = plain_losses(risk)
    dense = plain_hessian(losses.mean(), risk)
    v = torch.randn(len(dense), dtype=torch.float64)
    close = {"rtol": 1e-9, "atol": 1e-11}
    torch.testing.assert_close(risk.hessian_products(v[None]).products[0], dense @ v, **close)
    curvatures = torch.stack([plain_curvature(loss, risk, v) for loss in losses])
    torch.testing.assert_close(sample_curvature(risk, v).curvatures, curvatures, **close)
    norms = torch.stack([plain_gradient(loss, risk).detach().norm() for loss in losses])
    torch.testing.assert_close(gradient_norms(risk), norms, **close)


def test_equal_seeds_give_equal_weights():
    def drawn():
        torch.manual_seed(5)
        return resnet18((3, 32, 32), 10, width=4).state_dict()

    one, other = drawn(), drawn()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("is_causal", [True, False])
def test_a_transformer_block_is_torchs_encoder_layer(bias, is_causal):
    torch.manual_seed(0)
    block = Block(12, 3, bias, is_causal).double()
    sizes = {"d_model": 12, "nhead": 3, "dim_feedforward": 48, "dropout": 0.0, "activation": "gelu"}
    theirs = torch.nn.TransformerEncoderLayer(**sizes, batch_first=True, norm_first=True, bias=bias).double()
    names = {"attention.": "self_attn.in_proj_", "projection.": "self_attn.out_proj."}
    names |= {"norm1.": "norm1.", "norm2.": "norm2.", "mlp.0.": "linear1.", "mlp.2.": "linear2."}
    kinds = ("weight", "bias") if bias else ("weight",)
    state = block.state_dict()
    theirs.load_state_dict({f"{name}{kind}": state[f"{ours}{kind}"] for ours, name in names.items() for kind in kinds})
    tokens = torch.randn(2, 5, 12, dtype=torch.float64)
    mask = torch.nn.Transformer.generate_square_subsequent_mask(5, dtype=torch.float64) if is_causal else None
    torch.testing.assert_close(block(tokens), theirs(tokens, src_mask=mask))


def test_a_transformer_sees_each_patch_at_its_position():
    torch.manual_seed(0)
    network = vit((3, 32, 32), 7, width=8, depth=1, heads=2).double()
    image = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    logits = network(image)
    assert logits.shape == (1, 7)
    swapped = image.clone()
    swapped[..., :4, :4], swapped[..., 8:12, 4:8] = image[..., 8:12, 4:8], image[..., :4, :4]
    assert not torch.allclose(network(swapped), logits)
    with torch.no_grad():  # patches 0 and 17, after the class token
        network.positions[:, [1, 18]] = network.positions[:, [18, 1]].clone()
    torch.testing.assert_close(network(swapped), logits)
    assert list(dict(network.named_parameters()))[-2:] == ["head.weight", "head.bias"]


def test_the_layers_of_the_standard_transformer_are_counted():
    assert len(list(vit((3, 32, 32), 10).parameters())) == 104


@pytest.mark.parametrize(
    ("sizes", "message"),
    [({"patch": 5}, "model.patch=5: expected a divisor"), ({"heads": 5}, "model.heads=5: expected")],
)
def test_a_transformer_that_cannot_be_built_is_refused(sizes, message):
    with pytest.raises(InputError, match=message):
        vit((3, 32, 32), 10, **sizes)
