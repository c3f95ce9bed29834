"""Measure small convolutions in float32 and in float64, and print how far the two are apart.

Run it as a separate process: a convolution that torch gets wrong may crash it. Each line names what is measured before
the measurement starts, and gives the relative errors after it.
"""

import itertools
import json
from collections.abc import Callable, Iterator
from functools import cache
from typing import NamedTuple

import torch
from layers import direction
from torch import Tensor, nn
from torch.func import functional_call

from opposing_signals.curvature import (
    curvature_split,
    gradient_norms,
    gradient_sketch,
    jacobian_norms,
    sample_curvature,
    sample_sharpness,
)
from opposing_signals.curvature.risk import EmpiricalRisk

LAYOUTS = {
    "contiguous": {"channels_last": False},
    "channels_last": {"channels_last": True},
    "inputs": {"channels_last": False, "precision": "unchanged"},  # only inputs are in channels_last
}
EXAMPLES, SIZE = 20, 8
Measure = Callable[["EmpiricalRisk"], list[Tensor]]


class Case(NamedTuple):
    """Convolutions of one width, side by side."""

    channels: int
    layout: str
    transposed: bool
    geometries: tuple[tuple[int, int, int], ...]  # kernel, stride, groups


class SideBySide(nn.Module):
    """Convolutions of one input; the input depends on a parameter, so that it has a gradient."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        inputs, outputs = case.channels, 2 * case.channels
        if case.transposed:
            inputs, outputs = outputs, inputs
        self.scale = nn.Parameter(torch.randn(inputs, 1, 1))
        self.convolutions = nn.ModuleList(
            nn.ConvTranspose2d(inputs, outputs, kernel, stride, kernel // 2, stride - 1, groups)
            if case.transposed
            else nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups)
            for kernel, stride, groups in case.geometries
        )

    def forward(self, images: Tensor) -> Tensor:
        images = images * self.scale
        return torch.cat([convolution(images).tanh().flatten(1) for convolution in self.convolutions], 1)


def risk_of(case: Case, **settings) -> EmpiricalRisk:
    torch.manual_seed(0)
    model = SideBySide(case)
    inputs = torch.randn(EXAMPLES, len(model.scale), SIZE, SIZE)
    if case.layout == "inputs":
        inputs = inputs.to(memory_format=torch.channels_last)
    targets = model(inputs).detach() + torch.randn(EXAMPLES, 1)
    settings = {**LAYOUTS[case.layout], "chunk": 16, **settings}
    return EmpiricalRisk(model, lambda f, y: (f - y).square().mean(1), inputs, targets, **settings)


def training(risk: EmpiricalRisk) -> list[Tensor]:
    seen = risk.backward()
    return [seen.outputs, *(p.grad for p in risk.parameters)]


def frozen(risk: EmpiricalRisk) -> list[Tensor]:
    """Gradients where biases train and weights do not."""
    for convolution in risk.model.convolutions:
        convolution.weight.requires_grad_(False)
    risk.backward()
    return [p.grad for p in risk.parameters]


def products(risk: EmpiricalRisk) -> list[Tensor]:
    seen = risk.hessian_products(direction(risk)[None])
    return [seen.gradient, seen.products, seen.slopes]


def plain_products(risk: EmpiricalRisk) -> list[Tensor]:
    """Products by torch's own double backward."""
    loss = risk.loss(risk.model(risk.inputs), risk.targets).mean()
    gradient = torch.autograd.grad(loss, risk.parameters, create_graph=True)
    slope = sum((g * v).sum() for g, v in zip(gradient, risk.unflatten(direction(risk)), strict=True))
    return list(torch.autograd.grad(slope, risk.parameters))


def mapped(risk: EmpiricalRisk) -> list[Tensor]:
    """Per-sample gradients by `torch.func`."""

    def loss(parameters: dict[str, Tensor], image: Tensor, target: Tensor) -> Tensor:
        return risk.loss(functional_call(risk.model, parameters, (image[None],)), target[None])[0]

    gradients = torch.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))
    parameters = dict(risk.model.named_parameters())
    return list(gradients(parameters, risk.inputs, risk.targets).values())


def along(risk: EmpiricalRisk) -> list[Tensor]:
    seen = sample_curvature(risk, direction(risk))
    return [seen.losses, seen.slopes, seen.curvatures]


def parts(risk: EmpiricalRisk) -> list[Tensor]:
    split = curvature_split(risk, direction(risk))
    return [torch.tensor([split.gauss_newton, split.functional])]


def jacobian(risk: EmpiricalRisk) -> list[Tensor]:
    """Jacobian of sums of sixteen outputs, since each takes a backward pass."""

    def summed(outputs: Tensor) -> Tensor:
        return outputs.unflatten(1, (-1, 16)).sum(2)

    risk.model.register_forward_hook(lambda *given: summed(given[-1]))
    risk.targets = summed(risk.targets)
    return [jacobian_norms(risk, FEW)]


FEW = torch.tensor([0, 7])
ALL = {"training": training, "products": products, "plain_products": plain_products}
NARROW = {
    "frozen": frozen,
    "mapped": mapped,
    "along": along,
    "parts": parts,
    "norms": lambda risk: [gradient_norms(risk)],
    "sketch": lambda risk: [gradient_sketch(risk, 8)],
    "sharpness": lambda risk: [sample_sharpness(risk, FEW, tolerance=0, max_products=4)[0]],
    "jacobian": jacobian,
}


def cases() -> Iterator[tuple[Case, dict]]:
    """Every small shape by training and products; by all measures for the shapes that torch gets wrong somewhere."""
    for channels, layout, transposed in itertools.product(range(1, 17), ("contiguous", "channels_last"), (False, True)):
        if transposed and channels > 8:
            continue
        groups = sorted({1, channels} | ({2} if channels % 2 == 0 else set()))
        yield Case(channels, layout, transposed, tuple(itertools.product((1, 3), (1, 2), groups))), ALL
    for channels, layout in itertools.product((1, 4, 7), ("channels_last", "inputs")):
        yield Case(channels, layout, False, ((1, 2, 1),)), ALL | NARROW
    yield Case(4, "channels_last", True, ((1, 2, 1),)), ALL | NARROW


@cache
def exact(case: Case, measure: Measure) -> list[Tensor]:
    """The measure in float64 and in one chunk."""
    return measure(risk_of(case, precision="float64", chunk=EXAMPLES))


def errors(case: Case, measure: Measure) -> list[float]:
    pairs = zip(measure(risk_of(case)), exact(case._replace(layout="contiguous"), measure), strict=True)
    return [((found.double() - right).norm() / right.norm()).item() for found, right in pairs]


if __name__ == "__main__":
    torch.set_num_threads(1)
    for case, measures in cases():
        for name, measure in measures.items():
            print(json.dumps([name, case._asdict()]), end=" ", flush=True)
            print(json.dumps(errors(case, measure)), flush=True)
