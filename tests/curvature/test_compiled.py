"""Compiled products and recorded passes against eager ones."""

import copy

import pytest
import torch
from layers import NETWORKS, direction, risk_of

from opposing_signals.curvature import compiled
from opposing_signals.curvature.compiled import CompiledProducts, RecordedGradient
from opposing_signals.errors import InputError


def assert_products_agree(risk, count=2):
    other = copy.deepcopy(risk)
    other.compiled_products = CompiledProducts(other)
    before = {name: tensor.clone() for name, tensor in other.model.state_dict().items()}
    vectors = direction(risk, count)
    expected, found = risk.hessian_products(vectors), other.hessian_products(vectors)
    for part in ("losses", "outputs", "gradient", "products", "slopes"):
        torch.testing.assert_close(getattr(found, part), getattr(expected, part), rtol=1e-9, atol=1e-11, msg=part)
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.model.state_dict().items())
    seen = other.backward_with_products(vectors)
    risk.backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(other.parameters, risk.parameters, strict=True))
    assert seen.further is None
    for parameter in other.parameters:
        parameter.data += 0.01 * torch.ones_like(parameter)  # a graph holds no weights
    for parameter in risk.parameters:
        parameter.data += 0.01 * torch.ones_like(parameter)
    torch.testing.assert_close(other.hessian_products(vectors).products, risk.hessian_products(vectors).products)


@pytest.mark.parametrize(("layer", "count"), [*((layer, 2) for layer in NETWORKS), ("batch_norm", 1), ("attention", 1)])
def test_traced_products_are_those_of_double_backward(layer, count, monkeypatch):
    """The last chunk is shorter and runs untraced."""
    monkeypatch.setattr(compiled, "compiled", lambda graph, _: graph)
    assert_products_agree(risk_of(layer, examples=11, chunk=4), count)


@pytest.mark.slow
def test_compiled_products_are_those_of_double_backward():
    assert_products_agree(risk_of("batch_norm", examples=8, chunk=4))


def rerun_in_place(run, device):
    """A recording without a GPU: a replay overwrites the results of the last one in place."""
    result = run()

    def replay():
        for held, value in zip((*result[:2], *result[2]), (lambda a: (*a[:2], *a[2]))(run()), strict=True):
            if held is not None:
                held.copy_(value)
        return result

    return replay


@pytest.mark.parametrize("layer", ["linear", "batch_norm", "residual", "attention"])
def test_a_recorded_pass_has_the_same_bits(layer, monkeypatch):
    monkeypatch.setattr(compiled, "recorded", rerun_in_place)
    plain = risk_of(layer, examples=11, chunk=4, precision="float32")
    other = copy.deepcopy(plain)
    other._add_gradient = RecordedGradient(other, other.evaluate)
    for batch in (slice(None), torch.tensor([3, 1, 4, 1, 5, 9, 2])):
        for risk in (plain, other):
            risk.model.zero_grad(set_to_none=True)
        expected, found = plain.backward(batch), other.backward(batch)
        assert torch.equal(found.losses, expected.losses)
        assert torch.equal(found.outputs, expected.outputs)
        for ours, theirs in zip(other.parameters, plain.parameters, strict=True):
            assert torch.equal(ours.grad, theirs.grad)
            with torch.no_grad():
                ours -= 0.1 * ours.grad
                theirs -= 0.1 * theirs.grad
        assert all(torch.equal(a, b) for a, b in zip(other.model.buffers(), plain.model.buffers(), strict=True))


def test_what_a_machine_cannot_do_is_refused_in_a_line(monkeypatch):
    def without_compiler(*_):
        raise RuntimeError("no compiler\nto be found")

    monkeypatch.setattr(compiled, "BACKEND", without_compiler)
    for field in ("compile_training", "compile_products", "cuda_graphs"):
        risk = risk_of("linear", **{field: True})
        with pytest.raises(InputError, match=f"risk.{field}=true.*expected a") as refused:
            risk.backward_with_products(direction(risk, 2))
        assert "\n" not in str(refused.value)
