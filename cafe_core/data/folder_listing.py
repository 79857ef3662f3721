"""List an image folder: its images, and how many other files it has."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from cafe_core.data.file_trees import ImageFiles, is_ignored
from cafe_core.data.pixels import SUFFIXES
from cafe_core.text import counted

#: Images that Pillow cannot decode. Ignoring them would make classes smaller than the user thinks.
_OTHER_IMAGES = (
    ".heic", ".heif", ".jxl", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raw", ".exr", ".hdr", ".svg",
    ".eps", ".wmf", ".dcm", ".npy",
)  # fmt: skip
_SUFFIXES_SHOWN = 5


@dataclass
class Listing:
    """The names in a tree, without dotfiles."""

    images: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    """Images in formats that are not supported."""
    folders: set[str] = field(default_factory=set)
    """Folders without images of their own, each ending with `/`."""
    annotations: list[str] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)
    """Number of other files by suffix."""


def list_images(files: ImageFiles) -> Listing:
    """List a tree. Raises SpecError and DatasetError as its `names` does."""
    found = Listing()
    for name in files.names():
        if is_ignored(name):
            continue
        if name.endswith("/"):
            found.folders.add(name)
            continue
        directory, _, base = name.rpartition("/")
        suffix = base[base.rfind(".") :].lower() if "." in base else ""
        if suffix in SUFFIXES:
            found.images.append(name)
        elif suffix in _OTHER_IMAGES:
            found.unreadable.append(name)
        else:
            found.ignored[suffix] += 1
            if base.endswith("annotations.txt"):
                found.annotations.append(name)
        if suffix not in SUFFIXES and directory:
            found.folders.add(f"{directory}/")
    return found


def ignored_files(ignored: Counter[str]) -> str:
    """Return e.g. `ignored 5 files that are not images: 4 .txt, 1 without a suffix`; the empty string for none."""
    if not ignored:
        return ""
    shown = [f"{count} {suffix or 'without a suffix'}" for suffix, count in ignored.most_common(_SUFFIXES_SHOWN)]
    others = len(ignored) - len(shown)
    more = [f"{others} other suffixes"] if others > 0 else []
    return f"ignored {counted(ignored.total(), 'file')} that cannot be read as images: {', '.join(shown + more)}"
