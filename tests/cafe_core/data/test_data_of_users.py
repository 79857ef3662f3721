"""Test data as users have it: inputs that an earlier version refused or misread, each made here, with what is right."""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cafe_core.data import image_folder
from cafe_core.data.catalog import describe
from cafe_core.data.roots import DataRoots
from cafe_core.data.sources import open_store
from cafe_core.errors import DatasetError
from cafe_core.spec.condense import CondenseSpec
from cafe_core.spec.dataset import DatasetSpec
from cafe_core.spec.notes import job_notes
from tests.cafe_core.data.image_folders import RNG, encoded, picture, png_of_16_bits


@dataclass(frozen=True)
class Right:
    """The expected result for an input: classes, counts and codes of the notes, or a pattern of the error message."""

    classes: list[str] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    test_count: int = 0
    notes: list[str] = field(default_factory=list)
    """In order of their code."""
    refusal: str = ""
    ipc: int = 1


def _files(root: Path, **counts: int) -> None:
    """Create `counts[SPLIT__CLASS__SUFFIX]` images."""
    for name, count in counts.items():
        *folders, suffix = name.split("__")
        directory = root.joinpath(*folders)
        directory.mkdir(parents=True, exist_ok=True)
        for i in range(count):
            kind = {"jpg": "JPEG", "JPEG": "JPEG"}.get(suffix, suffix.upper())
            (directory / f"{i}.{suffix}").write_bytes(encoded(picture(size=(8, 8)), kind))


def _trainval(root: Path) -> None:
    _files(root / "data", train__cat__jpg=8, train__dog__jpg=8, val__cat__jpg=4, val__dog__jpg=4)


def _tinyimagenet(root: Path) -> None:
    _files(root / "data", train__n01443537__images__JPEG=4, train__n01629819__images__JPEG=4, val__images__JPEG=4)
    (root / "data/val/val_annotations.txt").write_text("0.JPEG\tn01443537\t0\t0\t62\t62\n")
    (root / "data/train/n01443537/n01443537_boxes.txt").write_text("n01443537_0.JPEG\t0\t10\t63\t58\n")


def _numeric_classes(root: Path) -> None:
    for k in range(12):
        _files(root / "data", **{f"train__{k}__png": 1, f"test__{k}__png": 1})


def _npz(root: Path, images: str, labels: str, *more: str, base: int = 0, column: bool = False) -> None:
    """Create data.npz with 10 classes: 30 images in `images`, and 10 in each further pair of arrays."""
    arrays: dict[str, Any] = {}
    for pair, count in ((images, labels), 30), *((pair, 10) for pair in zip(more[::2], more[1::2], strict=True)):
        arrays[pair[0]] = RNG.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        numbers = (np.arange(count) % 10 + base).astype(np.uint8)
        arrays[pair[1]] = numbers[:, None] if column else numbers
    np.savez(root / "data.npz", **arrays)


def _two_classes(root: Path, save: Callable[[Path, int], None]) -> None:
    """Create 8 training and 4 test images in each of the classes d0 and d1. save: writes the i-th of all images to a path."""
    for i in range(24):
        split, number = ("train", i // 2) if i < 16 else ("test", (i - 16) // 2)
        path = root / "data" / split / f"d{i % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        save(path, i)


def _grey_16(path: Path, highest: int) -> None:
    """Save a 16-bit grey image with levels from 0 to `highest`."""
    levels = np.linspace(0, highest, 64).reshape(8, 8).astype(np.uint16)
    Image.fromarray(levels).save(path)


def _black_in_the_middle(path: Path, i: int) -> None:
    (Image.new("L", (8, 8)) if i == 3 else picture("L", (8, 8))).save(path)


def _jpe(root: Path) -> None:
    _files(root / "data", train__cat__jpg=4, train__dog__jpg=8, test__cat__jpg=4, test__dog__jpg=4)
    for i in range(4, 8):
        (root / f"data/train/cat/{i}.jpe").write_bytes(encoded(picture(size=(8, 8)), "JPEG"))


def _truncated(root: Path) -> None:
    _files(root / "data", train__cat__jpg=10, train__dog__jpg=10, test__cat__jpg=4, test__dog__jpg=4)
    for name in ("train/cat/3.jpg", "train/dog/0.jpg", "test/dog/2.jpg"):
        path = root / "data" / name
        path.write_bytes(path.read_bytes()[:-100])


def _not_utf8(root: Path) -> None:
    _two_classes(root, lambda path, _: picture("L", (8, 8)).save(path))
    Path(os.fsdecode(bytes(root / "data/train/d0") + b"/bad\xff.png")).write_bytes(b"damaged")


def _not_utf8_but_fine(root: Path) -> None:
    for name in (b"caf\xe9", b"dog"):
        directory = Path(os.fsdecode(bytes(root / "data") + b"/" + name))
        directory.mkdir(parents=True)
        (directory / os.fsdecode(b"\xe4.png")).write_bytes(encoded(picture()))


class _RawName(zipfile.ZipInfo):
    """A member whose name is written as it is."""

    def __init__(self, raw: bytes, flag: int) -> None:
        super().__init__(raw.decode("cp437"))
        self._raw, self._flag = raw, flag

    def _encodeFilenameFlags(self) -> tuple[bytes, int]:  # noqa: N802 - of zipfile
        return self._raw, self._flag


def _zip(root: Path, *names: bytes, flag: int = 0, extra: bytes = b"") -> None:
    """Create data.zip with an image under each name."""
    with zipfile.ZipFile(root / "data.zip", "w") as file:
        for name in names:
            info = _RawName(name, flag)
            info.extra = extra
            file.writestr(info, encoded(picture()))


def _unicode_path(raw: bytes, name: str) -> bytes:
    """Return the extra field by which Info-ZIP gives the name in UTF-8."""
    content = b"\1" + struct.pack("<I", zlib.crc32(raw)) + name.encode()
    return struct.pack("<HH", 0x7075, len(content)) + content


def _one_image(root: Path) -> None:
    _files(root / "data", train__d0__png=8, train__d1__png=8, train__d2__png=1)


GBK = "train/狗/0.png".encode("gbk")
DIGITS = [str(k) for k in range(10)]
CASES: dict[str, tuple[Callable[[Path], None], dict[str, Any], Right]] = {
    "trainval": (_trainval, {"path": "data"}, Right(["cat", "dog"], [8, 8], 8, ["split"])),
    "tinyimagenet": (
        _tinyimagenet,
        {"path": "data"},
        Right(["n01443537", "n01629819"], [4, 4], 1, ["ignored", "ignored", "nested", "split"]),
    ),
    "medmnist": (
        lambda root: _npz(
            root, "train_images", "train_labels", "val_images", "val_labels", "test_images", "test_labels", column=True
        ),
        {"path": "data.npz"},
        Right(DIGITS, [3] * 10, 10, ["ignored"]),
    ),
    "kerasmnist": (
        lambda root: _npz(root, "x_train", "y_train", "x_test", "y_test"),
        {"path": "data.npz"},
        Right(DIGITS, [3] * 10, 10),
    ),
    "from1": (
        lambda root: _npz(root, "images", "labels", base=1),
        {"path": "data.npz"},
        Right([str(k) for k in range(1, 11)], [3] * 10, 0, ["renumbered"]),
    ),
    "n1": (lambda root: _npz(root, "images", "labels", column=True), {"path": "data.npz"}, Right(DIGITS, [3] * 10)),
    "jpe": (_jpe, {"path": "data"}, Right(["cat", "dog"], [8, 8], 8)),
    "eight_in_16": (
        lambda root: _two_classes(root, lambda path, _: _grey_16(path, 255)),
        {"path": "data"},
        Right(["d0", "d1"], [8, 8], 8, ["converted"]),
    ),
    "twelve in 16, resized": (
        lambda root: _two_classes(root, lambda path, i: _grey_16(path, 255 if i else 4095)),
        {"path": "data", "image_size": 16},
        Right(["d0", "d1"], [8, 8], 8, ["converted"]),
    ),
    "one black image": (
        lambda root: _two_classes(root, _black_in_the_middle),
        {"path": "data"},
        Right(["d0", "d1"], [8, 8], 8, ["constant"]),
    ),
    "truncated": (
        _truncated,
        {"path": "data"},
        Right(
            refusal=r"3 images cannot be used: train/cat/3\.jpg .*; train/dog/0\.jpg .*; test/dog/2\.jpg .*; for each: replace"
        ),
    ),
    "name that is not UTF-8": (
        _not_utf8,
        {"path": "data"},
        Right(refusal=r"data: train/d0/bad\\xff\.png is not an image that can be read"),
    ),
    "names that are not UTF-8": (_not_utf8_but_fine, {"path": "data"}, Right([r"caf\xe9", "dog"], [1, 1])),
    "gbk": (
        lambda root: _zip(root, GBK, b"train/cat/0.png"),
        {"path": "data.zip"},
        Right(refusal=r"the name b'train/\\xb9\\xb7/0\.png' is not UTF-8, and the archive does not say its encoding; zip"),
    ),
    "gbk in names of files only": (
        lambda root: _zip(root, "train/dog/狗.png".encode("gbk"), b"train/cat/0.png"),
        {"path": "data.zip"},
        Right(["cat", "dog"], [1, 1]),
    ),
    "gbk with a name in UTF-8": (
        lambda root: _zip(root, GBK, b"train/cat/0.png", extra=_unicode_path(GBK, "train/狗/0.png")),
        {"path": "data.zip"},
        Right(["cat", "狗"], [1, 1]),
    ),
    "UTF-8 without the flag": (
        lambda root: _zip(root, "train/狗/0.png".encode(), b"train/cat/0.png"),
        {"path": "data.zip"},
        Right(["cat", "狗"], [1, 1]),
    ),
    "UTF-8 with the flag": (
        lambda root: _zip(root, "train/狗/0.png".encode(), b"train/cat/0.png", flag=0x800),
        {"path": "data.zip"},
        Right(["cat", "狗"], [1, 1]),
    ),
    "oneimage_ipc3": (_one_image, {"path": "data"}, Right(["d0", "d1", "d2"], [8, 8, 1], 0, ["repeated"], ipc=3)),
    "relative_path": (
        lambda root: _two_classes(root.parent / "here", lambda path, _: picture().save(path)),
        {"path": "./data"},
        Right(["d0", "d1"], [8, 8], 8),
    ),
    "numeric_classes": (_numeric_classes, {"path": "data"}, Right([str(k) for k in range(12)], [1] * 12, 12)),
}


@pytest.mark.parametrize(("make", "spec", "right"), CASES.values(), ids=CASES)
def test_data_of_users(roots: DataRoots, make: Callable[[Path], None], spec: dict[str, Any], right: Right) -> None:
    make(roots.datasets)
    roots = roots.model_copy(update={"working_directory": roots.datasets.parent / "here"})
    dataset = DatasetSpec.model_validate(spec)
    if right.refusal:
        for read in (describe, open_store):
            with pytest.raises(DatasetError, match=right.refusal):
                read(dataset, roots)
        return
    for info in (describe(dataset, roots), open_store(dataset, roots).info):
        job = CondenseSpec.model_validate({"dataset": spec, "ipc": right.ipc, "method": "random"})
        notes = job_notes(job, info)
        assert (
            Right(info.class_names, info.class_counts, info.test_count, sorted(note.code for note in notes), ipc=right.ipc)
            == right
        )


@pytest.mark.parametrize(("highest", "expected"), [(255, 255), (200, 200), (1000, 250), (4095, 255), (65535, 255), (30000, 117)])
def test_16_bit_levels_are_scaled_by_the_bits_that_the_dataset_uses(roots: DataRoots, highest: int, expected: int) -> None:
    _two_classes(roots.datasets, lambda path, i: _grey_16(path, highest if i == 20 else highest // 2))
    store = open_store(DatasetSpec(path="data"), roots)
    assert store.test_images.max() == expected
    assert store.train_images.max() == expected // 2


@pytest.mark.parametrize("colour", [2, 6], ids=["RGB", "RGBA"])
@pytest.mark.parametrize("highest", [255, 4095])
def test_16_bit_colour_that_would_become_dark_is_refused(roots: DataRoots, highest: int, colour: int) -> None:
    _two_classes(roots.datasets, lambda path, i: path.write_bytes(png_of_16_bits(0 if i == 3 else highest, colour)))
    for read in (describe, open_store):
        with pytest.raises(DatasetError, match=r"16 bits per channel but no level above 4095.*; for each: save it with 8 bits"):
            read(DatasetSpec(path="data"), roots)


@pytest.mark.parametrize("others", [png_of_16_bits(60_000), encoded(picture("RGB", (4, 4)))], ids=["16 bits", "8 bits"])
@pytest.mark.parametrize("first", [0, 5])
def test_a_black_image_of_16_bits_is_accepted(roots: DataRoots, others: bytes, first: int) -> None:
    _two_classes(roots.datasets, lambda path, i: path.write_bytes(png_of_16_bits(0) if i == first else others))
    for info in (describe(DatasetSpec(path="data"), roots), open_store(DatasetSpec(path="data"), roots).info):
        assert info.class_counts == [8, 8]


def test_note_about_8_bits_in_16(roots: DataRoots) -> None:
    _two_classes(roots.datasets, lambda path, _: _grey_16(path, 255))
    (note,) = open_store(DatasetSpec(path="data"), roots).info.notes
    assert note.message == "found 24 images stored with 16 bits per pixel that use only 8; the levels were kept"


# -- samples, and errors about several images


def test_error_names_at_most_ten_images(roots: DataRoots) -> None:
    _files(roots.datasets / "data", a__png=13, b__png=13)
    for i in range(1, 13):
        (roots.datasets / "data" / "b" / f"{i}.png").write_bytes(b"damaged")
    for read in (describe, open_store):
        with pytest.raises(DatasetError, match="at least 10 images cannot be used") as caught:
            read(DatasetSpec(path="data"), roots)
        assert caught.value.message.count("is not an image that can be read") == 10


def test_sample_is_spread_over_all_images(roots: DataRoots, monkeypatch: pytest.MonkeyPatch) -> None:
    _files(roots.datasets / "data", a__png=6, b__png=6)
    monkeypatch.setattr(image_folder, "_MOST_SAMPLED", 4)
    Image.new("RGB", (8, 8)).save(roots.datasets / "data" / "b" / "3.png")
    spec = DatasetSpec(path="data")
    (note,) = describe(spec, roots).notes
    assert note.message == "found 1 image of a single colour, of 4 that were looked at"
    (roots.datasets / "data" / "b" / "4.png").write_bytes(b"not in the sample")
    describe(spec, roots)
    (roots.datasets / "data" / "b" / "3.png").write_bytes(b"in the sample")
    with pytest.raises(
        DatasetError, match=r"data: b/3\.png is not an image that can be read, or is damaged; replace or remove it"
    ):
        describe(spec, roots)


@pytest.mark.parametrize(("limit", "value"), [("_MOST_SAMPLED_PIXELS", 3 * 64), ("_MOST_SAMPLED_BYTES", 300)])
def test_sample_is_small(roots: DataRoots, monkeypatch: pytest.MonkeyPatch, limit: str, value: int) -> None:
    _files(roots.datasets / "data", a__png=6, b__png=6)
    for path in (roots.datasets / "data").rglob("*.png"):
        Image.new("RGB", (8, 8)).save(path)
    monkeypatch.setattr(image_folder, limit, value)
    constant, sampled = describe(DatasetSpec(path="data"), roots).notes
    looked_at = int(constant.message.split()[-5])
    assert 0 < looked_at < 12
    assert sampled.message == f"looked at {looked_at} of 12 images, because they are large; a job decodes all of them"
    (note,) = open_store(DatasetSpec(path="data"), roots).info.notes
    assert note.message == "found 12 images of a single colour"


def test_note_counts_conversions(roots: DataRoots) -> None:
    _two_classes(roots.datasets, lambda path, i: _grey_16(path, 4000) if i % 3 else picture("RGBA", (8, 8)).save(path))
    spec = DatasetSpec(path="data", channels=1)
    for info in (describe(spec, roots), open_store(spec, roots).info):
        assert [note.message for note in info.notes] == [
            "put 8 images with transparency on a white background",
            "scaled the levels of 16 images with more than 8 bits per pixel to 8 bits: they use 12 bits",
        ]
