"""Probe inputs of a pure signal: colour blocks, an image of grass, a user's own image (figures 5, 10 to 31).

The paper shows its blocks as pictures, without RGB values, and chose its grass image by eye. The values below are our
choice. `colour_in_data` takes a colour from the training data instead, and `grass_image` a picture from the test set.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.colors import rgb_to_hsv
from PIL import Image, UnidentifiedImageError

from opposing_signals.data.dataset import Dataset
from opposing_signals.errors import InputError

Colour = tuple[int, int, int]
"""Red, green and blue, each 0 to 255."""

COLOURS: dict[str, Colour] = {
    "sky": (135, 206, 235),  # CSS skyblue
    "red": (255, 0, 0),
    "green": (0, 255, 0),  # the paper calls its green unnatural
    "white": (255, 255, 255),
    "black": (0, 0, 0),
}
IN_DATA = "_in_data"
_HUES_IN_DATA = ("sky", "green")

_PART = 1000  # images processed together, to bound memory


def known_colours() -> list[str]:
    """The names of colours: those of `COLOURS` and those that the data define."""
    return [*COLOURS, *(f"{name}{IN_DATA}" for name in _HUES_IN_DATA)]


def known_probes() -> list[str]:
    """The names of probes; anything else is the path of an image file."""
    return [*known_colours(), "grass"]


def named_colour(name: str, dataset: Dataset) -> Colour:
    """The colour ``name`` of `COLOURS`, or, if it ends in ``_in_data``, that of `colour_in_data`.

    Raises:
        InputError: There is no such name, or no training image has its hue.
    """
    if name not in known_colours():
        raise InputError(f"colour {name!r}: unknown; there are {', '.join(known_colours())}")
    return COLOURS[name] if name in COLOURS else colour_in_data(dataset, name.removesuffix(IN_DATA))


def probe_images(names: Sequence[str], dataset: Dataset) -> np.ndarray:
    """The probes called ``names``, as pictures of the training images' size.

    Args:
        names: ``"sky"``, ``"red"``, ``"green"``, ``"white"``, ``"black"``: blocks of `COLOURS`; ``"sky_in_data"``,
            ``"green_in_data"``: blocks of `colour_in_data`; ``"grass"``: `grass_image`; or the path
            of an image file.
        dataset: Training data with pictures.

    Returns:
        ``[P, H, W, 3]`` uint8.

    Raises:
        InputError: A name that is unknown; a file that is missing, not an image, or of another size; data without
            pictures, or without a picture of the colour asked for.
    """
    if dataset.images is None:
        raise InputError(f"probes need training data with pictures, and {dataset.name} has none: choose other data")
    return np.stack([_probe(str(name), dataset, dataset.images.shape[1:3]) for name in names])


def _probe(name: str, dataset: Dataset, size: tuple[int, int]) -> np.ndarray:
    if name == "grass":
        return grass_image(dataset)
    if name in known_colours():
        return block(named_colour(name, dataset), size)
    if not Path(name).suffix and Path(name).name == name:
        raise InputError(
            f"probe {name!r}: unknown; there are {', '.join(known_probes())}, and a path such as ./{name}.png for an "
            "image of your own"
        )
    return _image_file(Path(name).expanduser(), size)


def _image_file(path: Path, size: tuple[int, int]) -> np.ndarray:
    height, width = size
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
    except UnidentifiedImageError:
        raise InputError(
            f"probe {path}: not an image; expected a file such as PNG of {width}x{height} pixels"
        ) from None
    except OSError as error:
        raise InputError(f"probe {path}: {error.strerror or error}; expected an image file") from None
    if pixels.shape[:2] != size:
        raise InputError(
            f"probe {path}: {pixels.shape[1]}x{pixels.shape[0]} pixels; expected {width}x{height}, the size of the "
            "training images: resize or crop it"
        )
    return pixels


def block(colour: Colour, size: tuple[int, int]) -> np.ndarray:
    """A picture ``[H, W, 3]`` of one colour."""
    return np.broadcast_to(np.array(colour, np.uint8), (*size, 3)).copy()


def colour_in_data(dataset: Dataset, name: str, images: int = 10) -> Colour:
    """The training data's colour for ``name``: the mean of the most uniform images of its hue.

    Of the images whose mean colour has a hue within 30 degrees of the named colour's and a saturation of at least 0.2,
    the ``images`` whose pixels are nearest to their own mean colour are averaged.

    Raises:
        InputError: No training image has that hue.
    """
    hue = _hue_saturation_value(np.array(COLOURS[name]))[0]

    def mean_and_spread(part: np.ndarray) -> np.ndarray:
        mean = part.mean((1, 2))
        spread = np.linalg.norm(part - mean[:, None, None], axis=-1).mean((1, 2))
        return np.concatenate([mean, spread[:, None]], 1)

    measured = _of_parts(_images(dataset), mean_and_spread)
    mean, spread = measured[:, :3], measured[:, 3]
    hues, saturations, _ = _hue_saturation_value(mean)
    alike = np.flatnonzero((np.abs((hues - hue + 180) % 360 - 180) <= 30) & (saturations >= 0.2))
    if not len(alike):
        raise InputError(
            f"probe {name}{IN_DATA}: no image of {dataset.name} has a mean colour within 30 degrees of the hue "
            f"of {name}; use the probe {name}"
        )
    uniform = alike[np.argsort(spread[alike], kind="stable")[:images]]
    red, green, blue = mean[uniform].mean(0).round().astype(int).tolist()
    return red, green, blue


def grass_image(dataset: Dataset) -> np.ndarray:
    """Grass that the network is not trained on: a part of a test picture, enlarged (the paper chose an image by eye).

    A pixel counts as grass if it is green (hue 70 to 150 degrees, saturation at least 0.2, value at least 0.15) and
    textured (standard deviation of the brightness over its 3x3 neighbourhood at least 0.03). Every picture of CIFAR-10
    has an object in its middle. So crops of half the height and width are compared, at every fourth pixel, and the one
    with the most such pixels (the first, if several) is enlarged to a whole picture. Frogs are green and textured
    themselves: pictures of a class ``"frog"`` are left out.

    Returns:
        ``[H, W, 3]`` uint8.

    Raises:
        InputError: The data have no test set with pictures.
    """
    if dataset.test_images is None or dataset.test_targets is None:
        raise InputError(
            f"probe 'grass' is cut from the test set's pictures, and {dataset.name} has none: use other data, or "
            "the path of an image of your own"
        )
    names = np.array(dataset.class_names)[dataset.test_targets.numpy()]
    pictures = dataset.test_images[names != "frog"]
    height, width = pictures.shape[1:3]
    corners = [(top, left) for top in range(0, height // 2 + 1, 4) for left in range(0, width // 2 + 1, 4)]

    def quarter(pixels: np.ndarray, top: int, left: int) -> np.ndarray:
        return pixels[..., top : top + height // 2, left : left + width // 2]

    def grass(part: np.ndarray) -> np.ndarray:
        hue, saturation, value = _hue_saturation_value(part)
        green = (hue >= 70) & (hue <= 150) & (saturation >= 0.2) & (value >= 0.15)
        brightness = np.pad(part.mean(-1) / 255, ((0, 0), (1, 1), (1, 1)), mode="edge")
        texture = np.lib.stride_tricks.sliding_window_view(brightness, (3, 3), (1, 2)).std((-2, -1))
        is_grass = green & (texture >= 0.03)
        return np.stack([quarter(is_grass, *corner).mean((1, 2)) for corner in corners], 1)

    picture, corner = divmod(int(_of_parts(pictures, grass).argmax()), len(corners))
    cut = quarter(pictures[picture].transpose(2, 0, 1), *corners[corner]).transpose(1, 2, 0)
    return np.asarray(Image.fromarray(cut).resize((width, height), Image.Resampling.BICUBIC))


def nearest_to_colour(dataset: Dataset, colour: Colour, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The training images closest to a block of ``colour`` (figure 12), the nearest first.

    Returns:
        ``[count]`` indices, and the mean distance of their pixels from ``colour`` in RGB, black to white being 441.
    """

    def distance(part: np.ndarray) -> np.ndarray:
        return np.linalg.norm(part - np.array(colour, float), axis=-1).mean((1, 2))

    distances = _of_parts(_images(dataset), distance)
    nearest = np.argsort(distances, kind="stable")[:count]
    return nearest, distances[nearest]


def _images(dataset: Dataset) -> np.ndarray:
    assert dataset.images is not None
    return dataset.images


def _of_parts(images: np.ndarray, measure: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """``measure`` of all images, ``[N, ...]``, a part at a time."""
    return np.concatenate([measure(images[first : first + _PART]) for first in range(0, len(images), _PART)])


def _hue_saturation_value(colours: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hue in degrees, saturation and value in [0, 1] of RGB colours ``[..., 3]`` in 0 to 255; grey has hue 0."""
    hue, saturation, value = np.moveaxis(rgb_to_hsv(np.asarray(colours, float) / 255), -1, 0)
    return 360 * hue, saturation, value
