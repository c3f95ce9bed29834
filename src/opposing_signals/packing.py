"""Records small enough to be sent or committed: one zip file for a run, with the examples that matter most.

A packed record holds every series of scalars exactly. Of quantities with a number per example it holds as many columns
as fit: first, exactly, the examples of the dominant pairs and those whose loss changes most, then an even sample of the
others, with 10-bit mantissas. Their pictures are thumbnails. Unpacked, it is a record like any other, of tracked
examples (`opposing_signals.data.tracked`) if it stores examples.

A file may come from anywhere: its names, sizes and shapes are checked before they are used, and nothing in it is run.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from PIL import Image

from opposing_signals.data import Dataset
from opposing_signals.data.recorded import is_known, recorded
from opposing_signals.data.tracked import FILE, positions, write_tracked
from opposing_signals.errors import DamagedError, InputError, NotWrittenError
from opposing_signals.files import cache_folder, replacing
from opposing_signals.record import Record
from opposing_signals.record.quantities import SAMPLE_LOSS
from opposing_signals.signals import Trajectory

SUFFIX = ".record.zip"
LARGEST_FILE = 2**24
"""Most bytes of a packed record."""
LARGEST_CONTENT = 2**28
"""Most bytes that a packed record unpacks to."""
MOST_MEMBERS = 1_000
IN_A_ROW = 16
"""Thumbnails in a row of the mosaic."""
LARGEST_THUMBNAIL = 256
"""Most pixels of its height and width."""
MOVERS = 20
"""Examples of the largest one-step changes that are kept exactly, in addition to those of the pairs."""
BITS = 10
"""Bits of the mantissa kept for the other examples; float16 has as many."""

_TABLE = 2**18  # bytes above which a quantity with several numbers per step is left out
_TRIED = 8  # times the limit: largest size for which it is tried whether all examples fit
_MEMBER = re.compile(r"(?:configuration|provenance|state)\.json|image\.webp|(?:step|value|example)/[a-z]\w{0,63}\.npy")
_TRACKED = {"_target_": "opposing_signals.data.tracked"}
_DATE = (1980, 1, 1, 0, 0, 0)  # equal content gives equal files


def pack_run(record: Record, path: Path, limit: int = LARGEST_FILE) -> str:
    """`pack` ``record``, once verified, with its training examples if they can be shown one by one.

    Returns:
        Why there are no examples, for instance because the data set is not on this machine; empty if there are, or
        there cannot be.

    Raises:
        InputError: It is damaged, or does not fit.
    """
    record.verify()
    dataset, why = None, ""
    described = record.configuration.get("data")
    if is_known(described):
        try:
            dataset = recorded(described, record.folder)
        except InputError as error:
            why = f"{path} is without training examples: {error}"
        if dataset is not None and dataset.images is None and not dataset.inputs.is_floating_point():
            dataset = None  # tokens
    pack(record, path, dataset, limit)
    return why


def pack(record: Record, path: Path, dataset: Dataset | None = None, limit: int = LARGEST_FILE) -> None:
    """Write ``record`` as a packed one, with as many of its examples as fit.

    Args:
        record: Of a run that has ended.
        path: Of the file; it ends in `SUFFIX`.
        dataset: The training data, whose examples are stored; None: no examples, and all columns or none.
        limit: Bytes of the file.

    Raises:
        InputError: Not even the series of numbers fit.
    """
    size = sum(record[quantity].values.nbytes for quantity in record)
    is_shown = dataset is not None and (dataset.images is not None or (record.folder / FILE).is_file())
    whole = np.arange(len(dataset)) if dataset is not None and is_shown else None
    content = _packed(record, whole, math.inf, dataset) if size <= _TRIED * limit else None
    if content is None or len(content) > limit:
        content = bare = _packed(record, np.empty(0, np.int64))
        if len(bare) > limit:
            raise InputError(f"{record.folder}: {len(bare)} bytes when packed; expected at most {limit}")
        if dataset is not None and SAMPLE_LOSS in record:
            wanted, exact = _by_importance(record)
            count = min(len(wanted), limit // len(record[SAMPLE_LOSS]))  # at least a byte per number
            content = _packed(record, wanted[:count], exact, dataset)
            while len(content) > limit:
                count = min(count - 1, int(0.97 * count * (limit - len(bare)) / (len(content) - len(bare))))
                content = _packed(record, wanted[:count], exact, dataset)
    with replacing(path) as unfinished:
        unfinished.write_bytes(content)


def unpacked(place: Path) -> Path:
    """The folder of a record: ``place`` itself, or the folder in the user's cache to which a packed record is unpacked.

    Raises:
        DamagedError: See `unpack`.
    """
    if not (place.name.endswith(SUFFIX) and place.is_file()):
        return place
    with place.open("rb") as file:
        checksum = hashlib.sha256(file.read(LARGEST_FILE + 1)).hexdigest()  # `unpack` refuses larger files
    folder = cache_folder() / "packed" / checksum[:16] / place.name.removesuffix(SUFFIX)
    if not folder.is_dir():
        unpack(place, folder)
    return folder


def unpack(path: Path, folder: Path) -> None:
    """Write the record that ``path`` holds to ``folder``, which must not exist yet.

    Raises:
        DamagedError: It is not a packed record, or exceeds the limits of one.
        NotWrittenError: ``folder`` cannot be written.
    """
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise ValueError(f"it is larger than {LARGEST_FILE} bytes")
        members = _members(path)
        parts = {
            kind: {Path(name).stem: _array(data) for name, data in members.items() if name.startswith(f"{kind}/")}
            for kind in ("step", "value", "example")
        }
        described = {name: json.loads(members[f"{name}.json"]) for name in ("configuration", "provenance", "state")}
        if not all(isinstance(part, dict) for part in described.values()):
            raise ValueError("its descriptions are no objects")
        if "image.webp" in members:
            count, tile = len(parts["example"]["index"]), described["provenance"]["packed"]["thumbnail"]
            parts["example"]["image"] = _thumbnails(members["image.webp"], count, *tile)
        if parts["step"].keys() != parts["value"].keys():
            raise ValueError("steps and values do not fit")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            unfinished = Path(scratch) / "run"
            with Record.writing(unfinished, described["configuration"]) as record:
                for name, planes in parts["value"].items():
                    steps = np.cumsum(parts["step"][name], dtype=np.int64)
                    record.extend(name, steps, _joined(planes, described["state"]["types"][name], len(steps)))
                record.write_provenance(described["provenance"])
                record.write_state(str(described["state"]["state"]))
            if parts["example"]:
                kept = parts["example"]
                shown, labels, names = (
                    list(kept[name]) if name in kept else None for name in ("image", "label", "class_names")
                )
                write_tracked(unfinished, kept["index"], shown, labels, names)
            (unfinished / "lock").unlink(missing_ok=True)
            unfinished.rename(folder)
    except NotWrittenError:
        raise
    except Exception as error:  # of many kinds: the file may be anything
        if isinstance(error, OSError) and error.errno is not None:  # of the disk, not of what the file holds
            raise NotWrittenError(
                f"{path} cannot be unpacked to {folder.parent} ({error.strerror}); let the environment variable "
                "XDG_CACHE_HOME name a folder that can be written"
            ) from error
        said = " ".join(str(error).split()) or type(error).__name__
        raise DamagedError(f"{path}: no packed record ({said}); expected a file of `opposing-signals pack`") from None


# -- writing ----------------------------------------------------------------------------------------------------------


def _packed(
    record: Record, wanted: np.ndarray | None = None, exact: float = 0, dataset: Dataset | None = None
) -> bytes:
    """The file's bytes, with all examples, or those ``wanted``, the first ``exact`` of which are kept exactly."""
    examples = record[SAMPLE_LOSS].values.shape[1:] if SAMPLE_LOSS in record else None
    order = None if wanted is None else np.argsort(wanted)
    earlier = record.provenance.get("packed", {})  # if the record was itself unpacked
    left_out: list[str] = list(earlier.get("left_out", ()))
    types: dict[str, str] = {}
    members: dict[str, bytes] = {}
    for quantity in record:
        series = record[quantity]
        is_of_examples = series.values.shape[1:] == examples
        if wanted is None or order is None or not is_of_examples:
            values = np.asarray(series.values)
        else:
            values = np.array(series.values[:, wanted[order]])
            rough = order >= exact
            values[:, rough] = rounded(values[:, rough])
        if not values.size or (values.ndim > 1 and values.nbytes > _TABLE and not is_of_examples):
            if len(series):
                left_out.append(quantity)
        else:
            types[quantity] = values.dtype.str[1:]
            members[f"step/{quantity}.npy"] = _as_bytes(np.diff(np.asarray(series.steps), prepend=0))
            members[f"value/{quantity}.npy"] = _as_bytes(_split(values))
    configuration = record.configuration
    packed: dict[str, Any] = {"left_out": left_out}
    if order is not None and wanted is not None and len(wanted) and dataset is not None:
        packed |= {"data": configuration.get("data"), "examples": len(dataset), "exact": min(exact, len(wanted))}
        packed |= {field: earlier[field] for field in ("data", "examples") if field in earlier}
        packed["exact"] = min(packed["exact"], earlier.get("exact", packed["exact"]))
        configuration = {**configuration, "data": _TRACKED}
        chosen = wanted[order]
        members["example/index.npy"] = _as_bytes(positions(record.folder, len(dataset))[chosen])
        if dataset.is_classification:
            members["example/label.npy"] = _as_bytes(dataset.targets[chosen].numpy())
            members["example/class_names.npy"] = _as_bytes(np.array(dataset.class_names))
        if dataset.images is not None:
            members["image.webp"] = _mosaic(dataset.images[chosen])
            packed["thumbnail"] = list(dataset.images.shape[1:3])
    for name, described in (
        ("configuration", configuration),
        ("provenance", {**record.provenance, "packed": packed}),
        ("state", {"state": record.state, "types": types}),
    ):
        members[f"{name}.json"] = json.dumps(described, ensure_ascii=False).encode()
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name, _DATE), data, zipfile.ZIP_DEFLATED)
    return file.getvalue()


def _by_importance(record: Record) -> tuple[np.ndarray, int]:
    """Indices of all examples, the most important first, and how many of them are to be kept exactly."""
    trajectory = Trajectory(record)
    points = trajectory.losses.values.shape[1]
    moved = np.abs(trajectory.changes.values).max(0, initial=0.0) if len(trajectory.changes) else np.zeros(points)
    paired = [index for pair in trajectory.pairs for group in pair.groups for index in group]
    first = list(dict.fromkeys([*paired, *np.argsort(-moved, kind="stable")[:MOVERS]]))
    # every example once; any prefix of this order is spread evenly over the data
    golden = np.argsort((np.arange(points) * ((math.sqrt(5) - 1) / 2)) % 1, kind="stable")
    return np.array(list(dict.fromkeys([*first, *golden])), np.int64), len(first)


def rounded(values: np.ndarray) -> np.ndarray:
    """``values`` with `BITS` bits of the mantissa, so that they compress better; non-finite values are unchanged."""
    if values.dtype.kind != "f" or np.finfo(values.dtype).nmant <= BITS:
        return values
    whole = np.dtype(f"u{values.dtype.itemsize}").type
    dropped = np.finfo(values.dtype).nmant - BITS
    mask = whole(~((1 << dropped) - 1) & np.iinfo(whole).max)
    nearest = ((values.view(whole) + whole(1 << (dropped - 1))) & mask).view(values.dtype)
    return np.where(np.isfinite(values) & np.isfinite(nearest), nearest, values)


def _split(values: np.ndarray) -> np.ndarray:
    """``[T, ...]`` ↦ ``[B, ..., T]``: its bytes by their place in a number, time last, which compresses better."""
    last = np.ascontiguousarray(np.moveaxis(values, 0, -1))
    return np.ascontiguousarray(np.moveaxis(last[..., None].view(np.uint8), -1, 0))


def _mosaic(images: np.ndarray) -> bytes:
    count, height, width, _ = images.shape
    rows = -(-count // IN_A_ROW)
    tiles = np.zeros((rows * IN_A_ROW, height, width, 3), np.uint8)
    tiles[:count] = images
    picture = tiles.reshape(rows, IN_A_ROW, height, width, 3).swapaxes(1, 2).reshape(rows * height, -1, 3)
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "WEBP", quality=80, method=6)
    return file.getvalue()


def _as_bytes(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    npy.write_array(file, np.ascontiguousarray(array), allow_pickle=False)
    return file.getvalue()


# -- reading ----------------------------------------------------------------------------------------------------------


def _members(path: Path) -> dict[str, bytes]:
    """Name ↦ content of the allowed members of a packed record.

    Raises:
        ValueError: There is another member, one twice, or too much.
    """
    with zipfile.ZipFile(path) as archive:
        listed = archive.infolist()
        if len(listed) > MOST_MEMBERS or sum(member.file_size for member in listed) > LARGEST_CONTENT:
            raise ValueError(f"it holds more than {MOST_MEMBERS} files or {LARGEST_CONTENT} bytes")
        names = [member.filename for member in listed]
        if strange := [name for name in names if not _MEMBER.fullmatch(name) or names.count(name) > 1]:
            raise ValueError(f"it holds {strange[0]!r}, or holds it twice")
        found = {}
        for member in listed:
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError(f"{member.filename} is compressed in another way than by deflate")
            with archive.open(member) as file:
                found[member.filename] = file.read(member.file_size)  # its stated size may be less than it holds
        return found


def _array(data: bytes) -> np.ndarray:
    """The array of an ``.npy`` file of plain numbers or texts, whose header matches its length."""
    file = io.BytesIO(data)
    if npy.read_magic(file) != (1, 0):
        raise ValueError("an array is of another version of the format")
    shape, _, kind = npy.read_array_header_1_0(file)
    if kind.hasobject or kind.fields or math.prod(shape) * kind.itemsize != len(data) - file.tell():
        raise ValueError("an array is not as long as it says, or holds no numbers")
    return np.frombuffer(data, kind, offset=file.tell()).reshape(shape)


def _joined(planes: np.ndarray, kind: str, steps: int) -> np.ndarray:
    """The inverse of `_split`."""
    if not re.fullmatch(r"[fiu][1248]|b1", kind) or planes.dtype != np.uint8 or planes.ndim < 2:
        raise ValueError("a quantity holds no numbers")
    last = np.ascontiguousarray(np.moveaxis(planes, 0, -1)).view(np.dtype(f"<{kind}"))[..., 0]
    if last.shape[-1] != steps:
        raise ValueError("a quantity has not as many rows as steps")
    return np.moveaxis(last, -1, 0)


def _thumbnails(picture: bytes, count: int, height: int, width: int) -> np.ndarray:
    """``[count, height, width, 3]``, the inverse of `_mosaic`, up to WebP's loss."""
    rows = -(-count // IN_A_ROW)
    with Image.open(io.BytesIO(picture), formats=["WEBP"]) as image:
        if not 0 < max(height, width) <= LARGEST_THUMBNAIL or image.size != (IN_A_ROW * width, rows * height):
            raise ValueError(f"its thumbnails are a picture of {image.size}")
        tiles = np.asarray(image.convert("RGB")).reshape(rows, height, IN_A_ROW, width, 3).swapaxes(1, 2)
    return tiles.reshape(-1, height, width, 3)[:count]
