import pytest
import torch
from layers import (
    CROSS_ENTROPY,
    NETWORKS,
    ensemble_risk,
    network,
    plain_curvature,
    plain_gradient,
    plain_losses,
    risk_of,
)
from torch import nn

from opposing_signals.curvature import sample_curvature, step_expansion
from opposing_signals.errors import InputError
from opposing_signals.losses import logistic_loss, square_loss
from opposing_signals.models import resnet18
from opposing_signals.risk import EmpiricalRisk


def direction(risk: EmpiricalRisk) -> torch.Tensor:
    size = sum(p.numel() for p in risk.parameters)
    return torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("layer", NETWORKS)
def test_slopes_and_curvatures_agree_with_a_loop_over_the_points(layer):
    risk = risk_of(layer, examples=5, chunk=3)
    v = direction(risk)
    losses = plain_losses(risk)
    slopes = torch.stack([plain_gradient(loss, risk).detach() @ v for loss in losses])
    curvatures = torch.stack([plain_curvature(loss, risk, v) for loss in losses])

    measured = sample_curvature(risk, v)

    torch.testing.assert_close(measured.losses, losses.detach(), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(measured.slopes, slopes, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(measured.curvatures, curvatures, rtol=1e-9, atol=1e-11)
    products = risk.hessian_products(v[None])
    torch.testing.assert_close(measured.curvatures.mean(), products.products[0] @ v, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(measured.slopes, products.slopes[0], rtol=1e-9, atol=1e-12)


class Arithmetic(nn.Module):
    """Operations that models use between layers, each with parameters on both sides."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.randn(4)), nn.Parameter(torch.randn(2, 4, 4))
        self.head = nn.Linear(32, 3)

    def forward(self, images):
        x = images * self.scale + self.shift
        x = x - 0.5 * torch.sigmoid(x) / (1 + self.scale.square())
        x = x + torch.cat([x[:, 1:], x[:, :1]], 1).softmax(-1) @ self.shift[0]
        x = x.permute(0, 2, 3, 1).reshape(len(images), -1).clamp(min=-1).abs().sqrt()
        x = x * torch.where(x > 0.5, x, 1 / (1 + x))
        x += self.head.weight.mean()
        x *= 2
        return self.head(x) ** 2 - self.head.bias.exp()


@pytest.mark.parametrize("loss", [CROSS_ENTROPY, square_loss, logistic_loss])
def test_arithmetic_between_layers_and_other_losses(loss):
    torch.manual_seed(0)
    inputs, targets = torch.randn(5, 2, 4, 4), torch.randint(3, (5,))
    risk = EmpiricalRisk(Arithmetic(), loss, inputs, targets, chunk=2, precision="float64")
    v = direction(risk)
    losses = plain_losses(risk, loss)
    expected = torch.stack([plain_curvature(value, risk, v) for value in losses])
    torch.testing.assert_close(sample_curvature(risk, v).curvatures, expected, rtol=1e-9, atol=1e-11)


def test_a_whole_network_agrees_with_its_hessian_vector_products():
    torch.manual_seed(0)
    model, images, labels = resnet18((3, 32, 32), 10, width=4), torch.randn(7, 3, 32, 32), torch.randint(10, (7,))
    risk = EmpiricalRisk(model, CROSS_ENTROPY, images, labels, chunk=4, precision="float64")
    v = direction(risk)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    measured, products = sample_curvature(risk, v), risk.hessian_products(v[None])
    torch.testing.assert_close(measured.curvatures.mean(), products.products[0] @ v, rtol=1e-9, atol=0)
    torch.testing.assert_close(measured.slopes, products.slopes[0], rtol=1e-8, atol=1e-10)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_step_is_its_expansion_to_second_order():
    risk = risk_of("tanh")
    gradient = risk.hessian_products(torch.empty(0, len(direction(risk)))).gradient
    v = direction(risk)
    v /= v.norm()
    theta = nn.utils.parameters_to_vector(risk.parameters).detach()
    before = risk.sample_losses().losses

    def change(shift):
        nn.utils.vector_to_parameters(theta + shift, risk.parameters)
        after = risk.sample_losses().losses
        nn.utils.vector_to_parameters(theta, risk.parameters)
        return after - before

    eta = 1e-3
    terms = step_expansion(risk, gradient, eta, sample_curvature(risk, v), v)
    torch.testing.assert_close(terms.first + terms.second, change(-eta * gradient), rtol=0, atol=1e-9)
    along = change(-eta * (gradient @ v) * v)
    torch.testing.assert_close(terms.along_first + terms.along_second, along, rtol=0, atol=1e-9)
    assert terms.second.abs().max() > 1e-7


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(InputError, match=r"expected \[k, 183\]"):
        sample_curvature(risk_of("linear"), torch.zeros(5))
    risk = risk_of("linear")
    model = nn.Sequential(network("linear"), nn.Dropout())
    random = EmpiricalRisk(model, CROSS_ENTROPY, risk.inputs, risk.targets, chunk=4)
    with pytest.raises(InputError, match="in training mode: its loss is random"):
        sample_curvature(random, torch.zeros(183))


@pytest.mark.parametrize("mean", [1.0, 100.0])
def test_batch_norm_keeps_its_digits_where_means_are_large(mean):
    torch.manual_seed(0)
    inputs = torch.randn(200, 6) / 4 + mean
    targets = torch.randint(3, (200,))
    along = []
    for precision in ("float32", "float64"):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3))
        risk = EmpiricalRisk(model, CROSS_ENTROPY, inputs, targets, chunk=200, precision=precision)
        along.append(sample_curvature(risk, direction(risk).to(risk.inputs.dtype)))
    ours, exact = along
    for name in ("slopes", "curvatures"):
        error = (getattr(ours, name).double() - getattr(exact, name)).norm() / getattr(exact, name).norm()
        assert error < 3e-6 * mean


@pytest.mark.parametrize(
    "write",
    [
        lambda values: values[:, :2].relu_(),
        lambda values: values.view(-1).relu_(),
        lambda values: values.clamp_min_(0),
        lambda values: values.__setitem__((slice(None), 0), 0.0),
        lambda values: nn.functional.leaky_relu_(values),
    ],
)
def test_writing_in_place_is_refused_where_it_cannot_be_followed(write):
    class Writes(nn.Module):
        def forward(self, values):
            write(values)
            return values

    model = nn.Sequential(nn.Linear(3, 4), Writes(), nn.Linear(4, 1))
    risk = EmpiricalRisk(model, square_loss, torch.randn(6, 3), torch.randn(6, 1), chunk=6)
    with pytest.raises(InputError, match="write that out of place"):
        sample_curvature(risk, torch.ones(21))


def test_a_transform_inside_the_model_is_refused():
    with pytest.raises(InputError, match=r"transform of torch\.func"):
        sample_curvature(ensemble_risk(), torch.ones(338, dtype=torch.float64))


class WritesAPart(nn.Module):
    """Rectifies half of its input where it stands."""

    def forward(self, values):
        values[:, :2].relu_()
        return values


def test_products_follow_what_is_written_into_a_part_of_a_tensor():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), WritesAPart(), nn.Linear(4, 1))
    risk = EmpiricalRisk(model, square_loss, torch.randn(6, 3), torch.randn(6, 1), chunk=6, precision="float64")
    vector = torch.randn(21, dtype=torch.float64)
    product = risk.hessian_products(vector[None]).products[0]
    expected = torch.autograd.functional.hvp(
        lambda *weights: square_loss(
            nn.functional.linear(hidden_of(risk.inputs, weights), weights[2], weights[3]), risk.targets
        ).mean(),
        tuple(risk.parameters),
        tuple(risk.unflatten(vector)),
    )[1]
    torch.testing.assert_close(product, torch.cat([piece.flatten() for piece in expected]))


def hidden_of(inputs, weights):
    hidden = nn.functional.linear(inputs, weights[0], weights[1])
    return torch.cat([hidden[:, :2].relu(), hidden[:, 2:]], 1)
