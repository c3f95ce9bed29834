"""Cost and accuracy of curvature measurements, compared with other tools.

Everything that is compared runs in turn in one process, on the same weights, chunks, images and dtype. Times are CPU
times; on a shared machine they still vary, so look at the ratios. The other tools come with ``pip install
'.[bench]'``; one that does not load is left out, and the reason is given.

    python benchmarks/curvature.py [tracking product peers samples norms memory] [--model mlp resnet18]

tracking  gradient descent at the edge of stability with λ at every step, relative to the same run without λ
product   one Hessian-vector product
peers     seconds for one λ
samples   vᵀH_iv of all points
norms     gradient norms of all points
memory    growth of the resident memory of a fresh process: its peak (VmHWM of Linux) during its first pass, with the
          check against finite differences, and during two further passes, less what it held before; allocations above
          64 KiB are mapped one by one, so that none is hidden in freed memory
"""

from __future__ import annotations

import argparse
import copy
import multiprocessing
import os
import re
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import peers
import torch
from measuring import (
    CASES,
    Case,
    fastest,
    first,
    in_float64,
    interleaved,
    milliseconds,
    plain,
    products,
    spread,
    table,
    target,
)
from torch import Tensor, nn
from torch.nn import functional as F
from tracking import tracking, warmed_up

from opposing_signals import curvature
from opposing_signals.curvature.normalization import captured, frozen
from opposing_signals.curvature.risk import EmpiricalRisk, flatten

SECTIONS = ("tracking", "product", "peers", "samples", "norms", "memory")


# -- one product ------------------------------------------------------------------------------------------------


def product(case: Case, risk: EmpiricalRisk) -> None:
    generator = torch.Generator().manual_seed(1)
    vectors = torch.randn(2, sum(p.numel() for p in risk.parameters), generator=generator)
    vectors /= vectors.norm(dim=1, keepdim=True)
    candidates: dict[str, Callable[[], Any]] = {"one gradient (training pass)": partial(gradient, risk)}
    candidates |= {name: partial(call, vectors[0]) for name, call in products(case, risk).items()}
    candidates["ours: gradient and 2 products"] = lambda: risk.hessian_products(vectors)
    seconds = interleaved(candidates, case.repetitions)
    exact = {name: call(vectors[0].double()) for name, call in products(case, in_float64(case, risk)).items()}
    truth = exact["double backward"]
    base, one, *_, two = seconds.values()
    judged = [tool + suffix for tool, suffix in fastest(peers.PRODUCTS, seconds).items()]
    rows = []
    for name, times in seconds.items():
        row = {"pass": name, "ms": milliseconds(times), "over a gradient": spread(times / base)}
        if name in exact:
            row["over ours with 1 product"] = spread(times / one)
            row["relative error in float64"] = f"{float((exact[name] - truth).norm() / truth.norm()):.1e}"
        if name in judged and "others' product" in case.bounds:
            row["target"] = target(np.median(times / one), ">=", case.bounds["others' product"], "over ours")
        rows.append(row)
    for name, times in (("ours: 1 product beside the gradient", one - base), ("ours: 1 product more", two - one)):
        rows.append({"pass": name, "ms": milliseconds(times), "over a gradient": spread(times / base)})
        if "product" in case.bounds:
            rows[-1]["target"] = target(np.median(times / base), "<=", case.bounds["product"])
    head = ("pass", "ms", "over a gradient", "over ours with 1 product", "relative error in float64", "target")
    table("product", head, rows)


# -- per-sample curvature ---------------------------------------------------------------------------------------


def samples(case: Case, risk: EmpiricalRisk) -> None:
    nothing = torch.zeros(1, sum(p.numel() for p in risk.parameters))
    vector = risk.hessian_products(risk.hessian_products(nothing).gradient[None]).products[0]
    vector = vector / vector.norm()  # a step of the power method from the gradient: close to the top eigenvector
    looped = list(range(0, len(risk), max(1, len(risk) // 8)))[:8]
    seconds = interleaved(
        {
            "product": lambda: risk.hessian_products(vector[None]),
            "ours": lambda: curvature.sample_curvature(risk, vector),
            "loop": partial(loop, risk, vector, looped),
        },
        case.repetitions,
    )
    one, ours, every = seconds["product"], seconds["ours"], seconds["loop"] * len(risk) / len(looped)
    exact, direction = in_float64(case, risk), vector.double()
    curvatures = curvature.sample_curvature(exact, direction).curvatures
    points = range(0, len(exact), max(1, len(exact) // 3))
    errors = [abs(float(curvatures[i]) - own_curvature(exact, direction, i)) for i in points]
    whole = float(direction @ exact.hessian_products(direction[None]).products[0])
    rows = [
        {"pass": "one product over the same points", "ms": milliseconds(one), "over one product": "1"},
        {
            "pass": "slope and curvature of every point",
            "ms": milliseconds(ours),
            "over one product": spread(ours / one),
            "error over mean |vᵀH_iv|, float64": f"{max(errors) / float(curvatures.abs().mean()):.1e}",
            "target": target(np.median(ours / one), "<=", 1.5),
        },
        {
            "pass": f"loop of single products, {len(looped)} timed",
            "ms": milliseconds(every),
            "over one product": spread(every / one),
            "target": target(np.median(every / ours), ">=", 20, "over ours"),
        },
    ]
    table("samples", ("pass", "ms", "over one product", "error over mean |vᵀH_iv|, float64", "target"), rows)
    print(f"  mean of vᵀH_iv over vᵀHv, in float64: 1 {float(curvatures.mean()) / whole - 1:+.1e}")


def loop(risk: EmpiricalRisk, vector: Tensor, points: list[int]) -> None:
    """vᵀH_iv point by point, with batch norm by constant statistics: the cheapest possible loop."""
    directions = risk.unflatten(vector)
    with captured(risk.model) as statistics, torch.no_grad():
        risk.model(risk.inputs[: risk.chunk])
    with frozen(risk.model, statistics):
        for i in points:
            loss = F.cross_entropy(risk.model(risk.inputs[i : i + 1]), risk.targets[i : i + 1])
            slopes = torch.autograd.grad(loss, risk.parameters, create_graph=True)
            float(vector @ flatten(torch.autograd.grad(slopes, risk.parameters, directions)))


def own_curvature(risk: EmpiricalRisk, vector: Tensor, point: int) -> float:
    """vᵀH_iv of one point by double backward over its whole chunk: batch norm depends on θ through all its points."""
    model, chunks = plain(risk, torch.contiguous_format)
    inputs, targets = chunks.pairs[point // risk.chunk]
    parameters = list(model.parameters())
    losses = F.cross_entropy(model(inputs), targets, reduction="none")
    slopes = torch.autograd.grad(losses[point % risk.chunk], parameters, create_graph=True)
    return float(vector @ flatten(torch.autograd.grad(slopes, parameters, risk.unflatten(vector))))


# -- gradient norms ---------------------------------------------------------------------------------------------


def norms(case: Case, risk: EmpiricalRisk) -> None:
    candidates: dict[str, Callable[[], Any]] = {
        "one gradient (training pass)": partial(gradient, risk),
        "ours": lambda: curvature.gradient_norms(risk),
    }
    evaluated = copy.copy(risk)
    evaluated.model = copy.deepcopy(risk.model).eval()
    judged = "ours"
    if any(isinstance(module, nn.BatchNorm2d) for module in risk.model.modules()):
        judged = "ours, running statistics"  # which other tools need
        candidates[judged] = lambda: curvature.gradient_norms(evaluated)
    candidates |= norms_by_others(case, evaluated)
    seconds = interleaved(candidates, case.repetitions)
    exact = {judged: curvature.gradient_norms(in_float64(case, evaluated))}
    exact |= {name: call() for name, call in norms_by_others(case, in_float64(case, evaluated)).items()}
    truth, base = exact["vmap(grad)"], seconds["one gradient (training pass)"]
    errors = {name: float(((norms - truth).abs() / truth).max()) for name, norms in exact.items()}
    right = [name for name in exact if name != judged and errors[name] < 1e-6]  # opacus errs in channels_last
    best = min(right, key=lambda name: np.median(seconds[name]))
    rows = []
    for name, times in seconds.items():
        row = {"pass": name, "ms": milliseconds(times), "over a gradient": spread(times / base)}
        if name in exact:
            row["relative error in float64"] = f"{errors[name]:.1e}"
        targets = []
        if name == "ours" and "norms" in case.bounds:
            targets += [target(np.median(times / base), "<=", case.bounds["norms"], "over a gradient")]
        if name == judged:
            targets += [target(np.median(times / seconds[best]), "<=", 1, f"over {best}")]
        rows.append({**row, "target": "; ".join(targets)})
    table("norms", ("pass", "ms", "over a gradient", "relative error in float64", "target"), rows)


def norms_by_others(case: Case, risk: EmpiricalRisk) -> dict[str, Callable[[], Tensor]]:
    """Gradient norms by the other tools, in every layout."""
    return {
        name + suffix: build(
            risk.model,
            peers.Chunks(risk.inputs.contiguous(memory_format=layout), risk.targets, risk.chunk),
            layout,
        )
        for name, build in peers.NORMS.items()
        for suffix, layout in case.layouts.items()
    }


# -- memory -----------------------------------------------------------------------------------------------------


def gradient(risk: EmpiricalRisk) -> None:
    risk.model.zero_grad(set_to_none=True)
    risk.backward()


def training_step(risk: EmpiricalRisk) -> None:
    gradient(risk)
    torch.optim.SGD(risk.parameters, lr=0.0).step()


def tracked_step(risk: EmpiricalRisk, products: int) -> None:
    risk.model.zero_grad(set_to_none=True)
    risk.backward_with_products(torch.ones(products, sum(p.numel() for p in risk.parameters)))
    torch.optim.SGD(risk.parameters, lr=0.0).step()


def slopes_and_curvatures(risk: EmpiricalRisk) -> None:
    curvature.sample_curvature(risk, torch.ones(sum(p.numel() for p in risk.parameters)))


def all_norms(risk: EmpiricalRisk) -> None:
    curvature.gradient_norms(risk)


PASSES: dict[str, Callable[[EmpiricalRisk], None]] = {
    "training step": training_step,
    "training step with 1 product": partial(tracked_step, products=1),
    "training step with 2 products": partial(tracked_step, products=2),
    "slope and curvature of every point": slopes_and_curvatures,
    "gradient norm of every point": all_norms,
}


RESET_PEAK = Path("/proc/self/clear_refs")
"""Writing a 5 to this file resets VmHWM to the current resident memory."""


def memory(case: Case, checkpoint: Path) -> None:
    if not RESET_PEAK.exists():
        print(f"\nmemory left out: no {RESET_PEAK} on this system")
        return
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(64 * 1024)  # read by a process when it starts
    grown: dict[str, float] = {}
    rows = []
    for name in PASSES:
        with multiprocessing.get_context("spawn").Pool(1) as process:
            held, checked, grown[name] = process.apply(peak, (name, case, checkpoint))
        ratio = grown[name] / grown["training step"]
        row = {"pass": name, "MB held before": f"{held:.0f}", "MB more at the peak": f"{grown[name]:.1f}"}
        rows.append({**row, "over a training step": f"{ratio:.2f}", "MB more at the first": f"{checked:.1f}"})
        if name != "training step":
            rows[-1]["target"] = target(ratio, "<=", 1.5)
    head = ("pass", "MB held before", "MB more at the first", "MB more at the peak", "over a training step", "target")
    table("memory", head, rows)


def peak(name: str, case: Case, checkpoint: Path) -> tuple[float, float, float]:
    """Resident megabytes of this process, and the growth at the peak of its first pass and of two further ones.

    A pass over a few examples comes first, so that its imports do not count as memory of a pass.
    """
    risk = case.risk(checkpoint)
    PASSES[name](first(8, case, risk))
    RESET_PEAK.write_text("5")
    held = largest_resident()
    PASSES[name](risk)
    checked = largest_resident() - held
    RESET_PEAK.write_text("5")
    for _ in range(2):
        PASSES[name](risk)
    return held, checked, largest_resident() - held


def largest_resident() -> float:
    found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024 / 1e6


# -- all --------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="section", help="which tables; default: all")
    parser.add_argument("--model", dest="cases", nargs="+", choices=CASES, default=list(CASES))
    for name in ("images", "chunk", "warm_up", "settle", "steps", "references", "values", "repetitions"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, help="default: as fits the network")
    parser.add_argument("--lr", type=float, help="step size η")
    parser.add_argument("--width", type=int, help="of the ResNet-18")
    parser.add_argument("--block", type=int, default=11, help="steps of one run before the next one goes on")
    parser.add_argument("--products", type=int, default=60, help="at most so many for a reference")
    arguments = parser.parse_args()
    sections = set(arguments.sections or SECTIONS)
    if not sections <= set(SECTIONS):
        parser.error(f"no section {', '.join(sorted(sections - set(SECTIONS)))}; there are {', '.join(SECTIONS)}")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; median [quartiles]")
    for package, reason in peers.MISSING.items():
        print(f"{package} left out: {reason}")
    for case in (CASES[name] for name in arguments.cases):
        for name, value in vars(arguments).items():
            if name in Case.__dataclass_fields__ and value is not None:
                setattr(case, name, value)
        if arguments.width and case.model == "resnet18":
            case.fields["width"] = arguments.width
            case.title = f"ResNet-18 of width {arguments.width}"
        if case.images % case.chunk:
            parser.error(f"{case.images} images in chunks of {case.chunk}: not every tool can weight an uneven chunk")
        case.look_for_images()
        print(
            f"\n== {case.title}, {case.images} images ({case.data}), chunks of {case.chunk}, η = {case.lr}", flush=True
        )
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = warmed_up(case, Path(folder))
            if {"tracking", "peers"} & sections:
                tracking(case, sections, Path(folder), checkpoint, arguments.products, arguments.block)
            for title, section in (("product", product), ("samples", samples), ("norms", norms)):
                if title in sections:
                    section(case, case.risk(checkpoint))
            if "memory" in sections:
                memory(case, checkpoint)


if __name__ == "__main__":
    main()
