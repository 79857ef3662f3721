"""Hostile uploads: (name, file name, factory of the content, status)."""

from __future__ import annotations

import bz2
import io
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image

from tests.server.routes.test_datasets_api import image_zip, npz, png

Make = Callable[[], bytes]
Upload = tuple[str, str, Make, int]

_GOOD = {f"train/{name}/{i}.png": png(i) for name in ("cat", "dog") for i in range(2)}
BOMB_BYTES = 600 << 20
"""More memory than the server may use."""
_LABELS = np.array([0, 1, 0, 1])
_IMAGES = np.zeros((4, 8, 8), dtype=np.uint8)


def folder(**more: bytes) -> bytes:
    """Return a valid folder with additional members."""
    return image_zip(_GOOD | {name.replace("|", "/"): content for name, content in more.items()})


def _named(name: str, content: bytes = png(1), **fields: Any) -> bytes:
    """Return a valid folder with one more member whose directory entry has `fields`."""
    buffer = io.BytesIO(folder())
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(buffer, "a") as archive:  # a name may be there already
        info = zipfile.ZipInfo("placeholder")
        info.filename = info.orig_filename = name
        for field, value in fields.items():
            setattr(info, field, value)
        archive.writestr(info, content)
    return buffer.getvalue()


def _encrypted() -> bytes:
    """Return a valid folder whose members are marked as encrypted."""
    found = bytearray(folder())
    at = found.find(b"PK\x01\x02")
    while at >= 0:
        found[at + 8] |= 1
        at = found.find(b"PK\x01\x02", at + 4)
    return bytes(found)


def _lying(archive: bytes, claimed: int) -> bytes:
    """Change the claimed unpacked size of all members, in both headers."""
    found = bytearray(archive)
    for signature, offset in ((b"PK\x01\x02", 24), (b"PK\x03\x04", 22)):
        at = found.find(signature)
        while at >= 0:
            struct.pack_into("<I", found, at + offset, claimed)
            at = found.find(signature, at + 4)
    return bytes(found)


def _zeros(name: str, size: int, method: int = zipfile.ZIP_DEFLATED) -> dict[str, tuple[int, int]]:
    return {name: (size, method)}


def _archive(members: dict[str, bytes | tuple[int, int]]) -> bytes:
    """Return an archive; members given as (size, method) are zeros, written in pieces."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            if isinstance(content, bytes):
                archive.writestr(name, content)
                continue
            info = zipfile.ZipInfo(name)
            info.compress_type = content[1]
            with archive.open(info, "w", force_zip64=True) as member:
                for _ in range(content[0] >> 20):
                    member.write(bytes(1 << 20))
    return buffer.getvalue()


def _raw_directory(entries: int, name_bytes: int = 12) -> bytes:
    """Return an archive with a directory of members that do not exist."""
    entry = struct.pack("<4s4B4HL2L5H2L", b"PK\x01\x02", 20, 3, 20, 0, 0, 0, 0, 33, 0, 0, 0, name_bytes, 0, 0, 0, 0, 0, 0)
    directory = b"".join(entry + b"%0*d" % (name_bytes, i) for i in range(entries))
    return directory + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, entries & 0xFFFF, entries & 0xFFFF, len(directory), 0, 0)


def _overlapping() -> bytes:
    """Return an archive whose two members overlap."""
    buffer = io.BytesIO(folder())
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.getinfo("train/dog/1.png").header_offset = archive.getinfo("train/cat/0.png").header_offset
        archive._didModify = True  # type: ignore[attr-defined]
    return buffer.getvalue()


def _png_header(width: int, height: int, *more: bytes) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    rows = zlib.compress(bytes(min(height, 600) * (min(width, 600) + 1)))
    texts = b"".join(chunk(piece[:4], piece[4:]) for piece in more)
    return b"\x89PNG\r\n\x1a\n" + head + texts + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@lru_cache
def _bomb(size: int) -> bytes:
    packing = zlib.compressobj(1)
    return b"".join(packing.compress(bytes(1 << 20)) for _ in range(size >> 20)) + packing.flush()


def _animation() -> bytes:
    buffer = io.BytesIO()
    frames = [Image.new("L", (8, 8), i) for i in range(200)]
    frames[0].save(buffer, "PNG", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def _webp_header(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGBA", (8, 8)).save(buffer, "WEBP", lossless=True)
    inner = buffer.getvalue()[12:]
    extended = (
        b"VP8X" + struct.pack("<I", 10) + b"\x10\0\0\0" + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    )
    return b"RIFF" + struct.pack("<I", 4 + len(extended) + len(inner)) + b"WEBP" + extended + inner


def _first(image: Make) -> Make:
    """Return a folder with this image first, since the first is opened at once."""
    return lambda: folder(**{"train|a|0.png": image()})


def _npy(header: str, data: bytes = b"", *, length: int | None = None, version: tuple[int, int] = (1, 0)) -> bytes:
    text = header.encode("latin1") + b"\n"
    size = struct.pack("<H" if version == (1, 0) else "<I", len(text) if length is None else length)
    return b"\x93NUMPY" + bytes(version) + size + text + data


def _forged(header: str, data: bytes = b"", **fields: Any) -> Make:
    return lambda: image_zip({"images.npy": _npy(header, data, **fields), "labels.npy": b""})


def _array(shape: str, descr: str = "'|u1'", order: bool = False) -> str:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}"


def _lying_npz() -> bytes:
    """Return an archive whose labels claim 32 bytes and unpack to BOMB_BYTES."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("images.npy", npy(_IMAGES))
        with archive.open("labels.npy", "w") as member:
            member.write(npy(_LABELS))
            for _ in range(BOMB_BYTES >> 20):
                member.write(bytes(1 << 20))
    found = bytearray(buffer.getvalue())
    directory = found.rfind(b"PK\x01\x02")
    struct.pack_into("<I", found, directory + 24, len(npy(_LABELS)))
    return bytes(found)


def _header_bomb() -> bytes:
    """Return an array whose header claims two gigabytes and has BOMB_BYTES."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("images.npy", "w") as member:
            member.write(b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**31))
            for _ in range(BOMB_BYTES >> 20):
                member.write(b" " * (1 << 20))
        archive.writestr("labels.npy", npy(_LABELS))
    return buffer.getvalue()


def npy(array: np.ndarray) -> bytes:
    """Return an .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def _with_labels(labels: object) -> Make:
    return lambda: npz(images=np.zeros((len(labels), 4, 4), np.uint8), labels=labels)  # type: ignore[arg-type]


UPLOADS: list[Upload] = [
    # archives
    ("zip: a member of 100 MiB of zeros", "a.zip", lambda: _archive(_GOOD | _zeros("train/cat/x.png", 100 << 20)), 422),
    ("zip: the first image unpacks 400 to 1", "a.zip", lambda: _archive(_GOOD | _zeros("train/a/0.png", 32 << 20)), 422),
    ("zip: members that say 100 bytes and unpack to 600 MiB", "a.zip",
     lambda: _lying(_archive(_zeros("train/a/0.png", BOMB_BYTES) | {"train/b/0.png": png(1)}), 100), 422),
    ("zip: a bzip2 bomb", "a.zip", lambda: _archive(_zeros("train/a/0.png", 64 << 20, zipfile.ZIP_BZIP2) | _GOOD), 422),
    ("zip: an lzma member", "a.zip", lambda: _archive(_zeros("train/a/0.png", 8 << 20, zipfile.ZIP_LZMA) | _GOOD), 422),
    ("zip: in a zip in a zip", "a.zip", lambda: image_zip({"train/a/0.png": image_zip({"b.zip": folder()}), **_GOOD}), 422),
    ("zip: members that overlap", "a.zip", _overlapping, 422),
    ("zip: a directory of 1 million members", "a.zip", lambda: _raw_directory(1_000_000), 422),
    ("zip: a directory of 250,000 members that are not there", "a.zip", lambda: _raw_directory(250_000), 422),
    ("zip: a name of 60,000 characters", "a.zip", lambda: _named("train/cat/" + "x" * 60_000 + "/a.png"), 422),
    ("zip: ../ in a name", "a.zip", lambda: _named("../../train/cat/9.png"), 422),
    ("zip: an absolute name", "a.zip", lambda: _named("/etc/passwd"), 422),
    ("zip: a drive's name", "a.zip", lambda: _named("C:/train/cat/9.png"), 422),
    ("zip: backslashes", "a.zip", lambda: _named("train\\..\\..\\9.png"), 422),
    ("zip: a link", "a.zip", lambda: _named("train/cat/9.png", b"/etc/passwd", external_attr=0o120777 << 16), 422),
    ("zip: a name twice", "a.zip", lambda: _named("train/cat/0.png"), 422),
    ("zip: said to be encrypted", "a.zip", _encrypted, 422),
    ("zip: a class whose name cannot be printed", "a.zip", lambda: _named("train/\x1b[2J/9.png"), 422),
    ("zip: a device's name and emoji for classes", "a.zip",
     lambda: folder(**{"train|CON|0.png": png(1), "train|🐱|0.png": png(2)}), 201),
    ("zip: classes that differ in case only", "a.zip", lambda: folder(**{"train|Cat|0.png": png(1)}), 201),
    ("zip: a class name of 500 characters", "a.zip", lambda: folder(**{"train|" + "x" * 500 + "|0.png": png(1)}), 201),
    ("zip: 30,000 classes of one image", "a.zip", lambda: image_zip({f"train/{k}/0.png": b"" for k in range(30_000)}), 422),
    ("zip: no images", "a.zip", lambda: image_zip({}), 422),
    ("zip: its second half is missing", "a.zip", lambda: folder()[: len(folder()) // 2], 422),
    # images
    ("png: 60,000×60,000 pixels in 400 bytes", "a.zip", _first(lambda: _png_header(60_000, 60_000)), 422),
    ("png: 9,000×9,000 pixels in 400 bytes, kept and not decoded", "a.zip", _first(lambda: _png_header(9_000, 9_000)), 201),
    ("png: no width", "a.zip", _first(lambda: _png_header(0, 8)), 422),
    ("png: an iTXt of 600 MiB", "a.zip", _first(lambda: _png_header(8, 8, b"iTXta\0\1\0\0\0" + _bomb(BOMB_BYTES))), 422),
    ("png: a zTXt of 600 MiB", "a.zip", _first(lambda: _png_header(8, 8, b"zTXta\0\0" + _bomb(BOMB_BYTES))), 422),
    ("png: a colour profile of 600 MiB", "a.zip", _first(lambda: _png_header(8, 8, b"iCCPa\0\0" + _bomb(BOMB_BYTES))), 422),
    ("png: an animation of 200 frames", "a.zip", _first(_animation), 201),
    ("webp: a canvas of 16,384×16,384", "a.zip", _first(lambda: _webp_header(16_384, 16_384)), 422),
    ("png: that is a pickle", "a.zip", _first(lambda: b"\x80\x04\x95cos\nsystem\n."), 422),
    # arrays
    ("npz: labels that are pickles", "a.npz", lambda: npz(images=_IMAGES, labels=np.array([{}] * 4, dtype=object)), 422),
    ("npz: images that are pickles", "a.npz", lambda: npz(images=np.array([{}] * 4, dtype=object), labels=_LABELS), 422),
    ("npz: labels that say 32 bytes and unpack to 600 MiB", "a.npz", _lying_npz, 422),
    ("npz: a header that says 2 GiB", "a.npz", _header_bomb, 422),
    ("npz: a shape of 10^30 images", "a.npz", _forged(_array("(10**30, 8, 8)")), 422),
    ("npz: a shape of 2^62 images", "a.npz", _forged(_array(f"({2**62}, 8, 8)"), bytes(64)), 422),
    ("npz: a negative shape", "a.npz", _forged(_array("(-4, -8, 8)"), bytes(256)), 422),
    ("npz: elements of 2 GiB", "a.npz", _forged(_array("(4, 8, 8)", "'|V2147483647'")), 422),
    ("npz: a header of 9,000 brackets", "a.npz", _forged("(" * 9000), 422),
    ("npz: a header of 9,000 minus signs", "a.npz", _forged("-" * 9000 + "1"), 422),
    ("npz: a header that calls a function", "a.npz", _forged("__import__('os').system('true')"), 422),
    ("npz: a header of no dtype", "a.npz", _forged(_array("(4, 8, 8)", "['x', {}, 7]")), 422),
    ("npz: Fortran order", "a.npz", lambda: npz(images=np.asfortranarray(_IMAGES), labels=_LABELS), 201),
    ("npz: labels below 0", "a.npz", _with_labels(np.array([0, 1, -1, 1])), 201),
    ("npz: labels beyond all images", "a.npz", _with_labels(np.array([0, 1, 2**62, 1])), 201),
    ("npz: labels that are NaN", "a.npz", _with_labels(np.array([0, 1, np.nan, 1])), 422),
    ("npz: 100,000 classes of one image", "a.npz", _with_labels(np.arange(100_000)), 422),
    ("npz: 20 million images of no bytes", "a.npz", lambda: image_zip({
        "images.npy": _npy(_array("(20000000, 4, 4)")) + b"", "labels.npy": b""}), 422),
    ("npz: no images", "a.npz", _with_labels(np.zeros(0, dtype=np.int64)), 422),
    ("npz: an array of another name", "a.npz", lambda: npz(images=_IMAGES, labels=_LABELS, more=_LABELS), 201),
    ("npz: that is an image folder", "a.npz", folder, 422),
    ("zip: that is an .npz", "a.zip", lambda: npz(images=_IMAGES, labels=_LABELS), 422),
    # names of the file
    ("a .tar", "a.tar", folder, 422),
    ("no name", "", folder, 422),
    ("a bzip2 file named .zip", "a.zip", lambda: bz2.compress(folder()), 422),
    ("a file name of 500 characters", "x" * 500 + ".zip", folder, 422),
    ("a file name with a line end", "a%0Ab%00.zip", folder, 201),
    ("a file name with ../ in it is only a name", "../../../etc/passwd.zip", folder, 201),
]  # fmt: skip
