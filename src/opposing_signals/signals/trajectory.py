"""A recorded run as figures and claims read it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
from hydra.utils import instantiate

from opposing_signals.configuration import without_root
from opposing_signals.data import Dataset, recorded
from opposing_signals.errors import DamagedError, InputError
from opposing_signals.networks import network_name
from opposing_signals.record import Record, Series
from opposing_signals.record.quantities import GRADIENT_SKETCH, SAMPLE_LOSS, SHARPNESS
from opposing_signals.signals.alignment import ALIKE
from opposing_signals.signals.edge import NO_EDGE, edge_of_stability, reaches
from opposing_signals.signals.gradient_pairs import find_pairs_by_gradients
from opposing_signals.signals.intervals import interval_coverage
from opposing_signals.signals.pairs import OpposingPair, find_pairs, outliers_of
from opposing_signals.signals.steps import between, one_step_changes
from opposing_signals.signals.tokens import TokenTrack

DOMINANT = 4
"""Maximum number of pairs that figures draw and claims check: those of largest amplitude."""


class Trajectory:
    """What a record holds and what follows from it, each computed once.

    Args:
        record: The run's record.
        pairing: Keyword arguments of `find_pairs`.
        own_data: The field ``data`` of the configuration that the user's own command has composed; None for a record
            of unknown origin, whose data set is built as `opposing_signals.data.recorded` allows.
        named_data: Whether a record of unknown origin may name the text file that is read.
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
        """The configuration that determines the run's numbers."""
        return self.record.configuration

    @cached_property
    def dataset(self) -> Dataset:
        """The run's data set, loaded again."""
        described, own = self.configuration.get("data"), self._own_data
        if own is None:
            return recorded(described, self.record.folder, named_data=self._named_data)
        if described == without_root(own):
            return instantiate(own)
        # A job of a sweep over data: its own command wrote this record, so the user asked for the data that it names.
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
        """η.

        Raises:
            DamagedError: The configuration names none.
        """
        optimizer = self.configuration.get("optimizer")
        given = optimizer.get("lr") if isinstance(optimizer, dict) else None
        if isinstance(given, bool) or not isinstance(given, int | float):
            raise DamagedError(
                f"{self.record.folder / 'configuration.json'} has no step size: optimizer.lr is {given!r}"
            )
        return float(given)

    @cached_property
    def losses(self) -> Series:
        """``values`` ``[T, N]``: ℓ_i(θ_t) at each recorded step."""
        return self.record[SAMPLE_LOSS]

    @cached_property
    def mean_loss(self) -> Series:
        """L(θ_t) over all training points at each step at which they were recorded."""
        return Series(self.losses.steps, np.asarray(self.losses.values).mean(1, dtype=np.float64))

    def losses_between(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """``[t]`` recorded steps from ``first`` to ``last``, both included, and ``[t, N]`` losses at them."""
        part = between(self.losses, first, last)
        return np.asarray(part.steps), part.values

    def group_loss(self, group: np.ndarray, first: float = -np.inf, last: float = np.inf) -> Series:
        """``values`` ``[t]``: mean loss of some points at each recorded step from ``first`` to ``last``."""
        steps = np.asarray(self.losses.steps)
        start, stop = np.searchsorted(steps, first), np.searchsorted(steps, last, "right")
        rows = self.losses.values[start:stop]
        means = np.array([np.asarray(row)[group].mean(dtype=np.float64) for row in rows])
        return Series(steps[start:stop], means)

    @cached_property
    def changes(self) -> Series:
        """``values`` ``[T', N]``: one-step changes Δ_i(t), for each t where θ_t and θ_{t+1} were both recorded."""
        return one_step_changes(self.losses)

    @cached_property
    def sharpness(self) -> Series:
        """λ at each step at which it was measured."""
        return self.record[SHARPNESS]

    @cached_property
    def edge(self) -> float | None:
        """2/η where that is the edge of stability; see `edge_of_stability`."""
        return edge_of_stability(self.record)

    @cached_property
    def break_even(self) -> int | None:
        """The first measured step with λ >= `edge`; None if the run has no edge, never got there, or λ is not known."""
        if self.edge is None or SHARPNESS not in self.record:
            return None
        reached = np.flatnonzero(reaches(self.sharpness.values, self.edge))
        return int(self.sharpness.steps[reached[0]]) if len(reached) else None

    @property
    def no_break_even(self) -> str:
        """Why there is no break-even."""
        if self.edge is None:
            return NO_EDGE
        return "λ did not reach 2/η" if SHARPNESS in self.record else "λ was not measured"

    def after_break_even(self, series: Series) -> Series:
        """The part of ``series`` from the break-even step on; empty if the run never got there."""
        return between(series, np.inf if self.break_even is None else self.break_even, np.inf)

    @cached_property
    def tokens(self) -> TokenTrack:
        """The tokens that a text run has followed."""
        return TokenTrack(self.record, self.dataset)

    @cached_property
    def all_pairs(self) -> list[OpposingPair]:
        """The opposing pairs with all their members, the one of largest amplitude first."""
        return find_pairs(self.changes, **self._pairing)

    @cached_property
    def pairs(self) -> list[OpposingPair]:
        """The dominant pairs, each reduced to at most 20 outliers per group (§2); the largest amplitude first.

        Only pairs whose mean changes correlate negatively. A pair that opposes only apart from leaps which all points
        share is in `all_pairs` alone.
        """
        opposed = [pair for pair in self.all_pairs if pair.correlation < -ALIKE]
        outliers = [outliers_of(pair, self.changes) for pair in opposed]
        return sorted(outliers, key=lambda pair: -pair.amplitude)[:DOMINANT]

    @property
    def pairs_in_time(self) -> list[OpposingPair]:
        """The same in order of their steps, as figures draw and number them."""
        return sorted(self.pairs, key=lambda pair: pair.step)

    @cached_property
    def gradient_pairs(self) -> list[OpposingPair]:
        """Pairs by the alignment of per-sample gradients, from a run with the instrument `GradientSketch`."""
        return find_pairs_by_gradients(self.record[GRADIENT_SKETCH], self.changes)

    @cached_property
    def interval_coverages(self) -> list[float]:
        """Of each of `pairs`, in a regression in one variable: see `interval_coverage`."""
        place = self.curve[0].argsort().argsort()
        return [interval_coverage(place[pair.rising], place[pair.falling], len(place)) for pair in self.pairs]

    @property
    def title(self) -> str:
        """Title of a figure of the run, for instance "planted_mlp: mlp, planted (480 images), η = 0.03"."""
        data = self.record.provenance["data"]["name"]
        return f"{self.configuration['run']['name']}: {self.network}, {data}, η = {self.step_size:g}"

    @property
    def network(self) -> str:
        """The network, for instance "VGG-11-BN" or "ResNet-18 (width 16 of 64)"; the run's name, if it has no model."""
        model = self.configuration.get("model", {})
        built = str(model.get("_target_", self.configuration["run"]["name"])).rpartition(".")[2]
        return network_name(built, model.get("depth"), bool(model.get("batch_norm")), model.get("width"))


class Runs(dict[str, Trajectory]):
    """The complete runs of an experiment by name, and what became of the others.

    Args:
        complete: The complete runs by name.
        stopped: Runs whose loss is not finite, up to that step.
        failures: Name ↦ reason, for every run that was stopped or never began.
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

    @property
    def with_stopped(self) -> dict[str, Trajectory]:
        """The complete runs, and the stopped ones as far as they got."""
        return {**self, **self.stopped}

    @classmethod
    def of(cls, trajectories: Mapping[str, Trajectory]) -> Runs:
        """``trajectories`` themselves if they are `Runs`; else as complete runs."""
        return trajectories if isinstance(trajectories, cls) else cls(trajectories)

    def by_seed(self) -> dict[int, Runs]:
        """The runs of each seed, in ascending order, with the names that they have in a grid without seeds.

        A run that never began may belong to any seed, so each has its failure. One without a seed counts as of seed 0.
        """
        seeds = {name: int(run.configuration.get("seed") or 0) for name, run in self.with_stopped.items()}
        if len(distinct := sorted({*seeds.values()})) < 2:
            return dict.fromkeys(distinct, self)
        return {seed: self._without({name for name in seeds if seeds[name] != seed}) for seed in distinct}

    def _without(self, others: set[str]) -> Runs:
        """The runs of one seed, which are all but ``others``."""
        names = _names_without_seed({name: run for name, run in self.with_stopped.items() if name not in others})
        complete, stopped = (
            {names[name]: run for name, run in part.items() if name not in others} for part in (self, self.stopped)
        )
        failures = {
            names.get(name, _without_seed(name)): why for name, why in self.failures.items() if name not in others
        }
        return Runs(complete, stopped, failures)


def _names_without_seed(begun: Mapping[str, Trajectory]) -> dict[str, str]:
    """Each job's name in a grid without seeds: in one of runs alone that of its run, where no two jobs share it."""
    names = {name: _without_seed(name) for name in begun}
    of_runs = {name: str(run.configuration.get("run", {}).get("name", "")) for name, run in begun.items()}
    is_of_runs = not any("=" in name for name in names.values()) and all(of_runs.values())
    return of_runs if is_of_runs and len({*of_runs.values()}) == len(of_runs) else names


def _without_seed(name: str) -> str:
    """A job's name in a grid without seeds, for instance "vgg11_sgd" for "run=vgg11_sgd,seed=2"."""
    parts = [part for part in name.split(",") if not part.startswith("seed=")]
    return parts[0].removeprefix("run=") if len(parts) == 1 else ",".join(parts) or name
