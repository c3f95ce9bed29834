import pytest
import torch
from constant_statistics import own_losses
from layers import NETWORKS, plain_hessian, risk_of
from torch import nn

from opposing_signals.curvature import sample_sharpness
from opposing_signals.curvature.risk import EmpiricalRisk
from opposing_signals.errors import InputError
from opposing_signals.losses import square_loss

POINTS = torch.tensor([10, 1])  # from the last, shorter chunk and from the first


@pytest.mark.parametrize("layer", NETWORKS)
def test_values_are_the_largest_eigenvalues_of_the_points_own_hessians(layer):
    points = POINTS if layer in ("batch_norm", "residual", "layer_norm") else POINTS[:1]  # dense Hessians are slow
    values, residuals = sample_sharpness(risk_of(layer), points, tolerance=1e-7, max_products=200)
    risk = risk_of(layer)
    losses = own_losses(risk)
    expected = [torch.linalg.eigvalsh(plain_hessian(losses[i], risk))[-1] for i in points]
    torch.testing.assert_close(values, torch.stack(expected), rtol=1e-9, atol=1e-12)
    assert (residuals <= 1e-7 * values).all()


@pytest.mark.parametrize("layer", ["batch_norm", "layer_norm"])
def test_the_residual_bounds_the_distance_to_an_eigenvalue(layer):
    values, residuals = sample_sharpness(risk_of(layer), POINTS, tolerance=0, max_products=3)
    risk = risk_of(layer)
    losses = own_losses(risk)
    for index, value, residual in zip(POINTS, values, residuals, strict=True):
        spectrum = torch.linalg.eigvalsh(plain_hessian(losses[index], risk))
        assert 0 < (spectrum - value).abs().min() <= residual
        assert value < spectrum[-1]


def test_a_points_value_does_not_depend_on_the_others():
    risk = risk_of("residual")
    together, _ = sample_sharpness(risk, torch.tensor([3, 9, 3, 0]))
    alone = [sample_sharpness(risk, torch.tensor([i]))[0][0] for i in (3, 9, 3, 0)]
    assert torch.equal(together, torch.stack(alone))


def test_a_negative_curvature_everywhere_has_a_negative_or_zero_largest_eigenvalue():
    """ℓ = −½ ‖Wx‖²: the largest eigenvalue is 0, on the directions that W x does not see."""

    def concave(outputs, targets):
        return -square_loss(outputs, targets)

    torch.manual_seed(0)
    inputs, targets = torch.randn(3, 1), torch.zeros(3, 2)
    risk = EmpiricalRisk(nn.Linear(1, 2, bias=False), concave, inputs, targets, chunk=3, precision="float64")
    values, _ = sample_sharpness(risk, torch.arange(3))
    torch.testing.assert_close(values, -inputs[:, 0].double().square(), rtol=1e-12, atol=0)


def test_a_loss_without_curvature_has_none():
    def linear(outputs, targets):
        return outputs.sum(1)

    risk = EmpiricalRisk(nn.Linear(4, 2), linear, torch.randn(3, 4), torch.zeros(3, 2), chunk=3, precision="float64")
    values, residuals = sample_sharpness(risk, torch.arange(3))
    assert values.tolist() == residuals.tolist() == [0, 0, 0]


@pytest.mark.parametrize("points", [[11], [-1], []])
def test_points_outside_the_training_set_are_refused(points):
    with pytest.raises(InputError, match="expected a list of one or more numbers from 0 to 10"):
        sample_sharpness(risk_of("linear"), torch.tensor(points, dtype=torch.long))
