"""Synthetic images with planted opposing signals, as ground truth for methods that find such groups.

Every class has a defining shape, drawn small, faint and jittered: the true but weak signal. A few images also have a
large, bright feature that only correlates with the class, such as a blue sky behind most planes and some birds. Images
with the feature are outliers, and their gradients oppose each other: (sky and plane) against (sky and bird).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from opposing_signals.data.dataset import Dataset
from opposing_signals.data.images import Examples, image_dataset
from opposing_signals.errors import InputError
from opposing_signals.values import Count, Fraction, Seed

CLASS_NAMES = ("plane", "bird", "car", "truck", "frog", "cat")
FEATURES = ("sky", "wheels", "texture")

_SIDE = 32


def planted(
    images: Count = 1000,
    seed: Seed = 0,
    sky_in_plane: Fraction = 0.6,
    sky_in_bird: Fraction = 0.15,
    wheels_in_car: Fraction = 0.5,
    wheels_in_truck: Fraction = 0.4,
    texture_in_frog: Fraction = 0.6,
    texture_in_cat: Fraction = 0.15,
) -> Dataset:
    """Six classes of 32 x 32 colour images with three planted pairs of opposing groups.

    The drawing uses uniform random numbers and the exactly rounded operations (sums, products, quotients, square
    roots), so equal arguments give equal images on every machine. The arguments after ``seed`` are the prevalences:
    the probability that an image of the class has the feature; images of other classes never have it.

    Args:
        images: Number N of training images, cycling through the classes; the test set is half as large.
        seed: Seed of the drawing, not of the training. Training and test images come from independent streams.
        sky_in_plane: Prevalence of the bright blue background in planes.
        sky_in_bird: The same in birds.
        wheels_in_car: Prevalence of black wheels with bright hubs and a headlight in cars.
        wheels_in_truck: The same in trucks.
        texture_in_frog: Prevalence of bright green grass as background in frogs.
        texture_in_cat: The same in cats.

    Returns:
        ``inputs`` ``[N, 3, 32, 32]``, normalized per channel; ``truth`` has for ``"sky"``, ``"wheels"`` and
        ``"texture"`` whether each training image has the feature, ``[N]`` bool.

    Raises:
        InputError: Fewer images than classes.
    """
    if images < len(CLASS_NAMES):
        raise InputError(f"data.images={images}: at least {len(CLASS_NAMES)} images are needed, one for every class")
    prevalence = {
        "sky": {"plane": sky_in_plane, "bird": sky_in_bird},
        "wheels": {"car": wheels_in_car, "truck": wheels_in_truck},
        "texture": {"frog": texture_in_frog, "cat": texture_in_cat},
    }
    train_stream, test_stream = np.random.default_rng(seed).spawn(2)
    train, truth = _sample(train_stream, images, prevalence)
    test, _ = _sample(test_stream, max(images // 2, len(CLASS_NAMES)), prevalence)
    return image_dataset(f"planted ({images} images, seed {seed})", CLASS_NAMES, train, test, truth)


def _sample(
    rng: np.random.Generator, count: int, prevalence: dict[str, dict[str, float]]
) -> tuple[Examples, dict[str, np.ndarray]]:
    """``count`` examples and, per feature, whether each has it."""
    labels = np.arange(count) % len(CLASS_NAMES)
    truth = {
        feature: rng.random(count) < np.array([prevalence[feature].get(name, 0.0) for name in CLASS_NAMES])[labels]
        for feature in FEATURES
    }
    return (_draw(rng, labels, truth), labels), truth


# Scenes -------------------------------------------------------------------------------------------------------------
# Colours are RGB in [0, 1]; a canvas is [n, 32, 32, 3] float32.

_SCENERY = np.array(
    [
        (0.40, 0.34, 0.46),  # dusk
        (0.62, 0.52, 0.38),  # sand
        (0.52, 0.33, 0.27),  # brick
        (0.48, 0.49, 0.49),  # concrete
        (0.30, 0.38, 0.33),  # moss
        (0.60, 0.46, 0.48),  # rose
        (0.33, 0.41, 0.47),  # slate
        (0.68, 0.60, 0.47),  # straw
    ],
    dtype=np.float32,
)


def _draw(rng: np.random.Generator, labels: np.ndarray, truth: dict[str, np.ndarray]) -> np.ndarray:
    """Images ``[n, 32, 32, 3]`` uint8."""
    canvas = _scenery(rng, len(labels))
    canvas[truth["sky"]] = _sky(rng, truth["sky"].sum())
    canvas[truth["texture"]] = _grass(rng, truth["texture"].sum())
    for label, name in enumerate(CLASS_NAMES):
        members = labels == label
        canvas[members] = _draw_object(rng, canvas[members], name, truth["wheels"][members])
    grain = _uniform(rng, -1, 1, canvas.shape) + _uniform(rng, -1, 1, canvas.shape)
    return np.rint(np.clip(canvas + 0.04 * grain, 0, 1) * 255).astype(np.uint8)


def _scenery(rng: np.random.Generator, count: int) -> np.ndarray:
    """Muted backgrounds: a gradient of two colours, cloudy light, and four blots of clutter."""
    top, bottom = (_SCENERY[rng.integers(len(_SCENERY), size=count)][:, None, None] for _ in range(2))
    canvas = top + (bottom - top) * _cloud(rng, count, 2, 2)[..., None]
    canvas += 0.2 * (_cloud(rng, count, 4, 4)[..., None] - 0.5)
    for _ in range(4):
        pose = _Pose.random(rng, count, centre=(2, 30), size=(2, 5))
        blot = _SCENERY[rng.integers(len(_SCENERY), size=count)] + _uniform(rng, -0.12, 0.12, (count, 3))
        canvas = _painted(canvas, _ellipse(pose, 0, 0, 1, 0.7), blot, 0.7)
    return canvas


def _sky(rng: np.random.Generator, count: int) -> np.ndarray:
    """A saturated blue that pales towards the horizon, with soft white clouds."""
    zenith, horizon = np.array([(0.10, 0.45, 1.00), (0.55, 0.82, 1.00)], dtype=np.float32)
    height = np.linspace(0, 1, _SIDE, dtype=np.float32)[:, None, None]
    canvas = np.broadcast_to(zenith + (horizon - zenith) * height, (count, _SIDE, _SIDE, 3)).copy()
    cover = np.clip(3 * _cloud(rng, count, 6, 4) - 2, 0, 0.8)
    return _painted(canvas, cover, np.ones((count, 3), dtype=np.float32))


def _grass(rng: np.random.Generator, count: int) -> np.ndarray:
    """A saturated green with upright blades."""
    dark, light = np.array([(0.08, 0.50, 0.05), (0.55, 1.00, 0.25)], dtype=np.float32)
    return dark + (light - dark) * (0.5 * _cloud(rng, count, 6, 25) + 0.5 * _cloud(rng, count, 3, 3))[..., None]


def _cloud(rng: np.random.Generator, count: int, rows: int, columns: int) -> np.ndarray:
    """Smooth noise ``[count, 32, 32]`` in [0, 1]: random values on a coarse grid, linear in between."""

    def stretched(values: np.ndarray) -> np.ndarray:
        place = np.linspace(0, values.shape[1] - 1, _SIDE)
        left = np.minimum(place.astype(int), values.shape[1] - 2)
        weight = (place - left).astype(np.float32)[:, None]
        return values[:, left] * (1 - weight) + values[:, left + 1] * weight

    return stretched(stretched(rng.random((count, rows, columns), dtype=np.float32)).swapaxes(1, 2)).swapaxes(1, 2)


# Objects ------------------------------------------------------------------------------------------------------------
# An object looks to the right and fills [-1, 1] x [-1, 1] of its own coordinates, y pointing down. Its parts are
# painted in order: an ellipse (centre, radii) or a convex polygon (corners, clockwise on the screen).


@dataclass(frozen=True)
class _Pose:
    """Poses of n objects: own coordinates ``x``, ``y`` of every pixel ``[n, 32, 32]``, and pixels per unit."""

    x: np.ndarray
    y: np.ndarray
    size: np.ndarray

    @classmethod
    def random(
        cls,
        rng: np.random.Generator,
        count: int,
        centre: tuple[float, float],
        size: tuple[float, float],
        tilt: float = 0.25,
    ) -> _Pose:
        """Centre and size (pixels) uniform in the given ranges, slope up to ``tilt``, left or right at random."""
        shape = (count, 1, 1)
        pixel = np.arange(_SIDE, dtype=np.float32) + 0.5
        across, down = pixel - _uniform(rng, *centre, shape), pixel[:, None] - _uniform(rng, *centre, shape)
        size_, slope = _uniform(rng, *size, shape), _uniform(rng, -tilt, tilt, shape)
        mirror = np.where(rng.random(shape) < 0.5, np.float32(1), np.float32(-1))
        # A slope instead of an angle: sine and cosine may differ in the last bit between machines, a root may not.
        unit = size_ * np.sqrt(1 + slope**2)
        return cls((across + slope * down) / unit * mirror, (down - slope * across) / unit, size_)


@dataclass(frozen=True)
class _Part:
    """``shape``: four numbers (an ellipse's centre and radii) or three and more corners of a convex polygon.

    ``shade`` scales the brightness of the body's colour, ``colour`` replaces it.
    """

    shape: tuple[float, float, float, float] | tuple[tuple[float, float], ...]
    shade: float = 1.0
    colour: tuple[float, float, float] | None = None


_BLACK, _WHITE, _AMBER, _PINK = (0.06, 0.06, 0.08), (0.95, 0.95, 0.92), (0.95, 0.65, 0.15), (0.90, 0.55, 0.55)
_EYE = (0.85, 0.90, 0.45)

_PARTS: dict[str, tuple[_Part, ...]] = {
    "plane": (
        _Part(((-0.15, -0.1), (-0.45, -0.95), (-0.2, -0.95), (0.35, -0.1)), 0.85),
        _Part(((-0.15, 0.1), (0.35, 0.1), (-0.2, 0.95), (-0.45, 0.95)), 0.85),
        _Part(((-0.75, 0.0), (-1.0, -0.4), (-0.85, -0.4), (-0.5, 0.0)), 0.75),
        _Part(((-0.75, 0.0), (-0.5, 0.0), (-0.85, 0.4), (-1.0, 0.4)), 0.75),
        _Part((0.0, 0.0, 1.0, 0.17)),
        _Part((0.7, 0.0, 0.13, 0.09), 0.35),
    ),
    "bird": (
        _Part(((-0.3, 0.1), (-1.0, -0.15), (-0.95, 0.35)), 0.8),
        _Part((0.0, 0.15, 0.6, 0.33)),
        _Part((0.58, -0.18, 0.27, 0.25)),
        _Part(((0.78, -0.3), (1.1, -0.15), (0.78, -0.05)), colour=_AMBER),
        _Part(((-0.35, 0.1), (-0.5, -0.85), (0.25, 0.05)), 0.7),
        _Part((0.64, -0.23, 0.08, 0.08), colour=_BLACK),
    ),
    "car": (
        _Part(((-0.7, 0.0), (-0.4, -0.5), (0.3, -0.5), (0.65, 0.0)), 0.8),
        _Part(((-0.5, -0.02), (-0.33, -0.38), (-0.08, -0.38), (-0.08, -0.02)), 1.5),
        _Part(((0.04, -0.02), (0.04, -0.38), (0.24, -0.38), (0.47, -0.02)), 1.5),
        _Part(((-1.0, -0.02), (0.85, -0.02), (1.0, 0.12), (1.0, 0.45), (-1.0, 0.45))),
    ),
    "truck": (
        _Part(((-1.0, -0.65), (0.3, -0.65), (0.3, 0.45), (-1.0, 0.45))),
        _Part(((0.36, -0.35), (0.72, -0.35), (1.0, 0.05), (1.0, 0.45), (0.36, 0.45)), 0.75),
        _Part(((0.5, -0.22), (0.68, -0.22), (0.86, 0.05), (0.5, 0.05)), 1.5),
    ),
    "frog": (
        _Part((-0.7, 0.6, 0.38, 0.2), 0.8),
        _Part((0.7, 0.6, 0.38, 0.2), 0.8),
        _Part((0.0, 0.25, 0.78, 0.52)),
        _Part((-0.42, -0.3, 0.27, 0.27)),
        _Part((0.42, -0.3, 0.27, 0.27)),
        _Part((-0.42, -0.32, 0.14, 0.14), colour=_WHITE),
        _Part((0.42, -0.32, 0.14, 0.14), colour=_WHITE),
        _Part((0.0, 0.3, 0.4, 0.07), 0.5),
    ),
    "cat": (
        _Part(((-0.72, 0.05), (-0.66, -0.9), (-0.1, -0.4))),
        _Part(((0.72, 0.05), (0.1, -0.4), (0.66, -0.9))),
        _Part((0.0, 0.12, 0.78, 0.66)),
        _Part((-0.3, 0.0, 0.15, 0.12), colour=_EYE),
        _Part((0.3, 0.0, 0.15, 0.12), colour=_EYE),
        _Part(((-0.12, 0.26), (0.12, 0.26), (0.0, 0.42)), colour=_PINK),
    ),
}
_WHEELS = (
    _Part((-0.55, 0.5, 0.36, 0.36), colour=_BLACK),
    _Part((0.55, 0.5, 0.36, 0.36), colour=_BLACK),
    _Part((-0.55, 0.5, 0.17, 0.17), colour=_WHITE),
    _Part((0.55, 0.5, 0.17, 0.17), colour=_WHITE),
    _Part((0.97, 0.12, 0.16, 0.14), colour=(1.0, 0.95, 0.30)),
)


def _draw_object(rng: np.random.Generator, canvas: np.ndarray, name: str, wheels: np.ndarray) -> np.ndarray:
    """``canvas`` with one object of the class on every image, with wheels where ``wheels`` is true."""
    count = len(canvas)
    pose = _Pose.random(rng, count, centre=(11, 21), size=(7.5, 11.5))
    body = _uniform(rng, 0.2, 0.8, (count, 3))
    visibility = _uniform(rng, 0.4, 0.9, (count, 1, 1))
    for part in _PARTS[name]:
        canvas = _painted(canvas, _cover(pose, part), _colour(part, body), visibility)
    wheels_cover = wheels[:, None, None].astype(np.float32)
    for part in _WHEELS if wheels.any() else ():
        canvas = _painted(canvas, _cover(pose, part), _colour(part, body), wheels_cover)
    return canvas


def _colour(part: _Part, body: np.ndarray) -> np.ndarray:
    if part.colour is None:
        return np.minimum(part.shade * body, 1)
    return np.broadcast_to(np.array(part.colour, dtype=np.float32), body.shape)


def _cover(pose: _Pose, part: _Part) -> np.ndarray:
    if isinstance(part.shape[0], tuple):
        return _polygon(pose, part.shape)
    return _ellipse(pose, *part.shape)


def _ellipse(pose: _Pose, x: float, y: float, radius_x: float, radius_y: float) -> np.ndarray:
    """Fraction of every pixel that the ellipse covers, ``[n, 32, 32]`` in [0, 1]; its edge is a pixel wide."""
    distance = np.sqrt(((pose.x - x) / radius_x) ** 2 + ((pose.y - y) / radius_y) ** 2)
    return np.clip((1 - distance) * min(radius_x, radius_y) * pose.size + 0.5, 0, 1)


def _polygon(pose: _Pose, corners: tuple[tuple[float, float], ...]) -> np.ndarray:
    """The same for a convex polygon: the least cover of its edges' half-planes."""
    cover = np.ones_like(pose.x)
    for (x0, y0), (x1, y1) in zip(corners, (*corners[1:], corners[0]), strict=True):
        along_x, along_y = x1 - x0, y1 - y0
        inside = (along_x * (pose.y - y0) - along_y * (pose.x - x0)) / math.sqrt(along_x * along_x + along_y * along_y)
        cover = np.minimum(cover, np.clip(inside * pose.size + 0.5, 0, 1))
    return cover


def _painted(
    canvas: np.ndarray, cover: np.ndarray, colour: np.ndarray, visibility: float | np.ndarray = 1.0
) -> np.ndarray:
    """``canvas`` painted with one ``colour`` ``[n, 3]`` per image, with opacity ``cover`` ``[n, 32, 32]``."""
    return canvas + (cover * visibility)[..., None] * (colour[:, None, None] - canvas)


def _uniform(rng: np.random.Generator, low: float, high: float, shape: tuple[int, ...]) -> np.ndarray:
    return low + (high - low) * rng.random(shape, dtype=np.float32)
