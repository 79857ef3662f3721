"""Test that the usual layouts of image folders are read, and that ambiguous ones are refused with the next step."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from cafe_core.data.catalog import describe
from cafe_core.data.roots import DataRoots
from cafe_core.data.sources import open_store
from cafe_core.errors import DatasetError, SpecError
from cafe_core.spec.dataset import DatasetInfo, DatasetSpec
from tests.cafe_core.data.image_folders import encoded, picture

IMAGE = encoded(picture())


def make_tree(root: Path, names: list[str]) -> None:
    """Create the files; each whose suffix is that of an image holds one."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(IMAGE if path.suffix.lower() in (".png", ".jpg", ".jpeg") else b"text")


def codes(info: DatasetInfo) -> list[str]:
    return sorted(note.code for note in info.notes)


TRAIN = ["train/cat/0.png", "train/cat/1.png", "train/dog/0.png"]

READ = {
    "ImageFolder": (["cat/0.jpg", "cat/1.jpg", "dog/0.jpg"], ["cat", "dog"], [2, 1], 0, []),
    "wrapped": ([f"pets/{name}" for name in TRAIN], ["cat", "dog"], [2, 1], 0, []),
    "wrapped twice": ([f"a/b/{name}" for name in TRAIN], ["cat", "dog"], [2, 1], 0, []),
    "wrapped ImageFolder": (["pets/cat/0.png", "pets/dog/0.png", "README.md"], ["cat", "dog"], [1, 1], 0, ["ignored"]),
    "val": ([*TRAIN, "val/dog/0.png"], ["cat", "dog"], [2, 1], 1, ["split"]),
    "valid": ([*TRAIN, "valid/dog/0.png"], ["cat", "dog"], [2, 1], 1, ["split"]),
    "capitals": (["Training/cat/0.png", "Training/dog/0.png", "Testing/dog/0.png"], ["cat", "dog"], [1, 1], 1, []),
    "test and val": ([*TRAIN, "test/cat/0.png", "validation/dog/0.png"], ["cat", "dog"], [2, 1], 1, ["ignored"]),
    "class named train": (["plane/0.png", "train/0.png", "train/1.png"], ["plane", "train"], [1, 2], 0, []),
    "class named test in train": (["train/test/0.png", "train/train/0.png"], ["test", "train"], [1, 1], 0, []),
    "subfolders": (["cat/a/0.png", "cat/a/b/1.png", "dog/0.png"], ["cat", "dog"], [2, 1], 0, ["nested"]),
    "unlabelled test": ([*TRAIN, "test/1.png", "test/2.png"], ["cat", "dog"], [2, 1], 0, ["ignored"]),
    "unlabelled test and val": ([*TRAIN, "test/images/1.png", "val/cat/0.png"], ["cat", "dog"], [2, 1], 1, ["ignored", "split"]),
    "unlabelled image beside test": ([*TRAIN, "test/1.png", "test/cat/0.png"], ["cat", "dog"], [2, 1], 1, ["ignored"]),
    "unlabelled image beside val": ([*TRAIN, "val/1.png", "val/cat/0.png"], ["cat", "dog"], [2, 1], 1, ["ignored", "split"]),
    "names with joiners": (["c\u200cat/0.png", "d\u200do\u00a0g/0.png"], ["c\u200cat", "d\u200do\u00a0g"], [1, 1], 0, []),
    "other files": ([*TRAIN, "train/cat/Thumbs.db", "labels.csv", "train/LICENSE"], ["cat", "dog"], [2, 1], 0, ["ignored"]),
}  # fmt: skip


@pytest.mark.parametrize("archive", [False, True], ids=["folder", "zip"])
@pytest.mark.parametrize(("names", "classes", "counts", "test_count", "notes"), READ.values(), ids=READ)
def test_layout_is_read(
    roots: DataRoots, names: list[str], classes: list[str], counts: list[int], test_count: int, notes: list[str], archive: bool
) -> None:
    make_tree(roots.datasets / "data", names)
    if archive:
        with zipfile.ZipFile(roots.datasets / "data.zip", "w") as file:
            for name in names:
                file.write(roots.datasets / "data" / name, name)
    spec = DatasetSpec(path="data.zip" if archive else "data")
    for info in (describe(spec, roots), open_store(spec, roots).info):
        assert (info.class_names, info.class_counts, info.test_count) == (classes, counts, test_count)
        assert codes(info) == notes


def test_ignored_files_are_counted_by_suffix(roots: DataRoots) -> None:
    make_tree(roots.datasets / "data", [*TRAIN, "train/cat/a.TXT", "train/dog/b.txt", "notes"])
    (note,) = describe(DatasetSpec(path="data"), roots).notes
    assert note.message == "ignored 3 files that cannot be read as images: 2 .txt, 1 without a suffix"


def make_tiny_imagenet(root: Path, annotations: str = "val_0.JPEG\tn02\t0\t0\t9\t9\nval_1.JPEG\tn01\t0\t0\t9\t9\n") -> None:
    make_tree(root, [f"train/{name}/images/{name}_{i}.JPEG" for name in ("n01", "n02") for i in range(2)])
    make_tree(root, ["train/n01/n01_boxes.txt", "train/n02/n02_boxes.txt", "test/images/test_0.JPEG"])
    make_tree(root, ["val/images/val_0.JPEG", "val/images/val_1.JPEG"])
    (root / "val" / "val_annotations.txt").write_text(annotations)


def test_tiny_imagenet_is_read_with_its_annotations(roots: DataRoots) -> None:
    make_tiny_imagenet(roots.datasets / "tiny")
    store = open_store(DatasetSpec(path="tiny"), roots)
    assert (store.info.class_names, store.info.class_counts) == (["n01", "n02"], [2, 2])
    assert store.test_labels.tolist() == [0, 1]  # val_1 is n01, val_0 is n02
    assert codes(store.info) == ["ignored", "ignored", "nested", "split"]


def test_images_without_an_annotation_are_ignored_and_counted(roots: DataRoots) -> None:
    make_tiny_imagenet(roots.datasets / "tiny", "val_0.JPEG\tn02\n")
    info = describe(DatasetSpec(path="tiny"), roots)
    assert info.test_count == 1
    assert any(note.message.startswith("ignored 1 image in val/") for note in info.notes)


REFUSED = {
    "images only": (["0.png", "1.png"], r"0\.png is in no class folder; expected CLASS/\*\.jpg"),
    "stray image": (["cat/0.png", "dog/0.png", "cover.png"], r"cover\.png is in no class folder"),
    "no train": (["test/cat/0.png", "val/dog/0.png"], r"has test/, val/ and no train/ folder; rename test/ to train/"),
    "no train, in capitals": (["Testing/cat/0.png", "Testing/dog/0.png"], r"has Testing/ and no train/ folder"),
    "two names of a split": ([*TRAIN, "training/cat/0.png"], r"train/ and training/ are both the train split; merge them"),
    "unknown split": ([*TRAIN, "holdout/cat/0.png"], r"holdout/cat/0\.png is in none of train/; move it into one of them"),
    "splits with other names": (
        [f"{split}/{name}/0.png" for split in ("fold1", "fold2") for name in ("cat", "dog")],
        r"fold1/, fold2/ hold the same folders \(cat/, dog/\), so they seem to be splits",
    ),
    "empty class": (["cat/0.png", "dog/0.png", "labels/0.txt"], r"class 'labels' has no training images; .* 1 \.txt"),
    "reversed name": (["cat/0.png", "\u202edog/0.png"], r"the class folder '\\u202edog' has a name that cannot be printed"),
    "one class": (["cat/0.png"], r"only one class \('cat'\); at least 2 are needed; expected"),
    "unreadable format": ([*TRAIN, "train/cat/2.heic"], r"train/cat/2\.heic has a format that cannot be read; convert it"),
}  # fmt: skip


@pytest.mark.parametrize(("names", "message"), REFUSED.values(), ids=REFUSED)
def test_layout_is_refused(roots: DataRoots, names: list[str], message: str) -> None:
    make_tree(roots.datasets / "data", names)
    with pytest.raises(DatasetError, match=message):
        describe(DatasetSpec(path="data"), roots)


# -- test_fraction


def test_fraction_of_each_class_becomes_the_test_split(roots: DataRoots) -> None:
    for k, count in enumerate((10, 3, 2)):
        for i in range(count):
            path = roots.datasets / "data" / f"c{k}" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture().save(path)
    spec = DatasetSpec(path="data", test_fraction=0.2)
    store, whole = open_store(spec, roots), open_store(DatasetSpec(path="data"), roots)
    assert store.info.class_counts == [8, 2, 1]
    assert np.bincount(store.test_labels).tolist() == [2, 1, 1]
    for k in range(3):
        parts = [*store.images(k), *store.test_images[store.test_labels == k]]
        assert sorted(image.tobytes() for image in parts) == sorted(image.tobytes() for image in whole.images(k))
    described = describe(spec, roots)
    assert codes(described) == ["split"]
    assert "4 of 15 images" in described.notes[0].message
    assert described.class_counts == store.info.class_counts


def test_split_of_a_number_of_images_is_always_the_same(roots: DataRoots) -> None:
    labels = np.arange(20) % 2
    images = np.tile(np.arange(20, dtype=np.uint8)[:, None, None], (1, 8, 8))
    np.savez(roots.datasets / "a.npz", images=images, labels=labels)
    spec = DatasetSpec(path="a.npz", test_fraction=0.3)
    store = open_store(spec, roots)
    assert (store.info.class_counts, store.info.test_count) == ([7, 7], 6)
    shutil.rmtree(store.path)
    again = open_store(spec, roots)
    np.testing.assert_array_equal(again.test_images, store.test_images)
    # The choice must be the same for ever: sets that were evaluated before are evaluated again on the same images.
    assert again.test_images[:, 0, 0, 0].tolist() == [2, 4, 8, 3, 5, 9]


def test_fraction_is_refused_if_there_is_a_test_split(roots: DataRoots, folder: Path) -> None:
    with pytest.raises(SpecError, match="has a test split of 2 images; leave test_fraction out") as caught:
        describe(DatasetSpec(path=folder.name, test_fraction=0.2), roots)
    assert caught.value.loc == "dataset.test_fraction"


def test_fraction_is_refused_for_a_class_of_one_image(roots: DataRoots) -> None:
    make_tree(roots.datasets / "data", ["cat/0.png", "cat/1.png", "dog/0.png"])
    with pytest.raises(SpecError, match="class 'dog' has only 1 image"):
        describe(DatasetSpec(path="data", test_fraction=0.5), roots)


# -- paths of `cafe run`


def test_working_directory_is_searched_after_the_dataset_root(roots: DataRoots, folder: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    make_tree(elsewhere / "mine", ["x/0.png", "y/0.png"])
    make_tree(elsewhere / "pets", ["x/0.png", "y/0.png"])
    local = roots.model_copy(update={"working_directory": elsewhere})
    for path, classes in {
        "./mine": ["x", "y"],
        str(elsewhere / "mine"): ["x", "y"],
        "../elsewhere/mine": ["x", "y"],
        folder.name: ["cat", "dog"],
        "./pets": ["cat", "dog"],
    }.items():
        assert describe(DatasetSpec(path=path), local).class_names == classes, path
    with pytest.raises(DatasetError, match=r"there is no 'absent' in .*elsewhere or in .*datasets"):
        describe(DatasetSpec(path="absent"), local)
    (elsewhere / "mine" / "z").symlink_to(folder / "train" / "cat")  # the user's own links may lead anywhere
    assert describe(DatasetSpec(path="mine"), local).class_names == ["x", "y", "z"]
