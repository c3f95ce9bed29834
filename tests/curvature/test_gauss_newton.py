import pytest
import torch
from layers import CROSS_ENTROPY, NETWORKS, direction, plain_gradient, plain_losses, risk_of
from torch import nn
from torch.func import hessian
from torch.nn.attention import SDPBackend, sdpa_kernel

from opposing_signals.curvature import curvature_split
from opposing_signals.curvature.risk import EmpiricalRisk
from opposing_signals.errors import InputError
from opposing_signals.losses import logistic_loss, square_loss


def curvature_along(risk, vector, loss=CROSS_ENTROPY):
    """vᵀ∇²L v by plain double backward."""
    slope = plain_gradient(plain_losses(risk, loss).mean(), risk) @ vector
    return float(plain_gradient(slope, risk).detach() @ vector)


def gauss_newton_by_jacobians(risk, vector, loss):
    """(1/N) Σ (J_i v)ᵀ ∇²ℓ_i (J_i v), one row of the Jacobian of all outputs at a time."""
    total = 0
    with sdpa_kernel(SDPBackend.MATH):
        for inputs, targets in zip(risk.inputs.split(risk.chunk), risk.targets.split(risk.chunk), strict=True):
            outputs = risk.model(inputs)
            rows = [
                torch.autograd.grad(output, risk.parameters, retain_graph=True, materialize_grads=True)
                for output in outputs.flatten()
            ]
            tangents = torch.stack([torch.cat([piece.reshape(-1) for piece in row]) @ vector for row in rows])
            tangents = tangents.view_as(outputs)
            curved = torch.stack(
                [
                    hessian(lambda f, y=y: loss(f[None], y[None])[0])(f)
                    for f, y in zip(outputs.detach(), targets, strict=True)
                ]
            )
            total = total + torch.einsum("ni,nij,nj->", tangents, curved, tangents)
    return total / len(risk)


@pytest.mark.parametrize("layer", NETWORKS)
def test_parts_agree_with_jacobians_and_sum_to_the_whole(layer):
    risk = risk_of(layer)
    vector = direction(risk)
    split = curvature_split(risk, vector)
    assert split.gauss_newton + split.functional == pytest.approx(curvature_along(risk, vector), rel=1e-9)
    expected = float(gauss_newton_by_jacobians(risk, vector, CROSS_ENTROPY))
    assert split.gauss_newton == pytest.approx(expected, rel=1e-9)
    assert split.gauss_newton > 0


def test_parts_of_a_weighted_loss_and_of_a_batch():
    risk = risk_of("batch_norm_eval")
    vector, batch = direction(risk), torch.tensor([1, 4, 4, 6, 9])
    quotient = risk.hessian_products(vector[None], batch).products[0] @ vector
    split = curvature_split(risk, vector, batch)
    assert split.gauss_newton + split.functional == pytest.approx(float(quotient), rel=1e-9)
    risk.weights = torch.rand(len(risk), dtype=torch.float64)
    weighted = risk.hessian_products(vector[None]).products[0] @ vector
    split = curvature_split(risk, vector)
    assert split.gauss_newton + split.functional == pytest.approx(float(weighted), rel=1e-9)


@pytest.mark.parametrize("loss", [square_loss, logistic_loss])
def test_other_losses(loss):
    risk = risk_of("batch_norm", loss)
    vector = direction(risk)
    split = curvature_split(risk, vector)
    assert split.gauss_newton + split.functional == pytest.approx(curvature_along(risk, vector, loss), rel=1e-9)
    assert split.gauss_newton == pytest.approx(float(gauss_newton_by_jacobians(risk, vector, loss)), rel=1e-9)


def test_a_network_linear_in_its_weights_has_a_gauss_newton_part_only():
    inputs, targets = torch.randn(5, 4), torch.randint(3, (5,))
    risk = EmpiricalRisk(nn.Linear(4, 3), CROSS_ENTROPY, inputs, targets, chunk=2, precision="float64")
    split = curvature_split(risk, direction(risk))
    assert split.gauss_newton > 0.01
    assert split.functional == pytest.approx(0, abs=1e-14)


def test_a_loss_linear_in_the_outputs_has_none():
    def linear(outputs, targets):
        return outputs.sum(1)

    risk = risk_of("tanh", linear)
    split = curvature_split(risk, direction(risk))
    assert split.gauss_newton == 0
    assert abs(split.functional) > 0.01


def test_a_vector_of_another_model_is_refused():
    with pytest.raises(InputError, match=r"shape \[1, 5\]"):
        curvature_split(risk_of("linear"), torch.zeros(5, dtype=torch.float64))
