"""Cost of a training pass and of Hessian-vector products on a GPU, and the error of each way to make them cheaper.

For each network at the width of ``scale=paper`` and each lever (fields of ``risk``): seconds for the gradient over
50,000 images, alone and with two products; memory; and errors against float64, at initialization and after some steps
of gradient descent: of the gradient, the losses, the product with the top eigenvector v, vᵀHv, every image's own
curvature along v, and the product as a difference of two gradients, with its time. At the end it prints for each
network the fastest lever whose gradient errs at most 1.5 times as much as in TF32, the stride with which λ takes 15% of
the training time, and the largest chunk that fits.

    python benchmarks/gpu.py --data cifar10_5k.npz --seconds 480

Rows are saved as they come (``--to``), and a restarted command continues after the last one: an interruption loses one.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from opposing_signals.curvature import EigenTracker, sample_curvature
from opposing_signals.curvature.differences import GradientDifferences
from opposing_signals.curvature.risk import EmpiricalRisk, flatten
from opposing_signals.errors import InputError
from opposing_signals.models import cifar_resnet, resnet18, vgg11, vit
from opposing_signals.training.job import set_gpu_arithmetic

NETWORKS: dict[str, tuple[Callable[..., nn.Module], dict[str, Any], int]] = {  # and the number of images per pass
    "vgg11bn": (vgg11, {"width": 64}, 1000),
    "resnet18": (resnet18, {"width": 64}, 1000),
    "vit": (vit, {"width": 192, "depth": 8, "heads": 3}, 1000),
    "resnet56": (cifar_resnet, {"depth": 56, "width": 16}, 128),
}
"""The last one trains on small batches, for which launching kernels takes longer than running them."""
COMPILED, RECORDED, PRODUCTS = "compile_training", "cuda_graphs", "compile_products"
LEVERS: dict[str, dict[str, Any]] = {
    "float32": {},
    "tf32": {"precision": "tf32"},
    "tf32 autotuned": {"precision": "tf32", "autotune": True},
    "tf32 compiled": {"precision": "tf32", COMPILED: True},
    "float16": {"precision": "float16"},
    "float16 compiled": {"precision": "float16", COMPILED: True},
    "float16 compiled autotuned": {"precision": "float16", COMPILED: True, "autotune": True},
    "bfloat16 compiled": {"precision": "bfloat16", COMPILED: True},
    "tf32 recorded": {"precision": "tf32", RECORDED: True},
    "tf32 compiled recorded": {"precision": "tf32", COMPILED: True, RECORDED: True},
    "tf32 compiled products": {"precision": "tf32", COMPILED: True, PRODUCTS: True},
}
QUANTITIES = ("gradient", "losses", "Hv", "vᵀHv", "vᵀH_iv")
DIFFERENCE = "Hv by differences"
WHOLE = 50_000
"""Number of images of CIFAR-10."""
SHARE = 0.15
"""Fraction of the training time for λ."""
TOLERATED = 1.5
"""Largest error of a gradient relative to its error in TF32."""
LR = 0.02


def wanted(network: str, lever: str) -> bool:
    """Runs on small batches measure no λ at their steps, and large batches gain nothing from a recorded pass."""
    return PRODUCTS not in LEVERS[lever] if network == "resnet56" else RECORDED not in LEVERS[lever]


class Subject:
    """A network before and after some steps, with its reference values."""

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        self.name, self.device = name, torch.device(options.device)
        make, fields, images = NETWORKS[name]
        self.chunk = options.images or images
        torch.manual_seed(1)
        model = make((3, 32, 32), 10, **fields | ({"width": options.width} if options.width else {}))
        self.data = images_of(options.data, self.chunk)
        trained = self.risk(model, "float32")
        optimizer = torch.optim.SGD(trained.parameters, lr=LR)
        self.models = [copy.deepcopy(trained.model)]
        for _ in range(options.steps):
            optimizer.zero_grad()
            trained.backward()
            optimizer.step()
        optimizer.zero_grad()
        self.models.append(trained.model)
        self.truths: list[tuple[Tensor, dict[str, Tensor]]] = []
        for model in self.models:
            exact = self.risk(copy.deepcopy(model), "exact")
            tracker = EigenTracker(1, "largest", tolerance=0.01, max_products=12)
            vector = tracker(
                lambda vectors, exact=exact: exact.hessian_products(vectors).products,
                flatten([parameter.detach() for parameter in exact.parameters]),
            ).vector
            self.truths.append((vector, measured(exact, vector)))
        self.release()

    def risk(self, model: nn.Module, lever: str) -> EmpiricalRisk:
        fields = {"precision": "float64"} if lever == "exact" else LEVERS[lever]
        set_gpu_arithmetic(fields.get("precision") == "tf32", fields.get("autotune", False))
        loss = nn.CrossEntropyLoss(reduction="none")
        return EmpiricalRisk(model, loss, *self.data, chunk=self.chunk, **fields).to(self.device)

    def row(self, lever: str, repetitions: int) -> dict[str, Any]:
        """Time, memory and errors of one lever."""
        torch.compiler.reset()
        row: dict[str, Any] = {"network": self.name, "lever": lever, "images": self.chunk}
        began = time.perf_counter()
        for when, model, (vector, truth) in zip(("first", "last"), self.models, self.truths, strict=True):
            risk = self.risk(copy.deepcopy(model), lever)
            found = measured(risk, vector)
            differences = GradientDifferences(risk)
            found[DIFFERENCE] = differences(vector[None].to(differences.theta))[0].double()
            rights = truth | {DIFFERENCE: truth["Hv"]}
            row |= {
                f"{key}, {when}": float((found[key] - right).norm() / right.norm()) for key, right in rights.items()
            }
        row["compiling"] = time.perf_counter() - began
        vectors = torch.randn(2, sum(p.numel() for p in risk.parameters), device=self.device)
        passes: dict[str, Callable[[], Any]] = {
            "gradient": risk.backward,
            "both": lambda: risk.backward_with_products(vectors),
            "differences": lambda: differences(vectors[:1]),
        }
        for what, run in passes.items():
            run()
            if self.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            row[f"{what} s"] = min(self.clocked(risk, run) for _ in range(repetitions)) * WHOLE / self.chunk
            if self.device.type == "cuda":
                row[f"{what} GiB"] = torch.cuda.max_memory_allocated() / 2**30
        self.release()
        return row

    def clocked(self, risk: EmpiricalRisk, run: Callable[[], Any]) -> float:
        risk.model.zero_grad(set_to_none=True)
        self.wait()
        began = time.perf_counter()
        run()
        self.wait()
        return time.perf_counter() - began

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def release(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def images_of(data: Path | None, count: int) -> tuple[Tensor, Tensor]:
    """The first images of the file, each channel with mean 0 and standard deviation 1; random images without a file."""
    if data is None:
        generator = torch.Generator().manual_seed(0)
        return torch.randn(count, 3, 32, 32, generator=generator), torch.randint(10, (count,), generator=generator)
    with np.load(data, allow_pickle=False) as file:
        pixels, labels = file["train_images"][:count], file["train_labels"][:count]
    inputs = torch.from_numpy(pixels).float().permute(0, 3, 1, 2)
    deviation, mean = torch.std_mean(inputs, (0, 2, 3), keepdim=True)
    return (inputs - mean) / deviation, torch.from_numpy(labels).long()


def measured(risk: EmpiricalRisk, vector: Tensor) -> dict[str, Tensor]:
    losses = risk.backward().losses
    gradient = flatten([parameter.grad for parameter in risk.parameters if parameter.grad is not None])
    risk.model.zero_grad(set_to_none=True)
    v = vector.to(risk.parameters[0].dtype)
    product, own = risk.hessian_products(v[None]).products[0], sample_curvature(risk, v).curvatures
    quantities = dict(zip(QUANTITIES, (gradient, losses, product, product.double() @ vector, own), strict=True))
    return {name: quantity.double() for name, quantity in quantities.items()}


def rows_to_come(options: argparse.Namespace, done: Sequence[dict[str, Any]], began: float) -> Iterator[dict[str, Any]]:
    """The missing rows, as long as there is time for one more like the longest."""
    longest = 0.0
    seen = {(row["network"], row["lever"]) for row in done}
    for name in options.networks:
        subject = None
        for lever in options.levers or [lever for lever in LEVERS if wanted(name, lever)]:
            if (name, lever) in seen:
                continue
            started = time.perf_counter()
            if started - began + longest > options.seconds:
                return
            subject = subject or Subject(name, options)
            try:
                yield subject.row(lever, options.repetitions)
            except (InputError, RuntimeError) as error:  # out of memory, no compiler, no GPU: the others go on
                yield {"network": name, "lever": lever, "failed": str(error).splitlines()[0]}
            longest = max(longest, time.perf_counter() - started)


def printed(row: dict[str, Any]) -> str:
    if "failed" in row:
        return f"{row['network']:9} {row['lever']:27} failed: {row['failed']}"
    times = "  ".join(f"{what} {row[f'{what} s']:.2f} s" for what in ("gradient", "both", "differences"))
    memory = f"  {row['gradient GiB']:.1f} and {row['both GiB']:.1f} GiB" if "both GiB" in row else ""
    errors = "  ".join(f"{key} {row[f'{key}, last']:.0e}" for key in (*QUANTITIES, DIFFERENCE))
    return (
        f"{row['network']:9} {row['lever']:27} {times}{memory}  errors {errors}  compiled in {row['compiling']:.0f} s"
    )


def advice(network: str, rows: Sequence[dict[str, Any]], memory: float) -> str:
    """Recommended settings from the rows so far; ``memory`` in GiB, 0 if unknown."""
    known = {row["lever"]: row for row in rows if row["network"] == network and "failed" not in row}
    if "tf32" not in known:
        return f"{network}: nothing to say without its row tf32"

    def error(row: dict[str, Any]) -> float:
        return max(row["gradient, first"], row["gradient, last"])

    sound = [row for row in known.values() if error(row) <= TOLERATED * error(known["tf32"])]
    best = min(sound, key=lambda row: row["gradient s"])
    fields = " ".join(f"+risk.{field}={str(value).lower()}" for field, value in LEVERS[best["lever"]].items())
    fields = fields.replace("+risk.precision", "risk.precision").replace(f"+risk.{COMPILED}", f"risk.{COMPILED}")
    said = f"{network}: {fields}: {best['gradient s']:.2f} s a gradient"
    if network == "resnet56":
        return said
    extra = best["both s"] - best["gradient s"]
    stride = math.ceil(extra * (1 - SHARE) / (SHARE * best["gradient s"]))
    said += f"; λ by two products every {stride + 1 - stride % 2} steps takes {SHARE:.0%}"
    if memory:
        said += f"; risk.chunk at most {int(0.9 * memory / best['both GiB'] * best['images'])} with products"
    return said


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--levers", nargs="+", choices=LEVERS, help="all that concern the network")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--data", type=Path, help="cifar10_5k.npz; without it images are random, and so are errors")
    parser.add_argument("--seconds", type=float, default=480, help="no row begins that would end behind them")
    parser.add_argument("--to", type=Path, default=Path("gpu.jsonl"), help="rows; those that it has are passed over")
    parser.add_argument("--repetitions", type=int, default=2)
    parser.add_argument("--images", type=int, help="of a pass")
    parser.add_argument("--width", type=int, help="of the networks")
    parser.add_argument("--steps", type=int, default=40, help="of gradient descent in front of the second errors")
    options = parser.parse_args(arguments)
    began = time.perf_counter()
    has_gpu = options.device == "cuda"
    if has_gpu and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch finds no GPU here; pass --device cpu")
    if options.data is not None and not options.data.is_file():
        parser.error(f"--data {options.data}: no such file")
    memory = torch.cuda.get_device_properties(0).total_memory / 2**30 if has_gpu else 0
    print(torch.cuda.get_device_name() if has_gpu else "CPU", f"torch {torch.__version__}", flush=True)
    lines = options.to.read_text(encoding="utf-8").splitlines() if options.to.is_file() else []
    rows = [row for row in map(json.loads, lines) if row["network"] in options.networks]
    for row in rows:
        print(printed(row), flush=True)
    with options.to.open("a", encoding="utf-8") as kept:
        for row in rows_to_come(options, rows.copy(), began):
            rows.append(row)
            kept.write(json.dumps(row) + "\n")
            kept.flush()
            print(printed(row), flush=True)
    missing = sum(wanted(name, lever) for name in options.networks for lever in options.levers or LEVERS) - len(rows)
    print(f"{missing} rows are missing: the same command goes on" if missing > 0 else "complete")
    for name in options.networks:
        print(advice(name, rows, memory))


if __name__ == "__main__":
    main()
