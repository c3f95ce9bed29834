"""The opposing pairs of a finished run, compared with chance.

python benchmarks/chance.py RECORD --spike 53 59 [--shuffles 20]

Four tables for the dominant pairs, the groups of figures 1 and 6a:

1. The fraction of the train loss's rise from the first to the last step of the spike that their members carry.
2. Correlation and amplitude on held-out steps: the groups are found on alternating blocks of two steps, and measured on
   the other steps.
3. What the same search finds under the null hypothesis: every change has a random sign, or every point's changes are in
   a random order of their own. With the test (level 0.05), and the statistics of the claims for the groups that the
   search finds without it (level 1).
4. Images of the group's class that look like the group, images of its class that look least like it, and images of
   other classes that look like it; none of them a member of the group. Images are compared by the mean colour of their
   border. Each kind is given with its correlation with the group and its amplitude.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from markdown_tables import print_table

from opposing_signals.record import Record, Series
from opposing_signals.signals import Trajectory, name_group, name_pair
from opposing_signals.signals.alignment import correlation
from opposing_signals.signals.names import EDGE
from opposing_signals.signals.selection import risers
from opposing_signals.signals.steps import between
from opposing_signals.studies.claim import CannotTellError, Estimate
from opposing_signals.studies.estimates import correlation_over_steps, random_groups
from opposing_signals.studies.groups.claims import group_amplitude_ratio, pair_correlation
from opposing_signals.studies.optimizers.claims import group_variance_ratio
from opposing_signals.studies.runs import Trajectories

LEVEL = 0.05
"""Level of the test against chance, as in `find_pairs`."""

ALIKE = 40
"""Number of images of each kind in the fourth table."""

STATISTICS: dict[str, Callable[[Trajectories], Estimate]] = {
    "correlation": pair_correlation,
    "amplitude ratio": group_amplitude_ratio,
    "variance ratio": group_variance_ratio,
}


def spike(trajectory: Trajectory, first: int, last: int) -> Iterator[list[str]]:
    """Rows of the first table."""
    losses = trajectory.losses
    rises = losses.at(last).astype(np.float64) - losses.at(first)
    outliers = [pair.members for pair in trajectory.pairs]
    full = [one.members for pair in trajectory.pairs for one in trajectory.all_pairs if one.window == pair.window]
    yield ["points", "number", "of all", "part of the rise"]
    for number, pair in enumerate(trajectory.pairs, 1):
        yield _carried(f"pair {number}: {name_pair(trajectory.dataset, pair)}", rises, pair.members)
    together = np.unique(np.concatenate(outliers))
    yield _carried("their groups together", rises, together)
    yield _carried("all members of these pairs", rises, np.unique(np.concatenate(full)))
    random = [rises[draw].sum() / rises.sum() for draw in random_groups(len(rises), len(together))]
    low, high = np.percentile(random, [2.5, 97.5])
    yield ["as many random points", str(len(together)), _share(len(together), rises), f"{low:.2f} to {high:.2f}"]
    yield _carried("as many points that rise most", rises, risers(rises, len(together)))


def _carried(name: str, rises: np.ndarray, points: np.ndarray) -> list[str]:
    return [name, str(len(points)), _share(len(points), rises), f"{rises[points].sum() / rises.sum():.2f}"]


def _share(count: int, rises: np.ndarray) -> str:
    return f"{count / len(rises):.1%}"


def halves(trajectory: Trajectory) -> Iterator[list[str]]:
    """Rows of the second table."""
    yield ["found in", "pair", "correlation there", "in the other steps", "amplitude there", "in the other steps"]
    rows = np.arange(len(trajectory.changes)) % 4 < 2
    for name, chosen in (("steps 0, 1, 4, 5, …", rows), ("steps 2, 3, 6, 7, …", ~rows)):
        half, rest = (Series(trajectory.changes.steps[at], trajectory.changes.values[at]) for at in (chosen, ~chosen))
        searched = Trajectory(trajectory.record)
        searched.changes = half
        for pair in searched.pairs:
            here, there = (between(part, *pair.window).values for part in (half, rest))
            measured = correlation_over_steps(*(there[:, group].mean(1, dtype=np.float64) for group in pair.groups))
            yield [
                name,
                name_pair(trajectory.dataset, pair),
                f"{pair.correlation:.2f}",
                f"{measured.value:.2f} ({_interval(measured)})",
                *(" and ".join(f"{_amplitude(part, group):.1f}" for group in pair.groups) for part in (here, there)),
            ]


def _interval(estimate: Estimate) -> str:
    return "{:.2f} to {:.2f}".format(*estimate.interval) if estimate.interval else "too few steps"


def _amplitude(changes: np.ndarray, group: np.ndarray) -> float:
    """Median absolute change of a group's mean loss, over that of random groups of equal size."""
    draws = random_groups(changes.shape[1], len(group))
    random = np.mean([np.abs(changes[:, draw].mean(1)) for draw in draws], axis=0)
    return float(np.median(np.abs(changes[:, group].mean(1))) / np.median(random))


def shuffled(trajectory: Trajectory, shuffles: int) -> Iterator[list[str]]:
    """Rows of the third table."""
    yield ["data", "with a pair", "p-values", *STATISTICS]
    yield ["the run", "1 of 1", ", ".join(f"{pair.p_value:.1g}" for pair in trajectory.pairs), *_values([trajectory])]
    for name, shuffle in (("random signs", _signs), ("steps shuffled", _steps)):
        tested: list[Trajectory] = []
        untested: list[Trajectory] = []
        for seed in range(shuffles):
            changes = shuffle(trajectory.changes.values, np.random.default_rng(seed))
            losses = np.cumsum(np.concatenate([trajectory.losses.values[:1], changes]), axis=0)
            for level, found in ((LEVEL, tested), (1.0, untested)):
                one = Trajectory(trajectory.record, {"level": level})
                one.losses = Series(trajectory.losses.steps, losses)
                found.append(one)
        count = sum(bool(one.all_pairs) for one in tested)
        smallest = min((pair.p_value for one in tested for pair in one.all_pairs), default=LEVEL)
        yield [name, f"{count} of {shuffles}", f"{'≥' if count else '>'} {smallest:.1g}", *_values(untested)]


def _signs(changes: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    return changes * generator.choice(np.array([-1, 1], changes.dtype), changes.shape)


def _steps(changes: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    return generator.permuted(changes, axis=0)


def _values(trajectories: list[Trajectory]) -> Iterator[str]:
    """The value of each statistic; for several runs, the median and the most extreme value."""
    for name, statistic in STATISTICS.items():
        values = []
        for one in trajectories:
            try:
                values.append(statistic({"run": one}).value)
            except CannotTellError:
                continue
        extreme = min if name == "correlation" else max
        several = f" ({extreme(values):.2f} at most, {len(values)} runs)" if len(values) > 1 else ""
        yield f"{np.median(values):.2f}{several}" if values else "no groups"


def features(trajectory: Trajectory) -> Iterator[list[str]]:
    """Rows of the fourth table: correlation with the group's mean change, and amplitude over that of random groups."""
    dataset = trajectory.dataset
    assert dataset.images is not None
    inside = np.zeros(dataset.images.shape[1:3], bool)
    inside[EDGE:-EDGE, EDGE:-EDGE] = True
    sides = dataset.images[:, ~inside].astype(np.float64).mean(1)
    classes = np.asarray(dataset.targets)
    yield ["group", "the group", "its class, alike", "its class, least alike", "other classes, alike", "random points"]
    for pair in trajectory.pairs:
        changes = between(trajectory.changes, *pair.window)
        values = changes.values[changes.steps != pair.step]
        for group in pair.groups:
            counts = np.bincount(classes[group])
            if 2 * counts.max() < len(group):
                continue
            is_class = classes == counts.argmax()
            order = np.argsort(np.linalg.norm(sides - sides[group].mean(0), axis=1))
            order = order[~np.isin(order, group)]
            course = values[:, group].mean(1, dtype=np.float64)
            others = {
                "alike": order[is_class[order]][:ALIKE],
                "least alike": order[is_class[order]][-ALIKE:],
                "other classes": order[~is_class[order]][:ALIKE],
            }
            random = [values[:, draw].mean(1, dtype=np.float64) for draw in random_groups(len(classes), ALIKE)]
            usual = np.mean([correlation(course, one) for one in random])
            yield [
                name_group(dataset, group),
                f"1, {_amplitude(values, group):.1f}",
                *(_like(values, points, course) for points in others.values()),
                f"{usual:.2f}, 1",
            ]


def _like(values: np.ndarray, points: np.ndarray, course: np.ndarray) -> str:
    return f"{correlation(course, values[:, points].mean(1, dtype=np.float64)):.2f}, {_amplitude(values, points):.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("record", type=Path)
    parser.add_argument("--spike", type=int, nargs=2, required=True, metavar=("FIRST", "LAST"))
    parser.add_argument("--shuffles", type=int, default=20)
    given = parser.parse_args()
    trajectory = Trajectory(Record(given.record))
    print(trajectory.title)
    tables = (spike(trajectory, *given.spike), halves(trajectory), shuffled(trajectory, given.shuffles))
    for table in (*tables, features(trajectory)):
        print()
        print_table(table)


if __name__ == "__main__":
    main()
