"""Fully connected networks."""

import math
from itertools import pairwise
from typing import Literal

from torch import nn

from opposing_signals.values import Count

ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}


def mlp(
    input_shape: tuple[int, ...], outputs: int, hidden: tuple[Count, ...], activation: Literal["relu", "tanh", "gelu"]
) -> nn.Sequential:
    """A fully connected network on flattened inputs ``[n, *input_shape]``, with torch's default initialization.

    Args:
        input_shape: Shape of one input.
        outputs: Number of outputs.
        hidden: Width of each hidden layer.
        activation: After each hidden layer.
    """
    widths = [math.prod(input_shape), *hidden]
    layers: list[nn.Module] = [nn.Flatten()]
    for width_in, width_out in pairwise(widths):
        layers += [nn.Linear(width_in, width_out), ACTIVATIONS[activation]()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], outputs))
