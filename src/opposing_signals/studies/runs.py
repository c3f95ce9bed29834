"""Access to the runs of a statistic; CannotTellError gives the reason if they lack what it needs."""

from __future__ import annotations

from collections.abc import Mapping

from opposing_signals.record import Series
from opposing_signals.signals import OpposingPair, Trajectory
from opposing_signals.signals.steps import NOT_SUCCESSIVE
from opposing_signals.studies.claim import CannotTellError

Trajectories = Mapping[str, Trajectory]
"""The runs of an experiment by name."""

FEWEST_STEPS = 10
"""Minimum number of steps for a statistic."""


def need(count: int, what: str, least: int = FEWEST_STEPS) -> None:
    """Refuse a statistic of fewer than ``least`` values.

    Raises:
        CannotTellError: There are only ``count`` of ``what``.
    """
    if count < least:
        raise CannotTellError(f"{count} of the {least} needed {what}")


def only_run(trajectories: Trajectories) -> Trajectory:
    """The run of an experiment with a single run."""
    (trajectory,) = trajectories.values()
    return trajectory


def named_runs(trajectories: Trajectories, *names: str) -> list[Trajectory]:
    """The runs of these names.

    Raises:
        CannotTellError: One is missing.
    """
    for name in names:
        if name not in trajectories:
            raise CannotTellError(f"the run {name} is missing")
    return [trajectories[name] for name in names]


def break_even(trajectory: Trajectory, name: str = "") -> int:
    """The step at which λ first reaches 2/η.

    Raises:
        CannotTellError: It never does; ``name`` is given if there are several runs.
    """
    if trajectory.break_even is None:
        raise CannotTellError(f"{name}: {trajectory.no_break_even}".removeprefix(": "))
    return trajectory.break_even


def from_break_even(trajectory: Trajectory, series: Series) -> Series:
    """The part of ``series`` from break-even on.

    Raises:
        CannotTellError: There is no break-even, or there are fewer than `FEWEST_STEPS` steps after it.
    """
    late = trajectory.after_break_even(series)
    need(len(late), f"steps after break-even at step {break_even(trajectory)}")
    return late


def dominant_pairs(trajectory: Trajectory, name: str = "") -> list[OpposingPair]:
    """The dominant opposing pairs of a run, at least one.

    Raises:
        CannotTellError: None was found; ``name`` is given if there are several runs.
    """
    if not trajectory.pairs:
        why = f"; {NOT_SUCCESSIVE}" if len(trajectory.changes) < FEWEST_STEPS else ""
        raise CannotTellError(f"no opposing pair was found{name and f' in {name}'}{why}")
    return trajectory.pairs
