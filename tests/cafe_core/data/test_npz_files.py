"""Test that .npz files are read, and that bad arrays, forged headers and damaged bytes are refused with the reason."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from cafe_core.data import npz_file
from cafe_core.data.catalog import describe
from cafe_core.data.roots import DataRoots
from cafe_core.data.sources import open_store
from cafe_core.errors import DatasetError
from cafe_core.spec.dataset import DatasetSpec
from tests.cafe_core.data.image_folders import RNG


def _valid_arrays() -> dict[str, np.ndarray]:
    return {
        "images": RNG.integers(0, 256, (9, 5, 6, 3), dtype=np.uint8),
        "labels": np.array([2, 0, 1, 1, 0, 2, 2, 1, 1]),
        "test_images": RNG.integers(0, 256, (2, 5, 6, 3), dtype=np.uint8),
        "test_labels": np.array([1, 2]),
    }


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["int64", "uint8", ">i4"])
def test_npz_is_read(roots: DataRoots, save: Callable[..., None], order: Any, dtype: str) -> None:
    arrays = _valid_arrays()
    spec = DatasetSpec(path="a.npz")
    stored = arrays | {"images": np.asarray(arrays["images"], order=order), "labels": arrays["labels"].astype(dtype)}
    save(roots.datasets / "a.npz", **stored)
    described, store = describe(spec, roots), open_store(spec, roots)
    assert (described.class_names, described.class_counts, described.test_count) == (["0", "1", "2"], [2, 4, 3], 2)
    assert described.model_copy(update={"mean": store.info.mean, "std": store.info.std}) == store.info
    for k in range(3):
        np.testing.assert_array_equal(store.images(k), arrays["images"][arrays["labels"] == k].transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(store.test_images, arrays["test_images"].transpose(0, 3, 1, 2))
    assert store.test_labels.tolist() == [1, 2]
    assert [path for path in roots.cache.iterdir() if path.name.startswith("tmp")] == []


def test_channels_and_test_arrays_are_optional(roots: DataRoots) -> None:
    arrays = _valid_arrays()
    np.savez(roots.datasets / "a.npz", images=arrays["images"][..., 0], labels=arrays["labels"])
    store = open_store(DatasetSpec(path="a.npz", image_size=8, channels=3), roots)
    assert (store.info.shape, store.info.test_count) == ((3, 8, 8), 0)


def _object_array() -> np.ndarray:
    return np.array([{"class": 0}] * 9, dtype=object)


BAD_ARRAYS = [
    ({"labels": _object_array()}, r"array 'labels' holds pickled Python objects, which are never read"),
    ({"images": _object_array()}, r"array 'images' holds pickled Python objects"),
    ({"labels": None}, r"images needs an array 'labels'; .*; the file has images, test_images, test_labels"),
    ({"images": None}, r"labels needs an array 'images'"),
    ({"images": None, "labels": None}, r"the training images are missing: .*; the file has test_images, test_labels"),
    ({"test_labels": None, "test_lables": np.array([1, 2])}, r"test_images needs an array 'test_labels'; .* test_lables"),
    ({"x_train": np.zeros((9, 5, 6), np.uint8), "y_train": np.zeros(9, int)}, r"images and x_train are images of the same split"),
    ({"images": np.zeros((9, 5, 6, 3))}, r"images is float64; it must be uint8"),
    ({"images": np.zeros((9, 30), np.uint8)}, r"images has shape \(9, 30\); it must be N×H×W"),
    ({"images": np.zeros((9, 5, 6, 4), np.uint8)}, r"images has 4 channels"),
    ({"images": np.zeros((9, 3, 16, 16), np.uint8)}, r"images has 16 channels .*move the channels to the end"),
    ({"images": np.zeros((9, 2, 6, 3), np.uint8)}, r"images has 6×2 pixels"),
    ({"images": np.zeros((0, 5, 6, 3), np.uint8), "labels": np.zeros(0, int)}, r"images is empty"),
    ({"labels": np.array([2, 0, 1, 1, 0, 2, 2, 1])}, r"labels has shape \(8,\); images needs \(9,\)"),
    ({"labels": np.zeros((9, 1, 1), int)}, r"labels has shape \(9, 1, 1\); images needs \(9,\), \(9, 1\) or one-hot rows"),
    ({"labels": np.eye(9, dtype=int) + np.eye(9, k=1, dtype=int)}, r"labels has shape \(9, 9\), and row 0 is not one-hot"),
    ({"labels": np.array([2.0, 0.5, 1, 1, 0, 2, 2, 1, 1])}, r"labels\[1\] is 0\.5; labels must be whole numbers"),
    ({"labels": np.array([np.nan] * 9)}, r"labels\[0\] is nan"),
    ({"labels": np.array([1j] * 9)}, r"labels is complex128; labels must be whole numbers or the names"),
    ({"labels": np.array([2**63] * 9, dtype=np.uint64)}, r"labels holds 9223372036854775808; labels must be below 2\^63"),
    ({"labels": np.zeros(9, int)}, r"labels has only one class \(0\)"),
    ({"labels": np.array(["a", "b\n", "a", "a", "a", "a", "a", "a", "a"])}, r"labels: the names of classes must be unique"),
    ({"test_labels": np.array([1, 3])}, r"test_labels\[1\] is 3, which is not in labels"),
    ({"test_labels": np.array([-1, 0])}, r"test_labels\[0\] is -1"),
    ({"test_labels": np.array(["1", "2"])}, r"test_labels is <U1 and labels is int64; both must be numbers or texts"),
    ({"class_names": np.array(["a", "b"])}, r"labels has 3 different labels up to 2; class_names has 2"),
    ({"class_names": np.array(["a", "b", "a"])}, r"labels: the names of classes must be unique"),
    ({"class_names": np.zeros(3)}, r"class_names is float64 of shape \(3,\); it must hold the names of the classes"),
    ({"test_images": np.zeros((2, 5, 7, 3), np.uint8)}, r"test_images are \(3, 5, 7\) .*images are \(3, 5, 6\)"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_ARRAYS, ids=[message[:40] for _, message in BAD_ARRAYS])
def test_describe_refuses_bad_arrays(roots: DataRoots, changes: dict[str, Any], message: str) -> None:
    arrays = {name: array for name, array in (_valid_arrays() | changes).items() if array is not None}
    np.savez(roots.datasets / "a.npz", **arrays)
    with pytest.raises(DatasetError, match=rf"a\.npz: {message}"):
        describe(DatasetSpec(path="a.npz"), roots)


LABELS = np.array([2, 0, 1, 1, 0, 2, 2, 1, 1])
TEXTS = {"labels": np.array(["a", "bb", "c"])[LABELS], "test_labels": np.array(["bb", "c"])}
READ = {
    "column": ({"labels": LABELS[:, None]}, ["0", "1", "2"], []),
    "from 1": ({"labels": LABELS + 1, "test_labels": np.array([2, 3])}, ["1", "2", "3"], ["renumbered"]),
    "gaps": ({"labels": LABELS * 10, "test_labels": np.array([10, 20])}, ["0", "10", "20"], ["renumbered"]),
    "negative": ({"labels": LABELS - 1, "test_labels": np.array([0, 1])}, ["-1", "0", "1"], ["renumbered"]),
    "floats": ({"labels": LABELS.astype(np.float32)}, ["0", "1", "2"], []),
    "one-hot": ({"labels": np.eye(3)[LABELS], "test_labels": np.eye(3, dtype=bool)[[1, 2]]}, ["0", "1", "2"], []),
    "texts": (TEXTS, ["a", "bb", "c"], []),
    "bytes": ({"labels": np.array([b"x", b"y", b"z"])[LABELS], "test_labels": np.array([b"y", b"z"])}, ["x", "y", "z"], []),
    "class names": ({"class_names": np.array(["cat", "cow", "dog"])}, ["cat", "cow", "dog"], []),
    "more class names": ({"label_names": np.array(["cat", "cow", "dog", "owl"])}, ["cat", "cow", "dog"], []),
    "half floats": ({"labels": LABELS.astype(np.float16)}, ["0", "1", "2"], []),
    "texts and their names": (
        {**TEXTS, "class_names": np.array(["c", "bb", "a"])}, ["a", "bb", "c"], [],
    ),
    "texts and other names": (
        {**TEXTS, "class_names": np.array(["x", "y", "z"])}, ["a", "bb", "c"], ["ignored"],
    ),
    "number of classes": ({"classes": np.array(3)}, ["0", "1", "2"], ["ignored"]),
    "distinct labels": ({"classes": np.arange(3), "class_names": np.array(["p", "q", "r"])}, ["p", "q", "r"], ["ignored"]),
    "names with joiners": ({"class_names": np.array(["a\u00a0b", "c\u200cd", "e"])}, ["a\u00a0b", "c\u200cd", "e"], []),
    "other arrays": ({"lables": np.zeros(9, int), "ids": np.arange(9)}, ["0", "1", "2"], ["ignored"]),
    "pickles that are not used": ({"meta": np.array([{}], dtype=object)}, ["0", "1", "2"], ["ignored"]),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "names", "codes"), READ.values(), ids=READ)
def test_labels_of_all_kinds_are_read(roots: DataRoots, changes: dict[str, Any], names: list[str], codes: list[str]) -> None:
    arrays = _valid_arrays()
    np.savez(roots.datasets / "a.npz", **arrays | changes)
    spec = DatasetSpec(path="a.npz")
    for info in (describe(spec, roots), open_store(spec, roots).info):
        assert (info.class_names, info.class_counts, [note.code for note in info.notes]) == (names, [2, 4, 3], codes)
    store = open_store(spec, roots)
    for k in range(3):
        np.testing.assert_array_equal(store.images(k), arrays["images"][k == LABELS].transpose(0, 3, 1, 2))
    assert store.test_labels.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("given", "codes", "test_count"),
    [
        (["x_train", "y_train", "x_test", "y_test"], [], 2),
        (["X_train", "Y_train", "X_test", "Y_test"], [], 2),
        (["train_images", "train_labels", "test_images", "test_labels"], [], 2),
        (["train_images", "train_labels", "val_images", "val_labels"], ["split"], 2),
        (["x", "y"], [], 0),
    ],
    ids=["Keras", "capitals", "MedMNIST", "only val", "x and y"],
)
def test_names_of_arrays(roots: DataRoots, given: list[str], codes: list[str], test_count: int) -> None:
    np.savez(roots.datasets / "a.npz", **dict(zip(given, _valid_arrays().values(), strict=False)))
    info = open_store(DatasetSpec(path="a.npz"), roots).info
    assert (info.class_counts, info.test_count, [note.code for note in info.notes]) == ([2, 4, 3], test_count, codes)


def test_texts_that_are_numbers_are_sorted_by_number(roots: DataRoots) -> None:
    images, numbers = RNG.integers(0, 256, (24, 5, 6), dtype=np.uint8), np.arange(24) % 12
    np.savez(
        roots.datasets / "a.npz", images=images, labels=numbers.astype(str), test_images=images, test_labels=numbers.astype(str)
    )
    store = open_store(DatasetSpec(path="a.npz"), roots)
    assert store.info.class_names == [str(k) for k in range(12)]
    assert store.test_labels.tolist() == numbers.tolist()
    np.testing.assert_array_equal(store.images(10)[:, 0], images[numbers == 10])


def test_val_is_ignored_beside_test(roots: DataRoots) -> None:
    arrays = _valid_arrays()
    np.savez(roots.datasets / "a.npz", **arrays, val_images=arrays["images"], val_labels=arrays["labels"])
    info = describe(DatasetSpec(path="a.npz"), roots)
    assert (info.test_count, [note.message for note in info.notes]) == (
        2,
        ["ignored 9 images in val_images: test_images is the test split"],
    )


def test_mapping_of_labels_is_said(roots: DataRoots) -> None:
    images = RNG.integers(0, 256, (18, 5, 6), dtype=np.uint8)
    np.savez(roots.datasets / "a.npz", images=images, labels=np.arange(18) % 9 + 1)
    (note,) = describe(DatasetSpec(path="a.npz"), roots).notes
    assert note.message == "numbered the labels 1, 2, 3, …, 7, 8, 9 as the classes 0 to 8; each class is named by its label"


def _npy(header: str, content: bytes = b"", version: tuple[int, int] = (1, 0)) -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY" + bytes(version) + len(text).to_bytes(2, "little") + text + content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            _npy("{'descr': '|u1', 'fortran_order': False, 'shape': (99999999999, 99, 99), }", b"few"),
            "has 3 bytes, but its shape",
        ),
        (_npy("{'descr': '|u1', 'fortran_order': False, 'shape': __import__('os'), }"), "array 'images' is damaged"),
        (_npy("{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 5), }", b"few"), "has 3 bytes, but its shape"),
        (_npy("{}", version=(9, 9)), "array 'images' is damaged"),
        (b"no array at all", "array 'images' is damaged"),
    ],
)
def test_forged_headers_are_refused(roots: DataRoots, content: bytes, message: str) -> None:
    with zipfile.ZipFile(roots.datasets / "a.npz", "w") as file:
        file.writestr("images.npy", content)
        file.writestr("labels.npy", b"")
    with pytest.raises(DatasetError, match=message):
        describe(DatasetSpec(path="a.npz"), roots)


def test_more_labels_than_the_limit_are_refused(roots: DataRoots, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(npz_file, "_MAX_LABELS", 8)
    np.savez(roots.datasets / "a.npz", **_valid_arrays())
    with pytest.raises(DatasetError, match="labels has 9 labels, 72 bytes; the limit is 8 labels"):
        describe(DatasetSpec(path="a.npz"), roots)


def test_damaged_images_are_refused_when_the_store_is_built(roots: DataRoots) -> None:
    path = roots.datasets / "a.npz"
    np.savez(path, images=np.zeros((9, 64, 64), np.uint8), labels=_valid_arrays()["labels"])
    content = bytearray(path.read_bytes())
    content[20_000] ^= 0xFF  # within the images, which are stored uncompressed
    path.write_bytes(content)
    assert describe(DatasetSpec(path="a.npz"), roots).class_counts == [2, 4, 3]  # describe() does not read pixels
    with pytest.raises(DatasetError, match=r"array 'images' cannot be unpacked \(Bad CRC-32"):
        open_store(DatasetSpec(path="a.npz"), roots)
