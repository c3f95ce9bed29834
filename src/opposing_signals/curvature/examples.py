"""Losses ℓ_i of single examples that depend on no other example of their chunk."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor

from opposing_signals.curvature.finite_differences import Call, Claim, calls_of, check
from opposing_signals.curvature.normalization import Statistics, captured, frozen
from opposing_signals.curvature.refusals import naming_causes
from opposing_signals.curvature.risk import EmpiricalRisk
from opposing_signals.errors import InputError


@contextmanager
def independent_examples(risk: EmpiricalRisk, chunk: slice) -> Iterator[None]:
    """Inside, examples of a chunk can be evaluated one by one, with the losses that they have in the chunk.

    Batch norm in training mode couples the examples of a chunk. Here it normalizes by the chunk's statistics, held
    constant. The model leaves no trace: see `EmpiricalRisk.probe`.

    Args:
        risk: Evaluated with its model in its current mode.
        chunk: Positions of the chunk's examples.

    Raises:
        InputError: A layer is random; or see `check_independence`.
    """
    check_independence(risk)
    with risk.probe():
        with risk.deterministic(), risk.without_graph():
            statistics = _statistics(risk, slice(chunk.start, min(chunk.start + 2, chunk.stop)))
            if statistics:
                statistics = _statistics(risk, chunk)
        with frozen(risk.model, statistics), naming_causes():
            yield


def _statistics(risk: EmpiricalRisk, chunk: slice) -> Statistics:
    with captured(risk.model) as statistics:
        risk.evaluate(risk.inputs[chunk], risk.targets[chunk])
    return statistics


def check_independence(risk: EmpiricalRisk, hold_statistics: bool = True) -> None:
    """Refuse a model in which an example has a different loss alone than in its chunk.

    Checked once, on a few examples.

    Args:
        risk: Evaluated with its model in its current mode.
        hold_statistics: Whether batch norm in training mode normalizes a single example by its chunk's statistics.

    Raises:
        InputError: A layer couples examples, such as attention across the batch.
    """
    measure = "examples alone" if hold_statistics else "examples alone, statistics their own"
    check(risk, measure, partial(_compare_alone, hold_statistics=hold_statistics))


def _compare_alone(few: EmpiricalRisk, _: Tensor, hold_statistics: bool) -> Generator[Claim]:
    """Raise an error if the losses differ; yields no `Claim`."""
    inputs, targets = few.inputs[: few.chunk], few.targets[: few.chunk]
    with few.probe(), few.without_graph():
        with captured(few.model) as statistics, few.deterministic():
            together, _ = few.evaluate(inputs, targets, autocast=False)
        together = together.detach()
        held = partial(frozen, few.model, statistics) if hold_statistics else nullcontext
        with held():
            singles = zip(inputs.split(1), targets.split(1), strict=True)
            alone = torch.cat([few.evaluate(*one, autocast=False)[0].detach() for one in singles])
        difference = torch.where(together.isfinite(), (alone - together).abs().nan_to_num(torch.inf), 0)
        if (difference > 4 * torch.finfo(together.dtype).eps ** 0.5 * together.abs().mean()).any():
            worst = int(difference.argmax())
            in_chunk = calls_of(few.model, lambda: few.model(inputs))
            with held():
                by_itself = calls_of(few.model, lambda: few.model(inputs[worst : worst + 1]))
            raise InputError(
                f"{_coupling(in_chunk, by_itself, worst)} makes the loss of an example depend on the others of its "
                f"chunk ({float(together[worst]):.4g} among {len(inputs)}, {float(alone[worst]):.4g} alone): put the "
                "layer in evaluation mode, take a model without it, or leave out what looks at single examples"
            )
    yield from ()


def _coupling(together: list[Call], alone: list[Call], example: int) -> str:
    """The first layer whose output for an example depends on the others while its input does not."""
    for among, own in zip(together, alone, strict=False):
        parts = [*zip(among.given, own.given, strict=False), (among.output, own.output)]
        rows = [pair for pair in parts if isinstance(pair[0], Tensor) and pair[0].ndim]
        if not isinstance(among.output, Tensor) or any(len(part) <= example for part, _ in rows):
            continue  # not one row per example
        *are_given_the_same, is_the_same = (_agree(part[example], row[0]) for part, row in rows)
        if all(are_given_the_same) and not is_the_same:
            name = f"layer {among.name!r}" if among.name else "the model itself"
            return f"{name}, {type(among.module).__name__},"
    return "the loss function, or what the model keeps from call to call,"


def _agree(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, rtol=1e-6)


def by_chunk(risk: EmpiricalRisk, indices: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    """The chunks that contain any of ``indices``, each with the positions *in* ``indices`` of those it contains.

    Raises:
        InputError: An index is outside the training set, or there are none.
    """
    if indices.ndim != 1 or not len(indices) or int(indices.min()) < 0 or int(indices.max()) >= len(risk):
        raise InputError(
            f"points {indices.tolist()}: expected a list of one or more numbers from 0 to {len(risk) - 1}, positions "
            "in the training set"
        )
    chunks = indices // risk.chunk
    for number in chunks.unique().tolist():
        first = number * risk.chunk
        yield slice(first, min(first + risk.chunk, len(risk))), (chunks == number).nonzero().flatten()
