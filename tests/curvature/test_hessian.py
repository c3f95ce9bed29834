"""The Hessian as a matrix, against that of `torch.func`, entry by entry."""

import pytest
import torch
from torch.func import functional_call, hessian

from opposing_signals import Hessian, InputError
from opposing_signals.curvature import EmpiricalRisk


def losses(outputs, targets):
    return torch.nn.functional.cross_entropy(outputs, targets, reduction="none")


@pytest.fixture
def case():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3)).double()
    return model, torch.randn(7, 3, dtype=torch.float64), torch.arange(7) % 3


@pytest.fixture
def dense(case):
    model, inputs, targets = case
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    theta = torch.nn.utils.parameters_to_vector(model.parameters()).detach()

    def each(theta):
        pieces = theta.split([shape.numel() for shape in shapes.values()])
        state = {name: piece.view(shape) for (name, shape), piece in zip(shapes.items(), pieces, strict=True)}
        return losses(functional_call(model, state, (inputs,)), targets)

    return hessian(each)(theta)


@pytest.mark.parametrize("chunk", [None, 3])
def test_products_eigenpairs_and_curvatures_are_those_of_the_dense_matrix(case, dense, chunk):
    model, inputs, targets = case
    H = Hessian(model, losses, (inputs, targets), chunk)
    assert H.shape == dense.shape[1:]
    torch.testing.assert_close(H @ torch.eye(len(dense[0])).double(), dense.mean(0))
    v = torch.randn(len(dense[0]), dtype=torch.float64)
    torch.testing.assert_close(H @ v, dense.mean(0) @ v)
    values = torch.linalg.eigvalsh(dense.mean(0))
    for which, expected in (("largest", values.flip(0)[:2]), ("smallest", values[:2])):
        pairs = H.eigenpairs(2, which, tolerance=1e-9)
        torch.testing.assert_close(pairs.values, expected)
        torch.testing.assert_close(dense.mean(0) @ pairs.vector, pairs.values[0] * pairs.vector)
    torch.testing.assert_close(H.along(v).curvatures, dense @ v @ v)


def test_the_hessian_of_a_risk_is_that_of_its_model_loss_and_data(case):
    model, inputs, targets = case
    risk = EmpiricalRisk(model, losses, inputs, targets, chunk=7, precision="float64")
    v = torch.ones(31, dtype=torch.float64)
    assert torch.equal(Hessian(risk) @ v, Hessian(model, losses, (inputs, targets)) @ v)
    torch.testing.assert_close(
        Hessian(risk).gradient_norms(), Hessian(model, losses, (inputs, targets)).gradient_norms()
    )
    with pytest.raises(InputError, match="expected nothing else"):
        Hessian(risk, losses)
    with pytest.raises(InputError, match="expected Hessian"):
        Hessian(model)
