"""Sketches against PyTorch's gradients, taken one by one and projected by the dense matrix."""

from importlib import import_module

import pytest
import torch
from constant_statistics import own_losses
from layers import IN_ONE_PASS, NETWORKS, plain_gradient, risk_of

from opposing_signals.curvature import gradient_sketch
from opposing_signals.curvature.gradient_sketch import Projection
from opposing_signals.errors import InputError

MODULE = import_module("opposing_signals.curvature.own_gradients")
DIMENSIONS = 5


def gradients(risk):
    return torch.stack([plain_gradient(value, risk).detach() for value in own_losses(risk)])


def dense(risk, dimensions, seed=0):
    """S ``[d, P]``: the outer product of each tensor's signs."""
    projection = Projection(risk.parameters, dimensions, seed)
    pieces = [projection.signs(parameter) for parameter in risk.parameters]
    return torch.cat([(rows[:, None] * columns[None]).flatten(0, 1) for rows, columns in pieces]).T


@pytest.mark.parametrize("layer", IN_ONE_PASS)
def test_sketches_are_projections_of_single_gradients(layer, monkeypatch):
    monkeypatch.setattr(MODULE, "_from_gradients", None)  # one pass is enough
    risk = risk_of(layer)
    found = gradient_sketch(risk, DIMENSIONS)
    torch.testing.assert_close(found, gradients(risk) @ dense(risk, DIMENSIONS).T, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("layer", sorted({*NETWORKS} - {*IN_ONE_PASS}))
def test_what_has_no_rule_is_projected_by_the_same_matrix(layer):
    risk = risk_of(layer)
    found = gradient_sketch(risk, DIMENSIONS)
    torch.testing.assert_close(found, gradients(risk) @ dense(risk, DIMENSIONS).T, rtol=1e-9, atol=1e-12)


def test_inner_products_are_kept_within_the_stated_error():
    risk = risk_of("conv")
    exact = gradients(risk)
    lengths = exact.norm(dim=1)
    errors = []
    for seed in range(40):
        sketch = gradient_sketch(risk, 64, seed)
        errors.append((sketch @ sketch.T - exact @ exact.T) / (lengths[:, None] * lengths))
    errors = torch.stack(errors)
    bound = 3 / 64**0.5
    assert (errors.square().mean(0).sqrt() < bound).all()
    assert errors.mean(0).abs().max() < 4 * bound / 40**0.5


def test_equal_seeds_give_equal_sketches_and_no_trace_is_left():
    risk = risk_of("batch_norm")
    risk.backward()
    state = {name: tensor.clone() for name, tensor in risk.model.state_dict().items()}
    random = torch.get_rng_state()
    first, again, other = gradient_sketch(risk, 3), gradient_sketch(risk, 3), gradient_sketch(risk, 3, seed=1)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert all(torch.equal(tensor, state[name]) for name, tensor in risk.model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)


def test_no_dimensions_are_refused():
    with pytest.raises(InputError, match="dimensions=0: expected at least 1"):
        gradient_sketch(risk_of("linear"), 0)
