"""A pure signal passed through the network along a run: how its feature rises, oscillates and declines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy

from opposing_signals.errors import InputError
from opposing_signals.record import Series
from opposing_signals.record.quantities import (
    MEAN_FEATURE_NORM,
    PROBE_FEATURE_NORM,
    PROBE_IMAGE,
    PROBE_LOGITS,
    TRAIN_LOSS,
)
from opposing_signals.signals.trajectory import Trajectory

MEDIAN = 5
"""Number of values over which a norm's peak and end are medians."""


@dataclass(frozen=True)
class ProbePath:
    """One probe along a run.

    Attributes:
        name: As in the instrument's ``probes``.
        picture: ``[H, W, 3]`` uint8.
        steps: ``[T]``, the measured steps.
        logits: ``[T, C]``.
        norm: ``[T]``, norm of its penultimate feature.
        mean_norm: ``[T]``, the mean of that norm over the training data.
    """

    name: str
    picture: np.ndarray
    steps: np.ndarray
    logits: np.ndarray
    norm: np.ndarray
    mean_norm: np.ndarray

    @cached_property
    def probabilities(self) -> np.ndarray:
        """``[T, C]``, the softmax of the logits."""
        return scipy.special.softmax(self.logits, axis=1)

    @cached_property
    def level(self) -> np.ndarray:
        """``[T - 1]``: the norm averaged over two successive steps, to be independent of the oscillation's phase."""
        return _over_two(self.norm)

    @cached_property
    def course(self) -> np.ndarray:
        """``[T - 1]``: the running median of `level`, robust to a single leap and to the last oscillation.

        Over five values; at the start the first value itself, at the end the median of the last five.
        """
        course = scipy.ndimage.median_filter(self.level, MEDIAN, mode="nearest")
        course[-(MEDIAN // 2) :] = np.median(self.level[-MEDIAN:])
        return course

    @cached_property
    def peak(self) -> int:
        """The first row of the highest value of `course`."""
        return int(np.argmax(self.course))

    @property
    def growth_over_mean(self) -> float:
        """Growth of `course` from the start to its peak, over the growth of the data's mean norm in that time."""
        mean = _over_two(self.mean_norm)
        return self.rise * float(mean[0] / mean[self.peak])

    @property
    def rise(self) -> float:
        """Peak of `course` over its first value."""
        return float(self.course[self.peak] / self.course[0])

    @property
    def remainder(self) -> float:
        """Last value of `course` over its peak."""
        return float(self.course[-1] / self.course[self.peak])

    @cached_property
    def alternation(self) -> Series:
        """``values`` ``[T']`` in [0, 1]: how much probability moves from t to t+1, and back before and after.

        With the changes δ_t = p(t+1) − p(t) of the class probabilities it is half the sum over classes of
        abs(δ_{t−1} − 2δ_t + δ_{t+1})/4. A change that reverses at every step counts in full, a single change
        by half, a steady drift not at all.
        """
        rows = np.flatnonzero(self.steps[3:] - self.steps[:-3] == 3)
        p = self.probabilities
        alternating = p[rows + 3] - 3 * p[rows + 2] + 3 * p[rows + 1] - p[rows]
        return Series(self.steps[rows + 1], np.abs(alternating).sum(1) / 8)

    def shown_step(self, first_step: int) -> int | None:
        """The step t from ``first_step`` on whose change the probability panels show.

        Among the steps that change the dominant class, the one with the largest `alternation`; if there are none, among
        all steps.

        Returns:
            None if four steps in a row were not measured.
        """
        late = self.alternation.steps >= first_step
        if not late.any():
            return None
        steps, values = self.alternation.steps[late], self.alternation.values[late]
        dominant = self.logits.argmax(1)
        rows = np.searchsorted(self.steps, steps)
        changes = dominant[rows] != dominant[rows + 1]
        return int(steps[np.argmax(np.where(changes, values, -1) if changes.any() else values)])

    def dominant_class(self, first_step: int) -> int:
        """The class with the largest mean probability from ``first_step`` on."""
        return int(self.probabilities[self.steps >= first_step].mean(0).argmax())

    def successive_changes(self, first_step: int) -> np.ndarray:
        """``[M, 2]``: changes of the dominant class's probability in a step and in the next, from ``first_step`` on."""
        rows = np.flatnonzero((self.steps[2:] - self.steps[:-2] == 2) & (self.steps[:-2] >= first_step))
        if not len(rows):
            return np.empty((0, 2))
        probability = self.probabilities[:, self.dominant_class(first_step)].astype(np.float64)
        changes = np.diff(probability)
        return np.stack([changes[rows], changes[rows + 1]], axis=1)


def _over_two(values: np.ndarray) -> np.ndarray:
    return (values[1:] + values[:-1]) / 2


def check_probe(name: str, probes: Sequence[str], run: str) -> None:
    """Refuse a probe that a run does not have.

    Raises:
        InputError: It is none of the run's ``probes``.
    """
    if name not in probes:
        raise InputError(
            f"experiment.probe={name}: the run {run} passes {', '.join(probes) or 'no probes'} through its network; "
            "set instruments.block_probe.probes to a list with that probe in it"
        )


def probe_path(trajectory: Trajectory, name: str) -> ProbePath:
    """The probe ``name`` along a run with the instrument `BlockProbe`.

    Raises:
        InputError: The run has no such probe, or measured it at one step only; or its loss is not cross-entropy, so
            that a softmax of its outputs means nothing.
    """
    configuration = trajectory.configuration
    probes = [str(probe) for probe in configuration["instruments"].get("block_probe", {}).get("probes", [])]
    check_probe(name, probes, configuration["run"]["name"])
    if not configuration["loss"]["_target_"].endswith("CrossEntropyLoss"):
        raise InputError("the class probabilities of a probe need a run with loss=cross_entropy")
    record, column = trajectory.record, probes.index(name)
    logits = record[PROBE_LOGITS]
    if len(logits) < 2:
        raise InputError("the probes were passed through the network at one step; expected at least 2: set more steps")
    return ProbePath(
        name,
        np.asarray(record[PROBE_IMAGE].values[0, column]),
        np.asarray(logits.steps),
        np.asarray(logits.values)[:, column],
        np.asarray(record[PROBE_FEATURE_NORM].values)[:, column],
        np.asarray(record[MEAN_FEATURE_NORM].values),
    )


def lag_one_autocorrelation(successive: np.ndarray) -> float:
    """Correlation of the columns of ``[M, 2]``: a quantity and its successor; NaN if one of them never varies."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(np.corrcoef(successive.T)[0, 1])


def times(trajectory: Trajectory, steps: np.ndarray) -> np.ndarray:
    """Time Σ η that has passed at ``steps``."""
    return steps * trajectory.step_size


def norm_at_loss(trajectory: Trajectory, path: ProbePath, loss: float) -> float:
    """`ProbePath.level` when the train loss first falls to ``loss``, relative to its peak until then.

    NaN if the run did not reach that loss.
    """
    losses = trajectory.record[TRAIN_LOSS]
    reached = path.steps[np.isin(path.steps, np.asarray(losses.steps)[np.asarray(losses.values) <= loss])]
    if not len(reached):
        return float("nan")
    until = path.level[: int(np.searchsorted(path.steps, reached[0])) + 1]
    return float(until[-1] / until.max())


def common_loss(*trajectories: Trajectory) -> float:
    """The smallest train loss that all the runs reach."""
    return max(float(np.min(trajectory.record[TRAIN_LOSS].values)) for trajectory in trajectories)
