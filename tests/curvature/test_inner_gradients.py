"""Models whose forward pass takes a gradient, against differences of gradients in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.parametrizations import weight_norm

from opposing_signals.curvature import curvature_split, gradient_norms, sample_curvature, sample_sharpness
from opposing_signals.curvature.risk import EmpiricalRisk
from opposing_signals.errors import InputError

EXAMPLES, CHUNK = 7, 4


def square(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().mean(1)


class Force(nn.Module):
    """−∂E/∂x of an energy, as in a force field or a score network."""

    def __init__(self, *energy: nn.Module) -> None:
        super().__init__()
        self.energy = nn.Sequential(*energy)

    def forward(self, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        return torch.autograd.grad(self.energy(x).sum(), x, create_graph=True)[0].flatten(1)


class ForceByTransform(Force):
    def forward(self, x: Tensor) -> Tensor:
        return torch.func.grad(lambda x: self.energy(x).sum())(x).flatten(1)


class ForceByForwardMode(Force):
    """Its component along one direction."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.func.jvp(self.energy, (x,), (torch.ones_like(x),))[1].expand(-1, 6)


class Laplacian(Force):
    """Δu as well as u, as in a physics-informed network: a fourth derivative after a product."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        value = self.energy(x)
        (slope,) = torch.autograd.grad(value.sum(), x, create_graph=True)
        rows = [torch.autograd.grad(part.sum(), x, create_graph=True)[0][:, i] for i, part in enumerate(slope.T)]
        return torch.stack([sum(rows) + value[:, 0], *rows[1:]], 1)


class JacobianByTransform(Force):
    def forward(self, x: Tensor) -> Tensor:
        return torch.func.vmap(torch.func.jacrev(lambda x: self.energy(x)[0]))(x)


class InnerStep(nn.Module):
    """A step of gradient descent on its own weights, separate for each example."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 6) / 3)

    def forward(self, x: Tensor) -> Tensor:
        y = (x @ self.weight.T).tanh()
        rows = [torch.autograd.grad(row.square().sum(), self.weight, create_graph=True)[0] for row in y]
        return y - torch.einsum("noi,ni->no", torch.stack(rows), x)


class Attention(nn.Module):
    """By the kernel that supports training here: the others can be differentiated only once."""

    def forward(self, values: Tensor) -> Tensor:
        tokens = values.unflatten(1, (2, 4))[:, None]
        with sdpa_kernel(SDPBackend.MATH):
            return F.scaled_dot_product_attention(tokens, tokens, tokens).flatten(1)


class LastOfCell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.cell(x[:, 1], self.cell(x[:, 0]))


def vectors(*layers: nn.Module, force: type[Force] = Force) -> Force:
    return force(nn.Linear(6, 8), *layers, nn.Linear(8, 3), nn.Tanh(), nn.Linear(3, 1))


def images(*layers: nn.Module) -> Force:
    first = nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 4, 2, padding=(1, 0))
    return Force(*first, *layers, nn.AvgPool2d((2, 1), 1), nn.Tanh(), nn.Flatten(), nn.Linear(16, 1))


MODELS = {
    "tanh": lambda: vectors(nn.Tanh()),
    "silu": lambda: vectors(nn.SiLU()),
    "mish_in_place": lambda: vectors(nn.Mish(inplace=True)),
    "prelu": lambda: vectors(nn.PReLU(8), nn.Tanh()),
    "layer_norm": lambda: vectors(nn.LayerNorm(8), nn.GELU()),
    "rms_norm": lambda: vectors(nn.RMSNorm(8), nn.GELU()),
    "batch_norm": lambda: vectors(nn.BatchNorm1d(8), nn.Tanh()),
    "batch_norm_eval": lambda: vectors(nn.BatchNorm1d(8).eval(), nn.Tanh()),
    "weight_norm": lambda: Force(weight_norm(nn.Linear(6, 5)), nn.Tanh(), nn.Linear(5, 1)),
    "attention": lambda: vectors(Attention()),
    "softmax": lambda: vectors(nn.Softmax(1)),
    "glu": lambda: vectors(nn.Linear(8, 16), nn.GLU()),
    "recurrent": lambda: Force(nn.Unflatten(1, (2, 3)), LastOfCell(), nn.Linear(4, 1)),
    "laplacian": lambda: Laplacian(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1)),
    "jacobian": lambda: vectors(nn.Softplus(), force=JacobianByTransform),
    "inner_step": InnerStep,
    "conv": images,
    "conv_group_norm": lambda: images(nn.GroupNorm(2, 4)),
    "conv_instance_norm": lambda: images(nn.InstanceNorm2d(4, affine=True)),
    "conv_batch_norm": lambda: images(nn.BatchNorm2d(4)),
    "transform": lambda: vectors(nn.LayerNorm(8), nn.SiLU(), force=ForceByTransform),
    "forward_mode": lambda: vectors(nn.SiLU(), force=ForceByForwardMode),
}
COUPLED = {"batch_norm", "conv_batch_norm"}


def risk_of(model: str, precision="float64", **settings) -> EmpiricalRisk:
    torch.manual_seed(0)
    network = MODELS[model]()
    for parameter in network.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, 0.5, 0.5)
    x, y = torch.randn(EXAMPLES, 6), torch.randn(EXAMPLES, 6)
    return EmpiricalRisk(network, square, x, y, chunk=CHUNK, precision=precision, **settings)


def gradient_at(risk: EmpiricalRisk, theta: Tensor, examples: slice = slice(None)) -> Tensor:
    """∇L by one plain backward pass over each chunk."""
    nn.utils.vector_to_parameters(theta, risk.parameters)
    total = torch.zeros_like(theta)
    x, y = risk.inputs[examples], risk.targets[examples]
    for chunk in zip(x.split(CHUNK), y.split(CHUNK), strict=True):
        loss = square(risk.model(chunk[0]), chunk[1]).sum() / len(x)
        pieces = torch.autograd.grad(loss, risk.parameters, materialize_grads=True)
        total += torch.cat([piece.reshape(-1) for piece in pieces])
    return total


def difference(risk: EmpiricalRisk, v: Tensor, examples: slice = slice(None), h: float = 1e-3) -> Tensor:
    """∇²L v to fourth order in h."""
    theta = nn.utils.parameters_to_vector(risk.parameters).detach().clone()
    near, far = (
        gradient_at(risk, theta + shift * v, examples) - gradient_at(risk, theta - shift * v, examples)
        for shift in (h, 2 * h)
    )
    nn.utils.vector_to_parameters(theta, risk.parameters)
    return (8 * near - far) / (12 * h)


def direction(risk: EmpiricalRisk) -> Tensor:
    size = sum(p.numel() for p in risk.parameters)
    v = torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    return v / v.norm()


@pytest.mark.parametrize("model", MODELS)
def test_products_agree_with_differences_of_the_gradient(model):
    risk = risk_of(model)
    v = direction(risk)
    expected = difference(risk, v)
    measured = risk.hessian_products(v[None])
    torch.testing.assert_close(measured.products[0], expected, rtol=1e-6, atol=1e-7 * float(expected.abs().max()))
    theta = nn.utils.parameters_to_vector(risk.parameters).detach()
    torch.testing.assert_close(measured.gradient, gradient_at(risk, theta), rtol=1e-9, atol=1e-12)
    split = curvature_split(risk, v)
    assert split.gauss_newton + split.functional == pytest.approx(float(expected @ v), rel=1e-6)


@pytest.mark.parametrize("model", sorted(set(MODELS) - COUPLED))
def test_the_sharpness_of_a_point_is_that_of_its_own_hessian(model):
    risk = risk_of(model)
    (value,), (residual,) = sample_sharpness(risk, torch.tensor([5]), tolerance=1e-8, max_products=200)
    basis = torch.eye(sum(p.numel() for p in risk.parameters), dtype=torch.float64)
    dense = torch.stack([difference(risk, v, slice(5, 6)) for v in basis])
    assert float(value) == pytest.approx(float(torch.linalg.eigvalsh((dense + dense.T) / 2)[-1]), rel=1e-5)
    assert residual < 1e-6 * value


@pytest.mark.parametrize("model", sorted(set(MODELS) - COUPLED))
def test_gradient_norms_are_those_of_each_loss(model):
    risk = risk_of(model)
    theta = nn.utils.parameters_to_vector(risk.parameters).detach()
    expected = torch.stack([gradient_at(risk, theta, slice(i, i + 1)).norm() for i in range(EXAMPLES)])
    torch.testing.assert_close(gradient_norms(risk), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("model", ["silu", "layer_norm", "batch_norm"])
def test_the_training_gradient_keeps_its_bits_and_batch_norm_its_statistics(model):
    plain, measured = risk_of(model, "float32"), risk_of(model, "float32")
    plain.backward()
    measured.backward_with_products(direction(measured).float()[None])
    for ours, theirs in zip(measured.parameters, plain.parameters, strict=True):
        assert torch.equal(ours.grad, theirs.grad) if theirs.grad is not None else ours.grad is None
    assert all(torch.equal(a, b) for a, b in zip(measured.model.buffers(), plain.model.buffers(), strict=True))


def test_losses_without_a_graph_are_those_of_training():
    risk = risk_of("silu")
    losses = risk.sample_losses()
    assert not losses.losses.requires_grad
    assert not losses.outputs.requires_grad
    assert torch.equal(risk.backward().losses, losses.losses)
    assert torch.equal(risk.outputs(risk.inputs[:CHUNK]), losses.outputs[:CHUNK])


def test_outputs_beside_their_own_gradient_count():
    class Penalized(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, 6))

        def forward(self, x):
            x = x.detach().requires_grad_()
            y = self.layers(x)
            (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
            return y + slope.norm(dim=1, keepdim=True)

    torch.manual_seed(0)
    x, y = torch.randn(EXAMPLES, 6), torch.randn(EXAMPLES, 6)
    risk = EmpiricalRisk(Penalized(), square, x, y, chunk=CHUNK, precision="float64")
    v = direction(risk)
    torch.testing.assert_close(risk.hessian_products(v[None]).products[0], difference(risk, v), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("model", ["silu", "transform", "forward_mode"])
def test_taylor_arithmetic_refuses(model):
    risk = risk_of(model)
    with pytest.raises(InputError, match="leave out the instruments that measure every point's curvature") as caught:
        sample_curvature(risk, direction(risk))
    assert "\n" not in str(caught.value)


class NowAndThen(Force):
    """Takes a gradient inside the model for the last chunk only."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if len(x) < CHUNK else self.energy(x).expand(-1, 6)


def test_a_gradient_that_is_taken_for_some_batches_alone_is_refused():
    model = NowAndThen(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1))
    risk = EmpiricalRisk(model, square, torch.randn(7, 6), torch.randn(7, 6), chunk=CHUNK, precision="float64")
    with pytest.raises(InputError, match="takes a gradient inside its forward pass, and did not when it was first"):
        risk.hessian_products(direction(risk)[None])


@pytest.mark.parametrize("model", sorted(COUPLED))
def test_a_force_under_batch_norm_has_no_loss_of_a_single_example(model):
    """The part of the force that passes through the statistics belongs to no single example."""
    with pytest.raises(InputError, match="the model itself, Force, makes the loss of an example depend on the others"):
        sample_sharpness(risk_of(model), torch.tensor([1]))


def test_an_activation_that_can_be_differentiated_once_alone_is_named():
    """Training through it is impossible, too."""
    model = vectors(nn.Hardsigmoid())
    risk = EmpiricalRisk(model, square, torch.randn(7, 6), torch.randn(7, 6), chunk=4, precision="float64")
    vector = torch.ones(sum(p.numel() for p in risk.parameters), dtype=torch.float64)
    for measure in (
        lambda: risk.hessian_products(vector[None]),
        lambda: gradient_norms(risk),
        lambda: sample_sharpness(risk, torch.tensor([0])),
    ):
        with pytest.raises(InputError, match="PyTorch lacks that of hardsigmoid_backward"):
            measure()
