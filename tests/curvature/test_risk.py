import copy
import itertools

import pytest
import torch
from torch import nn
from torch.func import functional_call, hessian

from opposing_signals.curvature import curvature_split, gradient_norms, sample_curvature, sample_sharpness
from opposing_signals.curvature.risk import EmpiricalRisk
from opposing_signals.errors import InputError
from opposing_signals.losses import logistic_loss, square_loss

CROSS_ENTROPY = nn.CrossEntropyLoss(reduction="none", label_smoothing=0.1)


class WithoutBatchNormMutation(nn.BatchNorm2d):
    """Batch norm by chunk statistics written out, as an independent reference."""

    def forward(self, x):
        mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), unbiased=False, keepdim=True)
        scale, shift = self.weight[:, None, None], self.bias[:, None, None]
        return (x - mean) * torch.rsqrt(variance + self.eps) * scale + shift


def network(layer: str, batch_norm: type[nn.BatchNorm2d] = nn.BatchNorm2d) -> nn.Module:
    layers = {
        "linear": lambda: [nn.Flatten(), nn.Linear(32, 5), nn.Tanh(), nn.Linear(5, 3)],
        "conv": lambda: [nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3)],
        "max_pool": lambda: [nn.Conv2d(2, 3, 3, padding=1), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 3)],
        "average_pool": lambda: [nn.Conv2d(2, 3, 3), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3)],
        "batch_norm": lambda: [nn.Conv2d(2, 3, 3), batch_norm(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3)],
        "batch_norm_eval": lambda: [nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3).eval(), nn.Flatten(), nn.Linear(12, 3)],
    }
    torch.manual_seed(0)
    return nn.Sequential(*layers[layer]())


LAYERS = ("linear", "conv", "max_pool", "average_pool", "batch_norm", "batch_norm_eval")


def risk_of(model: nn.Module, loss=CROSS_ENTROPY, examples: int = 11, chunk: int = 4, **settings) -> EmpiricalRisk:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(examples, 2, 4, 4, generator=generator)
    targets = torch.randint(3, (examples,), generator=generator)
    return EmpiricalRisk(model, loss, inputs, targets, chunk=chunk, precision="float64", **settings)


def reference_risk(risk: EmpiricalRisk, model: nn.Module, loss=CROSS_ENTROPY):
    """L(θ) as one differentiable function of the flat parameters, chunk by chunk."""
    names = [name for name, _ in model.named_parameters()]
    shapes = [p.shape for p in model.parameters()]

    def value(theta):
        pieces = theta.split([shape.numel() for shape in shapes])
        parameters = {name: piece.view(shape) for name, piece, shape in zip(names, pieces, shapes, strict=True)}
        total = 0
        for inputs, targets in zip(risk.inputs.split(risk.chunk), risk.targets.split(risk.chunk), strict=True):
            total = total + loss(functional_call(model, parameters, (inputs,)), targets).sum()
        return total / len(risk)

    return value, torch.cat([p.detach().reshape(-1) for p in model.parameters()])


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("channels_last", [True, False])
def test_gradient_and_hessian_products_agree_with_the_dense_hessian(layer, channels_last):
    risk = risk_of(network(layer), channels_last=channels_last)
    reference = network(layer, WithoutBatchNormMutation).double()
    value, theta = reference_risk(risk, reference)
    dense = hessian(value)(theta)
    vectors = torch.randn(3, len(theta), dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    measured = risk.hessian_products(vectors)

    torch.testing.assert_close(measured.products, vectors @ dense, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(measured.gradient, torch.func.grad(value)(theta), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(measured.losses.mean(), value(theta), rtol=1e-12, atol=0)
    risk.backward()
    training_gradient = torch.cat([p.grad.reshape(-1) for p in risk.parameters])
    torch.testing.assert_close(training_gradient, measured.gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("loss", [square_loss, logistic_loss])
def test_other_losses_agree_with_the_dense_hessian(loss):
    risk = risk_of(network("linear"), loss)
    value, theta = reference_risk(risk, network("linear").double(), loss)
    vectors = torch.eye(len(theta), dtype=torch.float64)[:5]
    torch.testing.assert_close(
        risk.hessian_products(vectors).products, hessian(value)(theta)[:5], rtol=1e-9, atol=1e-11
    )


@pytest.mark.parametrize("chunk", [1, 3, 4, 11])
def test_every_sample_counts_the_same_whatever_the_chunk(chunk):
    whole, chunked = risk_of(network("linear"), chunk=11), risk_of(network("linear"), chunk=chunk)
    for risk in (whole, chunked):
        risk.backward()
    for a, b in zip(whole.parameters, chunked.parameters, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-10, atol=1e-13)


def test_a_batch_of_indices_is_the_mean_over_those():
    risk = risk_of(network("linear"))
    batch = torch.tensor([7, 2, 2, 9, 0])
    forward_pass = risk.backward(batch)
    torch.testing.assert_close(forward_pass.losses, risk.sample_losses().losses[batch])
    reference = network("linear").double()
    CROSS_ENTROPY(reference(risk.inputs[batch]), risk.targets[batch]).mean().backward()
    for ours, theirs in zip(risk.parameters, reference.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("measure", ["sample_losses", "hessian_products"])
def test_probes_leave_no_trace(measure):
    model = network("batch_norm")
    risk = risk_of(model)
    risk.backward()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    gradients = [p.grad.clone() for p in risk.parameters]
    if measure == "sample_losses":
        risk.sample_losses()
    else:
        risk.hessian_products(torch.randn(2, sum(p.numel() for p in risk.parameters), dtype=torch.float64))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert all(torch.equal(p.grad, g) for p, g in zip(risk.parameters, gradients, strict=True))
    assert all(module.training for module in model.modules())


def test_a_probe_sees_the_normalization_that_training_sees():
    risk = risk_of(network("batch_norm"))
    probed = risk.sample_losses().losses
    torch.testing.assert_close(risk.backward().losses, probed, rtol=0, atol=0)


def test_random_state_is_left_alone():
    risk = risk_of(nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(32, 3)))
    state = torch.get_rng_state()
    risk.sample_losses()
    assert torch.equal(torch.get_rng_state(), state)


def test_float16_with_a_loss_scale_is_nearer_to_float32_than_bfloat16(monkeypatch):
    """The loss is a hundredth of the cross-entropy, so that an example's share is that of one among 400,000."""
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
    kept, dropped = risk_of(network(layer)), risk_of(network(layer), keep_outputs=False)
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
    """Else an optimizer with weight decay or momentum would move it where the curvature is measured alone."""
    risk = risk_of(WithUnused())
    seen = risk.backward_with_products(torch.ones(2, 99 + 20, dtype=torch.float64))
    assert [parameter.grad is None for parameter in risk.parameters] == [False, False, True, True]
    assert seen.gradient.shape == (119,)
    assert not seen.gradient[99:].any()
    assert not seen.products[:, 99:].any()
    assert seen.products[:, :99].any()


@pytest.mark.parametrize("chunk", [0, -1, 12])
def test_a_chunk_that_cannot_be_is_refused(chunk):
    with pytest.raises(InputError, match=f"risk.chunk={chunk}: expected 1 to 11"):
        risk_of(network("linear"), chunk=chunk)


def test_flat_vectors_round_trip():
    risk = risk_of(network("conv"), channels_last=True)
    vector = torch.arange(sum(p.numel() for p in risk.parameters), dtype=torch.float64)
    pieces = risk.unflatten(vector)
    assert [p.shape for p in pieces] == [p.shape for p in risk.parameters]
    assert list(itertools.chain.from_iterable(p.flatten().tolist() for p in pieces)) == vector.tolist()
