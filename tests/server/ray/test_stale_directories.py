"""Directories of local Rays whose servers died are removed by the next server, and not too early."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from server.ray import embedded

DYING_SERVER = """
import os, pathlib, sys
from server.ray import embedded
embedded.PARENT = pathlib.Path(sys.argv[1])
directory, lock = embedded._new_directory()
(directory / "ray").mkdir()
(directory / "ray" / "file").touch()
os.kill(os.getpid(), 9)
"""


@pytest.fixture(autouse=True)
def parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(embedded, "PARENT", tmp_path)
    return tmp_path


def test_removes_directories_of_dead_servers_only(parent: Path) -> None:
    directory, lock = embedded._new_directory()
    subprocess.run([sys.executable, "-c", DYING_SERVER, str(parent)], check=False, cwd=Path(__file__).parents[3])
    assert len(list(parent.iterdir())) == 2
    (parent / "cafe-ray-of-something-else").mkdir()
    embedded._remove_stale_directories()
    assert {path.name for path in parent.iterdir()} == {directory.name, "cafe-ray-of-something-else"}
    lock.close()
    embedded._remove_stale_directories()
    assert [path.name for path in parent.iterdir()] == ["cafe-ray-of-something-else"]


def test_concurrent_servers_do_not_disturb_each_other(parent: Path) -> None:
    for _ in range(200):
        embedded._new_directory()[1].close()

    def start(_: int) -> bool:
        embedded._remove_stale_directories()
        directory, lock = embedded._new_directory()
        embedded._remove_stale_directories()
        with lock:
            return (directory / embedded.LOCK).exists()

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(start, range(64)))
    embedded._remove_stale_directories()
    assert list(parent.iterdir()) == []
