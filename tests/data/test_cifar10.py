import hashlib
import importlib
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from opposing_signals.data import Dataset, cifar10
from opposing_signals.errors import InputError

# The package exports the function under the module's name, so the module itself is only reached this way.
module = importlib.import_module("opposing_signals.data.cifar10")

TRAIN_BATCHES = [f"data_batch_{number}" for number in range(1, 6)]
BATCH, TEST = 40, 1200  # images in a fake training batch and in the fake test batch


def examples(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images that are all different, and labels in random order with about equal frequencies."""
    rng = np.random.default_rng(seed)
    tones = rng.integers(256, size=(count, 4, 4, 3), dtype=np.uint8)
    return tones.repeat(8, axis=1).repeat(8, axis=2), rng.permutation(np.arange(count) % 10)


@pytest.fixture(scope="module")
def fake() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """200 training images in five batches and 1,200 test images, by the official batches' names."""
    return {name: examples(BATCH, seed) for seed, name in enumerate(TRAIN_BATCHES)} | {"test_batch": examples(TEST, 9)}


def together(batches) -> tuple[np.ndarray, np.ndarray]:
    images, labels = zip(*batches, strict=True)
    return np.concatenate(images), np.concatenate(labels)


def python2_pickle(images: np.ndarray, labels: np.ndarray) -> bytes:
    """A batch in the format of the official files: protocol 2, written by Python 2, pixels as text, channel first."""
    pixels = images.transpose(0, 3, 1, 2).tobytes()
    shape = b"(J" + struct.pack("<i", len(images)) + b"M" + struct.pack("<H", 3072) + b"t"
    dtype = b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
    state = b"(K\x01" + shape + dtype + b"\x89T" + struct.pack("<i", len(pixels)) + pixels + b"tb"
    listed = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}(U\x04data" + array + state + b"U\x06labels" + listed + b"u."


def mosaic(images: np.ndarray) -> Image.Image:
    rows = images.reshape(-1, 20, 32, 32, 3)
    return Image.fromarray(rows.transpose(0, 2, 1, 3, 4).reshape(len(rows) * 32, 20 * 32, 3))


def write_official(folder: Path, fake) -> None:
    for name, batch in fake.items():
        (folder / name).write_bytes(python2_pickle(*batch))


def write_mosaics(folder: Path, fake) -> None:
    for name, (images, _) in fake.items():
        mosaic(images).save(folder / f"{name}.webp", lossless=True, quality=0, method=0)
    _, train_labels = together(fake[name] for name in TRAIN_BATCHES)
    np.savez(folder / "labels.npz", train_labels=train_labels.astype("u1"), test_labels=fake["test_batch"][1])


def write_subset(folder: Path, fake) -> None:
    train_images, train_labels = together(fake[name] for name in TRAIN_BATCHES)
    test_images, test_labels = fake["test_batch"]
    np.savez(
        folder / "cifar10_5k.npz",
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
    )


LAYOUTS = {
    "official": (write_official, "OFFICIAL_MD5", "md5"),
    "mosaics": (write_mosaics, "MOSAICS_SHA256", "sha256"),
    "subset": (write_subset, "SUBSET_SHA256", "sha256"),
}


def trust(monkeypatch: pytest.MonkeyPatch, folder: Path, layout: str) -> None:
    """Treat the current content of ``folder`` as the published files."""
    _, constant, algorithm = LAYOUTS[layout]
    sums = getattr(module, constant)
    for path in folder.iterdir():
        if path.name in sums:
            monkeypatch.setitem(sums, path.name, hashlib.new(algorithm, path.read_bytes()).hexdigest())


@pytest.fixture(params=LAYOUTS)
def layout(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake, layout: str) -> Path:
    """A folder with the fake data in one layout, treated as the published files."""
    LAYOUTS[layout][0](tmp_path, fake)
    trust(monkeypatch, tmp_path, layout)
    return tmp_path


@pytest.fixture(autouse=True)
def no_network(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No data given, an empty cache, and a download that finds nothing; returns the cache."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.delenv("OPPOSING_SIGNALS_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    monkeypatch.setattr(module, "_ARCHIVE_URL", (home / "nothing.tar.gz").as_uri())
    return home / "opposing-signals"


def first_of_each_class(images, labels, quota):
    chosen = np.sort(np.concatenate([np.flatnonzero(labels == label)[:count] for label, count in enumerate(quota)]))
    return images[chosen], labels[chosen]


# Reading ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [10, 20, 57, 200])
def test_takes_the_first_of_each_class_in_order(folder: Path, fake, count: int) -> None:
    data = cifar10(count, str(folder))
    quota = [count // 10 + (label < count % 10) for label in range(10)]
    images, labels = first_of_each_class(*together(fake[name] for name in TRAIN_BATCHES), quota)
    np.testing.assert_array_equal(data.images, images)
    np.testing.assert_array_equal(data.targets, labels)
    assert len(data) == count
    assert data.name == f"cifar10 ({count} of 50000 images)"


def test_small_training_sets_have_one_test_set(folder: Path, fake) -> None:
    data = cifar10(20, str(folder))
    images, labels = first_of_each_class(*fake["test_batch"], [100] * 10)
    np.testing.assert_array_equal(data.test_targets, labels)
    mean, std = data.images.mean(axis=(0, 1, 2)), data.images.std(axis=(0, 1, 2))
    np.testing.assert_allclose(data.test_inputs.permute(0, 2, 3, 1), (images - mean) / std, atol=1e-5)


def test_inputs_are_the_images_normalized_per_channel(folder: Path) -> None:
    data = cifar10(100, str(folder))
    assert data.inputs.shape == (100, 3, 32, 32)
    assert data.inputs.dtype == torch.float32
    assert data.inputs.is_contiguous()
    assert data.targets.dtype == torch.int64
    std, mean = torch.std_mean(data.inputs, dim=(0, 2, 3), correction=0)
    torch.testing.assert_close(mean, torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(std, torch.ones(3), atol=1e-5, rtol=0)


def test_equal_data_have_equal_checksums_in_every_layout(tmp_path: Path, monkeypatch, fake) -> None:
    checksums = []
    for name, (write, *_) in LAYOUTS.items():
        (tmp_path / name).mkdir()
        write(tmp_path / name, fake)
        trust(monkeypatch, tmp_path / name, name)
        checksums.append([cifar10(count, str(tmp_path / name)).checksum for count in (50, 60)])
    assert checksums[0] == checksums[1] == checksums[2]
    assert checksums[0][0] != checksums[0][1]


@pytest.mark.parametrize("layout", ["official", "mosaics"], indirect=True)
def test_batches_that_are_not_needed_are_not_read(folder: Path, layout: str, fake) -> None:
    labels = fake["data_batch_1"][1]
    count = 10 * np.bincount(labels, minlength=10).min()
    for name in TRAIN_BATCHES[1:]:
        (folder / (f"{name}.webp" if layout == "mosaics" else name)).unlink()
    assert len(cifar10(int(count), str(folder))) == count
    with pytest.raises(InputError, match=r"data_batch_2.*: expected this file as well"):
        cifar10(int(count) + 10, str(folder))


# Finding ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sub_folder", ["cifar10", "cifar-10-batches-py"])
@pytest.mark.parametrize("layout", ["official"], indirect=True)
def test_sub_folders_are_searched(folder: Path, tmp_path_factory, sub_folder: str) -> None:
    parent = tmp_path_factory.mktemp("parent")
    (parent / sub_folder).symlink_to(folder)
    assert len(cifar10(10, str(parent))) == 10


@pytest.mark.parametrize("layout", ["subset"], indirect=True)
def test_the_fastest_file_serves_small_sets(folder: Path) -> None:
    for name in (*module.OFFICIAL_MD5, *module.MOSAICS_SHA256):
        (folder / name).write_bytes(b"")
    assert len(cifar10(10, str(folder))) == 10


@pytest.mark.parametrize("layout", ["subset"], indirect=True)
def test_the_environment_names_a_folder(folder: Path, monkeypatch, tmp_path_factory) -> None:
    monkeypatch.setenv("OPPOSING_SIGNALS_DATA", str(folder))
    assert len(cifar10(10)) == 10
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(InputError, match=r"data\.root"):
        cifar10(10, str(empty))  # the folder given first is not skipped


@pytest.mark.parametrize("by", ["root", "environment"])
def test_a_named_folder_without_data_is_an_error(tmp_path: Path, monkeypatch, by: str) -> None:
    missing = tmp_path / "missing"
    monkeypatch.setenv("OPPOSING_SIGNALS_DATA", str(missing))
    monkeypatch.setattr(module, "_download", lambda _: pytest.fail("fell through to a download"))
    with pytest.raises(InputError) as error:
        cifar10(10, str(missing) if by == "root" else None)
    for words in (str(missing), "data_batch_1..5", "labels.npz", "cifar10_5k.npz"):
        assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("layout", ["official"], indirect=True)
def test_download_is_unpacked_and_kept(folder: Path, no_network: Path, tmp_path, monkeypatch) -> None:
    archive = tmp_path / "archive.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, "cifar-10-batches-py", filter=lambda member: None if "archive" in member.name else member)
    monkeypatch.setattr(module, "_ARCHIVE_URL", archive.as_uri())
    with pytest.raises(InputError, match="wrong checksum"):
        cifar10(10)
    monkeypatch.setattr(module, "_ARCHIVE_MD5", hashlib.md5(archive.read_bytes()).hexdigest())
    downloaded = cifar10(10)
    assert {path.name for path in no_network.iterdir()} <= {"cifar-10-batches-py", "cifar-10.lock"}
    archive.unlink()
    assert cifar10(10).checksum == downloaded.checksum == cifar10(10, str(folder)).checksum


def test_failed_download_says_what_else_to_do(no_network: Path) -> None:
    with pytest.raises(InputError) as error:
        cifar10(10)
    for words in (str(no_network), "nothing.tar.gz", "data.root", "OPPOSING_SIGNALS_DATA"):
        assert words in str(error.value)


# Refusing -----------------------------------------------------------------------------------------------------------


def test_more_images_than_there_are(folder: Path) -> None:
    with pytest.raises(InputError, match=r"more images asked for than there are: 210 wanted, 200 found"):
        cifar10(210, str(folder))
    with pytest.raises(InputError, match="images=50001: CIFAR-10 has 50000"):
        cifar10(50_001, str(folder))


def test_altered_files_are_not_read(folder: Path, layout: str) -> None:
    first = folder / {"official": "data_batch_1", "mosaics": "data_batch_1.webp", "subset": "cifar10_5k.npz"}[layout]
    content = bytearray(first.read_bytes())
    content[-5] ^= 1
    first.write_bytes(content)
    problem = "wrong checksum" if layout == "official" else "truncated or altered"
    with pytest.raises(InputError, match=f"{first.name}: {problem}"):
        cifar10(10, str(folder))


@pytest.mark.parametrize("layout", ["mosaics"], indirect=True)
def test_truncated_image(folder: Path, monkeypatch) -> None:
    first = folder / "data_batch_1.webp"
    first.write_bytes(first.read_bytes()[:-100])
    with pytest.raises(InputError, match="truncated or altered"):
        cifar10(10, str(folder))
    trust(monkeypatch, folder, "mosaics")
    with pytest.raises(InputError, match="not a readable WebP image"):
        cifar10(10, str(folder))


class Malicious:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


@pytest.mark.parametrize("layout", ["official"], indirect=True)
def test_only_arrays_are_unpickled(folder: Path, monkeypatch) -> None:
    (folder / "data_batch_1").write_bytes(pickle.dumps({"data": Malicious(folder / "touched"), "labels": []}))
    trust(monkeypatch, folder, "official")
    with pytest.raises(InputError, match="not unpickled"):
        cifar10(10, str(folder))
    assert not (folder / "touched").exists()


# The real data ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(real_data: Path) -> Dataset:
    found = module._find(50_000, real_data)
    if found is None or found[0] is module._SUBSET:
        pytest.skip(f"needs all of CIFAR-10, which is not in {real_data}")
    return cifar10(50_000, str(real_data))


def pixels(inputs: torch.Tensor, data: Dataset) -> np.ndarray:
    """The images behind ``inputs``, undoing the normalization that the first training images show."""
    restored = []
    for channel in range(3):
        scale, shift = np.polyfit(data.inputs[:10, channel].flatten(), data.images[:10, ..., channel].ravel(), 1)
        restored.append(np.rint(inputs[:, channel].numpy() * scale + shift))
    return np.stack(restored, axis=-1).astype(np.uint8)


def test_whole_set_has_the_published_channel_means(whole: Dataset) -> None:
    means = [whole.images[..., channel].mean() / 255 for channel in range(3)]
    np.testing.assert_allclose(means, [0.4914, 0.4822, 0.4465], atol=5e-5)
    assert np.bincount(whole.targets).tolist() == [5000] * 10
    assert np.bincount(whole.test_targets).tolist() == [1000] * 10


def test_subset_file_is_the_first_of_each_class(whole: Dataset, real_data: Path) -> None:
    if not (real_data / "cifar10_5k.npz").is_file():
        pytest.skip(f"needs cifar10_5k.npz, which is not in {real_data}")
    subset = cifar10(5000, str(real_data))
    images, labels = first_of_each_class(whole.images, whole.targets.numpy(), [500] * 10)
    # One image of the rebuilt subset went through JPEG, so the official files differ from it in that one.
    assert (subset.images != images).any(axis=(1, 2, 3)).sum() <= 1
    np.testing.assert_array_equal(subset.targets, labels)
    first, test_labels = first_of_each_class(np.arange(10_000), whole.test_targets.numpy(), [100] * 10)
    np.testing.assert_array_equal(subset.test_targets, test_labels)
    np.testing.assert_array_equal(pixels(subset.test_inputs, subset), pixels(whole.test_inputs[first], whole))
