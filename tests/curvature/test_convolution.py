"""Convolutions of every small shape are right on a CPU with AVX-512, and on one without it, which is emulated."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

CHILD = Path(__file__).parents[1] / "convolving.py"


@pytest.mark.slow
@pytest.mark.parametrize("instructions", ["AVX2", "all"])
def test_every_measure_of_every_small_convolution_is_right_to_rounding(instructions):
    cap = {"ONEDNN_MAX_CPU_ISA": instructions} if instructions != "all" else {}
    child = subprocess.run(
        [sys.executable, CHILD], env={**os.environ, **cap}, capture_output=True, text=True, timeout=240
    )
    lines = child.stdout.splitlines()
    ended = f"it ended by {signal.Signals(-child.returncode).name}" if child.returncode < 0 else child.stderr
    assert child.returncode == 0, f"{ended} in {lines[-1:]}"
    decoder = json.JSONDecoder()
    wrong = []
    for line in lines:
        _, end = decoder.raw_decode(line)
        if not max(json.loads(line[end:])) < 5e-5:
            wrong.append(line)
    assert not wrong
    assert len(lines) > 200


def test_other_gradients_keep_torchs_own_bits():
    code = """
import torch
from torch.nn.functional import conv2d

def gradients():
    torch.manual_seed(0)
    found = []
    for channels, kernel, stride in ((8, 1, 2), (16, 1, 2), (4, 1, 1), (4, 3, 2)):
        images = torch.randn(20, channels, 8, 8).to(memory_format=torch.channels_last)
        tensors = images, torch.randn(6, channels, kernel, kernel), torch.randn(6)
        for tensor in tensors:
            tensor.requires_grad_()
        output = conv2d(*tensors, stride)
        found += torch.autograd.grad(output, tensors, torch.randn_like(output))
    return found

own = gradients()
import opposing_signals.curvature.risk
assert all(torch.equal(one, other) for one, other in zip(own, gradients(), strict=True))
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=120)
