import copy
import itertools

import pytest
import torch
from layers import CROSS_ENTROPY, network, plain_hessian, plain_losses, risk_of
from torch import nn

from opposing_signals.curvature import curvature_split, gradient_norms, sample_curvature, sample_sharpness
from opposing_signals.curvature.risk import EmpiricalRisk
from opposing_signals.errors import InputError
from opposing_signals.losses import logistic_loss, square_loss


@pytest.mark.parametrize("loss", [square_loss, logistic_loss])
def test_other_losses_agree_with_the_dense_hessian(loss):
    risk = risk_of("tanh", loss)
    dense = plain_hessian(plain_losses(risk, loss).mean(), risk)
    torch.testing.assert_close(risk.hessian_products(torch.eye(len(dense)).double()[:5]).products, dense[:5])


@pytest.mark.parametrize("chunk", [1, 3, 4, 11])
def test_every_sample_counts_the_same_whatever_the_chunk(chunk):
    whole, chunked = risk_of("linear", chunk=11), risk_of("linear", chunk=chunk)
    for risk in (whole, chunked):
        risk.backward()
    for a, b in zip(whole.parameters, chunked.parameters, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-10, atol=1e-13)


def test_a_batch_of_indices_is_the_mean_over_those():
    risk = risk_of("linear")
    batch = torch.tensor([7, 2, 2, 9, 0])
    forward_pass = risk.backward(batch)
    torch.testing.assert_close(forward_pass.losses, risk.sample_losses().losses[batch])
    reference = network("linear").double()
    CROSS_ENTROPY(reference(risk.inputs[batch]), risk.targets[batch]).mean().backward()
    for ours, theirs in zip(risk.parameters, reference.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-10, atol=1e-13)


def test_a_probe_sees_the_normalization_that_training_sees():
    risk = risk_of("batch_norm")
    probed = risk.sample_losses().losses
    torch.testing.assert_close(risk.backward().losses, probed, rtol=0, atol=0)


def test_float16_with_a_loss_scale_is_nearer_to_float32_than_bfloat16(monkeypatch):
    """The loss is a hundredth of the cross-entropy, so that an example weighs as much as one among 400,000."""
    torch.manual_seed(0)
    inputs = torch.randn(4096, 2, 4, 4)
    targets = inputs.flatten(1)[:, :3].argmax(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 3))

    def risk(precision="float32"):
        small = lambda outputs, labels: CROSS_ENTROPY(outputs, labels) / 100  # noqa: E731
        return EmpiricalRisk(copy.deepcopy(model), small, inputs, targets, chunk=1024, precision=precision)

    trained = risk()
    model = trained.model
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    for _ in range(30):
        optimizer.zero_grad()
        trained.backward()
        optimizer.step()
    model.zero_grad()

    def pass_of(one):
        losses = one.backward().losses
        return losses, torch.cat([parameter.grad.reshape(-1) for parameter in one.parameters])

    expected = pass_of(risk())

    def errors(precision):
        seen = pass_of(risk(precision))
        return [float((a - b).norm() / b.norm()) for a, b in zip(seen, expected, strict=True)]

    (loss, gradient), (loss_of_bfloat16, gradient_of_bfloat16) = errors("float16"), errors("bfloat16")
    assert loss < loss_of_bfloat16 / 4
    assert gradient < gradient_of_bfloat16 / 1.5
    monkeypatch.setattr(EmpiricalRisk, "_loss_scale", lambda *_: 1.0)
    assert errors("float16")[1] > 1.5 * gradient


def test_bfloat16_and_compiled_passes_agree_with_float32():
    generator = torch.Generator().manual_seed(1)
    inputs, targets = torch.randn(8, 2, 4, 4, generator=generator), torch.randint(3, (8,), generator=generator)

    def loss_and_gradient(**settings):
        risk = EmpiricalRisk(network("linear"), CROSS_ENTROPY, inputs, targets, chunk=3, **settings)
        losses = risk.backward().losses
        assert losses.dtype == torch.float32
        return torch.cat([losses, *(p.grad.reshape(-1) for p in risk.parameters)])

    expected = loss_and_gradient()
    torch.testing.assert_close(loss_and_gradient(precision="bfloat16"), expected, rtol=0.05, atol=0.02)
    torch.testing.assert_close(loss_and_gradient(compile_training=True), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layer", ["linear", "batch_norm"])
def test_passes_that_keep_no_outputs_have_the_same_bits(layer):
    kept, dropped = risk_of(layer), risk_of(layer, keep_outputs=False)
    vectors = torch.randn(2, sum(p.numel() for p in kept.parameters), dtype=torch.float64)
    for measure in (
        lambda risk: risk.backward(torch.tensor([4, 1, 7, 7, 2])),
        lambda risk: risk.sample_losses(),
        lambda risk: risk.backward_with_products(vectors),
    ):
        with_outputs, without = measure(kept), measure(dropped)
        assert torch.equal(with_outputs.losses, without.losses)
        assert with_outputs.outputs.shape == (len(with_outputs.losses), 3)
        assert without.outputs.shape == (len(with_outputs.losses), 0)
    assert torch.equal(with_outputs.products, without.products)
    for ours, theirs in zip(kept.parameters, dropped.parameters, strict=True):
        assert torch.equal(ours.grad, theirs.grad)


class InDictionary(nn.Linear):
    def __init__(self):
        super().__init__(5, 3)

    def forward(self, values):
        return {"logits": super().forward(values)}


@pytest.mark.parametrize(
    "measure",
    [
        lambda risk: risk.backward(),
        lambda risk: risk.hessian_products(torch.ones(1, 33, dtype=torch.float64)),
        lambda risk: risk.backward_with_products(torch.ones(1, 33, dtype=torch.float64)),
        lambda risk: curvature_split(risk, torch.ones(33, dtype=torch.float64)),
        lambda risk: sample_curvature(risk, torch.ones(33, dtype=torch.float64)),
        lambda risk: sample_sharpness(risk, torch.tensor([1])),
        lambda risk: gradient_norms(risk),
    ],
)
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_a_loss_that_is_not_one_number_an_example_is_refused(measure, reduction):
    model = nn.Sequential(nn.Flatten(), nn.Linear(32, 1))
    targets = torch.randn(11, 1)
    risk = EmpiricalRisk(
        model, nn.MSELoss(reduction=reduction), torch.randn(11, 2, 4, 4), targets, chunk=4, precision="float64"
    )
    with pytest.raises(InputError, match=r"a loss of shape \[.*: expected \[\d\], one number an example"):
        measure(risk)


@pytest.mark.parametrize(
    ("model", "loss", "message"),
    [
        (nn.Linear(5, 3), nn.CrossEntropyLoss(), r"a loss of shape \[\] for 3 examples"),
        (nn.Linear(5, 3), lambda *_: 0.5, "a loss of type float for 3 examples"),
        (InDictionary(), CROSS_ENTROPY, "the model returns a dict: expected a tensor"),
    ],
)
def test_what_is_no_loss_of_each_example_is_refused_by_every_pass(model, loss, message):
    risk = EmpiricalRisk(model, loss, torch.randn(6, 5), torch.zeros(6, dtype=torch.long), chunk=3)
    for measure in (risk.backward, risk.sample_losses, lambda: risk.hessian_products(torch.ones(1, 18))):
        with pytest.raises(InputError, match=message):
            measure()


@pytest.mark.parametrize(
    ("model", "inputs", "message"),
    [
        (nn.Linear(5, 3, dtype=torch.complex64), torch.randn(6, 5), "the parameter 'weight' is complex"),
        (nn.LazyLinear(3), torch.randn(6, 5), "the parameter 'weight' has no shape yet"),
        (nn.Linear(5, 3), {"x": torch.randn(6, 5)}, "inputs are a dict: expected a tensor"),
    ],
)
def test_data_and_models_of_another_kind_are_refused(model, inputs, message):
    with pytest.raises(InputError, match=message):
        EmpiricalRisk(model, CROSS_ENTROPY, inputs, torch.zeros(6, dtype=torch.long), chunk=3)


def test_a_model_of_which_nothing_is_trained_has_losses_and_no_derivatives():
    model = nn.Linear(5, 3).requires_grad_(False)
    risk = EmpiricalRisk(model, CROSS_ENTROPY, torch.randn(6, 5), torch.zeros(6, dtype=torch.long), chunk=3)
    assert risk.sample_losses().losses.shape == (6,)
    for measure in (risk.backward, lambda: risk.hessian_products(torch.ones(1, 0))):
        with pytest.raises(InputError, match="no parameter of the model is trained"):
            measure()


def test_a_loss_without_a_gradient_is_refused():
    loss = lambda outputs, targets: CROSS_ENTROPY(outputs.detach(), targets)  # noqa: E731
    risk = EmpiricalRisk(nn.Linear(5, 3), loss, torch.randn(6, 5), torch.zeros(6, dtype=torch.long), chunk=3)
    for measure in (risk.backward, lambda: risk.hessian_products(torch.ones(1, 18)), lambda: gradient_norms(risk)):
        with pytest.raises(InputError, match="the loss does not depend on the parameters"):
            measure()


class WithUnused(nn.Module):
    """A layer that no output depends on."""

    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Linear(32, 3), nn.Linear(4, 4)

    def forward(self, images):
        return self.used(images.flatten(1)).tanh()


def test_a_parameter_without_influence_has_no_gradient_with_products_either():
    """Otherwise an optimizer with weight decay or momentum would move it only when curvature is measured."""
    images, labels = torch.randn(11, 2, 4, 4), torch.randint(3, (11,))
    risk = EmpiricalRisk(WithUnused(), CROSS_ENTROPY, images, labels, chunk=4, precision="float64")
    seen = risk.backward_with_products(torch.ones(2, 99 + 20, dtype=torch.float64))
    assert [parameter.grad is None for parameter in risk.parameters] == [False, False, True, True]
    assert seen.gradient.shape == (119,)
    assert not seen.gradient[99:].any()
    assert not seen.products[:, 99:].any()
    assert seen.products[:, :99].any()


@pytest.mark.parametrize("chunk", [0, -1, 12])
def test_a_chunk_that_cannot_be_is_refused(chunk):
    with pytest.raises(InputError, match=f"risk.chunk={chunk}: expected 1 to 11"):
        risk_of("linear", chunk=chunk)


def test_flat_vectors_round_trip():
    risk = risk_of("conv", channels_last=True)
    vector = torch.arange(sum(p.numel() for p in risk.parameters), dtype=torch.float64)
    pieces = risk.unflatten(vector)
    assert [p.shape for p in pieces] == [p.shape for p in risk.parameters]
    assert list(itertools.chain.from_iterable(p.flatten().tolist() for p in pieces)) == vector.tolist()
