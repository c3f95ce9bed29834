import copy

import pytest
import torch
import torch.nn.functional as F
from layers import (
    CROSS_ENTROPY,
    NETWORKS,
    ByFunction,
    MultiHeadAttention,
    ensemble_risk,
    network,
    plain_gradient,
    plain_hessian,
    plain_losses,
    risk_of,
)
from torch import nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

from opposing_signals.curvature import curvature_split, sample_curvature, sample_sharpness
from opposing_signals.curvature.risk import EmpiricalRisk
from opposing_signals.errors import InputError
from opposing_signals.models import resnet18, vgg11


@pytest.mark.parametrize("layer", NETWORKS)
def test_products_gradient_and_slopes_agree_with_plain_double_backward(layer):
    plain = risk_of(layer, channels_last=False)
    losses = plain_losses(plain)
    dense = plain_hessian(losses.mean(), plain)
    gradients = torch.stack([plain_gradient(loss, plain).detach() for loss in losses])
    vectors = torch.randn(2, len(dense), dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    for channels_last in (True, False):
        measured = risk_of(layer, channels_last=channels_last).hessian_products(vectors)

        torch.testing.assert_close(measured.products, vectors @ dense, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(measured.losses, losses.detach(), rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(measured.slopes, vectors @ gradients.T, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(measured.gradient, gradients.mean(0), rtol=1e-9, atol=1e-11)


def test_products_of_a_model_that_transforms_functions():
    risk = ensemble_risk()
    dense = plain_hessian(plain_losses(risk).mean(), risk)
    vectors = torch.randn(2, len(dense), dtype=torch.float64)
    torch.testing.assert_close(risk.hessian_products(vectors).products, vectors @ dense, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("layer", ["batch_norm", "layer_norm", "attention", "max_pool"])
def test_plain_double_backward_agrees_with_differences_of_the_gradient(layer):
    """Checks the reference itself, without second derivatives."""
    risk = risk_of(layer, channels_last=False)
    dense = plain_hessian(plain_losses(risk).mean(), risk)
    theta = nn.utils.parameters_to_vector(risk.parameters).detach()
    direction = torch.randn(len(theta), dtype=torch.float64, generator=torch.Generator().manual_seed(3))

    def gradient_at(shift):
        nn.utils.vector_to_parameters(theta + shift * direction, risk.parameters)
        return plain_gradient(plain_losses(risk).mean(), risk).detach()

    difference = (gradient_at(1e-6) - gradient_at(-1e-6)) / 2e-6
    torch.testing.assert_close(difference, direction @ dense, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("layer", NETWORKS)
@pytest.mark.parametrize("channels_last", [True, False])
def test_the_training_gradient_has_the_same_bits_with_and_without_products(layer, channels_last):
    plain, measured = (risk_of(layer, precision="float32", channels_last=channels_last) for _ in range(2))
    vectors = torch.randn(2, sum(p.numel() for p in plain.parameters))
    expected, seen = plain.backward(), measured.backward_with_products(vectors)
    assert torch.equal(seen.losses, expected.losses)
    assert torch.equal(seen.outputs, expected.outputs)
    for ours, theirs in zip(measured.parameters, plain.parameters, strict=True):
        assert torch.equal(ours.grad, theirs.grad)
    assert all(torch.equal(a, b) for a, b in zip(measured.model.buffers(), plain.model.buffers(), strict=True))


@pytest.mark.parametrize("layer", NETWORKS)
def test_a_pass_over_one_chunk_gives_further_products_by_its_graph(layer):
    risk = risk_of(layer, chunk=11)
    vectors = torch.randn(4, sum(p.numel() for p in risk.parameters), dtype=torch.float64)
    expected = risk.hessian_products(vectors)
    seen = risk.backward_with_products(vectors[:1])
    found = torch.cat([seen.products, seen.further(vectors[1:2]), seen.further(vectors[2:])])
    torch.testing.assert_close(found, expected.products, rtol=1e-9, atol=1e-11)
    assert expected.further is None
    assert risk_of(layer).backward_with_products(vectors[:1]).further is None  # three graphs take thrice the memory


def test_further_products_are_refused_once_the_weights_have_had_another_dtype():
    """For instance after a check in float64: autograd would then find zeros in the graph."""
    risk = risk_of("linear", chunk=11, precision="float32")
    vectors = torch.randn(2, sum(p.numel() for p in risk.parameters))
    seen = risk.backward_with_products(vectors)
    risk.checked = set()
    risk.check_products()
    with pytest.raises(InputError, match="the weights have had another dtype since"):
        seen.further(vectors)


@pytest.mark.parametrize("factory", [resnet18, vgg11])
def test_whole_networks_keep_their_bits_and_agree_with_plain_double_backward(factory):
    generator = torch.Generator().manual_seed(1)
    images, labels = torch.randn(10, 3, 32, 32, generator=generator), torch.randint(10, (10,), generator=generator)

    def risk(precision):
        torch.manual_seed(0)
        return EmpiricalRisk(
            factory((3, 32, 32), 10, width=8), CROSS_ENTROPY, images, labels, chunk=6, precision=precision
        )

    plain, measured, exact = risk("float32"), risk("float32"), risk("float64")
    vector = torch.randn(sum(p.numel() for p in plain.parameters), dtype=torch.float64)
    plain.backward()
    measured.backward_with_products(vector[None].float())
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(measured.parameters, plain.parameters, strict=True))

    gradient = plain_gradient(plain_losses(exact).mean(), exact)
    rows = torch.autograd.grad(gradient @ vector, exact.parameters)
    expected = torch.cat([row.reshape(-1) for row in rows])
    torch.testing.assert_close(exact.hessian_products(vector[None]).products[0], expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("settings", [{"precision": "bfloat16"}, {"compile_training": True}])
def test_a_pass_that_cannot_be_shared_is_made_beside_training(settings):
    settings = {"precision": "float32", **settings}
    plain, measured = risk_of("batch_norm", **settings), risk_of("batch_norm", **settings)
    vectors = torch.randn(1, sum(p.numel() for p in plain.parameters))
    expected, seen = plain.backward(), measured.backward_with_products(vectors)
    assert torch.equal(seen.losses, expected.losses)
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(measured.parameters, plain.parameters, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(measured.model.buffers(), plain.model.buffers(), strict=True))
    exact = risk_of("batch_norm").hessian_products(vectors.double()).products
    torch.testing.assert_close(seen.products, exact.float(), rtol=1e-3, atol=1e-4)


def test_products_of_a_batch_are_those_of_its_mean_loss():
    risk = risk_of("linear")
    batch = torch.tensor([7, 2, 2, 9, 0])
    dense = plain_hessian(plain_losses(risk)[batch].mean(), risk)
    vectors = torch.randn(2, len(dense), dtype=torch.float64)
    torch.testing.assert_close(risk.hessian_products(vectors, batch).products, vectors @ dense, rtol=1e-9, atol=1e-11)


class WeightNormByHand(nn.Linear):
    """g v/‖v‖ written out, as an independent reference."""

    def __init__(self, like: nn.Linear, axes: int) -> None:
        super().__init__(like.in_features, like.out_features)
        self.axes = axes
        g, v = like.parametrizations.weight.original0, like.parametrizations.weight.original1
        self.bias = nn.Parameter(like.bias.detach().clone())
        self.g, self.v = nn.Parameter(g.detach().clone()), nn.Parameter(v.detach().clone())
        del self.weight

    def forward(self, values):
        scale = self.g / (self.v * self.v).sum(self.axes, keepdim=True).sqrt()
        return F.linear(values, scale * self.v, self.bias)


@pytest.mark.parametrize(("dim", "axes"), [(0, 1), (1, 0)])
def test_products_through_weight_norm(dim, axes):
    torch.manual_seed(0)
    layer = weight_norm(nn.Linear(32, 5), dim=dim)
    inputs, targets = torch.randn(7, 32), torch.randint(3, (7,))

    def risk(first, **settings):
        torch.manual_seed(1)
        model = nn.Sequential(first, nn.Tanh(), nn.Linear(5, 3))
        return EmpiricalRisk(model, CROSS_ENTROPY, inputs, targets, chunk=4, **settings)

    reference, exact = (risk(first, precision="float64") for first in (WeightNormByHand(layer, axes), layer))
    vectors = torch.randn(2, 5 + (5 if dim == 0 else 32) + 160 + 18, dtype=torch.float64)
    expected = vectors @ plain_hessian(plain_losses(reference).mean(), reference)
    torch.testing.assert_close(exact.hessian_products(vectors).products, expected, rtol=1e-9, atol=1e-11)

    plain, measured = (risk(copy.deepcopy(layer), precision="float32") for _ in range(2))
    plain.backward()
    measured.backward_with_products(vectors.float())
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(measured.parameters, plain.parameters, strict=True))


def test_products_through_a_hard_sigmoid():
    torch.manual_seed(0)
    inputs, targets = 3 * torch.randn(7, 32), torch.randint(3, (7,))

    def risk(activation, precision="float64"):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(32, 5), nn.Tanh(), nn.Linear(5, 5), activation, nn.Linear(5, 3))
        return EmpiricalRisk(model, CROSS_ENTROPY, inputs, targets, chunk=4, precision=precision)

    reference = risk(ByFunction(lambda values: (values / 6 + 0.5).clamp(0, 1)))
    vectors = torch.randn(2, 165 + 30 + 18, dtype=torch.float64)
    expected = vectors @ plain_hessian(plain_losses(reference).mean(), reference)
    for inplace in (False, True):
        exact, plain, measured = (risk(nn.Hardsigmoid(inplace), kind) for kind in ("float64", "float32", "float32"))
        # PyTorch's own kernel takes the 1/6 in float32.
        torch.testing.assert_close(exact.hessian_products(vectors).products, expected, rtol=1e-6, atol=1e-7)
        plain.backward()
        measured.backward_with_products(vectors.float())
        assert all(torch.equal(a.grad, b.grad) for a, b in zip(measured.parameters, plain.parameters, strict=True))


@pytest.mark.parametrize("measure", ["hessian_products", "curvature_split", "sample_sharpness"])
def test_a_function_that_is_differentiated_once_is_named(measure):
    loss = nn.MultiMarginLoss(reduction="none")
    risk = risk_of("tanh", loss=loss)
    vector = torch.ones(sum(p.numel() for p in risk.parameters), dtype=torch.float64)
    measures = {
        "hessian_products": lambda: risk.hessian_products(vector[None]),
        "curvature_split": lambda: curvature_split(risk, vector),
        "sample_sharpness": lambda: sample_sharpness(risk, torch.tensor([0])),
    }
    with pytest.raises(InputError, match="multi_margin_loss_backward: replace the function, or leave out"):
        measures[measure]()


class OnceOnly(Function):
    @staticmethod
    def forward(_, values):
        return values * 2

    @staticmethod
    @once_differentiable
    def backward(_, slope):
        return slope * 2


def attention_with_dropout(values):
    return F.scaled_dot_product_attention(values, values, values, dropout_p=0.5)


def test_sparse_gradients_are_refused_by_name():
    model = nn.Sequential(nn.Embedding(7, 4, sparse=True), nn.Flatten(), nn.Linear(8, 3))
    inputs, targets = torch.randint(7, (4, 2)), torch.zeros(4, dtype=torch.long)
    risk = EmpiricalRisk(model, CROSS_ENTROPY, inputs, targets, chunk=4)
    vector = torch.ones(1, 28 + 27)
    for measure in (lambda: risk.hessian_products(vector), lambda: sample_sharpness(risk, torch.tensor([0]))):
        with pytest.raises(InputError, match=r"the gradient in '0\.weight' is sparse: expected a dense one"):
            measure()


class Checkpointed(nn.Linear):
    """By the older of the two methods."""

    def forward(self, values):
        return checkpoint(super().forward, values, use_reentrant=True)


def compiled_in_place(model):
    model[1].compile()
    return model


class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(32, 3, dtype=torch.complex64))

    def forward(self, images):
        return (images.flatten(1).to(self.weight.dtype) @ self.weight).abs()


def spectral(norm):
    return nn.Sequential(nn.Flatten(), norm(nn.Linear(32, 3)))


class OnceOnlyLayer(nn.Module):
    def forward(self, values):
        return OnceOnly.apply(values)


RANDOM = (
    [network("linear"), ByFunction(lambda values: F.dropout(values, 0.5))],
    [nn.Flatten(2), nn.Linear(16, 4), ByFunction(attention_with_dropout), nn.Flatten(), nn.Linear(8, 3)],
    [nn.Flatten(2), nn.Linear(16, 4), MultiHeadAttention(4, dropout=0.5), nn.Flatten(), nn.Linear(8, 3)],
)


@pytest.mark.parametrize("measure", ["hessian_products", "curvature_split", "sample_curvature", "sample_sharpness"])
@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: nn.Sequential(network("linear"), nn.Dropout(0.5)), r"layer '1' is Dropout\(p=0.5\) in training mode"),
        (
            lambda: nn.Sequential(network("linear"), OnceOnlyLayer()),
            "a layer whose backward is marked once_differentiable",
        ),
        (lambda: torch.compile(network("linear")), "a compiled model has no second derivatives"),
        (lambda: compiled_in_place(network("linear")), "a compiled model has no second derivatives"),
        (
            lambda: nn.Sequential(network("linear"), Checkpointed(3, 3)),
            "computes activations twice",
        ),
        (lambda: nn.Sequential(Complex()), r"the parameter '0\.weight' is complex: expected real ones"),
        (lambda: spectral(spectral_norm), r"layer '1\.parametrizations\.weight\.0' has spectral norm in training mode"),
        (lambda: spectral(nn.utils.spectral_norm), "layer '1' has spectral norm in training mode"),
        *((lambda layer=layer: nn.Sequential(*layer), "the model draws random numbers") for layer in RANDOM),
    ],
)
def test_what_has_no_right_second_derivative_is_refused(model, message, measure):
    inputs, targets = torch.randn(4, 2, 4, 4), torch.zeros(4, dtype=torch.long)
    precision = "unchanged" if "complex" in message else "float32"
    risk = EmpiricalRisk(model(), CROSS_ENTROPY, inputs, targets, chunk=4, precision=precision)
    vector = torch.ones(sum(p.numel() for p in risk.parameters))
    measures = {
        "hessian_products": lambda: risk.hessian_products(vector[None]),
        "curvature_split": lambda: curvature_split(risk, vector),
        "sample_curvature": lambda: sample_curvature(risk, vector),
        "sample_sharpness": lambda: sample_sharpness(risk, torch.tensor([0])),
    }
    if measure == "sample_curvature" and "once_differentiable" in message:  # it differentiates the values themselves
        doubling = nn.Sequential(network("linear"), ByFunction(lambda values: 2 * values))
        doubled = EmpiricalRisk(doubling, CROSS_ENTROPY, inputs, targets, chunk=4)
        expected = sample_curvature(doubled, vector).curvatures
        torch.testing.assert_close(sample_curvature(risk, vector).curvatures, expected)
        return
    with pytest.raises(InputError, match=message):
        measures[measure]()


def test_products_through_spectral_norm_that_stands_still():
    torch.manual_seed(0)
    model = spectral(spectral_norm).eval()
    inputs, targets = torch.randn(7, 2, 4, 4), torch.randint(3, (7,))
    risk = EmpiricalRisk(model, CROSS_ENTROPY, inputs, targets, chunk=4, precision="float64")
    dense = plain_hessian(plain_losses(risk).mean(), risk)
    vectors = torch.randn(1, len(dense), dtype=torch.float64)
    torch.testing.assert_close(risk.hessian_products(vectors).products, vectors @ dense, rtol=1e-9, atol=1e-11)


class ByComplexParts(nn.Module):
    """Complex weights as a real parameter; their total number is odd, and so is every second vector's offset."""

    def __init__(self):
        super().__init__()
        self.parts = nn.Parameter(torch.randn(17, 3, 2))
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, images):
        spectrum = torch.fft.rfft(images.flatten(1)) * self.scale
        return (spectrum @ torch.view_as_complex(self.parts)).abs()


def test_products_through_complex_numbers_in_a_real_parameter():
    torch.manual_seed(0)
    inputs, targets = torch.randn(7, 2, 4, 4), torch.randint(3, (7,))
    risk = EmpiricalRisk(ByComplexParts(), CROSS_ENTROPY, inputs, targets, chunk=7, precision="float64")
    dense = plain_hessian(plain_losses(risk).mean(), risk)
    vectors = torch.randn(3, len(dense), dtype=torch.float64)
    seen = risk.backward_with_products(vectors[:2])
    products = torch.cat([seen.products, seen.further(vectors[1:])])
    torch.testing.assert_close(products, vectors[[0, 1, 1, 2]] @ dense, rtol=1e-9, atol=1e-11)
    split = curvature_split(risk, vectors[1])
    assert split.gauss_newton + split.functional == pytest.approx(float(vectors[1] @ dense @ vectors[1]), rel=1e-9)


def test_directions_of_a_model_without_complex_numbers_are_not_copied():
    risk = EmpiricalRisk(nn.Linear(4, 3), CROSS_ENTROPY, torch.randn(7, 4), torch.randint(3, (7,)), chunk=7)
    vectors = torch.randn(2, 15)  # the second begins at an odd offset, which a complex view does not allow
    further = risk.backward_with_products(vectors[:1]).further
    copies = []
    for vector in vectors:
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            further(vector[None])
        copies.append([event.name for event in seen.events()].count("aten::clone"))
    assert copies[0] == copies[1]


def test_a_vector_of_another_model_is_refused():
    with pytest.raises(InputError, match=r"shape \[1, 5\]: expected \[k, 183\]"):
        risk_of("linear").hessian_products(torch.zeros(1, 5))
