"""Test that damaged and malicious archives of users are refused."""

from __future__ import annotations

import gc
import io
import stat
import zipfile
from pathlib import Path

import pytest

from cafe_core.data.archives import open_archive
from cafe_core.data.catalog import describe
from cafe_core.data.roots import DataRoots
from cafe_core.data.sources import open_store
from cafe_core.errors import DatasetError
from cafe_core.spec.dataset import DatasetSpec
from tests.cafe_core.data.image_folders import encoded, picture, zip_of


def test_missing_archive_raises_file_not_found(tmp_path: Path) -> None:
    """An upload may have been deleted. An exception in the archive's destructor would fail this test too."""
    with pytest.raises(FileNotFoundError):
        open_archive(tmp_path / "absent.zip")
    gc.collect()


def _zip_with(folder: Path, *entries: tuple[zipfile.ZipInfo, bytes]) -> None:
    """Archive the folder and add entries."""
    with zipfile.ZipFile(zip_of(folder), "a", zipfile.ZIP_DEFLATED) as file:
        for info, content in entries:
            info.compress_type = zipfile.ZIP_DEFLATED
            file.writestr(info, content)


@pytest.mark.parametrize(
    "name", ["../evil.png", "train/../../evil.png", "/train/cat/evil.png", "train\\..\\evil.png", "C:/evil.png", "train//x.png"]
)
def test_archive_with_an_unsafe_path_is_refused(roots: DataRoots, folder: Path, name: str) -> None:
    _zip_with(folder, (zipfile.ZipInfo(name), encoded(picture())))
    with pytest.raises(DatasetError, match="is not a valid path in an archive"):
        describe(DatasetSpec(path="pets.zip"), roots)


def test_archive_with_a_link_is_refused(roots: DataRoots, folder: Path) -> None:
    link = zipfile.ZipInfo("train/cat/9.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    _zip_with(folder, (link, b"/etc/passwd"))
    with pytest.raises(DatasetError, match=r"train/cat/9\.png' is a link"):
        describe(DatasetSpec(path="pets.zip"), roots)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_archive_with_a_duplicate_file_is_refused(roots: DataRoots, folder: Path) -> None:
    _zip_with(folder, (zipfile.ZipInfo("train/cat/0.png"), b"other"))
    with pytest.raises(DatasetError, match="is in the archive twice"):
        describe(DatasetSpec(path="pets.zip"), roots)


def test_archive_with_an_implausible_size_is_refused(roots: DataRoots, folder: Path) -> None:
    _zip_with(folder, (zipfile.ZipInfo("train/cat/9.png"), bytes(17 * 2**20)))
    with pytest.raises(DatasetError, match=r"unpacks from .* bytes, which is not plausible"):
        describe(DatasetSpec(path="pets.zip"), roots)


def test_encrypted_archive_is_refused(roots: DataRoots, folder: Path) -> None:
    content = bytearray(zip_of(folder).read_bytes())
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        name = file.namelist()[-1].encode()
    entry = content.rindex(b"PK\x01\x02", 0, content.rindex(name))
    content[entry + 8] |= 1  # the flag in the central directory (APPNOTE 4.4.4)
    folder.with_suffix(".zip").write_bytes(content)
    with pytest.raises(DatasetError, match="is encrypted"):
        describe(DatasetSpec(path="pets.zip"), roots)


def test_archive_with_damaged_bytes_is_refused(roots: DataRoots, folder: Path) -> None:
    archive = zip_of(folder)
    with zipfile.ZipFile(archive) as file:
        info = file.getinfo("train/dog/1.png")
        start = info.header_offset + 30 + len(info.filename)
    content = bytearray(archive.read_bytes())
    content[start + 50] ^= 0xFF
    archive.write_bytes(content)
    with pytest.raises(DatasetError, match=r"train/dog/1\.png is damaged in the archive .*CRC"):
        open_store(DatasetSpec(path="pets.zip"), roots)
