"""Products by differences of gradients against the dense Hessian, and that they leave training unchanged."""

import contextlib
import copy

import pytest
import torch
from layers import CROSS_ENTROPY, ByFunction, direction, plain_hessian, plain_losses, risk_of
from rounding import RoundedFactors
from torch import nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from opposing_signals.curvature import EigenTracker, Hessian
from opposing_signals.curvature.differences import GradientDifferences
from opposing_signals.curvature.risk import EmpiricalRisk
from opposing_signals.errors import InputError


class TanhOnce(Function):
    """A tanh with the right gradient, but without a graph of it."""

    @staticmethod
    def forward(context, values):
        context.save_for_backward(values.tanh())
        return values.tanh()

    @staticmethod
    @once_differentiable
    def backward(context, slope):
        (output,) = context.saved_tensors
        return slope * (1 - output.square())


def without_second_derivative(risk: EmpiricalRisk) -> EmpiricalRisk:
    """The same function, with a tanh that PyTorch can differentiate only once."""
    model = copy.deepcopy(risk.model)
    model[2] = ByFunction(TanhOnce.apply)
    return EmpiricalRisk(model, risk.loss, risk.inputs, risk.targets, chunk=risk.chunk, precision=risk.precision)


def dense(risk: EmpiricalRisk) -> torch.Tensor:
    return plain_hessian(plain_losses(risk).mean(), risk).detach()


@pytest.mark.parametrize("layer", ["linear", "tanh", "conv", "batch_norm", "residual", "attention", "max_pool"])
def test_in_float64_they_are_those_of_the_dense_matrix(layer):
    risk = risk_of(layer, channels_last=False)
    expected, vectors = dense(risk), 3 * direction(risk, 2)
    differences = GradientDifferences(risk)
    size = expected.norm() * vectors.norm()
    one, (both, errors) = differences(vectors), differences.both_sides(vectors)
    for found in (one, both):
        assert (found - vectors @ expected).norm() < 1e-6 * size
    assert (errors < 1e-6 * expected.norm()).all()
    assert not differences(torch.zeros_like(vectors)).any()


@pytest.mark.parametrize("layer", ["batch_norm", "tanh"])
def test_they_leave_no_trace(layer):
    risk = risk_of(layer, precision="float32")
    risk.backward()
    gradients = [parameter.grad for parameter in risk.parameters]
    before = {name: tensor.clone() for name, tensor in risk.model.state_dict().items()}
    places, state = [parameter.data_ptr() for parameter in risk.parameters], torch.get_rng_state()
    GradientDifferences(risk)(direction(risk, 2).float())
    assert [parameter.data_ptr() for parameter in risk.parameters] == places
    assert all(torch.equal(tensor, before[name]) for name, tensor in risk.model.state_dict().items())
    assert all(p.grad is gradient for p, gradient in zip(risk.parameters, gradients, strict=True))
    assert torch.equal(torch.get_rng_state(), state)


def test_weights_are_put_back_where_a_pass_fails():
    risk = risk_of("tanh")
    differences = GradientDifferences(risk)
    risk.loss = None
    with pytest.raises(TypeError):
        differences(direction(risk, 1))
    assert torch.equal(torch.cat([p.detach().reshape(-1) for p in risk.parameters]), differences.theta)


def test_a_model_without_second_derivative_has_eigenpairs():
    risk = risk_of("tanh")
    once = without_second_derivative(risk)
    with pytest.raises(InputError, match="once_differentiable"):
        Hessian(once).eigenpairs()
    found, expected = Hessian(once, differences=True).eigenpairs(2, tolerance=1e-5), torch.linalg.eigvalsh(dense(risk))
    torch.testing.assert_close(found.values, expected.flip(0)[:2], rtol=1e-6, atol=0)
    v = direction(risk, 1)[0]
    torch.testing.assert_close(Hessian(once, differences=True) @ v, dense(risk) @ v, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: risk_of("tanh").model.append(nn.Dropout(0.5)), "Dropout"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(32, 3), ByFunction(nn.functional.dropout)), "draws random"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(32, 3), ByFunction(torch.Tensor.detach)), "does not depend"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(32, 3)).bfloat16(), "weights in bfloat16: expected float32"),
    ],
)
def test_what_is_no_function_of_the_weights_is_refused_in_one_line(make, message):
    dtype = torch.bfloat16 if "bfloat16" in message else torch.float32
    inputs = torch.randn(6, 2, 4, 4, dtype=dtype)
    risk = EmpiricalRisk(make().to(dtype), CROSS_ENTROPY, inputs, torch.zeros(6, dtype=torch.long), chunk=6,
                         precision="unchanged")  # fmt: skip
    with pytest.raises(InputError, match=message) as caught:
        GradientDifferences(risk)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def at_the_edge() -> EmpiricalRisk:
    """A tanh perceptron on 200 points after gradient descent, where λ is about 2/η."""
    torch.manual_seed(0)
    inputs = torch.randn(200, 20)
    targets = (inputs[:, :5].square() + torch.randn(200, 5)).argmax(1)
    model = nn.Sequential(nn.Linear(20, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 5))
    risk = EmpiricalRisk(model, CROSS_ENTROPY, inputs, targets, chunk=100)
    optimizer = torch.optim.SGD(risk.parameters, lr=0.7)
    for _ in range(100):
        optimizer.zero_grad()
        risk.backward()
        optimizer.step()
    optimizer.zero_grad()
    return risk


@pytest.mark.parametrize(
    ("precision", "of_product", "of_quotient"),
    [("float32", 4e-4, 5e-5), ("tf32", 0.1, 0.03), ("float16", 0.12, 0.03), ("bfloat16", 0.2, 0.03)],
)
def test_errors_at_the_edge_in_the_precision_of_training(at_the_edge, precision, of_product, of_quotient):
    def in_precision(name):
        model, data = copy.deepcopy(at_the_edge.model), (at_the_edge.inputs, at_the_edge.targets)
        return EmpiricalRisk(model, CROSS_ENTROPY, *data, chunk=100, precision=name)

    exact = in_precision("float64")
    tracker = EigenTracker(tolerance=1e-6, max_products=300, cold_products=300)
    pairs = tracker(lambda vectors: exact.hessian_products(vectors).products, direction(exact))
    value, v = pairs.value, pairs.vector
    assert 0.8 < value * 0.7 / 2 < 2, "it is at the edge"
    with RoundedFactors() if precision == "tf32" else contextlib.nullcontext():
        differences = GradientDifferences(in_precision(precision))
        one, (both, errors) = differences(v[None].float()), differences.both_sides(v[None].float())
    one, both, error = one[0].double(), both[0].double(), float(errors)
    assert (one - value * v).norm() < of_product * value
    assert abs(v @ both - value) < of_quotient * value
    assert (both - value * v).norm() < error < of_product * value
