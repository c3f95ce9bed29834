"""Named pairs of tokens along a finished run, and how the text continues after the first half of a curly quote.

python benchmarks/text_pairs.py RECORD [--edges 100 400 600 1000 1500 2000 2500 3000]

1. For the steps between successive edges, the correlation of the one-step changes of each pair's two groups.
2. The mean losses of the same groups over these steps.
3. How often GPT-2's token 447, the first two bytes of every curly quote, is followed by the closing one, and the loss
   of that token if the network knows these frequencies and nothing else.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
from markdown_tables import print_table

from opposing_signals.data import Dataset
from opposing_signals.data.token_patterns import PAIRS, PATTERNS, pattern_points
from opposing_signals.record import Record
from opposing_signals.record.quantities import TOKEN_LOSS
from opposing_signals.signals import Trajectory
from opposing_signals.signals.alignment import correlation
from opposing_signals.signals.steps import between
from opposing_signals.signals.tokens import TokenTrack

PREFIX, CLOSING = b"\xe2\x80", b"\x9d"

LEAST = 20
"""Minimum number of measured steps between two edges."""


def correlations(track: TokenTrack, groups: dict[str, np.ndarray], edges: list[int]) -> Iterator[list[str]]:
    """Rows of the first table."""
    yield ["steps", *PAIRS]
    for first, last in pairwise(edges):
        inside = between(track.changes, first, last - 1)
        if len(inside) >= LEAST:
            courses = {name: inside.values[:, group].mean(1, dtype=np.float64) for name, group in groups.items()}
            found = (correlation(courses[one], courses[other]) for one, other in PAIRS.values())
            yield [f"{first} to {last}", *(f"{value:.2f}" for value in found)]


def losses(record: Record, groups: dict[str, np.ndarray], edges: list[int]) -> Iterator[list[str]]:
    """Rows of the second table."""
    yield ["steps", *groups]
    for first, last in pairwise(edges):
        inside = between(record[TOKEN_LOSS], first, last - 1)
        if len(inside) >= LEAST:
            means = (inside.values[:, group].mean(dtype=np.float64) for group in groups.values())
            yield [f"{first} to {last}", *(f"{mean:.2f}" for mean in means)]


def followers(dataset: Dataset) -> Iterator[list[str]]:
    """Rows of the third table."""
    texts = [name.encode("utf-8", "surrogateescape") for name in dataset.class_names]
    tokens = dataset.targets.flatten().numpy()
    if PREFIX not in texts:
        return
    at = np.flatnonzero(tokens[:-1] == texts.index(PREFIX))[1:]
    after = tokens[at + 1]
    is_behind_period = np.array([text.endswith(b".") for text in texts])[tokens[at - 1]]
    yield ["token 447", "cases", "then the closing mark", "its loss then"]
    for name, cases in (("everywhere", np.ones(len(at), bool)), ("after a period", is_behind_period)):
        fraction = float((after[cases] == texts.index(CLOSING)).mean())
        yield [name, str(cases.sum()), f"{fraction:.0%}", f"{-np.log(fraction):.2f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("record", type=Path)
    parser.add_argument("--edges", type=int, nargs="+", default=[100, 400, 600, 1000, 1500, 2000, 2500, 3000])
    given = parser.parse_args()
    trajectory = Trajectory(Record(given.record))
    track, dataset = trajectory.tokens, trajectory.dataset
    groups = {name: np.flatnonzero(np.isin(track.points, pattern_points(dataset, name))) for name in PATTERNS}
    print(trajectory.title)
    for table in (
        correlations(track, groups, given.edges),
        losses(trajectory.record, groups, given.edges),
        followers(dataset),
    ):
        print()
        print_table(table)


if __name__ == "__main__":
    main()
