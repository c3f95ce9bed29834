"""Statistics of text runs: opposing pairs of tokens, and two optimizers side by side."""

from __future__ import annotations

import re
from typing import Literal

import numpy as np

from opposing_signals.data.token_patterns import PATTERNS
from opposing_signals.signals.tokens import Contexts, TokenPair, TokenTrack
from opposing_signals.studies.claim import Estimate
from opposing_signals.studies.groups.claims import (
    FEWEST_STEPS,
    Trajectories,
    block_bootstrap,
    median_over_steps,
    missing_run,
    only_run,
)

START = 10
"""Steps that are a run's start."""


# -- figures 7 to 9 ---------------------------------------------------------------------------------------------------


def named_pair_correlation(trajectories: Trajectories, pair: str) -> Estimate:
    """Correlation of the one-step changes of a named pair's two groups of tokens, selecting step left out."""
    track = only_run(trajectories).tokens
    found = track.named(pair)
    if found is None:
        return Estimate.unknown("the followed text lacks one of the two patterns, or too few steps were measured")
    return _correlation(track, found)


def shown_pairs_correlation(trajectories: Trajectories, pairs: list[str]) -> Estimate:
    """Largest correlation, over the shown pairs of tokens, of the groups' one-step changes, selecting step left out."""
    track = only_run(trajectories).tokens
    named = [found for pair in pairs if (found := track.named(pair)) is not None]
    shown = named + track.pairs
    if not shown:
        return Estimate.unknown("the followed text holds no opposing pair")
    return _correlation(track, max(shown, key=lambda found: found.pair.correlation))


def _correlation(track: TokenTrack, found: TokenPair) -> Estimate:
    pair = found.pair
    window = np.delete(np.arange(*pair.window), pair.change - pair.window[0])
    upper, lower = (track.changes[:, group].mean(1)[window] for group in pair.groups)
    interval = block_bootstrap(lambda rows: float(np.corrcoef(upper[rows], lower[rows])[0, 1]), len(window))
    return Estimate(pair.correlation, interval)


def pattern_share(trajectories: Trajectories, pair: str) -> Estimate:
    """Share of a named pair's points whose text, decoded again from context to next token, has the pattern."""
    track = only_run(trajectories).tokens
    found = track.named(pair)
    if found is None:
        return Estimate.unknown("the followed text lacks one of the two patterns, or too few steps were measured")
    has = [
        _has_pattern(track.contexts, int(track.points[column]), pattern)
        for pattern, group in zip(found.names, found.pair.groups, strict=True)
        for column in group
    ]
    return Estimate(float(np.mean(has)))


def _has_pattern(contexts: Contexts, point: int, pattern: str) -> bool:
    """Whether a match ends in the next token, in the text up to the tokens behind that."""
    context, target = contexts.of(point)
    behind = contexts.behind(point)
    names = contexts.dataset.class_names
    front, middle, whole = (
        "".join(names[token] for token in tokens).encode("utf-8", "surrogateescape")
        for tokens in (context, [*context, target], [*context, target, *behind])
    )
    ends = [match.end("target") for match in re.finditer(PATTERNS[pattern], whole)]
    return any(len(front) < end <= len(middle) for end in ends)


# -- figure 45 --------------------------------------------------------------------------------------------------------


def detrended_correlation(trajectories: Trajectories, run: str, other: str, window: int) -> Estimate:
    """Correlation over steps of two runs' training losses, each without its running mean."""
    missing = missing_run(trajectories, run, other)
    if missing:
        return Estimate.unknown(missing)
    losses = [np.asarray(trajectories[name].record["train_loss"].values, dtype=np.float64) for name in (run, other)]
    steps = min(map(len, losses))
    if steps < max(FEWEST_STEPS, window):
        return Estimate.unknown(f"{steps} steps in common; at least {max(FEWEST_STEPS, window)} are needed")
    one, two = (detrended(values[:steps], window) for values in losses)

    def correlation(rows: np.ndarray | slice) -> float:
        return float(np.corrcoef(one[rows], two[rows])[0, 1])

    return Estimate(correlation(slice(None)), block_bootstrap(correlation, steps))


def detrended(values: np.ndarray, window: int) -> np.ndarray:
    """``values`` ``[T]`` less their mean over the ``window`` steps around each; fewer at both ends."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    steps = np.arange(len(values))
    first, stop = np.maximum(steps - window // 2, 0), np.minimum(steps + window // 2 + 1, len(values))
    return values - (sums[stop] - sums[first]) / (stop - first)


def signed_share(trajectories: Trajectories, run: str, part: Literal["first", "last"]) -> Estimate:
    """Median share of parameters that take a signed step, over the first or the last ten steps."""
    if run not in trajectories:
        return Estimate.unknown(f"the run {run} is missing")
    shares = np.asarray(trajectories[run].record["signed_share"].values)
    if len(shares) < 2 * START:
        return Estimate.unknown(f"{len(shares)} steps; at least {2 * START} are needed")
    return median_over_steps(shares[:START] if part == "first" else shares[-START:])


def signed_share_decay(trajectories: Trajectories, run: str) -> Estimate:
    """Median share of parameters that take a signed step over the last ten steps, over that of the first ten."""
    last, first = (signed_share(trajectories, run, part) for part in ("last", "first"))
    return Estimate.unknown(first.reason) if first.reason else Estimate(last.value / first.value)
