"""Errors of Hessian-vector products by differences of gradients, by the distance h, along the top eigenvector v.

python benchmarks/differences.py vit_gd [--images 200] [--steps 30] [--width 32]
python benchmarks/differences.py vgg11bn_gd --images 1600 --steps 60 --width 8

Gradient descent is run in float32 for the given number of steps, and v and ∇²L v are found by exact products. There is
a row for each h over ‖θ‖, with three errors over λ for each precision of the gradient: of the one-sided product, of the
two-sided product, and of vᵀHv by the two-sided product. TF32's rounding of factors is emulated.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from hydra.utils import instantiate
from markdown_tables import print_table
from torch import Tensor

from opposing_signals import Hessian
from opposing_signals.choices import composed
from opposing_signals.curvature.differences import GradientDifferences
from opposing_signals.curvature.risk import EmpiricalRisk, Precision, flatten
from opposing_signals.training.job import training_module

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from rounding import RoundedFactors

DISTANCES = (3e-3, 1e-3, 3e-4, 1e-4, 3e-5)
PRECISIONS: dict[str, tuple[Precision, type[AbstractContextManager[object]]]] = {
    "float32": ("float32", nullcontext),
    "TF32": ("float32", RoundedFactors),
    "float16": ("float16", nullcontext),
    "bfloat16": ("bfloat16", nullcontext),
}


def trained(name: str, images: int, steps: int, width: int | None) -> tuple[EmpiricalRisk, float]:
    """The risk after this number of steps of the run, and its step size."""
    chosen = [f"settings.images={images}", "seed=1", *([] if width is None else [f"model.width={width}"])]
    config = composed(
        "experiment=fig01_group_losses", f"run={name}", "scale=cpu", f"risk.chunk={min(images, 400)}", *chosen
    )
    module = training_module(config, instantiate(config.data))
    optimizer = module.configure_optimizers()
    for _ in range(steps):
        optimizer.zero_grad()
        module.risk.backward()
        optimizer.step()
    return module.risk, float(config.optimizer.lr)


def errors(risk: EmpiricalRisk, vector: Tensor, exact: Tensor, distance: float) -> tuple[float, float, float]:
    """Errors over λ: of the one-sided product, of the two-sided one, and of vᵀHv by the two-sided one."""
    value = float(vector @ exact)
    differences = GradientDifferences(risk)
    differences._length = distance * float(differences.theta.norm())
    one, (both, _) = differences(vector[None])[0], differences.both_sides(vector[None])
    quotient = float(vector @ both[0])
    return float((one - exact).norm()) / value, float((both[0] - exact).norm()) / value, abs(quotient / value - 1)


def rows(risk: EmpiricalRisk, vector: Tensor) -> Iterator[list[str]]:
    """Rows of the table."""
    yield ["h / ‖θ‖", *(f"{name}: Hv one side, both, vᵀHv" for name in PRECISIONS)]
    exact = risk.hessian_products(vector[None]).products[0]
    for distance in DISTANCES:
        cells = []
        for precision, rounding in PRECISIONS.values():
            data = risk.inputs, risk.targets
            other = EmpiricalRisk(risk.model, risk.loss, *data, chunk=risk.chunk, precision=precision)
            with rounding():
                cells.append(", ".join(f"{error:.2%}" for error in errors(other, vector, exact, distance)))
        yield [f"{distance:.0e}", *cells]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="one of conf/run")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--width", type=int)
    given = parser.parse_args()
    risk, lr = trained(given.run, given.images, given.steps, given.width)
    pairs = Hessian(risk).eigenpairs(tolerance=1e-3)
    size = len(flatten(list(risk.parameters)))
    print(f"{given.run}: {size:,} weights, {given.images} images, step {given.steps}", end=", ")
    print(f"λ = {pairs.values[0] * lr / 2:.2f} x 2/η, residual {pairs.residual / pairs.values[0]:.1e} λ\n")
    torch.manual_seed(0)
    print_table(rows(risk, pairs.vectors[0]))


if __name__ == "__main__":
    main()
