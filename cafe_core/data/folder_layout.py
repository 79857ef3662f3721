"""Find the classes and splits of an image folder by the names of its files.

::

    CLASS/*.jpg                         one split, as torchvision.datasets.ImageFolder reads it
    train/CLASS/*.jpg                   or training/
    test/CLASS/*.jpg                    optional; or testing/
    val/CLASS/*.jpg                     optional; or valid/, validation/; the test split if there is no test/
    train/CLASS/images/*.JPEG           Tiny ImageNet: the images of a class may lie in a subfolder
    val/images/*.JPEG                   Tiny ImageNet: with val/val_annotations.txt, which has the class of each image

All of this may lie in one more folder, as archives often have it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

from cafe_core.data.file_trees import ImageFiles
from cafe_core.data.folder_listing import Listing, ignored_files, list_images
from cafe_core.errors import DatasetError
from cafe_core.spec.dataset import DatasetNote
from cafe_core.text import counted, is_shown

#: A classifier and a JSON response of this many classes are still practical; ImageNet-21k has 21,841.
MAX_CLASSES = 25_000

_SPLITS: dict[str, Literal["train", "val", "test"]] = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
_EXPECTED = "expected CLASS/*.jpg, or train/CLASS/*.jpg and optionally test/CLASS/*.jpg"

Classes: TypeAlias = dict[str, list[str]]
"""The images of a split by class."""


@dataclass
class Layout:
    """The images of a folder by split and class."""

    train: Classes
    test: Classes
    notes: list[DatasetNote] = field(default_factory=list)


def find_layout(files: ImageFiles) -> Layout:
    """Return the images of a tree by split and class. Raises DatasetError for a tree that is not an image folder."""
    listing = list_images(files)
    top = _wrapping_folder(listing.images)
    tops = {name[len(top) :].split("/", 1)[0] for name in (*listing.images, *listing.folders) if name.startswith(top)}
    if _is_split(listing.images, top):
        layout = _splits(files, listing, top, _split_folders(files.label, tops))
    else:
        layout = Layout(_classes(files.label, listing, top), {})
    _check(files.label, layout, listing)
    layout.notes += _nested(layout)
    if listing.ignored:
        layout.notes.append(DatasetNote(code="ignored", message=ignored_files(listing.ignored)))
    return layout


def _wrapping_folder(images: Sequence[str]) -> str:
    """Return the path, ending with `/`, of the folder that holds all classes or splits; the empty string for the top."""
    top = ""
    while True:
        names = {name[len(top) :].split("/", 1)[0] for name in images}
        if (
            len(names) != 1
            or any(name.lower() in _SPLITS for name in names)
            or any(name.count("/", len(top)) < 2 for name in images)
        ):
            return top
        top += f"{names.pop()}/"


def _is_split(images: Sequence[str], top: str) -> bool:
    """Return whether the folders at `top` are splits rather than classes.

    A class may be called train or test too: its images lie directly in it, and there are other classes beside it.
    """
    has_classes = False
    for name in images:
        first, *rest = name[len(top) :].split("/")
        if first.lower() in _SPLITS:
            if len(rest) > 1:
                return True
        elif rest:
            has_classes = True
    return not has_classes


def _split_folders(label: str, tops: set[str]) -> dict[str, str]:
    """Return the folder of each split: train, val, test."""
    folders: dict[str, str] = {}
    for name in sorted(tops):
        split = _SPLITS.get(name.lower())
        if split is not None and folders.setdefault(split, name) != name:
            raise DatasetError(f"{label}: {folders[split]}/ and {name}/ are both the {split} split; merge them or rename one")
    return folders


def _splits(files: ImageFiles, listing: Listing, top: str, folders: dict[str, str]) -> Layout:
    label = files.label
    outside = [name for name in listing.images if name[len(top) :].split("/", 1)[0] not in folders.values()]
    if "train" not in folders:
        raise DatasetError(_no_train(label, outside, folders, listing))
    if outside:
        raise DatasetError(
            f"{label}: {outside[0]} is in none of {_listed(folders.values())}; move it into one of them or remove it"
        )
    layout = Layout(_classes(label, listing, f"{top}{folders['train']}/"), {})
    if not layout.train:
        raise DatasetError(f"{label}: {folders['train']}/ holds no class folders; {_hint(listing)}")
    for split in ("test", "val"):
        if split not in folders:
            continue
        folder = f"{top}{folders[split]}/"
        images = [name for name in listing.images if name.startswith(folder)]
        if layout.test:
            layout.notes.append(_unused(folder, images, f"{top}{folders['test']}/ is the test split"))
            continue
        if not images and split == "test":
            raise DatasetError(f"{label}: {folder} holds no images; fill it or remove it")
        if _is_unlabelled(images, folder, layout.train):
            layout.test, unlabelled = _annotated(files, listing, folder, images)
        else:
            unlabelled = [name for name in images if "/" not in name[len(folder) :]]
            labelled = replace(listing, images=[name for name in images if "/" in name[len(folder) :]])
            layout.test = {name: images for name, images in _classes(label, labelled, folder).items() if images}
        if unlabelled:
            reason = "they are in no class folder, and no annotations.txt names their classes"
            layout.notes.append(_unused(folder, unlabelled, reason))
        if layout.test and split == "val":
            layout.notes.append(DatasetNote(code="split", message=f"used {folder} as the test split"))
    return layout


def _no_train(label: str, outside: list[str], folders: dict[str, str], listing: Listing) -> str:
    if outside:
        return f"{label}: {outside[0]} is in no class folder; {_EXPECTED}"
    if any(name.startswith(tuple(f"{folder}/" for folder in folders.values())) for name in listing.images):
        other = next(iter(folders.values()))
        return (
            f"{label} has {_listed(folders.values())} and no train/ folder; rename {other}/ to train/, or name {other}/ "
            "itself as the dataset to use its images for training"
        )
    return f"{label} holds no images; {_hint(listing)}"


def _unused(folder: str, images: Sequence[str], reason: str) -> DatasetNote:
    return DatasetNote(code="ignored", message=f"ignored {counted(len(images), 'image')} in {folder}: {reason}")


def _is_unlabelled(images: Sequence[str], folder: str, train: Classes) -> bool:
    """Return whether the images lie directly in the split's folder, or in a single `images/` folder that is not a class."""
    inner = {name[len(folder) :].rpartition("/")[0].lower() for name in images}
    return inner == {""} or (inner == {"images"} and "images" not in train)


def _annotated(files: ImageFiles, listing: Listing, folder: str, images: Sequence[str]) -> tuple[Classes, list[str]]:
    """Return the images of Tiny ImageNet's val/ by class, and those that its file of annotations does not name."""
    found = next((name for name in listing.annotations if name.startswith(folder)), None)
    if found is None:
        return {}, list(images)
    lines = files.read(found).decode("utf-8", "backslashreplace").splitlines()
    classes = {parts[0]: parts[1] for parts in (line.split("\t") for line in lines) if len(parts) > 1}
    by_class: Classes = {}
    unlabelled = []
    for name in images:
        class_name = classes.get(name.rpartition("/")[2])
        if class_name is None:
            unlabelled.append(name)
        else:
            by_class.setdefault(class_name, []).append(name)
    listing.ignored -= Counter([".txt"])
    return by_class, unlabelled


def _classes(label: str, listing: Listing, folder: str) -> Classes:
    """Return the images below `folder` by class. Raises DatasetError for images outside a class, or in an unsupported format."""
    for name in listing.unreadable:
        if name.startswith(folder):
            raise DatasetError(f"{label}: {name} has a format that cannot be read; convert it, for example to .png, or remove it")
    classes: Classes = {}
    for name in listing.folders:
        if name.startswith(folder) and name != folder:
            classes.setdefault(name[len(folder) :].split("/", 1)[0], [])
    for name in listing.images:
        if name.startswith(folder):
            first, slash, _ = name[len(folder) :].partition("/")
            if not slash:
                raise DatasetError(f"{label}: {name} is in no class folder; {_EXPECTED}")
            classes.setdefault(first, []).append(name)
    _check_subfolders(label, folder, classes)
    return classes


def _check_subfolders(label: str, folder: str, classes: Classes) -> None:
    """Raise DatasetError if the subfolders seem to be the classes, that is, if several are found in more than one folder."""
    counts: Counter[str] = Counter()
    for name, images in classes.items():
        inner = {image[len(folder) + len(name) + 1 :].rpartition("/")[0] for image in images}
        if "" in inner:
            return
        counts.update(inner)
    repeated = sorted(name for name, count in counts.items() if count > 1)
    if len(repeated) > 1:
        raise DatasetError(
            f"{label}: {_listed(sorted(classes))} hold the same folders ({_listed(repeated)}), so they seem to be splits, not "
            "classes; name them train/ and test/, or give the path of one of them"
        )


def _nested(layout: Layout) -> list[DatasetNote]:
    """Return a note if images of a class lie in subfolders: the user may have meant these to be the classes."""
    count = sum(name.split("/")[-2] != class_name for class_name, images in layout.train.items() for name in images)
    message = f"found {counted(count, 'training image')} in subfolders of class folders"
    return [DatasetNote(code="nested", message=message)] if count else []


def _check(label: str, layout: Layout, listing: Listing) -> None:
    """Raise DatasetError for classes that cannot be used."""
    names = sorted(layout.train)
    if len(names) > MAX_CLASSES:
        raise DatasetError(f"{label} has {len(names)} classes; the limit is {MAX_CLASSES}")
    for name in names:
        if not is_shown(name):
            raise DatasetError(f"{label}: the class folder {name!r} has a name that cannot be printed; rename it")
        if not layout.train[name]:
            hint = "; ".join(filter(None, ["add some or remove its folder", ignored_files(listing.ignored)]))
            raise DatasetError(f"{label}: class {name!r} has no training images; {hint}")
    if len(names) == 1:
        raise DatasetError(f"{label} has only one class ({names[0]!r}); at least 2 are needed; {_EXPECTED}")
    for name in sorted(layout.test):
        if name not in layout.train:
            raise DatasetError(
                f"{label}: class {name!r} is in the test split and not in the training split; add it there or remove it"
            )


def _hint(listing: Listing) -> str:
    return "; ".join(filter(None, [_EXPECTED, ignored_files(listing.ignored)]))


def _listed(names: Iterable[str]) -> str:
    folders = [f"{name}/" for name in names]
    return ", ".join(folders[:5]) + (", …" if len(folders) > 5 else "")
