"""Load a synthetic set from a file, a directory or bytes. This module does not import torch."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TypeAlias

from cafe_core.errors import SyntheticSetError
from cafe_core.synthetic_set.synthetic_set import SyntheticSet

SetSource: TypeAlias = "str | os.PathLike[str] | bytes"
"""A .safetensors or .npz file, a directory that holds `synthetic.safetensors`, or the bytes of such a file."""

SET_FILE = "synthetic.safetensors"
_ZIP_START = b"PK\x03\x04"
"""An .npz file is a .zip archive."""


def read_set(source: SetSource) -> SyntheticSet:
    """Load the set at a path, or in the bytes of a file. Raises SyntheticSetError if there is no set. Pickles are never read."""
    if isinstance(source, bytes | bytearray | memoryview):
        return _read_bytes(bytes(source))
    path = Path(source)
    if not path.exists():
        raise SyntheticSetError(f"{path} does not exist; give the directory or the file of a synthetic set")
    if path.is_dir():
        if not (path / SET_FILE).is_file():
            raise SyntheticSetError(f"{path} holds no {SET_FILE}; give the directory or the file of a synthetic set")
        path /= SET_FILE
    return SyntheticSet.load(path)


def _read_bytes(content: bytes) -> SyntheticSet:
    """Load the set from a temporary file, because the library reads the metadata of .safetensors from files only."""
    with tempfile.TemporaryDirectory(prefix="cafe-set-") as directory:
        path = Path(directory, "bytes.npz" if content.startswith(_ZIP_START) else "bytes.safetensors")
        path.write_bytes(content)
        return SyntheticSet.load(path)
