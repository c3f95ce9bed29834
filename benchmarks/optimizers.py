"""Step time of SplitSGD over that of `torch.optim.Adam(foreach=True)`, on the tensors of ResNet-56 and GPT-2 small.

All rules step the same parameters by the same gradients, in turn, so that a machine that is busy at times slows all of
them alike; the ratio is taken per round. Parameters and gradients, Adam's two moments, SplitSGD's one, and what Adam
allocates during a step make six copies of the parameters, 3 GB for GPT-2 small.

    python benchmarks/optimizers.py [--rounds 30] [--threads 2] [--device cuda] [--scale 1]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch

from opposing_signals.optim import SplitSGD

Shapes = list[tuple[int, ...]]
WARM_UP = 3


def resnet56(scale: float) -> Shapes:
    """He et al. 2016, section 4.2: three stages of nine blocks of two convolutions, shortcuts without parameters."""
    stem, *stages = (max(1, round(width * scale)) for width in (16, 16, 32, 64))
    shapes: Shapes = [(stem, 3, 3, 3), (stem,), (stem,)]
    inputs = stem
    for width in stages:
        for _ in range(9):
            for channels in (inputs, width):
                shapes += [(width, channels, 3, 3), (width,), (width,)]
            inputs = width
    return [*shapes, (10, inputs), (10,)]


def gpt2_small(scale: float) -> Shapes:
    """Radford et al. 2019 as nanoGPT builds it: 12 blocks of width 768, output weights tied to the embedding."""
    width, tokens, positions = (max(1, round(size * scale)) for size in (768, 50304, 1024))
    block: Shapes = [(width,), (width,), (3 * width, width), (3 * width,), (width, width), (width,)]
    block += [(width,), (width,), (4 * width, width), (4 * width,), (width, 4 * width), (width,)]
    return [(tokens, width), (positions, width), *12 * block, (width,), (width,)]


def candidates(parameters: list[torch.nn.Parameter]) -> dict[str, Callable[[], object]]:
    """A step function for each rule. SplitSGD's paths share one momentum."""
    adam = torch.optim.Adam(parameters, lr=1e-6, foreach=True)
    split = SplitSGD(parameters, lr=1e-6, sgd_lr=1e-6, quantile=0.1)

    def step(foreach: bool, fused: bool) -> None:
        split.param_groups[0].update(foreach=foreach, fused=fused)
        split.step()

    return {
        "Adam, foreach": adam.step,
        "SplitSGD, foreach": lambda: step(foreach=True, fused=False),
        "SplitSGD, fused": lambda: step(foreach=True, fused=True),
    }


def timed(step: Callable[[], object], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def measure(title: str, shapes: Shapes, rounds: int, device: str) -> None:
    generator = torch.Generator(device).manual_seed(0)
    parameters = [torch.nn.Parameter(torch.zeros(shape, device=device)) for shape in shapes]
    for parameter in parameters:
        parameter.grad = torch.empty_like(parameter).normal_(0, 1e-3, generator=generator)
    steps = candidates(parameters)
    first = {name: timed(step, device) for name, step in steps.items()}
    turns = [{name: timed(step, device) for name, step in steps.items()} for _ in range(WARM_UP + rounds)][WARM_UP:]
    seconds = {name: np.array([turn[name] for turn in turns]) for name in steps}
    entries = sum(parameter.numel() for parameter in parameters)
    print(f"\n{title}: {len(parameters)} tensors, {entries:,} parameters")
    (adam, reference), *_ = seconds.items()
    for name, times in seconds.items():
        low, ratio, high = np.percentile(times / reference, [25, 50, 75])
        verdict = "" if name == adam else f"  <= 1 {'met' if ratio <= 1 else 'MISSED'}"
        print(
            f"  {name:18} {1e3 * np.median(times):9.3f} ms  ratio {ratio:.3f} [{low:.3f}, {high:.3f}]{verdict}"
            f"  (first step {first[name]:.2f} s)"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--scale", type=float, default=1.0, help="of every width; below 1 only to try the script")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    where = torch.cuda.get_device_name() if given.device == "cuda" else f"{given.threads} threads"
    print(f"torch {torch.__version__}, {where}, {given.rounds} rounds in turn; median [quartiles]")
    for title, shapes in (("ResNet-56", resnet56), ("GPT-2 small", gpt2_small)):
        measure(title, shapes(given.scale), given.rounds, given.device)


if __name__ == "__main__":
    main()
