"""Results on a GPU agree with the CPU, layer by layer, and do not depend on instruments."""

import copy

import pytest
import torch
from layers import NETWORKS, network, risk_of
from torch import nn

from opposing_signals.curvature import (
    curvature_split,
    gradient_norms,
    gradient_sketch,
    jacobian_norms,
    sample_curvature,
    sample_sharpness,
)
from opposing_signals.optim.quantile import magnitude_quantile
from opposing_signals.training.job import set_gpu_arithmetic

pytestmark = pytest.mark.gpu
if not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)


def has_images(layer: str) -> bool:
    return any(isinstance(module, nn.Conv2d | nn.BatchNorm2d | nn.MaxPool2d) for module in network(layer).modules())


GPU = torch.device("cuda")
LAID_OUT = [(layer, False) for layer in NETWORKS] + [(layer, True) for layer in NETWORKS if has_images(layer)]
"""Each network, and also in channels_last if its kernels depend on the layout."""


@pytest.fixture(scope="module", autouse=True)
def the_arithmetic_of_a_run():
    set_gpu_arithmetic(is_rounded=False)
    yield
    torch.use_deterministic_algorithms(False)


def direction_for(risk):
    size = sum(p.numel() for p in risk.parameters)
    return torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).to(risk.inputs.device)


def along(risk):
    measured = sample_curvature(risk, direction_for(risk))
    return [measured.losses, measured.slopes, measured.curvatures]


def products(risk):
    measured = risk.hessian_products(torch.stack([direction_for(risk), torch.ones_like(direction_for(risk))]))
    return [measured.gradient, measured.products, measured.slopes, measured.losses]


def parts(risk):
    split = curvature_split(risk, direction_for(risk))
    return [torch.tensor([split.gauss_newton, split.functional])]


MEASURES = {
    "products": products,
    "along": along,
    "parts": parts,
    "norms": lambda risk: [gradient_norms(risk)],
    "sketch": lambda risk: [gradient_sketch(risk, 8)],
    "sharpness": lambda risk: [sample_sharpness(risk, torch.tensor([0, 5, 10]), tolerance=0, max_products=5)[0]],
    "jacobian": lambda risk: [jacobian_norms(risk, torch.tensor([0, 5, 10]))],
}


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize(("layer", "channels_last"), LAID_OUT)
def test_measures_agree_with_the_cpu(layer, measure, channels_last):
    """The check against finite differences runs on the GPU alone; it has passed on the CPU elsewhere.

    In float64 two devices differ by the order of their sums, at most 1e-12 for these small numbers, and by a last bit
    of exp and erf. A term missing on one of them changes the result by at least 1e-4.
    """
    if measure == "jacobian" and layer == "embedding":
        pytest.skip("tokens have no derivative")
    on_cpu, on_gpu = (risk_of(layer, channels_last=channels_last) for _ in range(2))
    on_cpu.checked = None
    expected, found = MEASURES[measure](on_cpu), MEASURES[measure](on_gpu.to(GPU))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(("layer", "channels_last"), LAID_OUT)
def test_the_training_gradient_has_the_same_bits_with_and_without_products(layer, channels_last):
    plain = risk_of(layer, precision="float32", channels_last=channels_last).to(GPU)
    measured = copy.deepcopy(plain)
    expected = plain.backward()
    seen = measured.backward_with_products(direction_for(plain).float()[None])
    assert torch.equal(seen.losses, expected.losses)
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(measured.parameters, plain.parameters, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(measured.model.buffers(), plain.model.buffers(), strict=True))


@pytest.mark.parametrize("quantile", [0.0, 0.3, 0.9, 1.0])
def test_a_quantile_of_magnitudes_is_that_of_the_cpu(quantile):
    pieces = [torch.randn(shape, generator=torch.Generator().manual_seed(3)) for shape in ((7, 11), (1,), (301,))]
    assert magnitude_quantile([piece.to(GPU) for piece in pieces], quantile) == magnitude_quantile(pieces, quantile)
