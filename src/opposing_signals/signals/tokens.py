"""Text: opposing groups of (context, next token)s, named by the tokens that they share (figures 7 to 9)."""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from opposing_signals.data import Dataset
from opposing_signals.data.token_patterns import PAIRS, pattern_points
from opposing_signals.record import Record, Series
from opposing_signals.signals.pairs import OpposingPair, find_pairs, measured_pair
from opposing_signals.signals.selection import risers
from opposing_signals.signals.streaming import StreamedLosses

LONGEST_SUFFIX = 8
"""Tokens of context that two members of a group are compared by, at the most."""

PHASES = 8
"""Parts of a run that are searched for a pair, as in `find_pairs`."""


@dataclass(frozen=True)
class TokenGroup:
    """Points that share their next token, and maybe the end of their contexts.

    Attributes:
        points: ``[k]``, in the order in which they were given.
        target: The shared next token.
        suffix: The tokens in front of it that they share, at most `LONGEST_SUFFIX`; maybe none.
    """

    points: np.ndarray
    target: int
    suffix: tuple[int, ...]


@dataclass(frozen=True)
class TokenPair:
    """Two groups of tokens whose losses are compared.

    Attributes:
        pair: Columns of the track, with the step at which they were selected and the correlation.
        names: What the tokens of its rising and of its falling group share.
    """

    pair: OpposingPair
    names: tuple[str, str]


class Contexts:
    """The (context, next token)s of a text by their numbers (see `TokenLosses`)."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self._width = dataset.inputs.shape[1]

    def of(self, point: int, longest: int | None = None) -> tuple[tuple[int, ...], int]:
        """The last ``longest`` tokens of the context (None: all), and the next token."""
        row, position = divmod(int(point), self._width)
        first = 0 if longest is None else max(0, position + 1 - longest)
        context = tuple(self.dataset.inputs[row, first : position + 1].tolist())
        return context, int(self.dataset.targets[row, position])

    def behind(self, point: int, count: int = 3) -> tuple[int, ...]:
        """Up to ``count`` tokens behind the next one, as the text goes on."""
        targets = self.dataset.targets.reshape(-1)[int(point) + 1 : int(point) + 1 + count]
        return tuple(targets.tolist())

    def printed(self, context: Sequence[int], target: int) -> tuple[str, str]:
        """A context and its next token as text, with line breaks written ``\\n``.

        GPT-2 cuts some characters into several tokens. Where the next token ends such a character, all of it is
        printed as that token, as in the paper; bytes that are no text are written ``\\xe2``.
        """
        names = self.dataset.class_names
        front = "".join(names[token] for token in context).encode("utf-8", "surrogateescape")
        start = _incomplete(front)
        token = front[start:] + names[target].encode("utf-8", "surrogateescape")
        text = front[:start].decode("utf-8", "ignore")  # what is left of a character cut at the beginning
        return text.replace("\n", "\\n"), token.decode("utf-8", "backslashreplace").replace("\n", "\\n")

    def name(self, group: TokenGroup) -> str:
        """For instance ``:[\\n]``: the shared end of the contexts, and the next token in brackets."""
        return "{}[{}]".format(*self.printed(group.suffix, group.target))


def token_groups(points: Sequence[int] | np.ndarray, contexts: Contexts, smallest: int = 5) -> list[TokenGroup]:
    """Group points by next token and by shared end of their contexts, the largest group first.

    Points with one next token are a group. Where at least half of a group, and ``smallest``, go on to share one token
    more of their contexts, those become a group of their own, and so on; what is left stays a group if it is large
    enough.

    Args:
        points: Numbers of (context, next token)s.
        contexts: Where they are looked up.
        smallest: Points in a group at the least.
    """
    ends = {int(point): contexts.of(point, LONGEST_SUFFIX) for point in points}
    by_target: dict[int, list[int]] = {}
    for point, (_, target) in ends.items():
        by_target.setdefault(target, []).append(point)
    found: list[TokenGroup] = []
    for target, members in by_target.items():
        length = 0
        while len(members) >= smallest:
            longer = [ends[point][0][-length - 1 :] for point in members if len(ends[point][0]) > length]
            suffix, count = Counter(longer).most_common(1)[0] if longer else ((), 0)
            shares = [point for point in members if ends[point][0][-length - 1 :] == suffix]
            if count < max(smallest, len(members) / 2):
                break
            rest = [point for point in members if point not in set(shares)]
            if len(rest) >= smallest:
                found.append(_group(rest, target, ends, length))
            members, length = shares, length + 1
        if len(members) >= smallest:
            found.append(_group(members, target, ends, length))
    return sorted(found, key=lambda group: -len(group.points))


def _group(members: list[int], target: int, ends: dict[int, tuple[tuple[int, ...], int]], length: int) -> TokenGroup:
    context = ends[members[0]][0]
    return TokenGroup(np.array(members), target, context[len(context) - length :])


def _incomplete(text: bytes) -> int:
    """Where a UTF-8 character begins that ``text`` breaks off; its length if there is none."""
    decoder = getincrementaldecoder("utf-8")("replace")
    decoder.decode(text)
    return len(text) - len(decoder.getstate()[0])


class TokenTrack:
    """Losses of the tokens that a run has followed, and the opposing pairs among them.

    Args:
        record: Of a run with the instrument `TokenLosses`.
        dataset: The run's text.

    Attributes:
        points: ``[m]``, the numbers of the (context, next token)s.
        before: ``values`` ``[T, m]``: ℓ_i(θ_t) for each t for which ℓ_i(θ_{t+1}) is known too.
        after: ``[T, m]`` ℓ_i(θ_{t+1}).
    """

    def __init__(self, record: Record, dataset: Dataset) -> None:
        self.record = record
        self.contexts = Contexts(dataset)
        self._named: dict[str, TokenPair | None] = {}
        self.points = np.asarray(record["token_points"].values[0])
        if "token_loss" in record:
            losses = record["token_loss"]
            steps, values = np.asarray(losses.steps), losses.values
            rows = np.flatnonzero(np.diff(steps) == 1)
            self.before = Series(steps[rows], values[rows])
            self.after = values[rows + 1]
        else:
            followed = record["token_followed"]
            self.before = Series(np.asarray(followed.steps), followed.values[:, 0])
            self.after = followed.values[:, 1]

    @cached_property
    def changes(self) -> np.ndarray:
        """``[T, m]`` one-step changes Δ_i(t)."""
        return self.after - self.before.values

    def largest(self, row: int, k: int) -> tuple[StreamedLosses, StreamedLosses]:
        """The k largest rises of all tracked tokens at a row of `changes`, and the k largest falls.

        A run that has kept the largest only has no more of them than it kept.
        """
        if "token_top" in self.record:
            ids, losses = (self.record[name].values[row] for name in ("token_top", "token_top_loss"))
            rises, falls = (StreamedLosses(ids[i][:k], losses[i, 0][:k], losses[i, 1][:k]) for i in range(2))
            return rises, falls
        everything = StreamedLosses(self.points, self.before.values[row], self.after[row])
        return everything[risers(self.changes[row], k)], everything[risers(-self.changes[row], k)]

    def named(self, pair: str) -> TokenPair | None:
        """One of the paper's pairs (`token_patterns.PAIRS`), whether its groups oppose each other or not.

        Its points are all those that were followed and have the pattern. As with other pairs, each part of the run is
        searched at the step where the groups are furthest apart, and the part with the largest amplitude is taken.

        Returns:
            None if the followed text lacks one of the two, or too few steps were measured.
        """
        if pair not in self._named:
            self._named[pair] = self._find_named(pair)
        return self._named[pair]

    def _find_named(self, pair: str) -> TokenPair | None:
        found_by = (pattern_points(self.contexts.dataset, pattern) for pattern in PAIRS[pair])
        one, other = (np.flatnonzero(np.isin(self.points, points)) for points in found_by)
        if not len(one) or not len(other) or len(self.changes) < 3:
            return None
        gap = self.changes[:, one].mean(1) - self.changes[:, other].mean(1)
        found: list[tuple[OpposingPair, tuple[str, str]]] = []
        for rows in _phases(len(gap)):
            selecting = int(rows[np.argmax(np.abs(gap[rows]))])
            groups, names = ((one, other), PAIRS[pair]) if gap[selecting] > 0 else ((other, one), PAIRS[pair][::-1])
            measured = measured_pair(self.changes, *groups, selecting)
            if measured is not None:
                found.append((measured, (names[0], names[1])))
        if not found:
            return None
        return TokenPair(*max(found, key=lambda candidate: candidate[0].amplitude))

    @cached_property
    def pairs(self) -> list[TokenPair]:
        """The dominant opposing pairs of groups that share their tokens, found as `find_pairs` does."""
        return [
            TokenPair(pair, (self._name(pair.rising), self._name(pair.falling)))
            for pair in find_pairs(self.changes, clustering=self._clustering)
        ]

    def _clustering(self, _: np.ndarray, columns: np.ndarray) -> list[np.ndarray]:
        column = dict(zip(self.points[columns].tolist(), columns.tolist(), strict=True))
        groups = token_groups(self.points[columns], self.contexts)
        return [np.array([column[point] for point in group.points.tolist()])[:20] for group in groups]

    def _name(self, columns: np.ndarray) -> str:
        (group,) = token_groups(self.points[columns], self.contexts, smallest=len(columns))
        return self.contexts.name(group)


def _phases(steps: int) -> list[np.ndarray]:
    return np.array_split(np.arange(steps), min(PHASES, max(1, steps // 16)))


def losses_of(track: TokenTrack, columns: np.ndarray) -> np.ndarray:
    """``[T]``: mean loss of a group at each measured step."""
    return np.asarray(track.before.values)[:, columns].mean(1, dtype=np.float64)
