import pytest
import torch
import torch.nn.functional as F
from layers import CROSS_ENTROPY, ByFunction, plain_gradient, plain_hessian, risk_of
from torch import nn

from opposing_signals.curvature import gradient_norms, gradient_sketch, jacobian_norms, sample_sharpness
from opposing_signals.curvature.examples import by_chunk, independent_examples
from opposing_signals.curvature.risk import EmpiricalRisk
from opposing_signals.errors import InputError
from opposing_signals.optim.sam import ascended_gradient


@pytest.mark.parametrize("layer", ["batch_norm", "batch_norm_1d", "residual", "layer_norm"])
def test_each_example_alone_has_the_loss_that_it_has_in_its_chunk(layer):
    risk = risk_of(layer)
    expected = risk.sample_losses().losses
    for first in range(0, len(risk), risk.chunk):
        chunk = slice(first, min(first + risk.chunk, len(risk)))
        with independent_examples(risk, chunk):
            for i in range(chunk.start, chunk.stop):
                loss, _ = risk.evaluate(risk.inputs[i : i + 1], risk.targets[i : i + 1])
                torch.testing.assert_close(loss[0], expected[i], rtol=1e-10, atol=1e-13)


def test_points_are_found_in_their_chunks():
    risk = risk_of("linear")
    indices = torch.tensor([9, 0, 3, 10, 3])
    found = {(chunk.start, chunk.stop): indices[positions].tolist() for chunk, positions in by_chunk(risk, indices)}
    assert found == {(0, 4): [0, 3, 3], (8, 11): [9, 10]}


class WithFunction(nn.Module):
    """Normalizes by `F.batch_norm` directly, and twice by one module; or by given statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Linear(12, 3)

    def forward(self, images, statistics=None):
        def normalized(values, number, **affine):
            if statistics is None:
                return F.batch_norm(values, None, None, training=True, **affine)
            mean, variance = statistics[number]
            return F.batch_norm(values, mean, variance, training=False, **affine)

        values = normalized(self.conv(images), 0).tanh()
        if statistics is None:
            values = self.norm(self.norm(values).exp())
        else:
            affine = {"weight": self.norm.weight, "bias": self.norm.bias}
            values = normalized(normalized(values, 1, **affine).exp(), 2, **affine)
        return self.head(values.flatten(1))

    def statistics(self, images):
        """The batch statistics of the three uses, computed by hand."""
        found = []

        def of(values):
            found.append((values.mean((0, 2, 3)).detach(), values.var((0, 2, 3), unbiased=False).detach()))
            return F.batch_norm(values, *found[-1], training=False)

        values = of(self.conv(images)).tanh()
        weight, bias = self.norm.weight[:, None, None], self.norm.bias[:, None, None]
        of((weight * of(values) + bias).exp())
        return found


def function_risk() -> EmpiricalRisk:
    torch.manual_seed(0)
    model = WithFunction()
    nn.init.normal_(model.norm.weight, 0.5, 0.5)
    images, labels = torch.randn(11, 2, 4, 4), torch.randint(3, (11,))
    return EmpiricalRisk(model, CROSS_ENTROPY, images, labels, chunk=4, precision="float64", channels_last=False)


def held_loss(risk: EmpiricalRisk, i: int) -> torch.Tensor:
    first = i // risk.chunk * risk.chunk
    statistics = risk.model.statistics(risk.inputs[first : first + risk.chunk])
    return CROSS_ENTROPY(risk.model(risk.inputs[i : i + 1], statistics), risk.targets[i : i + 1])[0]


def test_statistics_of_functions_and_of_several_uses_are_held():
    risk = function_risk()
    expected = torch.stack([plain_gradient(held_loss(risk, i), risk).detach() for i in range(11)])
    torch.testing.assert_close(gradient_norms(risk), expected.norm(dim=1), rtol=1e-9, atol=1e-12)
    points = torch.tensor([5, 9])
    values, _ = sample_sharpness(risk, points, tolerance=1e-9, max_products=200)
    for i, value in zip(points.tolist(), values, strict=True):
        dense = plain_hessian(held_loss(risk, i), risk)
        assert float(value) == pytest.approx(float(torch.linalg.eigvalsh(dense)[-1]), rel=1e-7)


class Centred(nn.Module):
    def forward(self, values):
        return (values - values.mean(0)) / (values.var(0, unbiased=False) + 1e-5).sqrt()


class AcrossTheBatch(nn.Module):
    """Attention between examples instead of between tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2)

    def forward(self, values):
        return self.attention(values, values, values, need_weights=False)[0]


def in_batch_softmax(outputs, targets):
    return -torch.log_softmax(outputs @ outputs.T, 1).diagonal() + 0 * targets


class Deviation(nn.Module):
    """Adds the batch's deviation as a feature, as in some discriminators; for a single example it is NaN."""

    def forward(self, values):
        return torch.cat([values, values.std(0).mean().expand(len(values), 1)], 1)


COUPLED = {
    "deviation": ([nn.Linear(6, 4), Deviation(), nn.Linear(5, 3)], "layer '1', Deviation, makes .* nan alone"),
    "norm": ([nn.Linear(6, 3), ByFunction(lambda x: x / x.norm())], "layer '1', ByFunction, makes"),
    "own_batch_norm": ([nn.Linear(6, 4), Centred(), nn.Tanh(), nn.Linear(4, 3)], "layer '1', Centred, makes the loss"),
    "softmax": ([nn.Linear(6, 3), nn.Softmax(0)], "layer '1', Softmax, makes"),
    "attention": ([nn.Linear(6, 4), AcrossTheBatch(), nn.Linear(4, 3)], "layer '1.*', .*, makes"),
    "by_function": ([nn.Linear(6, 3), ByFunction(lambda x: x - x.mean(0))], "layer '1', ByFunction, makes"),
}


def coupled_risk(kind: str) -> EmpiricalRisk:
    torch.manual_seed(0)
    model = nn.Sequential(*COUPLED[kind][0])
    x, y = torch.randn(12, 6), torch.randint(3, (12,))
    return EmpiricalRisk(model, CROSS_ENTROPY, x, y, chunk=6, precision="float64")


MEASURES = {
    "gradient_norms": gradient_norms,
    "gradient_sketch": lambda risk: gradient_sketch(risk, 4),
    "sample_sharpness": lambda risk: sample_sharpness(risk, torch.tensor([1])),
    "jacobian_norms": lambda risk: jacobian_norms(risk, torch.tensor([1])),
    "ascended_gradient": lambda risk: ascended_gradient(risk, slice(0, 6), 0.1),
}


@pytest.mark.parametrize("kind", COUPLED)
@pytest.mark.parametrize("measure", MEASURES)
def test_examples_that_are_coupled_otherwise_are_refused_and_the_layer_is_named(kind, measure):
    with pytest.raises(InputError, match=COUPLED[kind][1]) as caught:
        MEASURES[measure](coupled_risk(kind))
    assert "\n" not in str(caught.value)


def test_a_loss_that_couples_examples_is_refused():
    torch.manual_seed(0)
    risk = EmpiricalRisk(nn.Linear(6, 3), in_batch_softmax, torch.randn(12, 6), torch.zeros(12), chunk=6)
    for _ in range(2):
        with pytest.raises(
            InputError,
            match=r"the loss function, or what .* makes the loss of an example",
        ):
            gradient_norms(risk)


def test_1_sam_refuses_batch_norm_that_is_a_function():
    norm = ByFunction(lambda values: F.batch_norm(values, None, None, training=True))
    model = nn.Sequential(nn.Conv2d(2, 3, 3), norm, nn.Flatten(), nn.Linear(12, 3))
    risk = EmpiricalRisk(model, CROSS_ENTROPY, torch.randn(12, 2, 4, 4), torch.randint(3, (12,)), chunk=6)
    with pytest.raises(InputError, match="layer '1', ByFunction, makes the loss of an example depend on the others"):
        ascended_gradient(risk, slice(0, 6), 0.1)
