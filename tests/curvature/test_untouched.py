"""Measurements change nothing in a model, whatever side effects its forward pass has."""

import copy
import random
from collections import Counter, deque

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from layers import CROSS_ENTROPY, direction
from torch import nn

from opposing_signals.curvature import gradient_norms, sample_curvature, sample_sharpness
from opposing_signals.curvature.risk import EmpiricalRisk
from opposing_signals.errors import InputError


class Busy(nn.Module):
    """Counts, appends, replaces, resizes and registers in its forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)
        self.calls = 0
        self.seen, self.last, self.sizes = [], deque(maxlen=2), {"calls": [0], "names": {"first"}}
        self.counts = Counter()
        self.average = torch.zeros(3)
        self.kept = None
        self.register_buffer("history", torch.zeros(0, 3))
        self.register_buffer("grown", torch.zeros(2))

    def forward(self, values):
        self.calls += 1
        self.seen.append(len(values))
        self.last.append(len(values))
        self.sizes["calls"][0] += 1
        self.sizes["names"].add(f"call {self.calls}")
        self.counts["calls"] += 1
        outputs = self.layer(values) * (1 + 0.1 * self.average.mean())
        with torch.no_grad():
            self.average.mul_(0.9).add_(outputs.mean(0), alpha=0.1)
            self.history = torch.cat([self.history, outputs[:1].detach()])
            self.grown.resize_(2 + self.calls).fill_(self.calls)
        self.kept = outputs.detach()
        self.new = self.calls
        if not hasattr(self, "late"):
            self.register_buffer("late", torch.ones(1))
        return outputs


class Drawing(nn.Module):
    """Draws from every random generator except PyTorch's, and uses none of the numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)
        self.own, self.of_numpy = torch.Generator().manual_seed(0), np.random.default_rng(0)
        self.of_python, self.counts = random.Random(0), np.zeros(3)

    def forward(self, values):
        self.counts += 1
        torch.rand(1, generator=self.own), self.of_numpy.random(), self.of_python.random()
        return self.layer(values)

    def drawn(self):
        return torch.rand(1, generator=self.own).item(), self.of_numpy.random(), self.of_python.random(), self.counts[0]


def test_generators_and_arrays_among_the_attributes_stand_still():
    torch.manual_seed(0)
    plain, measured = Drawing(), Drawing()
    for measure in MEASURES.values():
        measure(risk_of(measured))
    assert measured.drawn() == plain.drawn()


@pytest.mark.parametrize("draw", [random.random, np.random.rand])
def test_random_numbers_of_python_and_numpy_are_seen_and_put_back(draw):
    class Random(nn.Linear):
        def forward(self, values):
            return super().forward(values) * (1 + draw())

    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    risk = risk_of(Random(6, 3))
    risk.sample_losses()
    risk.checked = None
    with pytest.raises(InputError, match="the model draws random numbers"):
        MEASURES["products"](risk)
    after = draw()
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    assert after == draw()


class Renormalized(nn.Module):
    """Writes into its weights through ``.data``, or replaces their memory."""

    def __init__(self, replaces: bool) -> None:
        super().__init__()
        self.layer, self.replaces = nn.Linear(6, 3, bias=False), replaces

    def forward(self, values):
        unit = F.normalize(self.layer.weight.data)
        if self.replaces:
            self.layer.weight.data = unit
        else:
            self.layer.weight.data.copy_(unit)
        return self.layer(values)


def embedded() -> nn.Module:
    return nn.Sequential(nn.Embedding(11, 4, max_norm=1.0), nn.Flatten(), nn.Linear(8, 3))


def risk_of(model: nn.Module, precision="float32") -> EmpiricalRisk:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(12, 6, generator=generator)
    if any(isinstance(module, nn.Embedding) for module in model.modules()):
        inputs = torch.randint(11, (12, 2), generator=generator)
    targets = torch.randint(3, (12,), generator=generator)
    return EmpiricalRisk(model, CROSS_ENTROPY, inputs, targets, chunk=5, precision=precision)


def state(module: nn.Module) -> dict:
    own = {
        name: {key: value for key, value in vars(part).items() if not key.startswith("_")}
        for name, part in module.named_modules()
    }
    return copy.deepcopy({"own": own, "tensors": dict(module.state_dict())})


def same(one, other) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return one == other


MODELS = {
    "busy": Busy,
    "embedding": embedded,
    "data": lambda: Renormalized(False),
    "memory": lambda: Renormalized(True),
    "batch_norm": lambda: nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)),
    "dropout": lambda: nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5), nn.Linear(6, 3)),
}
MEASURES = {
    "losses": lambda risk: risk.sample_losses(),
    "outputs": lambda risk: risk.outputs(risk.inputs[:3]),
    "products": lambda risk: risk.hessian_products(direction(risk)[None]),
    "norms": gradient_norms,
    "curvature": lambda risk: sample_curvature(risk, direction(risk)),
    "sharpness": lambda risk: sample_sharpness(risk, torch.tensor([1]), max_products=2),
}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("measure", MEASURES)
def test_a_measurement_that_is_made_or_refused_leaves_no_trace(model, measure):
    torch.manual_seed(0)
    network = MODELS[model]()
    risk = risk_of(network)
    risk.backward()
    addresses = [parameter.data_ptr() for parameter in risk.parameters]
    held = network.seen if model == "busy" else None
    for _ in range(2):
        before, gradients = state(network), [parameter.grad.clone() for parameter in risk.parameters]
        drawn = torch.get_rng_state()
        try:
            MEASURES[measure](risk)
        except InputError:
            assert measure not in ("losses", "outputs")
        assert same(state(network), before)
        assert all(torch.equal(a.grad, b) for a, b in zip(risk.parameters, gradients, strict=True))
        assert torch.equal(torch.get_rng_state(), drawn)
        assert [parameter.data_ptr() for parameter in risk.parameters] == addresses
    assert held is None or network.seen is held


@pytest.mark.parametrize("measure", MEASURES)
def test_measures_are_those_at_the_weights_that_a_forward_pass_makes(measure):
    torch.manual_seed(0)
    renormalized, plain = embedded(), nn.Sequential(nn.Embedding(11, 4), nn.Flatten(), nn.Linear(8, 3))
    risks = [risk_of(model, "float64") for model in (renormalized, plain)]
    plain.load_state_dict(renormalized.state_dict())
    norms = plain[0].weight.data.norm(dim=1, keepdim=True)
    plain[0].weight.data *= torch.where(norms > 1, 1 / (norms + 1e-7), 1)  # PyTorch's own small number
    found, expected = (MEASURES[measure](risk) for risk in risks)
    for name in ("losses", "products", "slopes", "curvatures"):
        if hasattr(expected, name):
            torch.testing.assert_close(getattr(found, name), getattr(expected, name))
    if not hasattr(expected, "losses"):
        torch.testing.assert_close(found, expected)


def test_a_module_under_two_names_keeps_its_parameters():
    layer = nn.Linear(6, 6)
    network = nn.Sequential(layer, nn.Tanh(), layer, nn.Linear(6, 3))
    parameters = list(network.parameters())
    for measure in MEASURES.values():
        measure(risk_of(network))
        assert all(a is b for a, b in zip(network.parameters(), parameters, strict=True))


@pytest.mark.parametrize("model", MODELS)
def test_training_has_the_same_bits_with_and_without_measurements(model):
    torch.manual_seed(0)
    plain = MODELS[model]()
    measured = copy.deepcopy(plain)
    for network in (plain, measured):
        torch.manual_seed(1)
        risk, optimizer = risk_of(network), torch.optim.SGD(network.parameters(), 0.1)
        for _ in range(3):
            if network is measured:
                risk.sample_losses()
            optimizer.zero_grad()
            risk.backward()
            optimizer.step()
    assert same(state(measured), state(plain))


class Late(nn.Linear):
    """Begins to write into its weight after some passes."""

    is_late = False

    def forward(self, values):
        if self.is_late:
            with torch.no_grad():
                self.weight.mul_(0.5)
        return super().forward(values)


def test_what_a_measurement_cannot_undo_is_refused_by_name():
    risk = risk_of(nn.Sequential(nn.Tanh(), Late(6, 3)))
    risk.sample_losses()
    risk.model[1].is_late = True
    with pytest.raises(InputError, match=r"the model writes into '1\.weight' during its forward pass"):
        risk.sample_losses()
