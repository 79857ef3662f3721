"""Read MNIST, FashionMNIST, SVHN, CIFAR10 and CIFAR100 with torchvision from `roots.downloads`.

Existing files are used, even in a read-only root; missing ones are downloaded if there is a network. SVHN has its `train`
and `test` splits, without `extra`. CIFAR's original files are Python pickles: torchvision compares their MD5 sums with the
published ones before it opens them.
"""

from __future__ import annotations

import http.client
import socket
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torchvision import datasets

from cafe_core.data.builtin import BUILTIN
from cafe_core.data.catalog import check_counts
from cafe_core.data.image_source import ArraySource, Images, Labels
from cafe_core.errors import DatasetError
from cafe_core.spec.dataset import DatasetName

_CONNECT_TIMEOUT_S = 20.0
_MNIST_FILES = [f"{part}-{kind}" for part in ("train", "t10k") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")]


@dataclass(frozen=True)
class _Torchvision:
    """The way to open a dataset, and the page to download it from manually."""

    open: Callable[[Path, bool, bool], Any]
    """(root, train, download) -> torchvision's dataset object."""
    files: list[str]
    """Relative to the root."""
    page: str


_KNOWN: dict[DatasetName, _Torchvision] = {
    "mnist": _Torchvision(
        lambda root, train, download: datasets.MNIST(root, train=train, download=download),
        [f"MNIST/raw/{name}" for name in _MNIST_FILES],
        "https://ossci-datasets.s3.amazonaws.com/mnist/ (unpack the .gz files)",
    ),
    "fashion_mnist": _Torchvision(
        lambda root, train, download: datasets.FashionMNIST(root, train=train, download=download),
        [f"FashionMNIST/raw/{name}" for name in _MNIST_FILES],
        "https://github.com/zalandoresearch/fashion-mnist (unpack the .gz files)",
    ),
    "svhn": _Torchvision(
        lambda root, train, download: datasets.SVHN(root, split="train" if train else "test", download=download),
        ["train_32x32.mat", "test_32x32.mat"],
        "http://ufldl.stanford.edu/housenumbers/",
    ),
    "cifar10": _Torchvision(
        lambda root, train, download: datasets.CIFAR10(root, train=train, download=download),
        ["cifar-10-batches-py/" + name for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta")],
        "https://www.cs.toronto.edu/~kriz/cifar.html (unpack cifar-10-python.tar.gz)",
    ),
    "cifar100": _Torchvision(
        lambda root, train, download: datasets.CIFAR100(root, train=train, download=download),
        ["cifar-100-python/train", "cifar-100-python/test", "cifar-100-python/meta"],
        "https://www.cs.toronto.edu/~kriz/cifar.html (unpack cifar-100-python.tar.gz)",
    ),
}


def torchvision_source(name: DatasetName, root: Path) -> ArraySource:
    """Read the dataset's images as arrays in memory (at most 240 MB).

    Raises DatasetError if files are missing and cannot be downloaded, or differ from the published ones.
    """
    known = _KNOWN[name]
    absent = [file for file in known.files if not (root / file).is_file()]
    if absent:
        _download(name, known, root, absent)
    try:
        images, labels = _arrays(known.open(root, True, False))
        test_images, test_labels = _arrays(known.open(root, False, False))
    except (RuntimeError, OSError, ValueError, AssertionError, EOFError) as error:
        raise DatasetError(
            f"dataset {name}: the files under {root} are damaged ({error}); replace {', '.join(known.files)} from {known.page}"
        ) from error
    facts = BUILTIN[name]
    source = ArraySource(name, facts.class_names, images, labels, test_images, test_labels, facts.is_digits)
    check_counts(name, source)
    return source


def _download(name: DatasetName, known: _Torchvision, root: Path, absent: list[str]) -> None:
    try:
        root.mkdir(parents=True, exist_ok=True)
        if not root.stat().st_mode & 0o222:  # the mode does not stop the root user, e.g. in containers
            raise PermissionError(f"{root} is read-only")
        with _connect_timeout():
            known.open(root, True, True)
            known.open(root, False, True)
    except (RuntimeError, OSError, http.client.HTTPException, EOFError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())
        raise DatasetError(
            f"dataset {name}: {', '.join(absent)} not found under {root} and could not be downloaded ({reason}); "
            f"get them from {known.page} and put them at {root / absent[0]} and so on, or use a machine with a network"
        ) from error


@contextmanager
def _connect_timeout() -> Iterator[None]:
    """Set a socket timeout: torchvision downloads without one, and a network that drops packets would block for minutes."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_CONNECT_TIMEOUT_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _arrays(dataset: Any) -> tuple[Images, Labels]:
    """Return images (N, C, H, W), a view of torchvision's array, and labels (N,)."""
    images = np.asarray(dataset.data)
    labels = np.asarray(dataset.labels if hasattr(dataset, "labels") else dataset.targets, dtype=np.int64)
    if images.ndim == 3:  # MNIST, FashionMNIST: (N, H, W)
        images = images[:, None]
    elif images.shape[1] != 3:  # CIFAR: (N, H, W, C); SVHN has (N, C, H, W) already
        images = images.transpose(0, 3, 1, 2)
    return images, labels
