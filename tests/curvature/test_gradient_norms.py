from importlib import import_module

import pytest
import torch
import torch.nn.functional as F
from constant_statistics import own_losses
from layers import CROSS_ENTROPY, IN_ONE_PASS, NETWORKS, network, plain_gradient, risk_of
from torch import nn
from torch.utils.checkpoint import checkpoint

from opposing_signals.curvature import gradient_norms, layer_rules
from opposing_signals.curvature.risk import EmpiricalRisk
from opposing_signals.errors import InputError
from opposing_signals.losses import logistic_loss, square_loss
from opposing_signals.models import resnet18, vgg11, vit

MODULE = import_module("opposing_signals.curvature.own_gradients")


def expected(risk, loss=CROSS_ENTROPY):
    """Norms of the gradients, taken one by one."""
    return torch.stack([plain_gradient(value, risk).detach().norm() for value in own_losses(risk, loss)])


def must_not_be_called(*_):
    raise AssertionError("not the path that this model should take")


@pytest.fixture
def in_one_pass(monkeypatch):
    monkeypatch.setattr(MODULE, "_from_gradients", must_not_be_called)


@pytest.fixture
def one_by_one(monkeypatch):
    def no_rule(risk):
        raise MODULE.NoRuleError

    monkeypatch.setattr(MODULE, "_shapes_behind_examples", no_rule)


@pytest.mark.parametrize("layer", IN_ONE_PASS)
@pytest.mark.parametrize("channels_last", [True, False])
def test_norms_from_one_pass_agree_with_single_gradients(layer, channels_last, in_one_pass):
    risk = risk_of(layer, channels_last=channels_last)
    torch.testing.assert_close(gradient_norms(risk), expected(risk), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("layer", NETWORKS)
def test_norms_example_by_example_agree_with_single_gradients(layer, one_by_one):
    risk = risk_of(layer)
    torch.testing.assert_close(gradient_norms(risk), expected(risk), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("loss", [square_loss, logistic_loss])
@pytest.mark.parametrize("layer", ["conv", "batch_norm"])
def test_other_losses(loss, layer, one_by_one, monkeypatch):
    risk = risk_of(layer, loss)
    norms = gradient_norms(risk)
    monkeypatch.undo()
    torch.testing.assert_close(gradient_norms(risk), norms, rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(norms, expected(risk, loss), rtol=1e-10, atol=1e-13)


def images_risk(model: nn.Module, examples: int = 7, chunk: int = 4, side: int = 4, channels: int = 2, **settings):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(examples, channels, side, side, generator=generator)
    targets = torch.randint(3, (examples,), generator=generator)
    return EmpiricalRisk(model, CROSS_ENTROPY, inputs, targets, chunk=chunk, precision="float64", **settings)


@pytest.mark.parametrize(
    ("factory", "settings"),
    [(resnet18, {"width": 4}), (vgg11, {"width": 8}), (vit, {"width": 12, "depth": 2, "heads": 3, "patch": 8})],
)
def test_whole_networks_in_one_pass(factory, settings, in_one_pass):
    torch.manual_seed(0)
    risk = images_risk(factory((3, 32, 32), 3, **settings), examples=5, chunk=4, side=32, channels=3)
    torch.testing.assert_close(gradient_norms(risk), expected(risk), rtol=1e-8, atol=1e-12)


def test_a_convolution_with_few_positions(in_one_pass):
    """Many channels at few positions: Gram matrices take fewer multiplications than gradients."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 16, 3), nn.ReLU(inplace=True), nn.Conv2d(16, 32, (2, 1)), nn.Flatten(), nn.Linear(64, 3)
    )
    risk = images_risk(model)
    torch.testing.assert_close(gradient_norms(risk), expected(risk), rtol=1e-10, atol=1e-13)


def test_tensors_are_cut_into_parts_when_they_are_large(monkeypatch, in_one_pass):
    risk = risk_of("attention")
    whole = gradient_norms(risk)
    monkeypatch.setitem(layer_rules.BLOCK, "cpu", 1)
    torch.testing.assert_close(gradient_norms(risk), whole, rtol=1e-12, atol=0)


class Shared(nn.Module):
    """One weight, used twice, and a zero-dimensional scale."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer, self.scale = nn.Linear(32, 32), nn.Linear(32, 3), nn.Parameter(torch.tensor(0.7))

    def forward(self, images):
        return self.outer(torch.tanh(self.inner(torch.tanh(self.inner(images.flatten(1)))))) * self.scale


class Tied(nn.Module):
    """A language model whose output weight is also its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(3, 4)

    def forward(self, images):
        tokens = self.embedding((images.flatten(1) > 0).long())
        return F.linear(torch.tanh(tokens).mean(1), self.embedding.weight)


class Scaled(nn.Module):
    """A parameter used as a factor, for which there is no rule."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.head = nn.Parameter(torch.full((32,), 0.7)), nn.Linear(32, 3)

    def forward(self, images):
        return self.head(torch.tanh(self.scale * images.flatten(1)))


class Positions(nn.Module):
    """A table of four positions, equal to the number of examples in a chunk."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(4, 8), nn.Linear(8, 3)

    def forward(self, images):
        return self.head(torch.tanh(images.reshape(-1, 4, 8) + self.table(torch.arange(4))).mean(1))


class TwoRows(nn.Module):
    """A layer applied to two rows that are not examples."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.inner, self.head = torch.randn(2, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, images):
        level = self.inner(self.rows.to(images)).mean(0)
        return self.head(torch.tanh(images.reshape(-1, 4, 8).mean(1) + level))


class TimeFirst(nn.Module):
    """The sequence axis before the examples: four tokens in chunks of four."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.norm, self.head = nn.Linear(8, 5), nn.LayerNorm(5), nn.Linear(5, 3)

    def forward(self, images):
        return self.head(torch.tanh(self.norm(self.inner(images.reshape(-1, 4, 8).transpose(0, 1)))).mean(0))


class Doubled(torch.autograd.Function):
    """A product that function modes cannot see."""

    @staticmethod
    def forward(values, weight):
        return 2 * values @ weight.T

    @staticmethod
    def setup_context(ctx, inputs, output):  # noqa: ARG004  # torch's signature
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, slope):
        values, weight = ctx.saved_tensors
        return 2 * slope @ weight, 2 * slope.T @ values

    generate_vmap_rule = True


class Hidden(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(32, 3, bias=False)

    def forward(self, images):
        return Doubled.apply(images.flatten(1), self.head.weight)


class CrossAttention(nn.Module):
    """Queries differ from keys, so that the packed weight is used in parts."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)

    def forward(self, images):
        tokens = images.reshape(-1, 4, 8)
        return self.head(self.attention(tokens[:, :2], tokens, tokens)[0].mean(1))


@pytest.mark.parametrize("model", [Shared, Tied, Scaled, Positions, TimeFirst, Hidden, CrossAttention])
def test_what_has_no_rule_is_taken_example_by_example(model, monkeypatch):
    monkeypatch.setattr(MODULE, "_summed_over_uses", must_not_be_called)
    torch.manual_seed(0)
    risk = images_risk(model())
    torch.testing.assert_close(gradient_norms(risk), expected(risk), rtol=1e-10, atol=1e-13)


class Summands(nn.Module):
    """Parameters that are broadcast over examples and tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.positions = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(1, 5, 8))
        self.shift, self.level = nn.Parameter(torch.randn(8)), nn.Parameter(torch.randn(5, 1))
        self.rows, self.head = nn.Embedding(3, 8, padding_idx=1), nn.Linear(8, 3)

    def forward(self, images):
        tokens = torch.cat([self.token.expand(len(images), -1, -1), images.reshape(-1, 4, 8)], 1)
        tokens = tokens + self.positions + self.rows((tokens[..., 0] > 0).long() + (tokens[..., 1] > 0).long())
        return self.head(torch.tanh(torch.add(self.level + tokens, self.shift)).sum(1))


def test_summands_and_rows_in_one_pass(in_one_pass):
    torch.manual_seed(0)
    risk = images_risk(Summands(), examples=9, chunk=4)  # the last chunk is a single example
    torch.testing.assert_close(gradient_norms(risk), expected(risk), rtol=1e-10, atol=1e-13)


def test_parameters_that_are_not_trained_do_not_count(in_one_pass):
    risk = risk_of("batch_norm")
    frozen = [*risk.model[0].parameters(), risk.model[1].weight]
    for parameter in frozen:
        parameter.requires_grad_(False)
    assert len(risk.parameters) == 3
    torch.testing.assert_close(gradient_norms(risk), expected(risk), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("examples", [2, 6])
def test_rows_as_many_as_the_examples_of_every_chunk_are_not_taken_for_them(examples):
    torch.manual_seed(0)
    risk = images_risk(TwoRows(), examples=examples, chunk=2)
    torch.testing.assert_close(gradient_norms(risk), expected(risk), rtol=1e-10, atol=1e-13)


def test_two_examples_are_enough():
    risk = risk_of("conv", examples=2, chunk=2)
    torch.testing.assert_close(gradient_norms(risk), expected(risk), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_other_precisions(precision, in_one_pass):
    exact = gradient_norms(risk_of("batch_norm"))
    seen = gradient_norms(risk_of("batch_norm", precision=precision))
    assert seen.dtype == torch.float32
    torch.testing.assert_close(seen.double(), exact, rtol=1e-5 if precision == "float32" else 0.1, atol=0)


class DropoutByFunction(nn.Module):
    def forward(self, values):
        return F.dropout(values, 0.5, self.training)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.Dropout(0.5), r"layer '1' is Dropout\(p=0.5\) in training mode"),
        (DropoutByFunction(), "the model draws random numbers"),
    ],
)
def test_random_layers_are_refused(layer, message):
    model = nn.Sequential(network("linear"), layer)
    with pytest.raises(InputError, match=message):
        gradient_norms(images_risk(model))
    model.eval()
    assert gradient_norms(images_risk(model)).isfinite().all()


class Branching(nn.Module):
    """Branches on a value, which cannot be vectorized over examples."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, images):
        values = images.flatten(1)[:, :3]
        return self.scale * torch.stack([value if value.sum() > 0 else -value for value in values])


class LastState(nn.Module):
    """The last state of a recurrent layer."""

    def __init__(self, kind: type[nn.RNNBase], **settings) -> None:
        super().__init__()
        self.states, self.head = kind(8, 5, batch_first=True, **settings), nn.Linear(5, 3)

    def forward(self, images):
        return self.head(self.states(images.flatten(2).unflatten(2, (2, 8)).flatten(1, 2))[0][:, -1])


@pytest.mark.parametrize(
    "model", [Branching, lambda: LastState(nn.LSTM), lambda: LastState(nn.GRU, num_layers=2), lambda: LastState(nn.RNN)]
)
def test_gradients_that_cannot_be_taken_together_are_taken_one_after_another(model):
    torch.manual_seed(0)
    risk = images_risk(model())
    losses = [CROSS_ENTROPY(risk.model(x), y) for x, y in zip(risk.inputs.split(1), risk.targets.split(1), strict=True)]
    single = torch.stack([plain_gradient(loss.sum(), risk).detach().norm() for loss in losses])
    torch.testing.assert_close(gradient_norms(risk), single, rtol=1e-10, atol=1e-13)


class NoneAlone(LastState):
    def forward(self, images):
        if len(images) == 1:
            raise RuntimeError("no single example\nat all")
        return super().forward(images)


def test_a_model_that_cannot_take_a_single_example_is_refused_in_one_line():
    with pytest.raises(InputError, match="the model cannot be evaluated on a single example") as caught:
        gradient_norms(images_risk(NoneAlone(nn.GRU)))
    assert "\n" not in str(caught.value)


class Checkpointed(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), *layers)

    def forward(self, values):
        return checkpoint(self.block, values, use_reentrant=False)


def checkpointed_risk(*layers):
    torch.manual_seed(0)
    model = nn.Sequential(Checkpointed(*layers), nn.Flatten(), nn.Linear(32, 3))
    images, labels = torch.randn(7, 2, 4, 4), torch.randint(3, (7,))
    return EmpiricalRisk(model, CROSS_ENTROPY, images, labels, chunk=4, precision="float64")


def test_activations_that_are_computed_twice_are_differentiated_example_by_example():
    risk = checkpointed_risk(nn.SiLU())
    torch.testing.assert_close(gradient_norms(risk), expected(risk), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("measure", [gradient_norms, lambda risk: risk.hessian_products(torch.ones(1, 141).double())])
def test_batch_norm_that_is_computed_twice_is_refused(measure):
    with pytest.raises(InputError, match="the model computes activations twice"):
        measure(checkpointed_risk(nn.BatchNorm2d(2), nn.ReLU()))
