"""Test the built-in datasets: catalog entries, the split of digits, and torchvision's files, present, missing and damaged."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from cafe_core.data import torchvision_source
from cafe_core.data.builtin import BUILTIN, list_builtin
from cafe_core.data.catalog import describe
from cafe_core.data.digits import digits_source
from cafe_core.data.roots import DataRoots
from cafe_core.data.sources import open_store
from cafe_core.errors import DatasetError
from cafe_core.spec.dataset import DatasetName, DatasetSpec

SHARED = Path("/work/shared/data")
needs_mnist = pytest.mark.skipif(not (SHARED / "MNIST/raw").is_dir(), reason=f"no MNIST under {SHARED}")
needs_cifar = pytest.mark.skipif(not (SHARED / "cifar10-jpg.zip").is_file(), reason=f"no cifar10-jpg.zip under {SHARED}")


def test_importing_data_modules_does_not_import_torch() -> None:
    code = (
        "import sys; import cafe_core.synthetic_set.synthetic_set, cafe_core.data.catalog;"
        "import cafe_core.data.sources, cafe_core.data.digits;"
        "assert 'torch' not in sys.modules and 'torchvision' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_catalog_entries_are_consistent() -> None:
    assert [info.name for info in list_builtin()] == list(BUILTIN)
    for info in list_builtin():
        assert len(info.class_names) == len(set(info.class_names)) == len(info.class_counts)
        assert len(info.mean) == len(info.std) == info.channels
    totals = {name: (sum(info.class_counts), info.test_count) for name, info in BUILTIN.items()}
    assert totals == {  # as published by their authors
        "digits": (1437, 360),
        "mnist": (60_000, 10_000),
        "fashion_mnist": (60_000, 10_000),
        "svhn": (73_257, 26_032),
        "cifar10": (50_000, 10_000),
        "cifar100": (50_000, 10_000),
    }
    assert {name for name, info in BUILTIN.items() if info.is_digits} == {"digits", "mnist", "svhn"}


def test_class_names_match_torchvision() -> None:
    from torchvision import datasets

    assert BUILTIN["fashion_mnist"].class_names == datasets.FashionMNIST.classes


# -- digits


def test_split_of_digits_is_complete_and_fixed() -> None:
    source = digits_source()
    levels, labels = load_digits(return_X_y=True)
    together = np.concatenate([source.images, source.test_images]).reshape(-1, 64)
    both_labels = np.concatenate([source.labels, source.test_labels])
    expected = np.rint(levels * 255 / 16).astype(np.uint8)
    assert sorted(map(bytes, np.column_stack([together, both_labels.astype(np.uint8)]))) == sorted(
        map(bytes, np.column_stack([expected, labels.astype(np.uint8)]))
    )
    shares = np.bincount(source.test_labels) / np.bincount(both_labels)
    assert np.abs(shares - 0.2).max() < 0.006  # stratified
    assert (source.images.min(), source.images.max()) == (0, 255)
    np.testing.assert_array_equal(source.test_images[0].ravel(), expected[0])  # fixed: the first 0 is a test image


def test_catalog_entry_of_digits_matches_its_images(roots: DataRoots) -> None:
    measured = BUILTIN["digits"]
    source = digits_source()
    assert measured.class_counts == source.class_counts
    assert measured.mean == [round(float((source.images / 255).mean()), 4)]
    assert measured.std == [round(float((source.images / 255).std()), 4)]
    assert open_store(DatasetSpec(name="digits"), roots).info == measured == describe(DatasetSpec(name="digits"), roots)


def test_describe_applies_size_and_channels(roots: DataRoots) -> None:
    grey = describe(DatasetSpec(name="cifar10", channels=1, image_size=16), roots)
    assert grey.shape == (1, 16, 16)
    assert grey.mean == pytest.approx([0.299 * 0.4914 + 0.587 * 0.4822 + 0.114 * 0.4465])
    assert len(grey.std) == 1
    colour = describe(DatasetSpec(name="digits", channels=3), roots)
    assert (colour.shape, colour.mean, colour.is_digits) == ((3, 8, 8), [0.3058] * 3, True)


def test_describe_prefers_the_statistics_of_a_built_store(roots: DataRoots) -> None:
    spec = DatasetSpec(name="digits", image_size=12)
    before = describe(spec, roots)
    store = open_store(spec, roots)
    assert before.std == [0.3761]  # an estimate: the value before resizing
    assert describe(spec, roots) == store.info
    assert store.info.std[0] == pytest.approx(float((np.concatenate([store.images(k) for k in range(10)]) / 255).std()))


# -- torchvision


TORCHVISION: list[DatasetName] = ["mnist", "fashion_mnist", "svhn", "cifar10", "cifar100"]


@pytest.mark.parametrize("name", TORCHVISION)
def test_missing_files_are_reported_with_their_directory(roots: DataRoots, name: DatasetName) -> None:
    roots.downloads.chmod(0o555)  # read-only, so that nothing is downloaded even with a network
    spec = DatasetSpec(name=name)
    assert describe(spec, roots) == BUILTIN[name]  # the API does not need the files
    first = torchvision_source._KNOWN[name].files[0]
    with pytest.raises(DatasetError) as caught:
        open_store(spec, roots)
    for part in (f"dataset {name}", first, str(roots.downloads / first), "is read-only", "get them from http"):
        assert part in caught.value.message
    assert list(roots.downloads.iterdir()) == []


def test_failed_download_reports_the_reason(roots: DataRoots, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets

    monkeypatch.setattr(datasets.CIFAR10, "url", "http://127.0.0.1:9/nothing-listens.tar.gz")
    with pytest.raises(DatasetError, match=r"could not be downloaded \(.*refused.*get them from https://www.cs.toronto.edu"):
        open_store(DatasetSpec(name="cifar10"), roots)


def _idx(array: np.ndarray) -> bytes:
    """Encode an array in the format of MNIST's files: http://yann.lecun.com/exdb/mnist/."""
    return bytes([0, 0, 8, array.ndim]) + b"".join(side.to_bytes(4, "big") for side in array.shape) + array.tobytes()


def _write_mnist(roots: DataRoots, counts: list[int], test_count: int) -> tuple[np.ndarray, np.ndarray]:
    raw = roots.downloads / "MNIST/raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat(np.arange(10, dtype=np.uint8), counts))
    images = np.zeros((len(labels), 28, 28), dtype=np.uint8)
    images[:, 0, 0] = labels
    images[:, 0, 1] = rng.integers(0, 256, len(labels))
    (raw / "train-images-idx3-ubyte").write_bytes(_idx(images))
    (raw / "train-labels-idx1-ubyte").write_bytes(_idx(labels))
    (raw / "t10k-images-idx3-ubyte").write_bytes(_idx(images[:test_count]))
    (raw / "t10k-labels-idx1-ubyte").write_bytes(_idx(labels[:test_count]))
    return images, labels


def test_local_mnist_files_are_read(roots: DataRoots) -> None:
    info = BUILTIN["mnist"]
    images, labels = _write_mnist(roots, info.class_counts, info.test_count)
    roots.downloads.chmod(0o555)
    store = open_store(DatasetSpec(name="mnist"), roots)
    assert store.info.model_copy(update={"notes": []}) == info  # the made images have a note: some have a single colour
    np.testing.assert_array_equal(store.images(7)[:, 0], images[labels == 7])
    np.testing.assert_array_equal(store.test_labels, labels[:10_000])


def test_unexpected_number_of_images_is_refused(roots: DataRoots) -> None:
    _write_mnist(roots, [3] * 10, 5)
    with pytest.raises(DatasetError, match=r"dataset mnist: found 30 training and 5 test images .*60000, 10000"):
        open_store(DatasetSpec(name="mnist"), roots)


def test_damaged_files_are_refused(roots: DataRoots) -> None:
    _write_mnist(roots, [3] * 10, 5)
    path = roots.downloads / "MNIST/raw/train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DatasetError, match=r"dataset mnist: the files under .* are damaged .*MNIST/raw/train-images"):
        open_store(DatasetSpec(name="mnist"), roots)


@needs_mnist
def test_real_mnist_matches_its_catalog_entry(roots: DataRoots) -> None:
    roots = roots.model_copy(update={"downloads": SHARED})
    store = open_store(DatasetSpec(name="mnist"), roots)
    assert store.info == BUILTIN["mnist"]
    everything = np.concatenate([store.images(k) for k in range(10)]) / np.float32(255)
    assert everything.mean() == pytest.approx(0.1307, abs=5e-5)
    assert everything.std() == pytest.approx(0.3081, abs=5e-5)


@needs_cifar
def test_describe_real_cifar10_archive(roots: DataRoots) -> None:
    info = describe(DatasetSpec(path="cifar10-jpg.zip"), roots.model_copy(update={"datasets": SHARED}))
    assert info.class_names == BUILTIN["cifar10"].class_names
    assert (info.class_counts, info.test_count, info.shape) == ([5000] * 10, 10_000, (3, 32, 32))
