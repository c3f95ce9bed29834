"""The direction along which a run is measured, taken from the record of its reference."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from opposing_signals.errors import InputError
from opposing_signals.record import Record

BREAK_EVEN_EIGENVECTOR = "break_even_eigenvector"


def break_even_direction(reference: Record, parameters: int) -> Tensor:
    """``[P]`` float32: the unit eigenvector v that ``reference`` wrote at the first step with λ >= 2/η.

    Args:
        reference: The record of a run with the instrument `BreakEven`.
        parameters: P of the model that is measured along v.

    Raises:
        InputError: The reference never got there, or its model has another number of parameters.
    """
    if BREAK_EVEN_EIGENVECTOR not in reference or not len(reference[BREAK_EVEN_EIGENVECTOR]):
        raise InputError(
            f"{reference.folder.name}, the reference, ended before λ reached 2/η: expected a run that reaches the "
            "edge of stability; set more steps or a larger optimizer.lr"
        )
    vector = reference[BREAK_EVEN_EIGENVECTOR].values[0]
    if len(vector) != parameters:
        raise InputError(
            f"{reference.folder.name}, the reference, holds an eigenvector of {len(vector)} entries, and this run's "
            f"model has {parameters} parameters: expected one model; do not set reference.model"
        )
    return torch.from_numpy(np.array(vector))
