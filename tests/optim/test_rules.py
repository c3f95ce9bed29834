"""Sign SGD, clipped SGD, SAM and 1-SAM."""

import copy
import math
from functools import partial

import pytest
import torch
from hydra.utils import instantiate
from layers import CROSS_ENTROPY, risk_of
from omegaconf import OmegaConf
from torch.func import functional_call

from opposing_signals.configuration import configuration_folder
from opposing_signals.curvature.risk import flatten
from opposing_signals.errors import InputError
from opposing_signals.optim import SAM, ClippedSGD, OneSAM, SignSGD, SplitSGD
from opposing_signals.optim.sam import ascended_gradient

split_sgd = partial(SplitSGD, lr=0.001, sgd_lr=0.1)
GRADIENTS = [torch.randn(7, dtype=torch.float64, generator=torch.Generator().manual_seed(t)) for t in range(5)]


def parameter() -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.linspace(-1, 1, 7, dtype=torch.float64))


def trained(rule, **numbers) -> torch.Tensor:
    theta = parameter()
    optimizer = rule([theta], **numbers)
    for gradient in GRADIENTS:
        theta.grad = gradient.clone()
        optimizer.step()
        assert torch.equal(theta.grad, gradient)  # what is measured after the step sees the gradient itself
    return theta.detach()


@pytest.mark.parametrize("beta", [0.0, 0.9])
def test_sign_sgd_moves_every_parameter_by_the_sign_of_its_average(beta):
    theta, m = parameter().tolist(), [0.0] * 7
    for gradient in GRADIENTS:
        for i, g in enumerate(gradient.tolist()):
            m[i] = beta * m[i] + (1 - beta) * g
            theta[i] -= 0.3 * math.copysign(1, m[i])
    ours = trained(SignSGD, lr=0.3, momentum=beta)
    torch.testing.assert_close(ours, torch.tensor(theta, dtype=torch.float64), rtol=1e-12, atol=1e-13)


def test_sign_sgd_leaves_a_parameter_whose_average_is_0():
    theta = torch.nn.Parameter(torch.ones(2))
    theta.grad = torch.tensor([0.0, 2.0])
    SignSGD([theta], lr=0.5).step()
    assert theta.tolist() == [1.0, 0.5]


@pytest.mark.parametrize("beta", [0.0, 0.9])
def test_clipped_sgd_clips_entry_by_entry(beta):
    theta, m = parameter().tolist(), [0.0] * 7
    for gradient in GRADIENTS:
        for i, g in enumerate(gradient.tolist()):
            m[i] = beta * m[i] + min(max(g, -0.5), 0.5)
            theta[i] -= 0.1 * m[i]
    ours = trained(ClippedSGD, lr=0.1, bound=0.5, momentum=beta)
    torch.testing.assert_close(ours, torch.tensor(theta, dtype=torch.float64), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("beta", [0.0, 0.9])
def test_without_a_bound_it_is_sgd(beta):
    ours = trained(ClippedSGD, lr=0.1, bound=math.inf, momentum=beta)
    assert torch.equal(ours, trained(torch.optim.SGD, lr=0.1, momentum=beta))


# -- SAM ----------------------------------------------------------------------------------------------------------


def closure_of(risk):
    def closure():
        risk.model.zero_grad()
        return risk.backward().losses.mean().item()

    return closure


def losses_at(risk, theta, rows=slice(None)):
    """ℓ of some examples at parameters given as a ``[P]`` vector, with a graph."""
    names = [name for name, _ in risk.model.named_parameters()]
    weights = dict(zip(names, risk.unflatten(theta), strict=True))
    return CROSS_ENTROPY(functional_call(risk.model, weights, (risk.inputs[rows],)), risk.targets[rows])


def gradient_at(risk, theta, rows=slice(None)):
    theta = theta.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(losses_at(risk, theta, rows).mean(), theta)
    return gradient


def vector(risk):
    return flatten(risk.parameters).detach()


def uphill(gradient, rho):
    return rho * gradient / gradient.norm()


@pytest.mark.parametrize("in_groups", [False, True])
def test_sam_descends_by_the_gradient_uphill(in_groups):
    risk = risk_of("gelu")
    parameters = risk.parameters
    groups = [{"params": parameters[:1]}, {"params": parameters[1:]}] if in_groups else parameters
    optimizer = SAM(groups, lr=0.1, rho=0.7, momentum=0.9)
    theta, m = vector(risk), torch.zeros(len(vector(risk)), dtype=torch.float64)
    for _ in range(3):
        expected_loss = losses_at(risk, theta).mean().item()
        m = 0.9 * m + gradient_at(risk, theta + uphill(gradient_at(risk, theta), 0.7))
        theta = theta - 0.1 * m
        assert optimizer.step(closure_of(risk)) == pytest.approx(expected_loss, rel=1e-12)
    torch.testing.assert_close(vector(risk), theta, rtol=1e-11, atol=1e-12)


def test_sam_with_radius_0_is_sgd_to_the_bit():
    ours, theirs = risk_of("gelu", precision="float32"), risk_of("gelu", precision="float32")
    sam = SAM(ours.parameters, lr=0.1, rho=0.0, momentum=0.9)
    sgd = torch.optim.SGD(theirs.parameters, lr=0.1, momentum=0.9)
    for _ in range(3):
        sam.step(closure_of(ours))
        sgd.step(closure_of(theirs))
    assert torch.equal(vector(ours), vector(theirs))


def test_sam_comes_back_to_the_bit_and_stays_at_a_stationary_point():
    risk = risk_of("gelu", precision="float32")
    before = vector(risk)
    SAM(risk.parameters, lr=0.0, rho=0.7).step(closure_of(risk))
    assert torch.equal(vector(risk), before)
    theta = torch.nn.Parameter(torch.zeros(2))

    def flat_loss():
        theta.grad = torch.zeros(2)
        return 0.0

    SAM([theta]).step(flat_loss)
    assert torch.equal(theta.detach(), torch.zeros(2))


# -- 1-SAM --------------------------------------------------------------------------------------------------------

LAYERS = ["linear", "conv_strided", "max_pool", "average_pool", "batch_norm_eval", "layer_norm", "group_norm"]
LAYERS += ["attention", "multi_head_attention", "embedding"]


@pytest.mark.parametrize("layer", LAYERS)
def test_every_sample_has_its_own_ascent_step(layer, monkeypatch):
    risk = risk_of(layer)
    if layer == "embedding":
        with pytest.raises(InputError, match="1-SAM with an embedding's padding_idx: "):
            ascended_gradient(risk, torch.arange(2), 0.3)
        risk.model[0].padding_idx = None
    theta = vector(risk)
    monkeypatch.setattr("opposing_signals.optim.sam._WEIGHTS", {"cpu": 3 * len(theta)})  # three at once
    rows = torch.tensor([9, 2, 5, 7, 0])
    expected = torch.zeros_like(theta)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        for row in rows.tolist():
            example = slice(row, row + 1)
            ascent = uphill(gradient_at(risk, theta, example), 0.3)
            expected += gradient_at(risk, theta + ascent, example) / len(rows)
    measured = torch.cat([piece.reshape(-1) for piece in ascended_gradient(risk, rows, 0.3)])
    torch.testing.assert_close(measured, expected, rtol=1e-9, atol=1e-12)
    assert torch.equal(vector(risk), theta)
    assert all(p.grad is None for p in risk.parameters)


def test_weights_count_in_one_sam():
    risk = risk_of("gelu")
    theta, rows = vector(risk), torch.tensor([9, 2, 5])
    risk.weights = torch.arange(1.0, len(risk) + 1, dtype=torch.float64)
    expected = torch.zeros_like(theta)
    for row in rows.tolist():
        example = slice(row, row + 1)
        ascent = uphill(gradient_at(risk, theta, example), 0.3)
        expected += (row + 1) / (10 + 3 + 6) * gradient_at(risk, theta + ascent, example)
    measured = torch.cat([piece.reshape(-1) for piece in ascended_gradient(risk, rows, 0.3)])
    torch.testing.assert_close(measured, expected, rtol=1e-9, atol=1e-12)


def test_one_sam_without_ascent_is_sgd():
    risk, other = risk_of("gelu"), risk_of("gelu")
    ours = OneSAM(risk.parameters, lr=0.1, rho=0.0, momentum=0.9)
    theirs = torch.optim.SGD(other.parameters, lr=0.1, momentum=0.9)
    ours.follow(risk, lambda: slice(0, len(risk)))
    for _ in range(3):
        loss = losses_at(risk, vector(risk)).mean().item()
        assert ours.step(closure_of(risk)) == pytest.approx(loss, rel=1e-12)
        theirs.step(closure_of(other))
    torch.testing.assert_close(vector(risk), vector(other), rtol=1e-11, atol=1e-13)


def test_one_sam_is_not_sam():
    risk = risk_of("gelu")
    theta = vector(risk)
    own = torch.cat([piece.reshape(-1) for piece in ascended_gradient(risk, slice(0, len(risk)), 0.7)])
    common = gradient_at(risk, theta + uphill(gradient_at(risk, theta), 0.7))
    assert (own - common).norm() > 0.05 * common.norm()


def test_one_sam_asks_for_what_it_needs():
    risk = risk_of("gelu")
    with pytest.raises(InputError, match=r"expected a call of OneSAM\.follow"):
        OneSAM(risk.parameters).step(closure_of(risk))
    with pytest.raises(InputError, match="several parameter groups: expected one"):
        OneSAM([{"params": risk.parameters[:1]}, {"params": risk.parameters[1:]}])
    with pytest.raises(InputError, match="batch norm in training mode"):
        ascended_gradient(risk_of("batch_norm"), slice(0, 4), 0.1)
    risk.model.insert(1, torch.nn.Dropout(0.5))
    with pytest.raises(InputError, match=r"Dropout\(p=0.5\) in training mode: its loss is random") as caught:
        ascended_gradient(risk, slice(0, 4), 0.1)
    assert "\n" not in str(caught.value)


# -- all ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "numbers", "message"),
    [
        (SignSGD, {"lr": -1}, "optimizer.lr=-1: expected a number, at least 0"),
        (SignSGD, {"momentum": 1.0}, "optimizer.momentum=1.0: expected a number, at least 0 and below 1"),
        (ClippedSGD, {"lr": -1}, "optimizer.lr=-1"),
        (ClippedSGD, {"momentum": -0.1}, "optimizer.momentum=-0.1"),
        (ClippedSGD, {"bound": 0.0}, "optimizer.bound=0.0: expected a number, above 0"),
        (SAM, {"rho": -0.05}, "optimizer.rho=-0.05: expected a number, at least 0"),
        (SAM, {"momentum": 1.5}, "optimizer.momentum=1.5"),
        (OneSAM, {"rho": math.nan}, "optimizer.rho=nan"),
        (split_sgd, {"lr": math.nan}, "optimizer.lr=nan: expected a number, at least 0"),
        (split_sgd, {"sgd_lr": -1e-3}, "optimizer.sgd_lr=-0.001: expected a number, at least 0"),
        (split_sgd, {"dampening": 1.0}, "optimizer.dampening=1.0: expected a number, at least 0 and below 1"),
        (split_sgd, {"momentum": 1}, "optimizer.momentum=1: expected a number, at least 0 and below 1"),
        (split_sgd, {"threshold": -1e-4}, "optimizer.threshold=-0.0001: expected a number, at least 0"),
        (split_sgd, {"quantile": 0}, "optimizer.quantile=0: expected a number, above 0 and below 1"),
        (split_sgd, {"quantile": 1.0}, "optimizer.quantile=1.0: expected a number, above 0 and below 1"),
    ],
)
@pytest.mark.parametrize("by_group", [False, True])
def test_numbers_that_cannot_work_are_refused(rule, numbers, message, by_group):
    with pytest.raises(InputError, match=message) as caught:
        rule([{"params": [parameter()], **numbers}]) if by_group else rule([parameter()], **numbers)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rule", [SignSGD, ClippedSGD, split_sgd])
def test_sparse_gradients_are_refused(rule):
    table = torch.nn.Embedding(5, 2, sparse=True)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match=r"of shape \[5, 2\] is sparse: expected a dense one"):
        rule(table.parameters()).step()


@pytest.mark.parametrize(("rule", "kind"), [(SignSGD, {}), (ClippedSGD, {"bound": 0.2}), (SAM, {"rho": 0.3})])
def test_a_resumed_run_ends_with_the_same_bits(rule, kind):
    risk = risk_of("gelu", precision="float32")
    whole = rule(risk.parameters, lr=0.05, momentum=0.9, **kind)
    for t in range(5):
        if t == 2:
            resumed, state = copy.deepcopy(risk.model), copy.deepcopy(whole.state_dict())
        whole.step(closure_of(risk))
    again = risk_of("gelu", precision="float32")
    again.model.load_state_dict(resumed.state_dict())
    optimizer = rule(again.parameters, lr=1.0, **kind)
    optimizer.load_state_dict(state)
    for _ in range(3):
        optimizer.step(closure_of(again))
    assert torch.equal(vector(again), vector(risk))


CHOICES = ("split_sgd", "sign_sgd", "clipped_sgd", "sam")


def configured(name: str):
    return OmegaConf.load(configuration_folder() / "optimizer" / f"{name}.yaml")


def test_each_choice_says_its_defaults():
    """The YAML names every number of its rule, so that the record shows it."""
    for name in CHOICES:
        config = configured(name)
        optimizer = instantiate(config)([parameter()])
        numbers = {key: value for key, value in optimizer.defaults.items() if key != "foreach"}
        assert {key: value for key, value in config.items() if not key.startswith("_")} == numbers
