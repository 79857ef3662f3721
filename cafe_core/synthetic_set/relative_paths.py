"""Keep paths of this machine out of the metadata of sets: nobody else has those files, and they name users and machines."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def relative_name(name: str, root: Path | None = None) -> str:
    """Return the name of a dataset without the directories of this machine; return a relative one unchanged.

    An absolute path within `root`, the dataset root, becomes relative to it. Of any other, only the last part remains.
    """
    if not Path(name).is_absolute():
        return name
    return _within(name, root) or Path(name).name


def with_relative_paths(spec: dict[str, Any], root: Path | None = None) -> dict[str, Any]:
    """Return a spec whose `path` fields, at any depth, are relative to `root`, the dataset root; others are left out.

    A path outside the root must not remain as a relative one, which could name another dataset later. root: None for a set whose
    root is not known; its relative paths are kept.
    """
    found: dict[str, Any] = {}
    for name, value in spec.items():
        if isinstance(value, dict):
            found[name] = with_relative_paths(value, root)
        elif name != "path" or not isinstance(value, str):
            found[name] = value
        elif (path := value if root is None and not Path(value).is_absolute() else _within(value, root)) is not None:
            found[name] = path
    return found


def _within(path: str, root: Path | None) -> str | None:
    """Return a path relative to the root, or None if nothing in the root has this path."""
    if root is None:
        return None
    absolute = (root / path).resolve()  # of an absolute path, the path itself
    if not absolute.is_relative_to(root.resolve()):
        return None
    if Path(path).is_absolute():
        return str(absolute.relative_to(root.resolve()))
    return path if absolute.exists() else None
