"""Statistics of §3.3: statements over a grid of models, and the three phases of single runs.

The runs are those of `opposing_signals.studies.theory.jobs`, which says what they record.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from opposing_signals.record import quantities
from opposing_signals.signals.trajectory import Trajectory
from opposing_signals.studies.claim import CannotTellError, Estimate
from opposing_signals.studies.runs import Trajectories, break_even, only_run
from opposing_signals.studies.theory import deep, toy

NEGLIGIBLE = 0.01
"""Steps along the outlier direction below this share of the largest one do not count as oscillation."""


def share_holding(
    trajectories: Trajectories, statements: Sequence[str], conditions: Sequence[str] = (), smallest_k: float = 1.0
) -> Estimate:
    """Share of the models of the grid that meet the conditions at which all the statements hold."""
    trajectory = only_run(trajectories)
    chosen = _all(trajectory, "conditions", conditions) & (trajectory.record[quantities.GRID].at(0)["k"] >= smallest_k)
    if not chosen.any():
        raise CannotTellError(f"no model of the grid meets {', '.join(conditions)}")
    return Estimate(float(_all(trajectory, "holds", statements)[chosen].mean()))


def coverage_ratio(
    trajectories: Trajectories, statements: Sequence[str], wider: Sequence[str], narrower: Sequence[str]
) -> Estimate:
    """Models at which the statements hold that meet the first conditions, over those that meet the second."""
    trajectory = only_run(trajectories)
    holds = _all(trajectory, "holds", statements)
    first, second = (np.count_nonzero(holds & _all(trajectory, "conditions", c)) for c in (wider, narrower))
    if not second:
        raise CannotTellError("no model meets the second conditions")
    return Estimate(first / second)


def growth_steps(trajectories: Trajectories, alternating: bool) -> Estimate:
    """Share of the steps between break-even and the largest b_o that enlarge b_o (or: that reverse it), smallest run.

    Over the step sizes 1.03 to 1.8 times 2/(α‖β‖): above the edge, below the divergence that begins at about 4/(α‖β‖).
    """
    trajectory = only_run(trajectories)
    shares = []
    for index, ratio in enumerate(trajectory.record[quantities.DESCENT_RATIO].values):
        if not 1.03 <= ratio <= 1.8:
            continue
        begin, end = growth_window(trajectory, index)
        if end > begin:
            size = trajectory.record[quantities.DESCENT_LOG_B_O].values[index, begin : end + 1]
            sign = trajectory.record[quantities.DESCENT_SIGN].values[index, begin : end + 1]
            steps = sign[1:] * sign[:-1] < 0 if alternating else np.diff(size) > 0
            shares.append(steps.mean())
    if not shares:
        raise CannotTellError("b_o grew in no run with such a step size")
    return Estimate(float(min(shares)))


def growth_window(trajectory: Trajectory, index: int) -> tuple[int, int]:
    """First step with λ ≥ 2/η under the ``index``-th step size, and that of the largest ``b_o`` after it."""
    size = trajectory.record[quantities.DESCENT_LOG_B_O].values[index]
    above = np.flatnonzero(trajectory.record[quantities.DESCENT_ETA_LAMBDA].values[index] >= 2)
    if not above.size:
        return 0, 0
    begin = int(above[0])
    finite = np.append(np.isfinite(size[begin:]), False)
    return begin, begin + int(np.argmax(size[begin : begin + int(np.argmin(finite))]))


def largest_stable_step(trajectories: Trajectories) -> Estimate:
    """Largest step size at which b_o shrinks at every step, over 2/(α‖β‖)."""
    trajectory = only_run(trajectories)
    ratios, sizes = (trajectory.record[name].values for name in (quantities.DESCENT_RATIO, quantities.DESCENT_LOG_B_O))
    # A size of e^{−∞} is 0 for ever; what has diverged compares as false.
    shrinking = [ratio for ratio, size in zip(ratios, sizes, strict=True) if np.all(size[1:] < size[:-1])]
    if not shrinking:
        raise CannotTellError("b_o grew at every step size")
    return Estimate(float(max(shrinking)))


def largest_returning_step(trajectories: Trajectories) -> Estimate:
    """Largest step size, below the first that diverges, at which descent ends with λ < 2/η, over 4/(α‖β‖)."""
    trajectory = only_run(trajectories)
    ratios = trajectory.record[quantities.DESCENT_RATIO].values
    last = trajectory.record[quantities.DESCENT_ETA_LAMBDA].values[:, -1]
    diverged = ~np.isfinite(last)
    if not diverged.any():
        raise CannotTellError("no step size of the run diverges")
    below = ratios[: int(np.argmax(diverged))][last[: int(np.argmax(diverged))] < 2]
    if not below.size:
        raise CannotTellError("no step size returns")
    return Estimate(float(below.max()) / 2)


def initial_decrease(trajectories: Trajectories) -> Estimate:
    """Smallest λ before break-even over λ at the start, largest over the runs."""
    worst = _worst(trajectories, lambda t, b: float(t.sharpness.values[: b + 1].min() / t.sharpness.values[0]), max)
    return replace(worst, reason="; ".join(map(_lasts, trajectories.values())))


def growth_to_break_even(trajectories: Trajectories) -> Estimate:
    """λ at break-even over its smallest value before, smallest over the runs."""
    return _worst(trajectories, lambda t, b: float(t.sharpness.values[b] / t.sharpness.values[: b + 1].min()), min)


def phase_order(trajectories: Trajectories) -> Estimate:
    """Fewest steps between successive ones of: start, smallest λ, break-even, largest oscillation; over the runs."""

    def fewest(trajectory: Trajectory, break_even: int) -> float:
        lowest = int(np.argmin(trajectory.sharpness.values[: break_even + 1]))
        largest = break_even + int(np.argmax(np.abs(oscillation(trajectory)[break_even:])))
        return float(np.diff([0, lowest, break_even, largest]).min())

    worst = _worst(trajectories, fewest, min)
    return replace(worst, reason="; ".join(map(_lasts, trajectories.values())))


def _lasts(trajectory: Trajectory) -> str:
    """How long λ decreases, which may be a single step."""
    lowest = int(np.argmin(trajectory.sharpness.values[: break_even(trajectory) + 1]))
    return f"λ is smallest at step {lowest}, of {break_even(trajectory)} to break-even"


def alternation(trajectories: Trajectories) -> Estimate:
    """Share of the steps from break-even on that reverse the step before along the outliers' direction.

    Steps below 1% of the largest do not count. Smallest over the runs.
    """

    def share(trajectory: Trajectory, break_even: int) -> float:
        moves = oscillation(trajectory)[break_even:]
        counted = np.abs(moves[1:]) >= NEGLIGIBLE * np.abs(moves).max()
        return float((moves[1:] * moves[:-1] < 0)[counted].mean())

    return _worst(trajectories, share, min)


def oscillation_growth(trajectories: Trajectories) -> Estimate:
    """Largest step along the outliers' direction after break-even over that at break-even, smallest over the runs."""

    def ratio(trajectory: Trajectory, break_even: int) -> float:
        moves = np.abs(oscillation(trajectory)[break_even:])
        return float(moves.max() / max(moves[0], np.finfo(float).tiny))

    return _worst(trajectories, ratio, min)


def group_correlation(trajectories: Trajectories) -> Estimate:
    """Correlation, from break-even on, of the one-step changes of both groups' losses, largest over the runs."""

    def correlation(trajectory: Trajectory, break_even: int) -> float:
        changes = np.diff(trajectory.record[quantities.GROUP_LOSS].values[:, :2], axis=0)[break_even:]
        return float(np.corrcoef(changes.T)[0, 1])

    return _worst(trajectories, correlation, max)


def final_sharpness_error(trajectories: Trajectories) -> Estimate:
    """Largest abs deviation, over the runs, of λ at the end of gradient flow from α‖β‖^{2(L−1)/L}, relative to it."""
    errors = []
    for trajectory in trajectories.values():
        theory = trajectory.configuration["theory"]
        predicted = deep.final_sharpness(theory["alpha"], theory["beta_norm"], theory["layers"])
        errors.append(abs(trajectory.record[quantities.FLOW_SHARPNESS].at(0) / predicted - 1))
    return Estimate(float(max(errors)))


def approach(trajectories: Trajectories) -> Estimate:
    """Share of the steps before break-even that bring the iterate nearer to the minimum."""
    distance, reached = _distance(trajectories)
    return Estimate(float((np.diff(distance[: reached + 1]) < 0).mean()))


def side_changes(trajectories: Trajectories) -> Estimate:
    """Share of the steps from break-even on that end on the other side of the minimum."""
    offset, reached = _offset(trajectories)
    offset = offset[reached:]
    return Estimate(float((offset[1:] * offset[:-1] < 0).mean()))


def divergence_from_minimum(trajectories: Trajectories) -> Estimate:
    """Distance from the minimum at the end over that at break-even."""
    distance, reached = _distance(trajectories)
    return Estimate(float(distance[-1] / distance[reached]))


def turning_point(trajectories: Trajectories) -> Estimate:
    """Steps from break-even to the iterate nearest to the minimum."""
    distance, reached = _distance(trajectories)
    return Estimate(float(np.argmin(distance) - reached))


def two_cycle_ratio(trajectories: Trajectories) -> Estimate:
    """Distance from the minimum at the end over that of the cycle of period 2 (share of planes ½)."""
    trajectory = only_run(trajectories)
    cycle = toy.two_cycle(float(trajectory.record[quantities.MAGNITUDE].values[-1]), trajectory.step_size)
    if not cycle:
        raise CannotTellError("the last valley is stable")
    distance, _ = _distance(trajectories)
    return Estimate(float(distance[-1] / cycle))


def oscillation(trajectory: Trajectory) -> np.ndarray:
    """Steps along the outliers' direction, ``[T − 1]``."""
    return np.diff(trajectory.record[quantities.PROJECTION].values)


def _offset(trajectories: Trajectories) -> tuple[np.ndarray, int]:
    """``[T]`` iterate less the minimum, and the step of break-even."""
    trajectory = only_run(trajectories)
    iterate, minimum = (trajectory.record[name].values for name in (quantities.WEIGHT, quantities.MINIMUM))
    return iterate - minimum, break_even(trajectory)


def _distance(trajectories: Trajectories) -> tuple[np.ndarray, int]:
    offset, reached = _offset(trajectories)
    return np.abs(offset), reached


def _worst(
    trajectories: Trajectories,
    statistic: Callable[[Trajectory, int], float],
    choose: Callable[[list[float]], float],
) -> Estimate:
    """Over the runs, the least favourable of ``statistic(trajectory, step of break-even)``."""
    values = []
    for name, trajectory in trajectories.items():
        if trajectory.break_even is None or trajectory.break_even >= len(trajectory.sharpness) - 2:
            raise CannotTellError(f"{name}: λ did not reach 2/η, or at its end only")
        values.append(statistic(trajectory, trajectory.break_even))
    return Estimate(choose(values))


def _all(trajectory: Trajectory, quantity: str, names: Sequence[str]) -> np.ndarray:
    table = trajectory.record[quantity].at(0)
    return np.logical_and.reduce([np.ones(table.shape, dtype=bool), *(table[name] for name in names)])
