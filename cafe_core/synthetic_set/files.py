"""Write and read the files of synthetic sets: .safetensors, .npz and .zip. Equal content gives equal bytes.

This module checks that the named arrays and metadata are present, and limits how much is unpacked. It does not check their
values: `cafe_core.synthetic_set.synthetic_set` does.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from cafe_core.data.archives import READING_ERRORS, open_archive
from cafe_core.data.npz_archive import read_header
from cafe_core.errors import SyntheticSetError

Content = tuple[dict[str, NDArray[Any]], dict[str, str]]
"""Arrays by name, and metadata texts by name."""

_SAFETENSORS_DTYPES = {"<f4": "F32", "<i8": "I64"}
#: Larger than any set that this service makes. Archives that unpack to more are refused.
_MAX_FILE_BYTES = 8 * 2**30


def safetensors_bytes(arrays: dict[str, NDArray[Any]], metadata: dict[str, str]) -> bytes:
    """Return a .safetensors file of float32 and int64 arrays. Equal content gives equal bytes.

    The library cannot be used for this: it keeps metadata in a hash map, whose order differs between processes.
    Format: https://github.com/huggingface/safetensors#format
    """
    header: dict[str, Any] = {"__metadata__": metadata}
    blobs, offset = [], 0
    for name, array in sorted(arrays.items(), key=lambda item: (-item[1].itemsize, item[0])):  # widest first keeps all aligned
        blob = np.ascontiguousarray(array).tobytes()
        header[name] = {
            "dtype": _SAFETENSORS_DTYPES[array.dtype.str],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + len(blob)],
        }
        blobs.append(blob)
        offset += len(blob)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *blobs])


def read_safetensors(path: Path, array_names: list[str], metadata_names: list[str], optional: list[str]) -> Content:
    """Return the named arrays and metadata, and those of `optional` metadata that are present.

    Raises SyntheticSetError if the file is damaged, or an array or metadata is missing.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            _check_names(file.keys(), array_names, "array")
            metadata = file.metadata() or {}
            _check_names(metadata, metadata_names, "metadata")
            arrays = {name: np.array(file.get_tensor(name)) for name in array_names}
    except (SafetensorError, OSError, TypeError, ValueError) as error:
        raise SyntheticSetError(f"not a readable safetensors file ({error})") from error
    return arrays, {name: metadata[name] for name in [*metadata_names, *optional] if name in metadata}


def read_npz(path: Path, array_names: list[str], metadata_names: list[str], optional: list[str]) -> Content:
    """Return the same as `read_safetensors`, with metadata from zero-dimensional text arrays. Raises the same errors."""
    try:
        with open_archive(path) as archive:
            sizes = {info.filename.removesuffix(".npy"): info.file_size for info in archive.infolist()}
            _check_names(sizes, [*array_names, *metadata_names], "array")
            if sum(sizes.values()) > _MAX_FILE_BYTES:
                raise SyntheticSetError(f"unpacks to {sum(sizes.values())} bytes; the limit is {_MAX_FILE_BYTES}")
            present = [*metadata_names, *(name for name in optional if name in sizes)]
            read = {name: _read_npy(archive, name) for name in (*array_names, *present)}
    except READING_ERRORS as error:
        raise SyntheticSetError(f"not a readable .npz file ({error})") from error
    for name in present:
        if read[name].dtype.kind != "U" or read[name].ndim != 0:
            raise SyntheticSetError(f"array {name} must be a single string")
    return {name: read[name] for name in array_names}, {name: str(read[name]) for name in present}


def _read_npy(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    """Read an array after checking its header against its size. Raises SyntheticSetError, ValueError and others."""
    size = archive.getinfo(f"{name}.npy").file_size
    with archive.open(f"{name}.npy") as member:
        header = read_header(member)
        if header.dtype.hasobject:
            raise SyntheticSetError(f"array {name} holds pickled Python objects, which are never read")
        data_bytes = size - member.tell()
        if header.nbytes != data_bytes:
            raise ValueError(f"array {name} has {data_bytes} bytes, but its shape {header.shape} needs {header.nbytes}")
        content = member.read(header.nbytes)  # read() without a size would unpack everything first
    return np.frombuffer(content, header.dtype).reshape(header.shape, order="F" if header.fortran_order else "C").copy()


def _check_names(found: Iterable[str], wanted: Iterable[str], kind: str) -> None:
    missing = [name for name in wanted if name not in set(found)]
    if missing:
        raise SyntheticSetError(f"{kind} {missing[0]} is missing; a synthetic set has {', '.join(wanted)}")


def npy_bytes(array: NDArray[Any]) -> bytes:
    """Return an .npy file in C order, regardless of the order of the array."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.asarray(array, order="C"), allow_pickle=False)
    return buffer.getvalue()


def zip_bytes(entries: Iterable[tuple[str, bytes]]) -> bytes:
    """Return a .zip whose bytes depend only on its entries: all are dated 1980-01-01, the default of ZipInfo."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries:
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = 0o644 << 16
            archive.writestr(info, content)
    return buffer.getvalue()
