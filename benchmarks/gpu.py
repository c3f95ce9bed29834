"""What curvature costs on a GPU, in time and memory, and what its arithmetic does to the numbers.

The networks have the widths and chunks of ``scale=paper``. Time and memory are those of passes over random images, in
each precision, as they are and compiled; errors are those of real ones, at initialization and after some steps of
gradient descent, against float64: of the training pass's gradient and losses, of the product with the top eigenvector
v, of vᵀHv and of every point's curvature along v.

    python benchmarks/gpu.py [--networks vgg11bn resnet18 vit] [--device cuda]
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from opposing_signals.curvature import EigenTracker, sample_curvature
from opposing_signals.curvature.risk import EmpiricalRisk, Precision, flatten
from opposing_signals.data import cifar10
from opposing_signals.models import resnet18, vgg11, vit
from opposing_signals.training.job import set_gpu_arithmetic

LOSS = nn.CrossEntropyLoss(reduction="none")
NETWORKS: dict[str, tuple[Callable[..., nn.Module], dict[str, Any], int]] = {  # with the chunk
    "vgg11bn": (vgg11, {"width": 64}, 2500),
    "resnet18": (resnet18, {"width": 64}, 2500),
    "vit": (vit, {"width": 192, "depth": 8, "heads": 3}, 1000),
}
LEVERS: dict[str, tuple[Precision, bool]] = {  # with whether the training pass is compiled
    "float32": ("float32", False),
    "tf32": ("tf32", False),
    "tf32, compiled": ("tf32", True),
    "float16": ("float16", False),
    "float16, compiled": ("float16", True),
    "bfloat16, compiled": ("bfloat16", True),
}
WHOLE = 50_000
"""Images of CIFAR-10: times are of a pass over so many."""


def risk_of(
    model: nn.Module, data: tuple[Tensor, Tensor], chunk: int, precision: Precision, device: str, compiled: bool = False
) -> EmpiricalRisk:
    set_gpu_arithmetic(precision == "tf32")
    risk = EmpiricalRisk(model, LOSS, *data, chunk=chunk, precision=precision, compile_training=compiled)
    return risk.to(torch.device(device))


def network(name: str) -> nn.Module:
    torch.manual_seed(1)
    make, fields, _ = NETWORKS[name]
    return make((3, 32, 32), 10, **fields)


def costs(name: str, device: str, repetitions: int) -> None:
    """Of the gradient alone, and with two products."""
    chunk = NETWORKS[name][2]
    data = torch.randn(chunk, 3, 32, 32), torch.randint(10, (chunk,))
    for label, (precision, compiled) in LEVERS.items():
        risk = risk_of(network(name), data, chunk, precision, device, compiled)
        vectors = torch.randn(2, sum(p.numel() for p in risk.parameters), device=device)
        passes = {"gradient": risk.backward, "and 2 products": lambda: risk.backward_with_products(vectors)}  # noqa: B023
        cells = []
        for what, run in passes.items():
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            seconds = [clocked(risk, run, device) for _ in range(repetitions + 1)][1:]
            memory = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else float("nan")
            cells.append(f"{what} {min(seconds) * WHOLE / chunk:.2f} s, {memory:.1f} GiB")
        print(f"  {label:18} {'   '.join(cells)}", flush=True)


def clocked(risk: EmpiricalRisk, run: Callable[[], Any], device: str) -> float:
    risk.model.zero_grad(set_to_none=True)
    started = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def errors(name: str, device: str, images: int, steps: int) -> None:
    """Before and after ``steps`` of gradient descent."""
    dataset = cifar10(images=5_000)
    data, chunk = (dataset.inputs[:images], dataset.targets[:images]), images // 2
    trained = risk_of(network(name), data, chunk, "float32", device)
    optimizer = torch.optim.SGD(trained.parameters, lr=0.02)
    for taken in (0, steps):
        for _ in range(taken):
            optimizer.zero_grad()
            trained.backward()
            optimizer.step()
        exact = risk_of(copy.deepcopy(trained.model), data, chunk, "float64", device)
        tracker = EigenTracker(1, "largest", tolerance=0.01, max_products=12)
        start = tracker.directions(flatten([parameter.detach() for parameter in exact.parameters]))
        pairs = tracker.update(exact.hessian_products(start).products, lambda v: exact.hessian_products(v).products)  # noqa: B023
        expected = measured(exact, pairs.vector)
        for label, (precision, compiled) in LEVERS.items():
            lever = risk_of(copy.deepcopy(trained.model), data, chunk, precision, device, compiled)
            found = measured(lever, pairs.vector)
            relative = {key: float((found[key] - right).norm() / right.norm()) for key, right in expected.items()}
            cells = "   ".join(f"{key} {error:.1e}" for key, error in relative.items())
            print(f"  {label:18} step {taken}, λ = {pairs.value:.3g}   {cells}", flush=True)
        set_gpu_arithmetic(is_rounded=False)


def measured(risk: EmpiricalRisk, vector: Tensor) -> dict[str, Tensor]:
    v = vector.to(risk.parameters[0].dtype)
    losses = risk.backward().losses
    gradient = flatten([parameter.grad for parameter in risk.parameters if parameter.grad is not None])
    risk.model.zero_grad(set_to_none=True)
    seen, along = risk.hessian_products(v[None]), sample_curvature(risk, v)
    quantities = {
        "gradient": gradient,
        "Hv": seen.products[0],
        "vᵀHv": seen.products[0].double() @ vector,
        "losses": losses,
        "vᵀH_iv": along.curvatures,
    }
    return {name: quantity.double() for name, quantity in quantities.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--repetitions", type=int, default=2)
    parser.add_argument("--images", type=int, default=1_000, help="over which errors are taken")
    parser.add_argument("--steps", type=int, default=40, help="of gradient descent in front of the second errors")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch finds no GPU here; pass --device cpu")
    print(torch.cuda.get_device_name() if options.device == "cuda" else "CPU", f"torch {torch.__version__}")
    for name in options.networks:
        print(name)
        costs(name, options.device, options.repetitions)
        errors(name, options.device, options.images, options.steps)


if __name__ == "__main__":
    main()
