"""Opposing tokens found by their text: quotation marks around a period, what follows a colon, curly marks."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from opposing_signals.data.dataset import Dataset
from opposing_signals.errors import InputError

PATTERNS = {
    "quote_after_period": rb'(?P<beside>\.)(?P<target>"|\xe2\x80\x9d)',
    "quote_before_period": rb'(?P<target>"|\xe2\x80\x9d)(?P<beside>\.)',
    "newline_after_colon": rb"(?P<beside>:)(?P<target>\n)",
    "the_after_colon": rb"(?P<beside>:)(?P<target> )the\b",
    "closing_quote": rb"(?P<beside>\xe2\x80)(?P<target>\x9d)",
    "apostrophe": rb"(?P<beside>\xe2\x80)(?P<target>\x99)",
}
"""Name ↦ regular expression of UTF-8 text. The token with the last byte of its group ``target`` is the one to predict.

GPT-2 writes a curly quotation mark as two tokens, [447, 251], and the paper follows the second. A token that also holds
the neighbouring character, such as GPT-2's single token `".`, is no match: predicting it says nothing about the order
of the two."""

PAIRS = {
    "quotes": ("quote_after_period", "quote_before_period"),
    "colon": ("newline_after_colon", "the_after_colon"),
    "marks": ("closing_quote", "apostrophe"),
}
"""Pairs of patterns by name: the paper's (figures 7 and 8), and the curly marks that begin with the same token of
GPT-2, 447, which a network that sees only the previous token cannot tell apart."""

LEAST_CONTEXT = 8
"""A token with a shorter context than this in its sequence is no match: the model may not see the pattern."""

_PIECE = 1 << 20  # tokens decoded at a time


def pattern_points(dataset: Dataset, pattern: str) -> np.ndarray:
    """Every token of a text that matches ``pattern``.

    A point is the index of a (context, next token) pair: n T + t for the target at position t of sequence n.

    Args:
        dataset: Text, as `data.openwebtext` returns it.
        pattern: One of `PATTERNS`.

    Returns:
        ``[m]`` int64, ascending.

    Raises:
        InputError: The data are not text, or there is no such pattern.
    """
    check_text(dataset)
    if pattern not in PATTERNS:
        raise InputError(f"pattern {pattern}: expected one of {', '.join(PATTERNS)}")
    width = dataset.inputs.shape[1]
    points = np.concatenate([first + _matches(dataset, tokens, pattern) for first, tokens in _pieces(dataset)])
    return points[points % width >= LEAST_CONTEXT]


def check_text(dataset: Dataset) -> None:
    """Refuse data that are not sequences of tokens.

    Raises:
        InputError: They are images or points.
    """
    if dataset.inputs.ndim != 2 or dataset.inputs.shape != dataset.targets.shape or not dataset.class_names:
        raise InputError(f"{dataset.name} is no text: expected sequences of tokens, as data=text_demo")


def _pieces(dataset: Dataset) -> Iterator[tuple[int, np.ndarray]]:
    """Index of the first point of each piece of the text, and the targets in it."""
    rows = max(1, _PIECE // dataset.inputs.shape[1])
    for first in range(0, len(dataset), rows):
        yield first * dataset.inputs.shape[1], dataset.targets[first : first + rows].flatten().numpy()


def _matches(dataset: Dataset, tokens: np.ndarray, pattern: str) -> np.ndarray:
    """``[m]``: positions in ``tokens`` of the targets."""
    encoded = [name.encode("utf-8", "surrogateescape") for name in dataset.class_names]
    ends = np.cumsum(np.array([len(text) for text in encoded])[tokens])
    text = b"".join([encoded[token] for token in tokens.tolist()])
    found = [(match.end("target"), *match.span("beside")) for match in re.finditer(PATTERNS[pattern], text)]
    behind = np.array(found, dtype=np.int64).reshape(-1, 3) - [
        1,
        0,
        1,
    ]  # last byte of the target, first and last of its neighbour
    target, first, last = np.searchsorted(ends, behind, side="right").T
    return np.unique(target[(target != first) & (target != last)])
