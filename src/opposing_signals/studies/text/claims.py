"""Statistics of text runs: opposing pairs of tokens, and two optimizers side by side."""

from __future__ import annotations

import re
from typing import Literal

import numpy as np

from opposing_signals.data.token_patterns import PATTERNS
from opposing_signals.record.quantities import SIGNED_SHARE, TRAIN_LOSS
from opposing_signals.signals.tokens import Contexts, TokenPair, TokenTrack
from opposing_signals.studies.claim import CannotTellError, Estimate
from opposing_signals.studies.curvature.metrics import detrended
from opposing_signals.studies.estimates import FRACTION, RATIO, correlation_over_steps, median_over_steps, over_steps
from opposing_signals.studies.groups.claims import group_correlation
from opposing_signals.studies.runs import FEWEST_STEPS, Trajectories, named_runs, need, only_run

START = 10
"""Steps that are a run's start."""


# -- figures 7 to 9 ---------------------------------------------------------------------------------------------------


def named_pair_correlation(trajectories: Trajectories, pair: str) -> Estimate:
    """Correlation of the one-step changes of a named pair's two groups of tokens, selecting step left out."""
    track = only_run(trajectories).tokens
    return group_correlation(track.changes, _named(track, pair).pair)


def shown_pairs_correlation(trajectories: Trajectories, pairs: list[str]) -> Estimate:
    """Largest correlation, over the shown pairs of tokens, of the groups' one-step changes, selecting step left out."""
    track = only_run(trajectories).tokens
    named = [found for pair in pairs if (found := track.named(pair)) is not None]
    shown = [found.pair for found in named + track.pairs]
    if not shown:
        raise CannotTellError("the followed text holds no opposing pair")
    return group_correlation(track.changes, max(shown, key=lambda pair: pair.correlation))


def _named(track: TokenTrack, pair: str) -> TokenPair:
    found = track.named(pair)
    if found is None:
        raise CannotTellError("the followed text lacks one of the two patterns, or too few steps were measured")
    return found


def pattern_share(trajectories: Trajectories, pair: str) -> Estimate:
    """Share of a named pair's points whose text, decoded again from context to next token, has the pattern."""
    track = only_run(trajectories).tokens
    found = _named(track, pair)
    has = [
        _has_pattern(track.contexts, int(track.points[column]), pattern)
        for pattern, group in zip(found.names, found.pair.groups, strict=True)
        for column in group
    ]
    return Estimate(float(np.mean(has)))


def _has_pattern(contexts: Contexts, point: int, pattern: str) -> bool:
    """Whether a match of the pattern ends in the next token; the tokens that follow it may be part of the match."""
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
    one, two = _losses_in_common(trajectories, run, other)
    need(len(one), "steps in common", least=max(FEWEST_STEPS, window))
    if not (np.ptp(one) and np.ptp(two)):
        raise CannotTellError("a loss that never changes correlates with nothing")
    return correlation_over_steps(detrended(one, window), detrended(two, window))


def final_loss_ratio(trajectories: Trajectories, run: str, other: str, part: float = 0.05) -> Estimate:
    """Mean training loss over the last part of the steps of one run, over that of another."""
    one, two = _losses_in_common(trajectories, run, other)
    last = round(part * len(one))
    need(last, f"steps in the last {part:.0%}")
    one, two = one[-last:], two[-last:]
    return over_steps(lambda rows: float(one[rows].mean() / two[rows].mean()), last, RATIO)


def _losses_in_common(trajectories: Trajectories, run: str, other: str) -> tuple[np.ndarray, np.ndarray]:
    """Training losses of two runs at the steps at which both were measured, up to the first that was not."""
    losses = [one.record[TRAIN_LOSS] for one in named_runs(trajectories, run, other)]
    steps = np.intersect1d(losses[0].steps, losses[1].steps)
    steps = steps[: int(np.argmax(np.append(np.diff(steps), 2) > 1)) + 1]  # without a gap, which a trend cannot cross
    one, two = (np.asarray(part.values, np.float64)[np.isin(part.steps, steps)] for part in losses)
    return one, two


def signed_share(trajectories: Trajectories, run: str, part: Literal["first", "last"]) -> Estimate:
    """Median share of parameters that take a signed step, over the first or the last ten steps."""
    (trajectory,) = named_runs(trajectories, run)
    shares = np.asarray(trajectory.record[SIGNED_SHARE].values)
    need(len(shares), "steps", least=2 * START)
    return median_over_steps(shares[:START] if part == "first" else shares[-START:], FRACTION)


def signed_share_decay(trajectories: Trajectories, run: str) -> Estimate:
    """Median share of parameters that take a signed step over the last ten steps, over that of the first ten."""
    last, first = (signed_share(trajectories, run, part) for part in ("last", "first"))
    return Estimate(last.value / first.value)
