"""What the members of a group share, in words: "airplanes on white against frogs and deer"."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy

from opposing_signals.data import Dataset
from opposing_signals.signals.pairs import OpposingPair

CHANCE = 0.01
"""A class or background names a group only if random groups of its size have that much of it more rarely than this."""

EDGE = 4
"""Width in pixels of the border that counts as background, for a picture 32 pixels wide."""

MIDDLE = 1 / 3
"""A colour is that of the object shown if it fills more than this fraction of the middle (half as high and wide)."""

UNCHANGED = {"deer", "sheep", "fish", "aircraft"}
"""Words that are their own plural."""


def name_pair(dataset: Dataset, pair: OpposingPair) -> str:
    """Name both groups by what they share, the rising one first."""
    rising, falling = (name_group(dataset, group) for group in pair.groups)
    return f"{rising} against {falling}"


def name_group(dataset: Dataset, group: np.ndarray) -> str:
    """For instance "airplanes on white", "automobiles in red", "mixed images on blue" or "x in [−0.9, −0.7]".

    The name lists the one to three classes that are more frequent in the group than by chance and together hold at
    least half of it, and the colour of the background, or else ("in") of the middle, if most members have it and more
    than by chance. A group with none of these is called "mixed images".
    """
    if dataset.inputs.shape[1:] == (1,) and dataset.inputs.is_floating_point() and not dataset.is_classification:
        x = dataset.inputs[group].ravel()
        return f"x in [{float(x.min()):.2g}, {float(x.max()):.2g}]".replace("-", "−")
    kind = "images" if dataset.images is not None else "examples"
    named = _classes(dataset, group) or f"mixed {kind}"
    if dataset.images is None:
        return named
    for where, colours_of in (("on", backgrounds), ("in", middles)):
        if colour := _shared(dataset.images, group, colours_of):
            return f"{named} {where} {colour}"
    return named


def _classes(dataset: Dataset, group: np.ndarray) -> str:
    if dataset.targets.ndim != 1 or not dataset.is_classification or len(dataset.class_names) < 2:
        return ""
    classes = np.asarray(dataset.targets)
    counts = np.bincount(classes[group], minlength=len(dataset.class_names))
    sizes = np.bincount(classes, minlength=len(dataset.class_names))
    common = [
        number
        for number in np.argsort(-counts, kind="stable").tolist()
        if _by_chance(counts[number], len(group), sizes[number], len(classes)) < CHANCE
    ][:3]
    if 2 * counts[common].sum() < len(group):
        return ""
    needed = int(np.searchsorted(np.cumsum(counts[common]), 0.75 * len(group))) + 1
    words = [_plural(dataset.class_names[number]) for number in common[:needed]]
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


def _by_chance(count: int, members: int, having: int, points: int) -> float:
    """Probability that at least ``count`` of ``members`` random points are among the ``having`` ones."""
    return float(scipy.stats.hypergeom.sf(count - 1, points, having, members))


def _plural(name: str) -> str:
    if not name.isalpha():
        return f'"{name}"'
    if name in UNCHANGED:
        return name
    if name.endswith(("s", "x", "ch", "sh")):
        return name + "es"
    return name[:-1] + "ies" if name.endswith("y") and name[-2:-1] not in "aeiou" else name + "s"


# -- colours ----------------------------------------------------------------------------------------------------------


def _shared(images: np.ndarray, group: np.ndarray, colours_of: Callable[[np.ndarray], list[str]]) -> str:
    """The colour that most pictures of the group have, and more of them than by chance; else empty."""
    ours = colours_of(images[group])
    colour = max(set(ours), key=ours.count)
    if not colour or 2 * ours.count(colour) <= len(ours):
        return ""
    sample = np.random.default_rng(0).choice(len(images), min(len(images), 1000), replace=False)
    usual = colours_of(images[sample]).count(colour) / len(sample)
    chance = float(scipy.stats.binom.sf(ours.count(colour) - 1, len(ours), max(usual, 1 / len(sample))))
    return colour if chance < CHANCE else ""


def backgrounds(images: np.ndarray) -> list[str]:
    """The colour of each picture's border in a word; empty if it has no single colour, or a dull one.

    Args:
        images: ``[n, height, width, 3]`` or ``[n, height, width]``, uint8.
    """
    tall, wide = (max(1, EDGE * size // 32) for size in images.shape[1:3])
    return _commonest(images, ~_inside(images, tall, wide), 1 / 2)


def middles(images: np.ndarray) -> list[str]:
    """The colour in the middle of each picture, as `backgrounds`."""
    return _commonest(images, _inside(images, *(size // 4 for size in images.shape[1:3])), MIDDLE)


def _inside(images: np.ndarray, tall: int, wide: int) -> np.ndarray:
    """``[height, width]`` bool: pixels at least ``tall`` and ``wide`` pixels away from the border."""
    height, width = images.shape[1:3]
    inside = np.zeros((height, width), bool)
    inside[tall : height - tall, wide : width - wide] = True
    return inside


def _commonest(images: np.ndarray, where: np.ndarray, share: float) -> list[str]:
    """The most frequent colour of each picture within ``where``; empty if it fills no more than ``share`` of it."""
    pictures = images[..., None].repeat(3, axis=3) if images.ndim == 3 else images
    words = _colours(pictures[:, where].astype(float))
    shares = np.stack([(words == word).mean(1) for word in _WORDS])
    return np.where(shares.max(0) > share, np.array(_WORDS)[shares.argmax(0)], "").tolist()


_WORDS = ("white", "black", "blue", "green", "yellow", "red", "brown")


def _colours(pixels: np.ndarray) -> np.ndarray:
    """White, black, or the hue of each saturated pixel of ``[..., 3]``; empty for grey and dull ones."""
    red, green, blue = np.moveaxis(pixels, -1, 0)
    high, low = pixels.max(-1), pixels.min(-1)
    tests = {
        "white": (low > 200) & (high - low < 40),
        "black": high < 50,
        "": high - low < 0.2 * high,
        "blue": high == blue,
        "green": high == green,
        "yellow": (green > 0.75 * red) & (green > 1.3 * blue),
        "red": green < 0.5 * red,
    }
    return np.select(list(tests.values()), list(tests), "brown")
