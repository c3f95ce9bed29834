"""CIFAR-10 in any of three file formats; every file is verified by its known checksum before it is read."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import pickle
import shutil
import tarfile
import tempfile
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
from filelock import FileLock
from PIL import Image

from opposing_signals.data.dataset import Dataset
from opposing_signals.data.images import Examples, image_dataset
from opposing_signals.errors import InputError
from opposing_signals.files import cache_folder
from opposing_signals.values import Count

CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
ENVIRONMENT_VARIABLE = "OPPOSING_SIGNALS_DATA"

Split: TypeAlias = Literal["train", "test"]

_TRAIN_IMAGES = 50_000
_SUBSET_IMAGES = 5_000
_BATCH_IMAGES = 10_000
_ARCHIVE_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
_ARCHIVE_MD5 = "c58f30108f718f92721af3b95e74349a"
_FOLDERS = ("cifar10", "cifar-10-batches-py")

_log = logging.getLogger(__name__)


def cifar10(images: Count = _TRAIN_IMAGES, root: str | None = None) -> Dataset:
    """CIFAR-10 (Krizhevsky, 2009), or its subset with the first images of every class.

    The files are looked for in ``root``; if it is None, in the folder that the environment variable
    ``OPPOSING_SIGNALS_DATA`` names; if that is not set, in the user's cache, to which they are downloaded. A named
    folder without usable files is an error, never a reason to download.

    A folder (or its sub-folder ``cifar10`` or ``cifar-10-batches-py``) may hold the official Python batches, lossless
    WebP mosaics of them with ``labels.npz``, or the 5,000-image subset ``cifar10_5k.npz``, which is preferred for up
    to 5,000 images because it loads fastest. The mosaics and the subset were rebuilt from copies: 73 of the mosaics'
    training images (one of them in the subset) had been JPEG-compressed, so their checksum differs from that of the
    official files.

    Args:
        images: Number n of training images. The first n/10 of each class are taken and kept in data-set order; if n is
            not divisible by 10, the first n % 10 classes have one more.
        root: Folder of the files (configuration field ``data.root``).

    Returns:
        ``inputs`` ``[n, 3, 32, 32]`` with mean 0 and standard deviation 1 per channel, ``images`` ``[n, 32, 32, 3]``.
        The test set is the first 100 of each class for up to 5,000 training images, otherwise all 10,000.

    Raises:
        InputError: Too many images are asked for; nothing usable is in the folder; a file is altered,
            truncated or unreadable; the download failed.
    """
    if images > _TRAIN_IMAGES:
        raise InputError(f"data.images={images}: CIFAR-10 has {_TRAIN_IMAGES} training images; ask for at most as many")
    layout, folder = _locate(images, root)
    per_class, extra = divmod(images, len(CLASS_NAMES))
    train_quota = per_class + (np.arange(len(CLASS_NAMES)) < extra)
    # One rule for every layout, so that a run's test set does not depend on the form its data came in.
    test_quota = np.full(len(CLASS_NAMES), 100 if images <= _SUBSET_IMAGES else 1000)
    return image_dataset(
        name=f"cifar10 ({images} of {_TRAIN_IMAGES} images)",
        class_names=CLASS_NAMES,
        train=_first_of_each_class(layout.read(folder, "train"), train_quota, folder),
        test=_first_of_each_class(layout.read(folder, "test"), test_quota, folder),
    )


def _first_of_each_class(batches: Iterable[Examples], quota: np.ndarray, source: Path) -> Examples:
    """The first ``quota[c]`` examples of every class c, in data-set order; only the batches needed are read."""
    missing = quota
    images, labels = [], []
    for batch_images, batch_labels in batches:
        keep = np.zeros(len(batch_labels), dtype=bool)
        for label, room in enumerate(missing):
            keep[np.flatnonzero(batch_labels == label)[:room]] = True
        images.append(batch_images[keep])
        labels.append(batch_labels[keep])
        missing = missing - np.bincount(batch_labels[keep], minlength=len(missing))
        if not missing.any():
            return np.concatenate(images), np.concatenate(labels)
    wanted = quota.sum()
    raise InputError(
        f"more images asked for than there are: {wanted} wanted, {wanted - missing.sum()} found in {source}; "
        "lower data.images or point data.root at a folder with the whole of CIFAR-10"
    )


# Where the files are ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Layout:
    """One format of CIFAR-10's files in a folder."""

    description: str
    files: tuple[str, ...]
    read: Callable[[Path, Split], Iterator[Examples]]

    def is_in(self, folder: Path, images: int = _TRAIN_IMAGES) -> bool:
        """Whether ``folder`` has the files that ``images`` training images need, if the classes are evenly mixed."""
        unread = [f"data_batch_{number}" for number in range(1 + -(-images // _BATCH_IMAGES), 6)]
        return all((folder / file).is_file() for file in self.files if Path(file).stem not in unread)


def _locate(images: int, root: str | None) -> tuple[_Layout, Path]:
    """The layout to read and its folder, downloaded if no folder was named and the cache is empty."""
    named, source = (root, "data.root") if root else (os.environ.get(ENVIRONMENT_VARIABLE), ENVIRONMENT_VARIABLE)
    if named:
        folder = Path(named).expanduser()
        found = _find(images, folder)
        if found is None:
            raise InputError(f"{source}={folder}: no CIFAR-10 there; the folder must hold {_accepted_layouts()}")
        return found
    cache = cache_folder()
    return _find(images, cache) or _download(cache)


def _find(images: int, folder: Path) -> tuple[_Layout, Path] | None:
    layouts = (_OFFICIAL, _MOSAICS)
    for layout in (_SUBSET, *layouts) if images <= _SUBSET_IMAGES else (*layouts, _SUBSET):
        for place in (folder, *(folder / name for name in _FOLDERS)):
            if layout.is_in(place, images):
                return layout, place
    return None


def _accepted_layouts() -> str:
    return f"{_OFFICIAL.description}, {_MOSAICS.description}, or {_SUBSET.description}"


def _download(cache: Path) -> tuple[_Layout, Path]:
    """Fetch the official archive into ``cache``."""
    target = cache / "cifar-10-batches-py"
    try:
        target.mkdir(parents=True, exist_ok=True)
        # The jobs of a sweep start together: one of them downloads, the others wait and find the files.
        with FileLock(cache / "cifar-10.lock"):
            if not _OFFICIAL.is_in(target):
                with tempfile.TemporaryDirectory(dir=cache) as scratch:
                    _fetch_archive(Path(scratch), target)
    except (OSError, HTTPException, tarfile.TarError) as error:
        raise InputError(
            f"no CIFAR-10 in {cache}, and the download of {_ARCHIVE_URL} failed ({error}); point data.root or the "
            f"environment variable {ENVIRONMENT_VARIABLE} at a folder that holds {_accepted_layouts()}"
        ) from error
    return _OFFICIAL, target


def _fetch_archive(scratch: Path, target: Path) -> None:
    archive = scratch / "archive.tar.gz"
    _log.info("downloading %s (163 MiB) to %s", _ARCHIVE_URL, target)
    with urllib.request.urlopen(_ARCHIVE_URL, timeout=60) as response, archive.open("wb") as file:
        shutil.copyfileobj(response, file)
    md5 = hashlib.md5(archive.read_bytes()).hexdigest()
    if md5 != _ARCHIVE_MD5:
        raise OSError(f"wrong checksum: md5 {md5}, expected {_ARCHIVE_MD5}")
    with tarfile.open(archive) as tar:
        # Only the members we know, and only their bytes: nothing in an archive chooses where a file is written.
        for name in _OFFICIAL.files:
            member = tar.extractfile(f"cifar-10-batches-py/{name}")
            if member is None:
                raise OSError(f"{name} in the archive is not a file")
            (scratch / name).write_bytes(member.read())
            os.replace(scratch / name, target / name)


# How each layout is read --------------------------------------------------------------------------------------------

OFFICIAL_MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
MOSAICS_SHA256 = {
    "data_batch_1.webp": "be07d284e29905f3c4a65320995f89e5e540a47b827de77a1d069d332df5a062",
    "data_batch_2.webp": "e87571dfbaa192764144cbb986c4df4332217ed371af70bf60099355b9d605e1",
    "data_batch_3.webp": "0393549413a605200b52e532bb662c2407195742e8f185c58de7eb507d063b72",
    "data_batch_4.webp": "0f998e6ade603ff526a0b51f19da40d27a6cd4b68f4583c68f57241f498c5869",
    "data_batch_5.webp": "6514029910954e6548863094ec7827531b34d4544e6554a088f8a6810740c17c",
    "test_batch.webp": "110ab725da0ff2d4eaec28a5ac330b1ee4f62c79f6e7be904e9fab5e528f672d",
    "labels.npz": "86d7675af0b9c8512aaf0b401f9ffa2a0c40ee38453f058d02c1ed8107e2b2c6",
}
SUBSET_SHA256 = {"cifar10_5k.npz": "7cb2b4230d171be3588a1b55b9ad4d25c15a812c4074a6115b8e4c381e7dc54c"}


def _checked(path: Path, sums: dict[str, str], algorithm: Literal["md5", "sha256"], problem: str) -> io.BytesIO:
    """The file's bytes, read once so that what was checked is what is decoded."""
    if not path.is_file():
        raise InputError(f"{path}: expected this file as well, for so many images of each class; lower data.images")
    data = path.read_bytes()
    found = hashlib.new(algorithm, data).hexdigest()
    if found != sums[path.name]:
        raise InputError(f"{path}: {problem}: {algorithm} {found}, expected {sums[path.name]}; fetch the file again")
    return io.BytesIO(data)


def _rebuilt(path: Path, sums: dict[str, str]) -> io.BytesIO:
    return _checked(path, sums, "sha256", "truncated or altered")


def _batch_names(split: Split) -> list[str]:
    return [f"data_batch_{number}" for number in range(1, 6)] if split == "train" else ["test_batch"]


def _read_official(folder: Path, split: Split) -> Iterator[Examples]:
    for name in _batch_names(split):
        data = _checked(folder / name, OFFICIAL_MD5, "md5", "wrong checksum")
        # latin1 is how bytes that Python 2 pickled as text come back unchanged.
        batch = _ArrayUnpickler(data, encoding="latin1").load()
        yield batch["data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), np.array(batch["labels"], dtype=np.int64)


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles numpy arrays in built-in containers and nothing else: a correct md5 sum does not make a file safe."""

    # The function that rebuilds an array moved within numpy, so it is taken from how an array pickles itself.
    _reconstruct = np.empty(0).__reduce__()[0]
    _allowed: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._allowed:
            raise InputError(f"a CIFAR-10 batch asks for {module}.{name}, which no genuine one does: not unpickled")
        return self._allowed[module, name]


def _read_mosaics(folder: Path, split: Split) -> Iterator[Examples]:
    names = _batch_names(split)
    with np.load(_rebuilt(folder / "labels.npz", MOSAICS_SHA256), allow_pickle=False) as file:
        labels = file[f"{split}_labels"].astype(np.int64)
    for name, batch_labels in zip(names, np.split(labels, len(names)), strict=True):
        path = folder / f"{name}.webp"
        data = _rebuilt(path, MOSAICS_SHA256)
        try:
            mosaic = np.asarray(Image.open(data).convert("RGB"))
        except OSError as error:
            raise InputError(f"{path}: not a readable WebP image ({error}); fetch the file again") from error
        rows, columns = mosaic.shape[0] // 32, mosaic.shape[1] // 32
        tiles = mosaic.reshape(rows, 32, columns, 32, 3).transpose(0, 2, 1, 3, 4)
        yield tiles.reshape(-1, 32, 32, 3), batch_labels


def _read_subset(folder: Path, split: Split) -> Iterator[Examples]:
    with np.load(_rebuilt(folder / "cifar10_5k.npz", SUBSET_SHA256), allow_pickle=False) as file:
        yield file[f"{split}_images"], file[f"{split}_labels"].astype(np.int64)


_OFFICIAL = _Layout("the official Python batches (data_batch_1..5, test_batch)", tuple(OFFICIAL_MD5), _read_official)
_MOSAICS = _Layout(
    "lossless mosaics (data_batch_1..5.webp, test_batch.webp, labels.npz)", tuple(MOSAICS_SHA256), _read_mosaics
)
_SUBSET = _Layout("the 5,000-image cifar10_5k.npz", tuple(SUBSET_SHA256), _read_subset)
