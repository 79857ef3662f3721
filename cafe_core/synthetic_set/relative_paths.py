"""Keep absolute paths out of the metadata of sets: nobody else has those files, and they name users and machines."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def relative_path(text: str, root: Path | None = None) -> str:
    """Return the path or name `text` without the directories of this machine; return a relative one unchanged.

    An absolute path within `root`, the dataset root, becomes relative to it. Of any other, only the last part remains.
    """
    path = Path(text)
    if not path.is_absolute():
        return text
    if root is not None and path.resolve().is_relative_to(root.resolve()):
        return str(path.resolve().relative_to(root.resolve()))
    return path.name


def with_relative_paths(spec: dict[str, Any], root: Path | None = None) -> dict[str, Any]:
    """Return a spec whose `path` fields, at any depth, are made relative with :func:`relative_path`."""

    def relative(name: str, value: Any) -> Any:
        if isinstance(value, dict):
            return with_relative_paths(value, root)
        return relative_path(value, root) if name == "path" and isinstance(value, str) else value

    return {name: relative(name, value) for name, value in spec.items()}
