import pytest
import torch
import torch.nn.functional as F
from layers import (
    CROSS_ENTROPY,
    NETWORKS,
    ByFunction,
    direction,
    ensemble_risk,
    network,
    plain_curvature,
    plain_gradient,
    plain_losses,
    risk_of,
)
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from opposing_signals.curvature import finite_differences, sample_curvature, step_expansion
from opposing_signals.curvature.risk import EmpiricalRisk
from opposing_signals.errors import InputError
from opposing_signals.losses import logistic_loss, square_loss
from opposing_signals.models import resnet18


def assert_agrees_with_a_loop_over_the_points(risk: EmpiricalRisk) -> None:
    v = direction(risk)
    losses = plain_losses(risk, risk.loss)
    slopes = torch.stack([plain_gradient(loss, risk).detach() @ v for loss in losses])
    curvatures = torch.stack([plain_curvature(loss, risk, v) for loss in losses])

    measured = sample_curvature(risk, v)

    torch.testing.assert_close(measured.losses, losses.detach(), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(measured.slopes, slopes, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(measured.curvatures, curvatures, rtol=1e-9, atol=1e-11)
    products = risk.hessian_products(v[None])
    torch.testing.assert_close(measured.curvatures.mean(), products.products[0] @ v, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(measured.slopes, products.slopes[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("layer", NETWORKS)
def test_slopes_and_curvatures_agree_with_a_loop_over_the_points(layer):
    assert_agrees_with_a_loop_over_the_points(risk_of(layer, examples=5, chunk=3))


def risk_through(*layers: nn.Module, loss=CROSS_ENTROPY, targets=None, precision="float64") -> EmpiricalRisk:
    """Five images passed through ``layers`` and a linear head."""
    torch.manual_seed(0)
    inputs = torch.randn(5, 2, 4, 4).to(torch.float32 if precision == "float32" else torch.float64)
    with torch.no_grad():
        width = nn.Sequential(*layers, nn.Flatten()).to(inputs)(inputs).shape[1]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(width, 3))
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0.3, 0.3)
    targets = torch.randint(3, (5,)) if targets is None else targets
    return EmpiricalRisk(model, loss, inputs, targets, chunk=3, precision=precision)


def with_statistics(norm: nn.Module) -> nn.Module:
    """The normalization in evaluation mode, with given statistics."""
    nn.init.uniform_(norm.running_mean)
    nn.init.uniform_(norm.running_var, 0.5, 2.0)
    return norm.eval()


MEAN, VARIANCE = torch.tensor([0.1, 0.2, 0.3, 0.4]).double(), torch.tensor([1.0, 2.0, 3.0, 4.0]).double()
NORMS = {
    "instance": nn.InstanceNorm2d(4),
    "instance, affine": nn.InstanceNorm2d(4, affine=True),
    "instance, by running statistics": with_statistics(nn.InstanceNorm2d(4, affine=True, track_running_stats=True)),
    "instance, 1d": nn.Sequential(nn.Flatten(2), nn.InstanceNorm1d(4, affine=True)),
    "instance, 3d": nn.Sequential(nn.Unflatten(3, (2, 2)), nn.InstanceNorm3d(4, affine=True)),
    "torch.layer_norm": ByFunction(lambda x: torch.layer_norm(x, (4,), x[0, 0, 0], cudnn_enable=False)),
    "torch.group_norm": ByFunction(lambda x: torch.group_norm(x, 2, x[0, :, 0, 0])),
    "torch.batch_norm": ByFunction(
        lambda x: torch.batch_norm(x, x[0, :, 0, 0], None, None, None, True, 0.1, 1e-5, False)
    ),
    "torch.batch_norm, by running statistics": ByFunction(
        lambda x: torch.batch_norm(x, x[0, :, 0, 1], x[0, :, 0, 0], MEAN, VARIANCE, False, 0.1, 1e-5, False)
    ),
    "torch.instance_norm": ByFunction(
        lambda x: torch.instance_norm(x, x[0, :, 0, 0], None, None, None, True, 0.1, 1e-5, False)
    ),
}


@pytest.mark.parametrize("norm", NORMS)
def test_norms_by_every_name(norm):
    assert_agrees_with_a_loop_over_the_points(risk_through(nn.Conv2d(2, 4, 3, padding=1), NORMS[norm], nn.Tanh()))


class PReLUByHand(nn.PReLU):
    def forward(self, values):
        slope = self.weight.view(-1, *[1] * (values.ndim - 2))
        return torch.where(values > 0, values, slope * values)


@pytest.mark.parametrize("before", [lambda: nn.Conv2d(2, 4, 3), lambda: nn.Sequential(nn.Flatten(), nn.Linear(32, 4))])
def test_prelu_has_one_derivative_at_zero(before):
    """PyTorch's first and second derivatives at zero belong to different functions."""

    def risk(prelu):
        made = risk_through(before(), prelu)
        for name, parameter in made.model.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
        made.inputs[::2] = 0
        return made

    found, reference = risk(nn.PReLU(4)), risk(PReLUByHand(4))
    v = direction(found)
    curvatures = torch.stack([plain_curvature(loss, reference, v) for loss in plain_losses(reference)])
    torch.testing.assert_close(sample_curvature(found, v).curvatures, curvatures, rtol=1e-9, atol=1e-11)
    quotient = found.hessian_products(v[None]).products[0] @ v
    torch.testing.assert_close(quotient, curvatures.mean(), rtol=1e-9, atol=1e-11)


def test_an_eightieth_of_the_examples_is_checked_whatever_the_chunk():
    def careless(values):
        with torch.set_grad_enabled(torch.is_grad_enabled() and not bool((values > 5).any())):
            return values * 2

    inputs, targets = torch.randn(800, 2), torch.randint(3, (800,))
    inputs[9] = 50
    model = nn.Sequential(nn.Linear(2, 2), ByFunction(careless), nn.Linear(2, 3))
    nn.init.constant_(model[0].weight, 1.0)
    risk = EmpiricalRisk(model, CROSS_ENTROPY, inputs, targets, chunk=4, precision="float64")
    with pytest.raises(InputError, match="away from finite differences of training's own gradients, on 10 examples"):
        sample_curvature(risk, direction(risk))


ACTIVATIONS = (
    *(nn.CELU, nn.ELU, nn.GELU, nn.Hardshrink, nn.Hardswish, nn.Hardtanh, nn.LeakyReLU, nn.LogSigmoid, nn.Mish),
    *(nn.PReLU, nn.ReLU, nn.ReLU6, nn.SELU, nn.SiLU, nn.Sigmoid, nn.Softplus, nn.Softshrink, nn.Softsign, nn.Tanh),
    nn.Tanhshrink,
)


@pytest.mark.parametrize(
    "activation",
    [
        *(activation() for activation in ACTIVATIONS),
        *(activation(inplace=True) for activation in (nn.ELU, nn.Hardswish, nn.LeakyReLU, nn.Mish, nn.ReLU6, nn.SiLU)),
        nn.GELU("tanh"),
        nn.GLU(),
        nn.Softmax(-1),
        ByFunction(lambda values: torch.fft.rfft(values).abs()),
    ],
    ids=str,
)
def test_activations(activation):
    assert_agrees_with_a_loop_over_the_points(risk_through(nn.Flatten(), nn.Linear(32, 6), activation))


@pytest.mark.parametrize(
    "loss",
    [
        F.huber_loss,
        lambda *pair, reduction: F.huber_loss(*pair, reduction, 0.3, torch.arange(len(pair[0]) * 3.0).view(-1, 3)),
        F.smooth_l1_loss,
        F.soft_margin_loss,
        F.l1_loss,
        F.mse_loss,
        F.binary_cross_entropy_with_logits,
    ],
)
def test_losses_of_torch(loss):
    targets = torch.tensor([[1.0, -1.0, 1.0]]).repeat(5, 1)
    risk = risk_through(
        nn.Flatten(),
        nn.Linear(32, 6),
        nn.Tanh(),
        loss=lambda *pair: loss(*pair, reduction="none").sum(1),
        targets=targets,
    )
    assert_agrees_with_a_loop_over_the_points(risk)


@pytest.mark.parametrize(
    "layer",
    [
        lambda: nn.Sequential(nn.Linear(32, 6), nn.Hardsigmoid(inplace=True)),
        lambda: weight_norm(nn.Linear(32, 6), dim=1),
    ],
)
def test_layers_that_torch_differentiates_wrongly_or_once(layer):
    """Against products of single points, which are right for these layers."""
    risk = risk_through(nn.Flatten(), layer(), nn.Tanh())
    v = direction(risk)
    expected = torch.stack([risk.hessian_products(v[None], torch.tensor([i])).products[0] @ v for i in range(5)])
    torch.testing.assert_close(sample_curvature(risk, v).curvatures, expected, rtol=1e-6, atol=1e-6)


class Arithmetic(nn.Module):
    """Operations that models use between layers, with parameters on both sides."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.randn(4)), nn.Parameter(torch.randn(2, 4, 4))
        self.head = nn.Linear(32, 3)

    def forward(self, images):
        x = images * self.scale + self.shift
        x = x - 0.5 * torch.sigmoid(x) / (1 + self.scale.square())
        x = x + torch.cat([x[:, 1:], x[:, :1]], 1).softmax(-1) @ self.shift[0]
        x = x.permute(0, 2, 3, 1).reshape(len(images), -1).clamp(min=-1).abs().sqrt()
        x = x * torch.where(x > 0.5, x, 1 / (1 + x))
        x += self.head.weight.mean()
        x *= 2
        return self.head(x) ** 2 - self.head.bias.exp()


@pytest.mark.parametrize("loss", [CROSS_ENTROPY, square_loss, logistic_loss])
def test_arithmetic_between_layers_and_other_losses(loss):
    torch.manual_seed(0)
    inputs, targets = torch.randn(5, 2, 4, 4), torch.randint(3, (5,))
    risk = EmpiricalRisk(Arithmetic(), loss, inputs, targets, chunk=2, precision="float64")
    v = direction(risk)
    losses = plain_losses(risk, loss)
    expected = torch.stack([plain_curvature(value, risk, v) for value in losses])
    torch.testing.assert_close(sample_curvature(risk, v).curvatures, expected, rtol=1e-9, atol=1e-11)


def test_a_whole_network_agrees_with_its_hessian_vector_products():
    torch.manual_seed(0)
    model, images, labels = resnet18((3, 32, 32), 10, width=4), torch.randn(7, 3, 32, 32), torch.randint(10, (7,))
    risk = EmpiricalRisk(model, CROSS_ENTROPY, images, labels, chunk=4, precision="float64")
    v = direction(risk)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    measured, products = sample_curvature(risk, v), risk.hessian_products(v[None])
    torch.testing.assert_close(measured.curvatures.mean(), products.products[0] @ v, rtol=1e-9, atol=0)
    torch.testing.assert_close(measured.slopes, products.slopes[0], rtol=1e-8, atol=1e-10)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_step_is_its_expansion_to_second_order():
    risk = risk_of("tanh")
    gradient = risk.hessian_products(torch.empty(0, len(direction(risk)))).gradient
    v = direction(risk)
    v /= v.norm()
    theta = nn.utils.parameters_to_vector(risk.parameters).detach()
    before = risk.sample_losses().losses

    def change(shift):
        nn.utils.vector_to_parameters(theta + shift, risk.parameters)
        after = risk.sample_losses().losses
        nn.utils.vector_to_parameters(theta, risk.parameters)
        return after - before

    eta = 1e-3
    terms = step_expansion(risk, gradient, eta, sample_curvature(risk, v), v)
    torch.testing.assert_close(terms.first + terms.second, change(-eta * gradient), rtol=0, atol=1e-9)
    along = change(-eta * (gradient @ v) * v)
    torch.testing.assert_close(terms.along_first + terms.along_second, along, rtol=0, atol=1e-9)
    assert terms.second.abs().max() > 1e-7


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(InputError, match=r"expected \[k, 183\]"):
        sample_curvature(risk_of("linear"), torch.zeros(5))
    risk = risk_of("linear")
    model = nn.Sequential(network("linear"), nn.Dropout())
    random = EmpiricalRisk(model, CROSS_ENTROPY, risk.inputs, risk.targets, chunk=4)
    with pytest.raises(InputError, match="in training mode: its loss is random"):
        sample_curvature(random, torch.zeros(183))


@pytest.mark.parametrize("mean", [1.0, 100.0])
def test_batch_norm_keeps_its_digits_where_means_are_large(mean):
    torch.manual_seed(0)
    inputs = torch.randn(200, 6) / 4 + mean
    targets = torch.randint(3, (200,))
    along = []
    for precision in ("float32", "float64"):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3))
        risk = EmpiricalRisk(model, CROSS_ENTROPY, inputs, targets, chunk=200, precision=precision)
        along.append(sample_curvature(risk, direction(risk)))
    ours, exact = along
    for name in ("slopes", "curvatures"):
        error = (getattr(ours, name).double() - getattr(exact, name)).norm() / getattr(exact, name).norm()
        assert error < 3e-6 * mean


@pytest.mark.parametrize(
    "write",
    [
        lambda values: values[:, :2].relu_(),
        lambda values: values.view(-1).relu_(),
        lambda values: values.clamp_min_(0),
        lambda values: values.__setitem__((slice(None), 0), 0.0),
        lambda values: nn.functional.leaky_relu_(values),
    ],
)
def test_writing_in_place_is_refused_where_it_cannot_be_followed(write):
    class Writes(nn.Module):
        def forward(self, values):
            write(values)
            return values

    model = nn.Sequential(nn.Linear(3, 4), Writes(), nn.Linear(4, 1))
    risk = EmpiricalRisk(model, square_loss, torch.randn(6, 3), torch.randn(6, 1), chunk=6)
    with pytest.raises(InputError, match="write that out of place"):
        sample_curvature(risk, torch.ones(21))


def test_a_transform_inside_the_model_is_refused():
    with pytest.raises(InputError, match=r"transform of torch\.func"):
        sample_curvature(ensemble_risk(), torch.ones(338, dtype=torch.float64))


def refused(function, message: str, precision="float64") -> None:
    risk = risk_through(nn.Flatten(), nn.Linear(32, 6), ByFunction(function), precision=precision)
    with pytest.raises(InputError, match=message):
        sample_curvature(risk, direction(risk))


def write_to(values, view, use):
    """Write into ``values`` or a view of it, and return the other."""
    values = values * 1
    other = view(values)
    written, read = (other, values) if use == "base" else (values, other)
    written.add_(1)
    return read.reshape(len(values), -1).tanh()


@pytest.mark.parametrize("use", ["base", "view"])
@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.view(-1),
        lambda x: x[:, :2],
        lambda x: x.contiguous(),
        lambda x: x.T.T,
        lambda x: x.T.movedim(0, 1).view(-1),
        lambda x: F.dropout(x, training=False),
        lambda x: x.unflatten(1, (2, 3)),
    ],
)
def test_what_would_see_a_write_through_a_view_is_refused(view, use):
    refused(lambda values: write_to(values, view, use), "write that out of place")


def test_an_output_argument_is_refused():
    refused(lambda values: torch.add(values, 1, out=torch.empty_like(values)), "write that out of place")


class Rectified(nn.Module):
    def forward(self, values):
        F.relu(values, True)
        return values


def residual(values):
    flat, identity = values.flatten(1), values
    values = torch.tanh(values) + flat.mean()
    values += identity
    return values


@pytest.mark.parametrize(
    "layers",
    [
        [ByFunction(residual), nn.Flatten(), nn.ReLU(inplace=True)],
        [Rectified()],
        [ByFunction(lambda x: F.elu(x * 1, 1.0, True) + x)],
        [ByFunction(lambda x: F.silu(x * 1, True) + x)],
    ],
)
def test_writes_that_nothing_else_sees_are_followed(layers):
    assert_agrees_with_a_loop_over_the_points(risk_through(nn.Flatten(), nn.Linear(32, 6), *layers))


class Shifted(nn.Module):
    """The slope of its sum is that of the shift alone, which is broadcast."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(32))

    def forward(self, values):
        return (values + self.shift).view(-1).view(len(values), -1)


def test_a_view_of_a_broadcast_sum():
    assert_agrees_with_a_loop_over_the_points(risk_through(nn.Flatten(), Shifted(), nn.Tanh()))


@torch.jit.script
def scripted(values):
    return torch.tanh(values) * values


@pytest.mark.parametrize("function", [scripted, torch.jit.trace(torch.tanh, torch.ones(3, 6).double())])
def test_a_function_of_torch_jit_is_refused(function):
    refused(function, r"function of torch\.jit")


def test_a_module_of_torch_jit_is_refused():
    risk = risk_through(nn.Flatten(), torch.jit.script(nn.Sequential(nn.Linear(32, 6), nn.Tanh())))
    with pytest.raises(InputError, match=r"function of torch\.jit"):
        sample_curvature(risk, direction(risk))


@pytest.mark.parametrize(
    "norm",
    [
        lambda x: torch.native_layer_norm(x, (6,), None, None, 1e-5)[0],
        lambda x: torch.native_batch_norm(x, None, None, None, None, True, 0.1, 1e-5)[0],
        lambda x: torch.ops.aten.layer_norm(x, [6]),
    ],
)
def test_kernels_of_norms_are_refused(norm):
    refused(norm, r"_norm, and Taylor arithmetic cannot follow: call the function of torch\.nn\.functional")


def test_a_function_without_second_derivative_is_named():
    grid = torch.rand(1, 3, 1, 2).double()
    refused(
        lambda x: F.grid_sample(x[:, None, None], grid.expand(len(x), -1, -1, -1), align_corners=False), "grid_sample"
    )


class Packed(nn.Module):
    def __init__(self):
        super().__init__()
        self.recurrent = nn.GRU(2, 4, batch_first=True)

    def forward(self, values):
        steps = values.view(len(values), -1, 2)
        sequences = nn.utils.rnn.pack_padded_sequence(steps, [steps.shape[1]] * len(steps), batch_first=True)
        return self.recurrent(sequences)[1][-1]


def test_a_function_that_stops_at_a_jet_is_refused_in_one_line():
    risk = risk_through(nn.Flatten(), Packed())
    with pytest.raises(InputError, match=r"the model stops at RuntimeError .*, and Taylor arithmetic cannot"):
        sample_curvature(risk, direction(risk))


class Rounded(torch.autograd.Function):
    """A straight-through estimator: its derivative is not that of what it computes."""

    @staticmethod
    def forward(_, values):
        return values.round()

    @staticmethod
    def backward(_, slope):
        return slope * 1


def half_constant(values):
    with torch.no_grad():
        factor = values * 1
    return values * factor


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize(
    "function",
    [
        half_constant,
        lambda x: Rounded.apply(x * 2).tanh(),
        lambda x: x * torch.linalg.det(x[:, :4].reshape(-1, 2, 2))[:, None],
    ],
)
def test_what_is_wrong_in_silence_disagrees_with_differences(function, precision):
    refused(function, "(slope of each loss|mean curvature) by Taylor arithmetic of this model is .* away", precision)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("layer", NETWORKS)
def test_float32_is_no_disagreement(layer, weighted):
    risk = risk_of(layer, precision="float32")
    risk.weights = torch.arange(11.0) if weighted else None
    for vector in (direction(risk).float(), 0 * direction(risk).float()):
        sample_curvature(risk, vector)


def test_the_disagreement_is_looked_for_once(monkeypatch):
    risk, calls = risk_of("batch_norm"), []
    hold = finite_differences._hold
    monkeypatch.setattr(finite_differences, "_hold", lambda *args: calls.append(1) or hold(*args))
    for _ in range(3):
        sample_curvature(risk, direction(risk))
    assert len(calls) == 1


class WritesAPart(nn.Module):
    """Applies ReLU to half of its input in place."""

    def forward(self, values):
        values[:, :2].relu_()
        return values


def test_products_follow_what_is_written_into_a_part_of_a_tensor():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), WritesAPart(), nn.Linear(4, 1))
    risk = EmpiricalRisk(model, square_loss, torch.randn(6, 3), torch.randn(6, 1), chunk=6, precision="float64")
    vector = torch.randn(21, dtype=torch.float64)
    product = risk.hessian_products(vector[None]).products[0]
    expected = torch.autograd.functional.hvp(
        lambda *weights: square_loss(
            nn.functional.linear(hidden_of(risk.inputs, weights), weights[2], weights[3]), risk.targets
        ).mean(),
        tuple(risk.parameters),
        tuple(risk.unflatten(vector)),
    )[1]
    torch.testing.assert_close(product, torch.cat([piece.flatten() for piece in expected]))


def hidden_of(inputs, weights):
    hidden = nn.functional.linear(inputs, weights[0], weights[1])
    return torch.cat([hidden[:, :2].relu(), hidden[:, 2:]], 1)
