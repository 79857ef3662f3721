"""Own data: what can be read is read right, and what cannot is refused with the reason and the fix."""

from __future__ import annotations

import gc
import io
import os
import shutil
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cafe_core.data import image_folder, npz_file, pixels
from cafe_core.data.archives import open_archive
from cafe_core.data.catalog import describe
from cafe_core.data.class_store import ClassStore
from cafe_core.data.roots import DataRoots
from cafe_core.data.sources import open_store
from cafe_core.errors import DatasetError, SpecError
from cafe_core.spec.dataset import DatasetSpec

RNG = np.random.default_rng(0)


@pytest.fixture
def roots(tmp_path: Path) -> DataRoots:
    for name in ("datasets", "uploads", "downloads"):
        (tmp_path / name).mkdir()
    return DataRoots(**{name: tmp_path / name for name in ("datasets", "uploads", "downloads", "cache")})


@pytest.fixture
def folder(roots: DataRoots) -> Path:
    """An image folder of 2 classes, 3 + 2 training and 1 + 1 test images of 7×6 (width×height), RGB."""
    root = roots.datasets / "pets"
    for name, count in {"train/cat": 3, "train/dog": 2, "test/cat": 1, "test/dog": 1}.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            _picture().save(root / name / f"{i}.png")
    return root


def _picture(mode: str = "RGB", size: tuple[int, int] = (7, 6)) -> Image.Image:
    channels = {"L": (), "RGB": (3,), "RGBA": (4,)}[mode]
    return Image.fromarray(RNG.integers(0, 256, (size[1], size[0], *channels), dtype=np.uint8))


def _pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).transpose(2, 0, 1)


def _zip(folder: Path, prefix: str = "") -> Path:
    """The folder as FOLDER.zip beside it."""
    archive = folder.with_suffix(".zip")
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(folder.rglob("*")):
            file.write(path, prefix + str(path.relative_to(folder)))
    return archive


# -- folders and archives that can be read


def test_a_folder(roots: DataRoots, folder: Path) -> None:
    store = open_store(DatasetSpec(path="pets"), roots)
    assert store.info.class_names == ["cat", "dog"]
    assert (store.info.class_counts, store.info.test_count, store.info.shape) == ([3, 2], 2, (3, 6, 7))
    assert not store.info.is_digits
    for k, name in enumerate(["cat", "dog"]):
        files = sorted((folder / "train" / name).iterdir())
        np.testing.assert_array_equal(store.images(k), [_pixels(file) for file in files])
        np.testing.assert_array_equal(store.test_images[k], _pixels(folder / "test" / name / "0.png"))
    assert store.test_labels.tolist() == [0, 1]


@pytest.mark.parametrize("prefix", ["", "pets/"])
def test_an_archive_is_as_its_folder(roots: DataRoots, folder: Path, prefix: str) -> None:
    with zipfile.ZipFile(_zip(folder, prefix), "a") as file:
        file.writestr("__MACOSX/train/cat/._0.png", b"resource fork")
        file.writestr(prefix + "train/cat/.DS_Store", b"finder")
    _same_images(open_store(DatasetSpec(path="pets.zip"), roots), open_store(DatasetSpec(path="pets"), roots))


def _same_images(a: ClassStore, b: ClassStore) -> None:
    for file in ("train-images.u8", "test-images.u8", "test-labels.i64"):
        assert (a.path / file).read_bytes() == (b.path / file).read_bytes()
    assert a.info.class_names == b.info.class_names


def test_an_upload(roots: DataRoots, folder: Path) -> None:
    (roots.uploads / "ds_1").mkdir()
    _zip(folder).rename(roots.uploads / "ds_1" / "data.zip")
    store = open_store(DatasetSpec(id="ds_1"), roots)
    assert store.info.name == "ds_1"
    _same_images(store, open_store(DatasetSpec(path="pets"), roots))


def test_an_absolute_path_within_the_root(roots: DataRoots, folder: Path) -> None:
    assert describe(DatasetSpec(path=str(folder)), roots).class_counts == [3, 2]


def test_what_is_not_an_image_is_left_out(roots: DataRoots, folder: Path) -> None:
    (folder / "README.md").write_text("pets")
    (folder / "train" / "cat" / "notes.txt").write_text("fluffy")
    (folder / "train" / "cat" / ".hidden.png").write_bytes(b"")
    assert describe(DatasetSpec(path="pets"), roots).class_counts == [3, 2]


def test_no_test_folder(roots: DataRoots, folder: Path) -> None:
    shutil.rmtree(folder / "test")
    assert open_store(DatasetSpec(path="pets"), roots).info.test_count == 0


@pytest.mark.parametrize("name", ["x.jpg", "x.JPEG", "x.bmp", "x.webp", "x.PNG"])
def test_every_suffix(roots: DataRoots, folder: Path, name: str) -> None:
    _picture().save(folder / "train" / "dog" / name)
    assert open_store(DatasetSpec(path="pets"), roots).info.class_counts == [3, 3]


def test_mixed_sizes_and_modes_are_made_alike_when_asked(roots: DataRoots, folder: Path) -> None:
    _picture("L", (40, 20)).save(folder / "train" / "dog" / "wide.png")
    store = open_store(DatasetSpec(path="pets", image_size=8, channels=1), roots)
    assert store.info.shape == (1, 8, 8)
    assert store.images(1).shape == (3, 1, 8, 8)


# -- pixels


def _encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _constant(mode: str, value: Any, size: tuple[int, int] = (4, 4)) -> Image.Image:
    return Image.new(mode, size, value)


def _palette_with_transparency() -> Image.Image:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    return image


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (_encoded(_constant("1", 1)), [255]),
        (_encoded(_constant("L", 77)), [77]),
        (_encoded(_constant("I;16", 0xABCD)), [0xAB]),
        (_encoded(_constant("LA", (10, 255))), [10]),
        (_encoded(_constant("LA", (10, 0))), [255]),
        (_encoded(_constant("RGB", (1, 2, 3))), [1, 2, 3]),
        (_encoded(_constant("RGBA", (1, 2, 3, 255))), [1, 2, 3]),
        (_encoded(_constant("RGBA", (1, 2, 3, 0))), [255, 255, 255]),
        (_encoded(_palette_with_transparency()), [200, 100, 50]),
        (_encoded(_palette_with_transparency(), transparency=1), [255, 255, 255]),
        (_encoded(_palette_with_transparency(), transparency=bytes([255, 0])), [255, 255, 255]),
        (_encoded(_constant("RGB", (9, 9, 9)), transparency=(9, 9, 9)), [255, 255, 255]),
        (_encoded(_constant("CMYK", (0, 0, 0, 0)), "JPEG", quality=100), [255, 255, 255]),
    ],
    ids=["1", "L", "I16", "LA", "LA-clear", "RGB", "RGBA", "RGBA-clear", "P", "P-clear", "P-alphas", "RGB-key", "CMYK"],
)
def test_modes(data: bytes, expected: list[int]) -> None:
    image = pixels.decode(data, "x", image_size=None, channels=None)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, np.broadcast_to(np.array(expected)[:, None, None], (len(expected), 4, 4)))


def test_grey_and_colour_on_demand() -> None:
    colour = _encoded(_constant("RGB", (255, 0, 0)))
    assert pixels.decode(colour, "x", image_size=None, channels=1)[0, 0, 0] == 76  # 0.299 · 255
    grey = _encoded(_constant("L", 9))
    assert pixels.decode(grey, "x", image_size=None, channels=3)[:, 0, 0].tolist() == [9, 9, 9]


def test_the_camera_s_orientation_is_applied() -> None:
    image = np.zeros((4, 8), dtype=np.uint8)
    image[:, :4] = 200  # bright on the left; turned by 90° clockwise it is bright on top
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = pixels.decode(_encoded(Image.fromarray(image), exif=exif), "x", image_size=None, channels=None)
    assert upright.shape == (1, 8, 4)
    assert (upright[0, :4] == 200).all()
    assert (upright[0, 4:] == 0).all()


def test_resizing_is_of_the_shorter_side_then_centre_cropped() -> None:
    image = _picture("L", (128, 64))
    expected = image.resize((16, 8), Image.Resampling.BILINEAR).crop((4, 0, 12, 8))
    small = pixels.decode(_encoded(image), "x", image_size=8, channels=None)
    np.testing.assert_array_equal(small[0], np.asarray(expected))


def test_resizing_is_antialiased() -> None:
    stripes = np.broadcast_to(100 + 100 * (np.arange(64) % 2), (64, 64)).astype(np.uint8)
    small = pixels.decode(_encoded(Image.fromarray(stripes)), "x", image_size=8, channels=None)
    assert np.abs(small.astype(int) - 150).max() <= 3  # the stripes' mean: neither 100 nor 200


@pytest.mark.parametrize(("size", "channels"), [(None, 3), (12, None), (5, 3), (None, None)])
def test_arrays_are_converted_as_files_are(size: int | None, channels: Any) -> None:
    image = _picture("L", (9, 8))
    from_file = pixels.decode(_encoded(image), "x", image_size=size, channels=channels)
    np.testing.assert_array_equal(pixels.fit_batch(np.asarray(image)[None, None], size, channels)[0], from_file)


@pytest.mark.parametrize("size", [None, 8])
@pytest.mark.parametrize("channels", [None, 1, 3])
@pytest.mark.parametrize("image", [_picture("L", (9, 6)), _picture("RGBA", (6, 9))], ids=["grey", "colour"])
def test_the_shape_is_known_before_decoding(image: Image.Image, size: int | None, channels: Any) -> None:
    data, how = _encoded(image), {"image_size": size, "channels": channels}
    assert pixels.decoded_shape(data, "x", **how) == pixels.decode(data, "x", **how).shape


def test_a_large_image_is_not_decoded_to_learn_its_shape() -> None:
    torn = _encoded(Image.new("L", (4000, 4000)))[:200]  # the header is there, the pixels are not
    assert pixels.decoded_shape(torn, "x", image_size=32, channels=None) == (1, 32, 32)
    with pytest.raises(DatasetError, match="4000×4000 pixels"):
        pixels.decoded_shape(torn, "x", image_size=None, channels=None)


# -- folders that cannot be read: (what is done to the good folder, what the error must say)


def _truncate(folder: Path) -> None:
    os.truncate(folder / "train/dog/1.png", 90)


def _corrupt(folder: Path) -> None:
    (folder / "train/dog/1.png").write_bytes(b"this is no image")


def _empty_file(folder: Path) -> None:
    (folder / "train/dog/1.png").write_bytes(b"")


def _disguise(folder: Path) -> None:
    _picture().save(folder / "train/dog/1.png", "GIF")


def _bomb(folder: Path) -> None:
    Image.new("1", (20_000, 20_000)).save(folder / "train/dog/1.png")


def _slight_bomb(folder: Path) -> None:
    Image.new("1", (10_000, 9_000)).save(folder / "train/dog/1.png")


def _other_size(folder: Path) -> None:
    _picture(size=(9, 6)).save(folder / "train/dog/1.png")


def _other_mode(folder: Path) -> None:
    _picture("L").save(folder / "train/dog/1.png")


def _bad_test_image(folder: Path) -> None:
    (folder / "test/dog/0.png").write_bytes(b"this is no image")


DECODING = [
    (_truncate, r"pets: train/dog/1\.png cannot be decoded .*; replace or remove it"),
    (_corrupt, r"pets: train/dog/1\.png is not a PNG, JPEG, BMP, WEBP image, or is damaged"),
    (_empty_file, r"pets: train/dog/1\.png is empty"),
    (_disguise, r"pets: train/dog/1\.png is not a PNG"),
    (_bomb, r"pets: train/dog/1\.png is too large: .*pixels"),
    (_slight_bomb, r"pets: train/dog/1\.png is too large: .*pixels"),
    (_other_size, r"train/dog/1\.png is 9×6 colour, train/cat/0\.png is 7×6 colour; set dataset\.image_size"),
    (_other_mode, r"train/dog/1\.png is 7×6 grey, train/cat/0\.png is 7×6 colour; set dataset\.channels"),
    (_bad_test_image, r"pets: test/dog/0\.png is not a PNG"),
]


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("spoil", "message"), DECODING, ids=[spoil.__name__ for spoil, _ in DECODING])
@pytest.mark.parametrize("archive", [False, True], ids=["folder", "zip"])
def test_bad_images(roots: DataRoots, folder: Path, spoil: Callable[[Path], None], message: str, archive: bool) -> None:
    spoil(folder)
    path = _zip(folder).name if archive else folder.name
    with pytest.raises(DatasetError, match=message.replace("pets:", path + ":")):
        open_store(DatasetSpec(path=path), roots)
    assert [entry for entry in roots.cache.iterdir() if entry.is_dir()] == []


def _empty_class(folder: Path) -> None:
    (folder / "train/fish").mkdir()


def _class_of_notes(folder: Path) -> None:
    (folder / "train/fish").mkdir()
    (folder / "train/fish/notes.txt").write_text("wet")


def _one_class(folder: Path) -> None:
    shutil.rmtree(folder / "train/dog")
    shutil.rmtree(folder / "test/dog")


def _no_classes(folder: Path) -> None:
    for name in ("train", "test"):
        shutil.rmtree(folder / name)
        (folder / name).mkdir()
    shutil.rmtree(folder / "test")


def _stranger_in_test(folder: Path) -> None:
    (folder / "test/fish").mkdir()
    _picture().save(folder / "test/fish/0.png")


def _empty_test(folder: Path) -> None:
    shutil.rmtree(folder / "test")
    (folder / "test").mkdir()


def _flat(folder: Path) -> None:
    (folder / "train/cat").rename(folder / "cat")
    (folder / "train/dog").rename(folder / "dog")
    shutil.rmtree(folder / "train")
    shutil.rmtree(folder / "test")


def _third_split(folder: Path) -> None:
    shutil.copytree(folder / "test", folder / "val")


def _too_shallow(folder: Path) -> None:
    _picture().save(folder / "train/stray.png")


def _too_deep(folder: Path) -> None:
    (folder / "train/cat/more").mkdir()
    _picture().save(folder / "train/cat/more/0.png")


def _other_kind(folder: Path) -> None:
    _picture().save(folder / "train/cat/x.gif")


def _everything_gone(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def _unprintable_class(folder: Path) -> None:
    (folder / "train/cat").rename(folder / "train/c\nat")


def _huge(folder: Path) -> None:
    for file in folder.rglob("*.png"):
        _picture(size=(600, 600)).save(file)


LAYOUT = [
    (_empty_class, r"class 'fish' has no images in train/"),
    (_class_of_notes, r"class 'fish' has no images in train/; add some \(\.png"),
    (_one_class, r"has only one class \('cat'\); at least 2"),
    (_no_classes, r"train/ holds no class folders; expected train/CLASS"),
    (_stranger_in_test, r"class 'fish' is in test/ and not in train/"),
    (_empty_test, r"test/ holds no images; fill it or remove it"),
    (_flat, r"has no train/ folder; found cat/0\.png; expected train/CLASS/\*\.png"),
    (_third_split, r"val/cat/0\.png is neither in train/ nor in test/"),
    (_too_shallow, r"train/stray\.png is not directly in a class's folder; expected"),
    (_too_deep, r"train/cat/more/0\.png is not directly in a class's folder"),
    (_other_kind, r"train/cat/x\.gif has an unsupported format; convert it"),
    (_everything_gone, r"has no train/ folder; it holds no images; expected"),
    (_unprintable_class, r"the class folder 'c\\nat' has a name that cannot be printed"),
    (_huge, r"600×600 pixels .*set dataset\.image_size"),
]


@pytest.mark.parametrize(("spoil", "message"), LAYOUT, ids=[spoil.__name__ for spoil, _ in LAYOUT])
@pytest.mark.parametrize("archive", [False, True], ids=["folder", "zip"])
def test_bad_layouts_are_seen_when_a_job_is_posted(
    roots: DataRoots, folder: Path, spoil: Callable[[Path], None], message: str, archive: bool
) -> None:
    spoil(folder)
    path = _zip(folder).name if archive else folder.name
    with pytest.raises(DatasetError, match=message):
        describe(DatasetSpec(path=path), roots)


# -- paths


@pytest.mark.parametrize("path", ["../outside", "/etc", "pets/../../outside", "link", "link/train", "a" * 300, "..", "loop/x"])
def test_paths_outside_the_root(roots: DataRoots, folder: Path, path: str) -> None:
    shutil.copytree(folder, roots.datasets.parent / "outside")
    (roots.datasets / "link").symlink_to(roots.datasets.parent / "outside")
    (roots.datasets / "loop").symlink_to(roots.datasets / "loop")
    with pytest.raises(SpecError, match="not a path under the server's dataset root") as caught:
        describe(DatasetSpec(path=path), roots)
    assert caught.value.loc == "dataset.path"


@pytest.mark.parametrize(
    ("name", "target"), [("train", "train"), ("train/cow", "train/cat"), ("train/cat/link.png", "train/cat/0.png")]
)
def test_links_within_a_folder_may_not_leave_the_root(roots: DataRoots, folder: Path, name: str, target: str) -> None:
    outside = roots.datasets.parent / "outside"
    shutil.copytree(folder, outside)
    if name == "train":
        shutil.rmtree(folder / "train")
    (folder / name).symlink_to(outside / target)
    with pytest.raises(SpecError, match=rf"{name} is a link that leads out of the dataset root"):
        describe(DatasetSpec(path="pets"), roots)


def test_links_within_the_root_are_followed(roots: DataRoots, folder: Path) -> None:
    (folder / "train/cow").symlink_to(folder / "train/dog")
    assert describe(DatasetSpec(path="pets"), roots).class_names == ["cat", "cow", "dog"]


def test_a_link_to_a_folder_above(roots: DataRoots, folder: Path) -> None:
    (folder / "train/cow").symlink_to(folder)
    with pytest.raises(DatasetError, match="train/cow is a link to a folder that contains it"):
        describe(DatasetSpec(path="pets"), roots)


def test_a_dangling_link(roots: DataRoots, folder: Path) -> None:
    (folder / "train/cat/9.png").symlink_to(folder / "gone.png")
    with pytest.raises(DatasetError, match=r"train/cat/9\.png is neither a file nor a folder"):
        describe(DatasetSpec(path="pets"), roots)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (DatasetSpec(path="absent.npz"), "there is no 'absent.npz' under the server's dataset root"),
        (DatasetSpec(id="ds_absent"), "ds_absent does not exist"),
        (DatasetSpec(path="notes.txt"), "is not an image folder, a .zip or an .npz"),
        (DatasetSpec(path="torn.zip"), "torn.zip is not a readable .zip archive"),
        (DatasetSpec(path="torn.npz"), "torn.npz is not a readable .npz file"),
        (DatasetSpec(path="void.npz"), "void.npz is not a readable .npz file"),
    ],
)
def test_absent_and_unknown_files(roots: DataRoots, spec: DatasetSpec, message: str) -> None:
    (roots.datasets / "notes.txt").write_text("no data")
    (roots.datasets / "torn.zip").write_bytes(b"PK\x03\x04 and then nothing")
    (roots.datasets / "torn.npz").write_bytes(b"PK\x03\x04 and then nothing")
    (roots.datasets / "void.npz").write_bytes(b"")
    with pytest.raises(DatasetError, match=message):
        describe(spec, roots)


# -- archives meant to harm


def test_an_archive_that_is_not_there(tmp_path: Path) -> None:
    """As an upload that was deleted meanwhile. (What its destructor raised would fail this test as well.)"""
    with pytest.raises(FileNotFoundError):
        open_archive(tmp_path / "absent.zip")
    gc.collect()


def _spoilt_zip(folder: Path, *entries: tuple[zipfile.ZipInfo, bytes]) -> None:
    with zipfile.ZipFile(_zip(folder), "a", zipfile.ZIP_DEFLATED) as file:
        for info, content in entries:
            info.compress_type = zipfile.ZIP_DEFLATED
            file.writestr(info, content)


@pytest.mark.parametrize(
    "name", ["../evil.png", "train/../../evil.png", "/train/cat/evil.png", "train\\..\\evil.png", "C:/evil.png", "train//x.png"]
)
def test_archives_with_paths_that_lead_elsewhere(roots: DataRoots, folder: Path, name: str) -> None:
    _spoilt_zip(folder, (zipfile.ZipInfo(name), _encoded(_picture())))
    with pytest.raises(DatasetError, match="is not a valid path in an archive"):
        describe(DatasetSpec(path="pets.zip"), roots)


def test_archives_with_links(roots: DataRoots, folder: Path) -> None:
    link = zipfile.ZipInfo("train/cat/9.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    _spoilt_zip(folder, (link, b"/etc/passwd"))
    with pytest.raises(DatasetError, match=r"train/cat/9\.png' is a link"):
        describe(DatasetSpec(path="pets.zip"), roots)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_archives_with_a_file_twice(roots: DataRoots, folder: Path) -> None:
    _spoilt_zip(folder, (zipfile.ZipInfo("train/cat/0.png"), b"other"))
    with pytest.raises(DatasetError, match="is in the archive twice"):
        describe(DatasetSpec(path="pets.zip"), roots)


def test_archives_that_unpack_to_absurd_sizes(roots: DataRoots, folder: Path) -> None:
    _spoilt_zip(folder, (zipfile.ZipInfo("train/cat/9.png"), bytes(17 * 2**20)))
    with pytest.raises(DatasetError, match=r"unpacks from .* bytes, which is not plausible"):
        describe(DatasetSpec(path="pets.zip"), roots)


def test_archives_with_a_password(roots: DataRoots, folder: Path) -> None:
    content = bytearray(_zip(folder).read_bytes())
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        name = file.namelist()[-1].encode()
    entry = content.rindex(b"PK\x01\x02", 0, content.rindex(name))
    content[entry + 8] |= 1  # the flag in the central directory (APPNOTE 4.4.4)
    folder.with_suffix(".zip").write_bytes(content)
    with pytest.raises(DatasetError, match="is encrypted"):
        describe(DatasetSpec(path="pets.zip"), roots)


def test_archives_with_damaged_bytes(roots: DataRoots, folder: Path) -> None:
    archive = _zip(folder)
    with zipfile.ZipFile(archive) as file:
        info = file.getinfo("train/dog/1.png")
        start = info.header_offset + 30 + len(info.filename)
    content = bytearray(archive.read_bytes())
    content[start + 50] ^= 0xFF
    archive.write_bytes(content)
    with pytest.raises(DatasetError, match=r"train/dog/1\.png is damaged in the archive .*CRC"):
        open_store(DatasetSpec(path="pets.zip"), roots)


def test_files_larger_than_any_image(roots: DataRoots, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_folder, "_MAX_FILE_BYTES", 1000)
    (folder / "train/cat/0.png").write_bytes(bytes(1001))
    with pytest.raises(DatasetError, match=r"train/cat/0\.png has 1001 bytes; the limit for an image file is 1000"):
        describe(DatasetSpec(path="pets"), roots)


# -- .npz


def _good_npz() -> dict[str, np.ndarray]:
    return {
        "images": RNG.integers(0, 256, (9, 5, 6, 3), dtype=np.uint8),
        "labels": np.array([2, 0, 1, 1, 0, 2, 2, 1, 1]),
        "test_images": RNG.integers(0, 256, (2, 5, 6, 3), dtype=np.uint8),
        "test_labels": np.array([1, 2]),
    }


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["int64", "uint8", ">i4"])
def test_npz(roots: DataRoots, save: Callable[..., None], order: Any, dtype: str) -> None:
    arrays = _good_npz()
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


def test_npz_without_channels_or_test(roots: DataRoots) -> None:
    arrays = _good_npz()
    np.savez(roots.datasets / "a.npz", images=arrays["images"][..., 0], labels=arrays["labels"])
    store = open_store(DatasetSpec(path="a.npz", image_size=8, channels=3), roots)
    assert (store.info.shape, store.info.test_count) == ((3, 8, 8), 0)


def _objects() -> np.ndarray:
    return np.array([{"class": 0}] * 9, dtype=object)


BAD_ARRAYS = [
    ({"labels": _objects()}, r"array 'labels' holds pickled Python objects, which are never read"),
    ({"images": _objects()}, r"array 'images' holds pickled Python objects"),
    ({"labels": None}, r"array 'labels' is missing; an \.npz dataset has images and labels"),
    ({"images": None}, r"array 'images' is missing"),
    ({"test_labels": None}, r"test_images and test_labels go together"),
    ({"lables": np.zeros(9, int)}, r"unknown array 'lables'"),
    ({"images": np.zeros((9, 5, 6, 3))}, r"images is float64; it must be uint8"),
    ({"images": np.zeros((9, 30), np.uint8)}, r"images has shape \(9, 30\); it must be N×H×W"),
    ({"images": np.zeros((9, 5, 6, 4), np.uint8)}, r"images has 4 channels"),
    ({"images": np.zeros((9, 3, 16, 16), np.uint8)}, r"images has 16 channels .*move the channels to the end"),
    ({"images": np.zeros((9, 2, 6, 3), np.uint8)}, r"images has 6×2 pixels"),
    ({"images": np.zeros((0, 5, 6, 3), np.uint8), "labels": np.zeros(0, int)}, r"images is empty"),
    ({"labels": np.array([2, 0, 1, 1, 0, 2, 2, 1])}, r"labels has shape \(8,\); images needs \(9,\)"),
    ({"labels": np.zeros((9, 1), int)}, r"labels has shape \(9, 1\)"),
    ({"labels": np.array([2.0, 0, 1, 1, 0, 2, 2, 1, 1])}, r"labels is float64; it must hold integers"),
    ({"labels": np.array([True] * 9)}, r"labels is bool; it must hold integers"),
    ({"labels": np.array([2, 0, 1, -1, 0, 2, 2, 1, 1])}, r"labels\[3\] is -1; labels count from 0"),
    ({"labels": np.array([2, 0, 1, 1, 0, 10**12, 2, 1, 1])}, r"labels\[5\] is 1000000000000, with 9 images"),
    ({"labels": np.array([2, 0, 2, 2, 0, 2, 2, 2, 2])}, r"class 1 has no images, but labels go up to 2"),
    ({"labels": np.zeros(9, int)}, r"labels has only one class"),
    ({"test_labels": np.array([1, 3])}, r"test_labels\[1\] is 3; labels has the classes 0 to 2"),
    ({"test_labels": np.array([-1, 0])}, r"test_labels\[0\] is -1"),
    ({"test_images": np.zeros((2, 5, 7, 3), np.uint8)}, r"test_images are \(3, 5, 7\) .*images are \(3, 5, 6\)"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_ARRAYS, ids=[message[:40] for _, message in BAD_ARRAYS])
def test_bad_arrays_are_seen_when_a_job_is_posted(roots: DataRoots, changes: dict[str, Any], message: str) -> None:
    arrays = {name: array for name, array in (_good_npz() | changes).items() if array is not None}
    np.savez(roots.datasets / "a.npz", **arrays)
    with pytest.raises(DatasetError, match=rf"a\.npz: {message}"):
        describe(DatasetSpec(path="a.npz"), roots)


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
def test_forged_headers(roots: DataRoots, content: bytes, message: str) -> None:
    with zipfile.ZipFile(roots.datasets / "a.npz", "w") as file:
        file.writestr("images.npy", content)
        file.writestr("labels.npy", b"")
    with pytest.raises(DatasetError, match=message):
        describe(DatasetSpec(path="a.npz"), roots)


def test_labels_that_unpack_to_absurd_sizes(roots: DataRoots, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(npz_file, "_MAX_LABELS", 8)
    np.savez(roots.datasets / "a.npz", **_good_npz())
    with pytest.raises(DatasetError, match="labels has 9 labels; the limit is 8"):
        describe(DatasetSpec(path="a.npz"), roots)


def test_npz_with_damaged_images(roots: DataRoots) -> None:
    path = roots.datasets / "a.npz"
    np.savez(path, images=np.zeros((9, 64, 64), np.uint8), labels=_good_npz()["labels"])
    content = bytearray(path.read_bytes())
    content[20_000] ^= 0xFF  # within the images, which are stored uncompressed
    path.write_bytes(content)
    assert describe(DatasetSpec(path="a.npz"), roots).class_counts == [2, 4, 3]  # pixels are not looked at
    with pytest.raises(DatasetError, match=r"array 'images' cannot be unpacked \(Bad CRC-32"):
        open_store(DatasetSpec(path="a.npz"), roots)
