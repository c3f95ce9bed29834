import pytest
import torch
from layers import plain_hessian, plain_losses, risk_of

from opposing_signals.curvature import EigenTracker, adam_preconditioner, preconditioned
from opposing_signals.curvature.risk import flatten
from opposing_signals.errors import InputError


def trained(steps=3, optimizer=torch.optim.Adam, **settings):
    risk = risk_of("tanh")
    adam = optimizer(risk.parameters, lr=0.02, **settings)
    for _ in range(steps):
        adam.zero_grad()
        risk.backward()
        before = flatten([p.detach() for p in risk.parameters])
        adam.step()
    return risk, adam, before


@pytest.mark.parametrize(
    ("optimizer", "settings"),
    [
        (torch.optim.Adam, {}),
        (torch.optim.Adam, {"betas": (0.5, 0.8), "eps": 1e-2}),
        (torch.optim.Adam, {"amsgrad": True}),
        (torch.optim.AdamW, {"weight_decay": 0.0}),
    ],
)
def test_the_last_step_was_the_average_gradient_over_the_preconditioner(optimizer, settings):
    risk, adam, before = trained(4, optimizer, **settings)
    average = flatten([adam.state[p]["exp_avg"] for p in risk.parameters])
    taken = flatten([p.detach() for p in risk.parameters]) - before
    expected = -0.02 * average / adam_preconditioner(adam, risk.parameters)
    torch.testing.assert_close(taken, expected, rtol=1e-9, atol=1e-12)


def test_eigenvalues_are_those_of_the_preconditioned_hessian():
    risk, adam, _ = trained()
    diagonal = adam_preconditioner(adam, risk.parameters)
    dense = plain_hessian(plain_losses(risk).mean(), risk)
    products = preconditioned(lambda vectors: risk.hessian_products(vectors).products, diagonal)
    found = EigenTracker(tolerance=1e-8, max_products=150)(products, diagonal)
    expected = torch.linalg.eigvals(dense / diagonal[:, None])  # not symmetric, with a real spectrum
    assert found.value == pytest.approx(float(expected.real.max()), rel=1e-9)


def test_other_optimizers_are_refused():
    risk, sgd, _ = trained(optimizer=torch.optim.SGD)
    with pytest.raises(InputError, match="the optimizer is SGD: expected"):
        adam_preconditioner(sgd, risk.parameters)


def test_an_optimizer_without_a_step_is_refused():
    risk = risk_of("tanh")
    with pytest.raises(InputError, match="Adam has taken no step"):
        adam_preconditioner(torch.optim.Adam(risk.parameters), risk.parameters)
