"""Text: opposing groups of (context, next token) points, named by the tokens that they share (figures 7 to 9)."""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from opposing_signals.data import Dataset
from opposing_signals.data.token_patterns import PAIRS, pattern_points
from opposing_signals.record import Record, Series
from opposing_signals.record.quantities import TOKEN_FOLLOWED, TOKEN_LOSS, TOKEN_POINTS, TOKEN_TOP, TOKEN_TOP_LOSS
from opposing_signals.signals.pairs import OpposingPair, described_pair, find_pairs
from opposing_signals.signals.search import active_rows
from opposing_signals.signals.selection import risers
from opposing_signals.signals.steps import one_step_changes
from opposing_signals.signals.streaming import StreamedLosses

LONGEST_SUFFIX = 8
"""Maximum number of context tokens by which two members of a group are compared."""

SHARED = 3
"""Maximum number of context tokens that the points of a group in a pair share."""

MOST = 4
"""Maximum number of token pairs returned."""

NAMED = 2
"""Number of token groups that name one side of a pair."""


@dataclass(frozen=True)
class TokenGroup:
    """Points with the same next token and, possibly, the same end of context.

    Attributes:
        points: ``[k]``, in the order in which they were given.
        target: The shared next token.
        suffix: The shared tokens just before it, at most `LONGEST_SUFFIX`; may be empty.
    """

    points: np.ndarray
    target: int
    suffix: tuple[int, ...]


@dataclass(frozen=True)
class TokenPair:
    """Two groups of tokens whose losses are compared.

    Attributes:
        pair: Members are columns of the track.
        names: What the tokens of its rising and of its falling group share.
    """

    pair: OpposingPair
    names: tuple[str, str]


class Contexts:
    """The (context, next token) points of a text by their numbers (see `TokenLosses`)."""

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
        """Up to ``count`` tokens of the text that follow the next token."""
        targets = self.dataset.targets.reshape(-1)[int(point) + 1 : int(point) + 1 + count]
        return tuple(targets.tolist())

    def printed(self, context: Sequence[int], target: int) -> tuple[str, str]:
        """A context and its next token as text, with line breaks written ``\\n``.

        GPT-2 splits some characters into several tokens. If the next token completes such a character, the whole
        character is printed as that token, as in the paper; bytes that are not valid text are written ``\\xe2``.
        """
        names = self.dataset.class_names
        front = "".join(names[token] for token in context).encode("utf-8", "surrogateescape")
        start = _incomplete(front)
        token = front[start:] + names[target].encode("utf-8", "surrogateescape")
        text = front[:start].decode("utf-8", "ignore")  # drops the rest of a character cut at the beginning
        return text.replace("\n", "\\n"), token.decode("utf-8", "backslashreplace").replace("\n", "\\n")

    def name(self, group: TokenGroup) -> str:
        """For instance ``:[\\n]``: the shared end of the contexts, and the next token in brackets."""
        return "{}[{}]".format(*self.printed(group.suffix, group.target))


def token_groups(points: Sequence[int] | np.ndarray, contexts: Contexts, smallest: int = 5) -> list[TokenGroup]:
    """Group points by next token and by shared end of their contexts, the largest group first.

    Points with the same next token form a group. If at least half of a group, and ``smallest``, also share one more
    token of context, these form a group of their own, and so on; the rest stays a group if it is large enough.

    Args:
        points: Numbers of (context, next token) points.
        contexts: Contexts used to look them up.
        smallest: Minimum number of points in a group.
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
            together = set(shares)
            rest = [point for point in members if point not in together]
            if len(rest) >= smallest:
                found.append(_group(rest, target, ends, length))
            members, length = shares, length + 1
        if len(members) >= smallest:
            found.append(_group(members, target, ends, length))
    return sorted(found, key=lambda group: -len(group.points))


def shared_endings(points: np.ndarray, contexts: Contexts, smallest: int = 5) -> list[TokenGroup]:
    """Every group of points that share their next token and the last 0, 1, 2 or 3 tokens before it.

    Of groups with the same points the one with the longest shared context is kept.

    Args:
        points: Numbers of (context, next token) points.
        contexts: Contexts used to look them up.
        smallest: Minimum number of points in a group.
    """
    shared: dict[tuple[int, tuple[int, ...]], list[int]] = {}
    for point in points.tolist():
        context, target = contexts.of(point, SHARED)
        for length in range(min(SHARED, len(context)) + 1):
            shared.setdefault((target, context[len(context) - length :]), []).append(point)
    distinct = {
        tuple(members): TokenGroup(np.array(members), target, suffix)
        for (target, suffix), members in sorted(shared.items(), key=lambda item: len(item[0][1]))
        if len(members) >= smallest
    }
    return list(distinct.values())


def _group(members: list[int], target: int, ends: dict[int, tuple[tuple[int, ...], int]], length: int) -> TokenGroup:
    context = ends[members[0]][0]
    return TokenGroup(np.array(members), target, context[len(context) - length :])


def _incomplete(text: bytes) -> int:
    """Index at which ``text`` cuts a UTF-8 character off; the length of ``text`` if it cuts none off."""
    decoder = getincrementaldecoder("utf-8")("replace")
    decoder.decode(text)
    return len(text) - len(decoder.getstate()[0])


class TokenTrack:
    """Losses of the tokens that a run has followed, and the opposing pairs among them.

    Args:
        record: Record of a run with the instrument `TokenLosses`.
        dataset: The run's text.

    Attributes:
        points: ``[m]``, the numbers of the (context, next token) points.
        before: ``values`` ``[T, m]``: ℓ_i(θ_t) for each t for which ℓ_i(θ_{t+1}) is known too.
        changes: ``values`` ``[T, m]`` one-step changes Δ_i(t).
    """

    def __init__(self, record: Record, dataset: Dataset) -> None:
        self.record = record
        self.contexts = Contexts(dataset)
        self._named: dict[str, TokenPair | None] = {}
        self.points = np.asarray(record[TOKEN_POINTS].values[0])
        if TOKEN_LOSS in record:
            losses = record[TOKEN_LOSS]
            self.changes = one_step_changes(losses)
            rows = np.isin(losses.steps, self.changes.steps)
            self.before = Series(self.changes.steps, np.asarray(losses.values)[rows])
        else:
            followed = record[TOKEN_FOLLOWED]
            steps, values = np.asarray(followed.steps), followed.values
            self.before = Series(steps, values[:, 0])
            self.changes = Series(steps, values[:, 1] - values[:, 0])

    def at(self, step: int, columns: np.ndarray | slice = slice(None)) -> StreamedLosses:
        """Losses of some of the tracked tokens before and after a step."""
        before = self.before.at(step)[columns]
        return StreamedLosses(self.points[columns], before, before + self.changes.at(step)[columns])

    def largest(self, step: int, k: int) -> tuple[StreamedLosses, StreamedLosses]:
        """The k largest rises of all tracked tokens at a step, and the k largest falls.

        A run that recorded only its largest changes has no more of them than it recorded.
        """
        if TOKEN_TOP in self.record:
            ids, losses = (self.record[name].at(step) for name in (TOKEN_TOP, TOKEN_TOP_LOSS))
            rises, falls = (StreamedLosses(ids[i][:k], losses[i, 0][:k], losses[i, 1][:k]) for i in range(2))
            return rises, falls
        everything, changes = self.at(step), self.changes.at(step)
        return everything[risers(changes, k)], everything[risers(-changes, k)]

    def named(self, pair: str) -> TokenPair | None:
        """One of the paper's pairs (`token_patterns.PAIRS`), whether its groups oppose each other or not.

        Its points are all those that were followed and have the pattern; its window is where they are active around
        the step at which the two groups are furthest apart.

        Returns:
            None if the followed text lacks one of the two groups, or too few steps were measured.
        """
        if pair not in self._named:
            self._named[pair] = self._find_named(pair)
        return self._named[pair]

    def _find_named(self, pair: str) -> TokenPair | None:
        found_by = (pattern_points(self.contexts.dataset, pattern) for pattern in PAIRS[pair])
        one, other = (np.flatnonzero(np.isin(self.points, points)) for points in found_by)
        if not len(one) or not len(other) or not len(self.changes):
            return None
        steps, values = self.changes.steps, self.changes.values
        gap = values[:, one].mean(1, dtype=np.float64) - values[:, other].mean(1, dtype=np.float64)
        start, stop = active_rows(gap, (0, len(gap)))
        found = described_pair(self.changes, one, other, (int(steps[start]), int(steps[stop - 1])))
        if found is None:
            return None
        names = PAIRS[pair] if np.isin(found.rising, one).all() else PAIRS[pair][::-1]
        return TokenPair(found, (names[0], names[1]))

    @cached_property
    def pairs(self) -> list[TokenPair]:
        """The dominant opposing pairs of tokens, the one of largest amplitude first.

        Single tokens are noisy under minibatches, so `find_pairs` searches the mean changes of `shared_endings`. A side
        of a pair may hold several of these; those that swing most name it.
        """
        groups = shared_endings(self.points, self.contexts)
        column = {point: number for number, point in enumerate(self.points.tolist())}
        columns = [np.array([column[point] for point in group.points.tolist()]) for group in groups]
        if not groups:
            return []
        means = np.stack([self.changes.values[:, members].mean(1, dtype=np.float64) for members in columns], axis=1)
        found = []
        for pair in find_pairs(Series(self.changes.steps, means), smallest_group=1):
            sides = [np.unique(np.concatenate([columns[number] for number in side])) for side in pair.groups]
            sides = [np.setdiff1d(side, other) for side, other in zip(sides, sides[::-1], strict=True)]
            described = described_pair(self.changes, sides[0], sides[1], pair.window) if all(map(len, sides)) else None
            if described is None:
                continue
            names = [self._name([groups[number] for number in side]) for side in pair.groups]
            if not np.isin(described.rising, sides[0]).all():
                names.reverse()
            found.append(TokenPair(replace(described, p_value=pair.p_value), (names[0], names[1])))
        return sorted(found, key=lambda one: -one.pair.amplitude)[:MOST]

    def _name(self, groups: Sequence[TokenGroup]) -> str:
        """The groups that swing most; one is skipped if it shares half of its points or more with a larger swing."""
        named: list[TokenGroup] = []
        for group in groups:
            if all(2 * len(np.intersect1d(group.points, other.points)) < len(group.points) for other in named):
                named.append(group)
        rest = len(named) - NAMED
        return " and ".join(map(self.contexts.name, named[:NAMED])) + (f" and {rest} more" if rest > 0 else "")
