"""Test that image folders and archives of users are read, or refused with the reason and a fix."""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cafe_core.data import file_trees
from cafe_core.data.catalog import describe
from cafe_core.data.class_store import ClassStore
from cafe_core.data.roots import DataRoots
from cafe_core.data.sources import open_store
from cafe_core.errors import DatasetError, SpecError
from cafe_core.spec.dataset import DatasetSpec
from tests.cafe_core.data.image_folders import picture, pixels_of, zip_of

# -- folders and archives that can be read


def test_folder_is_read(roots: DataRoots, folder: Path) -> None:
    store = open_store(DatasetSpec(path="pets"), roots)
    assert store.info.class_names == ["cat", "dog"]
    assert (store.info.class_counts, store.info.test_count, store.info.shape) == ([3, 2], 2, (3, 6, 7))
    assert not store.info.is_digits
    for k, name in enumerate(["cat", "dog"]):
        files = sorted((folder / "train" / name).iterdir())
        np.testing.assert_array_equal(store.images(k), [pixels_of(file) for file in files])
        np.testing.assert_array_equal(store.test_images[k], pixels_of(folder / "test" / name / "0.png"))
    assert store.test_labels.tolist() == [0, 1]


@pytest.mark.parametrize("prefix", ["", "pets/"])
def test_archive_gives_the_same_store_as_its_folder(roots: DataRoots, folder: Path, prefix: str) -> None:
    with zipfile.ZipFile(zip_of(folder, prefix), "a") as file:
        file.writestr("__MACOSX/train/cat/._0.png", b"resource fork")
        file.writestr(prefix + "train/cat/.DS_Store", b"finder")
    _assert_same_images(open_store(DatasetSpec(path="pets.zip"), roots), open_store(DatasetSpec(path="pets"), roots))


def _assert_same_images(a: ClassStore, b: ClassStore) -> None:
    for file in ("train-images.u8", "test-images.u8", "test-labels.i64"):
        assert (a.path / file).read_bytes() == (b.path / file).read_bytes()
    assert a.info.class_names == b.info.class_names


def test_upload_is_read_by_its_id(roots: DataRoots, folder: Path) -> None:
    (roots.uploads / "ds_1").mkdir()
    zip_of(folder).rename(roots.uploads / "ds_1" / "data.zip")
    store = open_store(DatasetSpec(id="ds_1"), roots)
    assert store.info.name == "ds_1"
    _assert_same_images(store, open_store(DatasetSpec(path="pets"), roots))


def test_absolute_path_within_the_root_is_allowed(roots: DataRoots, folder: Path) -> None:
    assert describe(DatasetSpec(path=str(folder)), roots).class_counts == [3, 2]


def test_files_that_are_not_images_are_ignored(roots: DataRoots, folder: Path) -> None:
    (folder / "README.md").write_text("pets")
    (folder / "train" / "cat" / "notes.txt").write_text("fluffy")
    (folder / "train" / "cat" / ".hidden.png").write_bytes(b"")
    assert describe(DatasetSpec(path="pets"), roots).class_counts == [3, 2]


def test_folder_of_test_images_is_optional(roots: DataRoots, folder: Path) -> None:
    shutil.rmtree(folder / "test")
    assert open_store(DatasetSpec(path="pets"), roots).info.test_count == 0


@pytest.mark.parametrize("name", ["x.jpg", "x.JPEG", "x.bmp", "x.webp", "x.PNG"])
def test_all_supported_suffixes_are_read(roots: DataRoots, folder: Path, name: str) -> None:
    picture().save(folder / "train" / "dog" / name)
    assert open_store(DatasetSpec(path="pets"), roots).info.class_counts == [3, 3]


def test_mixed_sizes_and_modes_are_converted_on_request(roots: DataRoots, folder: Path) -> None:
    picture("L", (40, 20)).save(folder / "train" / "dog" / "wide.png")
    store = open_store(DatasetSpec(path="pets", image_size=8, channels=1), roots)
    assert store.info.shape == (1, 8, 8)
    assert store.images(1).shape == (3, 1, 8, 8)


# -- folders that are refused: (how a valid folder is damaged, pattern of the error message)


def _truncate(folder: Path) -> None:
    os.truncate(folder / "train/dog/1.png", 90)


def _corrupt(folder: Path) -> None:
    (folder / "train/dog/1.png").write_bytes(b"this is no image")


def _empty_file(folder: Path) -> None:
    (folder / "train/dog/1.png").write_bytes(b"")


def _bomb(folder: Path) -> None:
    Image.new("1", (20_000, 20_000)).save(folder / "train/dog/1.png")


def _small_bomb(folder: Path) -> None:
    Image.new("1", (10_000, 9_000)).save(folder / "train/dog/1.png")


def _other_size(folder: Path) -> None:
    picture(size=(9, 6)).save(folder / "train/dog/1.png")


def _other_mode(folder: Path) -> None:
    picture("L").save(folder / "train/dog/1.png")


def _bad_test_image(folder: Path) -> None:
    (folder / "test/dog/0.png").write_bytes(b"this is no image")


DECODING = [
    (_truncate, r"pets: train/dog/1\.png cannot be decoded .*; replace or remove it"),
    (_corrupt, r"pets: train/dog/1\.png is not an image that can be read, or is damaged"),
    (_empty_file, r"pets: train/dog/1\.png is empty"),
    (_bomb, r"pets: train/dog/1\.png is too large: .*pixels"),
    (_small_bomb, r"pets: train/dog/1\.png is too large: .*pixels"),
    (_other_size, r"train/dog/1\.png is 9×6 colour, train/cat/0\.png is 7×6 colour; set dataset\.image_size"),
    (_other_mode, r"train/dog/1\.png is 7×6 grey, train/cat/0\.png is 7×6 colour; set dataset\.channels"),
    (_bad_test_image, r"pets: test/dog/0\.png is not an image"),
]


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("damage", "message"), DECODING, ids=[damage.__name__ for damage, _ in DECODING])
@pytest.mark.parametrize("archive", [False, True], ids=["folder", "zip"])
def test_bad_images_are_refused(
    roots: DataRoots, folder: Path, damage: Callable[[Path], None], message: str, archive: bool
) -> None:
    damage(folder)
    path = zip_of(folder).name if archive else folder.name
    with pytest.raises(DatasetError, match=message.replace("pets:", path + ":")):
        open_store(DatasetSpec(path=path), roots)
    assert [entry for entry in roots.cache.iterdir() if entry.is_dir()] == []


def _empty_class(folder: Path) -> None:
    (folder / "train/fish").mkdir()


def _class_with_only_notes(folder: Path) -> None:
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


def _unknown_class_in_test(folder: Path) -> None:
    (folder / "test/fish").mkdir()
    picture().save(folder / "test/fish/0.png")


def _empty_test(folder: Path) -> None:
    shutil.rmtree(folder / "test")
    (folder / "test").mkdir()


def _image_outside_a_class(folder: Path) -> None:
    picture().save(folder / "train/stray.png")


def _unsupported_format(folder: Path) -> None:
    (folder / "train/cat/x.heic").write_bytes(b"a photo")


def _empty_folder(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def _unprintable_class(folder: Path) -> None:
    (folder / "train/cat").rename(folder / "train/c\nat")


def _large_images(folder: Path) -> None:
    for file in folder.rglob("*.png"):
        picture(size=(600, 600)).save(file)


LAYOUT = [
    (_empty_class, r"class 'fish' has no training images"),
    (_class_with_only_notes, r"class 'fish' has no training images; .*: 1 \.txt"),
    (_one_class, r"has only one class \('cat'\); at least 2"),
    (_no_classes, r"train/ holds no class folders; expected CLASS/"),
    (_unknown_class_in_test, r"class 'fish' is in the test split and not in the training split"),
    (_empty_test, r"test/ holds no images; fill it or remove it"),
    (_image_outside_a_class, r"train/stray\.png is in no class folder; expected"),
    (_unsupported_format, r"train/cat/x\.heic has a format that cannot be read; convert it"),
    (_empty_folder, r"holds no images; expected"),
    (_unprintable_class, r"the class folder 'c\\nat' has a name that cannot be printed"),
    (_large_images, r"600×600 pixels .*set dataset\.image_size"),
]


@pytest.mark.parametrize(("damage", "message"), LAYOUT, ids=[damage.__name__ for damage, _ in LAYOUT])
@pytest.mark.parametrize("archive", [False, True], ids=["folder", "zip"])
def test_describe_refuses_bad_layouts(
    roots: DataRoots, folder: Path, damage: Callable[[Path], None], message: str, archive: bool
) -> None:
    damage(folder)
    path = zip_of(folder).name if archive else folder.name
    with pytest.raises(DatasetError, match=message):
        describe(DatasetSpec(path=path), roots)


# -- paths


@pytest.mark.parametrize("path", ["../outside", "/etc", "pets/../../outside", "link", "link/train", "a" * 300, "..", "loop/x"])
def test_paths_outside_the_root_are_refused(roots: DataRoots, folder: Path, path: str) -> None:
    shutil.copytree(folder, roots.datasets.parent / "outside")
    (roots.datasets / "link").symlink_to(roots.datasets.parent / "outside")
    (roots.datasets / "loop").symlink_to(roots.datasets / "loop")
    with pytest.raises(SpecError, match="not a path under the server's dataset root") as caught:
        describe(DatasetSpec(path=path), roots)
    assert caught.value.loc == "dataset.path"


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("train", "train"),
        ("train/cow", "train/cat"),
        ("train/cat/link.png", "train/cat/0.png"),
        ("train/cat/link.png", "gone.png"),
    ],
)
def test_links_out_of_the_root_are_refused(roots: DataRoots, folder: Path, name: str, target: str) -> None:
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


def test_link_to_a_parent_folder_is_refused(roots: DataRoots, folder: Path) -> None:
    (folder / "train/cow").symlink_to(folder)
    with pytest.raises(DatasetError, match="train/cow is a link to a folder that contains it"):
        describe(DatasetSpec(path="pets"), roots)


@pytest.mark.parametrize(("name", "target"), [("9.png", "9.png"), ("a", "b")])
def test_link_to_itself_is_refused(roots: DataRoots, folder: Path, name: str, target: str) -> None:
    (folder / "train/cat" / name).symlink_to(target)
    (folder / "train/cat/b").symlink_to("a")
    with pytest.raises(DatasetError, match=r"train/cat/(9\.png|a) is a link that leads to itself; remove it"):
        describe(DatasetSpec(path="pets"), roots)


def test_links_by_other_links_are_followed_only_within_the_root(roots: DataRoots, folder: Path) -> None:
    (roots.datasets / "by").symlink_to("pets/train")
    (folder / "train/cow").symlink_to("../../by/dog")
    assert describe(DatasetSpec(path="pets"), roots).class_names == ["cat", "cow", "dog"]
    shutil.copytree(folder / "test", roots.datasets.parent / "outside")
    (roots.datasets / "by").unlink()
    (roots.datasets / "by").symlink_to(roots.datasets.parent / "outside")
    with pytest.raises(SpecError, match="train/cow is a link that leads out of the dataset root"):
        describe(DatasetSpec(path="pets"), roots)


def test_links_with_too_many_paths_are_refused(roots: DataRoots) -> None:
    for i in range(17):
        (roots.datasets / f"d{i}").mkdir()
        for name in "ab":
            (roots.datasets / f"d{i}" / name).symlink_to(f"../d{i + 1}")
    (roots.datasets / "d17").mkdir()
    for read in (describe, open_store):
        with pytest.raises(DatasetError, match=r"too many links lead to the folder of [ab/]+; the limit is 1000; remove some"):
            read(DatasetSpec(path="d0"), roots)


@pytest.mark.usefixtures("folder")
def test_too_many_paths_are_refused(roots: DataRoots, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_trees, "_MAX_FILES", 10)
    for read in (describe, open_store):
        with pytest.raises(DatasetError, match="pets has more than 10 files and folders; split it"):
            read(DatasetSpec(path="pets"), roots)


def test_names_that_are_shown_equally_are_refused(roots: DataRoots, folder: Path) -> None:
    for name in (b"x\xff.png", b"x\\xff.png"):
        shutil.copy(folder / "train/cat/0.png", folder / "train/cat" / os.fsdecode(name))
    with pytest.raises(DatasetError, match=r"two names are both shown as train/cat/x\\xff\.png, one of them is not UTF-8"):
        describe(DatasetSpec(path="pets"), roots)


def test_dangling_link_is_refused(roots: DataRoots, folder: Path) -> None:
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
def test_missing_and_unreadable_files_are_refused(roots: DataRoots, spec: DatasetSpec, message: str) -> None:
    (roots.datasets / "notes.txt").write_text("no data")
    (roots.datasets / "torn.zip").write_bytes(b"PK\x03\x04 and then nothing")
    (roots.datasets / "torn.npz").write_bytes(b"PK\x03\x04 and then nothing")
    (roots.datasets / "void.npz").write_bytes(b"")
    with pytest.raises(DatasetError, match=message):
        describe(spec, roots)


def test_files_larger_than_the_limit_are_refused(roots: DataRoots, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_trees, "_MAX_FILE_BYTES", 1000)
    (folder / "train/cat/0.png").write_bytes(bytes(1001))
    with pytest.raises(DatasetError, match=r"train/cat/0\.png has 1001 bytes; the limit for an image file is 1000"):
        describe(DatasetSpec(path="pets"), roots)
