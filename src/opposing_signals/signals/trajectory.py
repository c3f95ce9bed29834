"""A recorded run as figures and claims read it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
from hydra.utils import instantiate

from opposing_signals.configuration import without_root
from opposing_signals.data import Dataset, recorded
from opposing_signals.errors import InputError
from opposing_signals.record import Record, Series
from opposing_signals.signals.discovery import Discovery, discover
from opposing_signals.signals.gradient_discovery import discover_by_gradients
from opposing_signals.signals.intervals import interval_coverage
from opposing_signals.signals.pairs import OpposingPair, find_pairs
from opposing_signals.signals.tokens import TokenTrack


class Trajectory:
    """What a record holds and what follows from it, each computed once.

    Args:
        record: Of the run.
        pairing: Keyword arguments of `find_pairs`.
        own_data: The field ``data`` of the configuration that the user's own command has composed; None for a record
            from anywhere, whose data set is made as `opposing_signals.data.recorded` allows.
        named_data: Whether a record from anywhere may name the text that is read.
    """

    def __init__(
        self,
        record: Record,
        pairing: Mapping[str, Any] | None = None,
        own_data: Mapping[str, Any] | None = None,
        named_data: bool = False,
    ) -> None:
        self.record = record
        self._pairing = dict(pairing or {})
        self._own_data = own_data
        self._named_data = named_data

    @property
    def configuration(self) -> dict[str, Any]:
        """What decided the run's numbers."""
        return self.record.configuration

    @cached_property
    def dataset(self) -> Dataset:
        """The run's data set, loaded again."""
        described, own = self.configuration.get("data"), self._own_data
        if own is None:
            return recorded(described, self.record.folder, named_data=self._named_data)
        if described == without_root(own):
            return instantiate(own)
        # A job of a sweep over data: its own command has written this record, so what it names was asked for.
        return recorded(described, self.record.folder, own.get("root"), named_data=True)

    @property
    def curve(self) -> tuple[np.ndarray, np.ndarray]:
        """``[N]`` x and ``[N]`` targets of a regression in one variable.

        Raises:
            InputError: The run was trained on something else.
        """
        inputs, targets = self.dataset.inputs, self.dataset.targets
        if not inputs.shape[1:] == targets.shape[1:] == (1,):
            raise InputError(
                f"run {self.configuration['run']['name']}: {self.dataset.name} has inputs {list(inputs.shape[1:])} and "
                f"targets {list(targets.shape[1:])}: expected one number for each example, as data=chebyshev has; "
                "choose run=chebyshev_gd, or an experiment that draws no curve"
            )
        return inputs.numpy().ravel(), targets.numpy().ravel()

    @property
    def step_size(self) -> float:
        """η."""
        return float(self.configuration["optimizer"]["lr"])

    @cached_property
    def losses(self) -> Series:
        """``values`` ``[T, N]``: ℓ_i(θ_t) at each recorded step."""
        return self.record["sample_loss"]

    @cached_property
    def mean_loss(self) -> Series:
        """L(θ_t) over all training points at each step at which they were recorded."""
        return Series(self.losses.steps, np.asarray(self.losses.values).mean(1, dtype=np.float64))

    def losses_between(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """``[t]`` recorded steps from ``first`` to ``last``, both included, and ``[t, N]`` losses at them."""
        steps = np.asarray(self.losses.steps)
        rows = np.flatnonzero((steps >= first) & (steps <= last))
        return steps[rows], np.asarray(self.losses.values[rows])

    @cached_property
    def changes(self) -> Series:
        """``values`` ``[T', N]``: one-step changes Δ_i(t), for each t where θ_t and θ_{t+1} were both recorded."""
        steps, values = np.asarray(self.losses.steps), self.losses.values
        rows = np.flatnonzero(np.diff(steps) == 1)
        changes = np.empty((len(rows), values.shape[1]), values.dtype)
        for i, row in enumerate(rows):
            np.subtract(values[row + 1], values[row], out=changes[i])
        return Series(steps[rows], changes)

    @cached_property
    def sharpness(self) -> Series:
        """λ at each step at which it was measured."""
        return self.record["sharpness"]

    @cached_property
    def break_even(self) -> int | None:
        """The first measured step with λ >= 2/η; None if the run never got there or λ was not measured."""
        if "sharpness" not in self.record:
            return None
        reached = np.flatnonzero(self.sharpness.values >= 2 / self.step_size)
        return int(self.sharpness.steps[reached[0]]) if len(reached) else None

    def after_break_even(self, series: Series) -> Series:
        """The part of ``series`` from the break-even step on; empty if the run never got there."""
        start = np.inf if self.break_even is None else self.break_even
        chosen = np.asarray(series.steps) >= start
        return Series(np.asarray(series.steps)[chosen], np.asarray(series.values)[chosen])

    @cached_property
    def tokens(self) -> TokenTrack:
        """The tokens that a text run has followed."""
        return TokenTrack(self.record, self.dataset)

    @cached_property
    def pairs(self) -> list[OpposingPair]:
        """The dominant opposing pairs, the largest amplitude first; their rows are those of `changes`."""
        return find_pairs(self.changes.values, **self._pairing)

    @cached_property
    def interval_coverages(self) -> list[float]:
        """Of each of `pairs`, in a regression in one variable: see `interval_coverage`."""
        place = self.curve[0].argsort().argsort()
        return [interval_coverage(place[pair.rising], place[pair.falling], len(place)) for pair in self.pairs]

    @property
    def title(self) -> str:
        """What a figure of the run draws, for instance "planted_mlp: mlp, planted (480 images), η = 0.03"."""
        network = str(self.configuration["model"]["_target_"]).rpartition(".")[2]
        data = self.record.provenance["data"]["name"]
        return f"{self.configuration['run']['name']}: {network}, {data}, η = {self.step_size:g}"

    @cached_property
    def discoveries(self) -> list[Discovery]:
        """The opposing pairs with all their members, by loss series; the one of largest amplitude first."""
        return discover(self.changes.steps, self.changes.values)

    @cached_property
    def gradient_discoveries(self) -> list[Discovery]:
        """The same by the alignment of per-sample gradients, from a run with the instrument `GradientSketch`."""
        sketches = self.record["gradient_sketch"]
        return discover_by_gradients(sketches.steps, sketches.values, (self.changes.steps, self.changes.values))


class Runs(dict[str, Trajectory]):
    """The complete runs of an experiment by name, and what became of the others.

    Args:
        complete: By name.
        stopped: Runs whose loss is not finite, up to that step.
        failures: Name ↦ why it is not complete; of every run that was stopped, and of those that never began.
    """

    def __init__(
        self,
        complete: Mapping[str, Trajectory],
        stopped: Mapping[str, Trajectory] | None = None,
        failures: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(complete)
        self.stopped = dict(stopped or {})
        self.failures = dict(failures or {})

    @classmethod
    def of(cls, trajectories: Mapping[str, Trajectory]) -> Runs:
        """``trajectories`` themselves, or complete runs if they say nothing about others."""
        return trajectories if isinstance(trajectories, cls) else cls(trajectories)
