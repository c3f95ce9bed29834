"""The check against finite differences: every measure refuses a wrong derivative at once, and right ones pass."""

import math

import pytest
import torch
import torch.nn.functional as F
from layers import CROSS_ENTROPY, ByFunction, direction
from torch import nn

from opposing_signals.curvature import (
    batch_sharpness,
    curvature_split,
    finite_differences,
    gradient_norms,
    gradient_sketch,
    sample_curvature,
    sample_sharpness,
)
from opposing_signals.curvature.risk import EmpiricalRisk
from opposing_signals.errors import InputError
from opposing_signals.models import resnet18


class WrongSecond(torch.autograd.Function):
    """x³, with the wrong second derivative x instead of 6x."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, slope):
        (x,) = ctx.saved_tensors
        return slope * (2.5 * x.detach() ** 2 + 0.5 * x**2)


class Truncated(nn.Linear):
    """Hides part of its dependence on the weights from derivatives."""

    def forward(self, values):
        with torch.no_grad():
            scale = self.weight.square().mean()
        return super().forward(values) * (1 + scale)


class InFloat32(nn.Module):
    """Computes in float32, whatever the input's dtype."""

    def __init__(self, then: nn.Module) -> None:
        super().__init__()
        self.then = then

    def forward(self, values):
        return self.then(values.float()).to(values)


class ConstantTable(nn.Module):
    """A plain list of float32 tensors, which a conversion to float64 does not reach."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = [torch.eye(4)]

    def forward(self, values):
        return values @ self.tables[0]


def risk_of(*layers: nn.Module, precision="float32", examples=20, **settings) -> EmpiricalRisk:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), *layers, nn.Linear(4, 3))
    x, y = torch.randn(examples, 6), torch.randint(3, (examples,))
    return EmpiricalRisk(model, CROSS_ENTROPY, x, y, chunk=7, precision=precision, **settings)


MEASURES = {
    "hessian_products": lambda risk: risk.hessian_products(direction(risk)[None]),
    "backward_with_products": lambda risk: risk.backward_with_products(direction(risk)[None]),
    "sample_curvature": lambda risk: sample_curvature(risk, direction(risk)),
    "sample_sharpness": lambda risk: sample_sharpness(risk, torch.tensor([1])),
    "curvature_split": lambda risk: curvature_split(risk, direction(risk)),
    "batch_sharpness": lambda risk: batch_sharpness(risk, torch.tensor([3, 1, 2])),
}


@pytest.mark.parametrize("precision", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize(
    "layer", [lambda: ByFunction(WrongSecond.apply), lambda: Truncated(4, 4)], ids=["second", "hidden"]
)
def test_what_disagrees_is_refused_by_every_measure_of_curvature(layer, measure, precision):
    risk = risk_of(layer(), precision=precision)
    before = [parameter.detach().clone() for parameter in risk.parameters]
    if measure == "sample_curvature" and not isinstance(risk.model[1], Truncated):  # it differentiates the values
        sample_curvature(risk, direction(risk))
        return
    for _ in range(2):  # and again
        with pytest.raises(InputError, match="away from finite differences of training's own gradients") as caught:
            MEASURES[measure](risk)
    assert "\n" not in str(caught.value)
    assert all(parameter.grad is None for parameter in risk.parameters)
    assert all(torch.equal(parameter, old) for parameter, old in zip(risk.parameters, before, strict=True))


class Scaled(nn.Linear):
    """The weight gradient is twice that of the loss, as where an embedding scales it by frequency."""

    def forward(self, values):
        return super().forward(values) + ((self.weight - self.weight.detach()) * values[:, None]).sum(2)


class Centred(nn.Linear):
    """Tracks its mean output without a gradient, like a running centre in training mode."""

    def __init__(self) -> None:
        super().__init__(4, 4)
        self.register_buffer("centre", torch.zeros(4))

    def forward(self, values):
        output = super().forward(values)
        self.centre.lerp_(output.mean(0).detach(), 0.1)
        return output - self.centre


@pytest.mark.parametrize("measure", ["hessian_products", "sample_sharpness", "curvature_split"])
@pytest.mark.parametrize("layer", [lambda: Scaled(4, 4), Centred], ids=["scaled", "state"])
def test_a_gradient_that_is_not_the_losss_is_refused(layer, measure):
    with pytest.raises(InputError, match=r"away from|depend on the others"):
        MEASURES[measure](risk_of(layer()))


@pytest.mark.parametrize(
    ("layers", "place"),
    [
        ([nn.Tanh(), nn.Sequential(Truncated(4, 4), nn.Tanh())], r"layer '2\.0', Truncated, has"),
        ([nn.LayerNorm(4), ByFunction(WrongSecond.apply)], "layer '2', ByFunction, has"),
    ],
)
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_the_layer_is_named(layers, place, precision):
    risk = risk_of(*layers, precision=precision)
    with pytest.raises(InputError, match=place):
        risk.hessian_products(direction(risk)[None])


@pytest.mark.parametrize("measure", [gradient_norms, lambda risk: gradient_sketch(risk, 4)])
def test_a_wrong_rule_for_single_gradients_is_refused(measure, monkeypatch):
    from opposing_signals.curvature.ghost_norms import SquaredNorm
    from opposing_signals.curvature.gradient_sketch import Projection

    for reading in (SquaredNorm, Projection):
        right = reading.of_linear
        monkeypatch.setattr(reading, "of_linear", lambda *args, right=right: 1.01 * right(*args))
    with pytest.raises(InputError, match=r"gradient (norm|sketch).* of its size away from that of plain autograd"):
        measure(risk_of(nn.Tanh()))


@pytest.mark.parametrize("measure", MEASURES)
def test_where_float64_cannot_be_had_plain_derivatives_are_the_reference(measure):
    MEASURES[measure](risk_of(ConstantTable(), nn.Tanh()))
    MEASURES[measure](risk_of(InFloat32(nn.Tanh()), nn.Tanh()))


def test_a_wrong_kernel_is_found_without_float64_too(monkeypatch):
    from opposing_signals.curvature import second_order

    def wrong(x, **_):
        return F.silu(x) + (x - x.detach()) ** 2

    monkeypatch.setitem(second_order._REPLACEMENTS, F.silu, wrong)
    for layer in (nn.Identity(), ConstantTable()):
        with pytest.raises(InputError, match="away from"):
            risk_of(layer, nn.SiLU()).hessian_products(torch.ones(1, 28 + 15))


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_kinks_and_zeros_are_no_disagreement(precision):
    """A ReLU network in which many units lie exactly at the kink: no bias, and empty corners of the images."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 3))
    nn.init.zeros_(model[0].bias)
    nn.init.zeros_(model[4].weight)
    images = torch.randn(40, 2, 8, 8)
    images[:, :, :4] = 0
    risk = EmpiricalRisk(model, CROSS_ENTROPY, images, torch.randint(3, (40,)), chunk=20, precision=precision)
    for measure in MEASURES.values():
        measure(risk)


def test_a_residual_network_is_checked_once_and_for_less_than_a_pass(monkeypatch):
    torch.manual_seed(0)
    images, labels = torch.randn(800, 3, 8, 8), torch.randint(10, (800,))
    model = resnet18((3, 8, 8), 10, width=2)
    risk = EmpiricalRisk(model, CROSS_ENTROPY, images, labels, chunk=100)
    examples = []
    model.register_forward_pre_hook(lambda _, inputs: examples.append(len(inputs[0])))
    product = direction(risk)[None]
    risk.hessian_products(product)
    first = sum(examples)
    examples.clear()
    risk.hessian_products(product)
    assert sum(examples) == 800
    assert first - 800 - 100 <= 0.15 * 800  # 100: the chunk that is searched for gradients inside the model
    monkeypatch.setattr(finite_differences, "_hold", lambda *_: pytest.fail("checked twice"))
    risk.backward_with_products(product)


def test_weights_count():
    risk = risk_of(nn.Tanh(), precision="float64")
    risk.weights = torch.linspace(0, 1, 20, dtype=torch.float64)
    for measure in MEASURES.values():
        measure(risk)


def test_losses_that_vanish_are_no_disagreement():
    risk = risk_of(nn.Tanh())
    loss = risk.loss
    risk.loss = lambda outputs, targets: 1e-9 * loss(outputs, targets)
    for measure in MEASURES.values():
        measure(risk)


def test_diverged_weights_are_left_to_training():
    risk = risk_of(nn.Tanh())
    with torch.no_grad():
        risk.parameters[0].fill_(math.nan)
    assert risk.hessian_products(direction(risk)[None]).products.isnan().any()
    assert all(part.isnan().all() for part in sample_sharpness(risk, torch.tensor([1])))
