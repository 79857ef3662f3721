from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

import workers.heartbeat
from cafe_core.jobs.jobdir import JobDir
from tests.cafe_core.jobs.test_disk_full import small_disk
from workers.heartbeat import sending_heartbeats


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers.heartbeat, "EVERY_S", 0.02)


@pytest.fixture
def directory(tmp_path: Path) -> JobDir:
    return job_in(tmp_path / "job")


def job_in(path: Path, attempt: int = 1) -> JobDir:
    path.mkdir()
    (path / "job.json").write_text(json.dumps({"attempt": attempt}))
    return JobDir(path)


def beats(directory: JobDir) -> int:
    path = directory.attempt(1).heartbeat_file
    return int(path.read_bytes() or 0) if path.exists() else 0


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def heart() -> threading.Thread | None:
    return next((thread for thread in threading.enumerate() if thread.name == "heartbeat"), None)


def test_heartbeats_continue_while_the_main_thread_is_busy(directory: JobDir) -> None:
    with sending_heartbeats(directory, 1):
        wait_until(lambda: beats(directory) >= 3)
    assert heart() is None
    at_the_end = beats(directory)
    time.sleep(0.1)
    assert beats(directory) == at_the_end


@pytest.mark.parametrize("known", [True, False])
def test_stale_attempt_writes_no_heartbeat(directory: JobDir, known: bool) -> None:
    if known:
        directory.job_file.write_text(json.dumps({"attempt": 2}))
    else:
        shutil.rmtree(directory.path)
    with sending_heartbeats(directory, 1):
        wait_until(lambda: heart() is None)
    assert not directory.attempt(1).path.exists()


def test_deleted_directory_is_not_recreated(directory: JobDir) -> None:
    with sending_heartbeats(directory, 1):
        wait_until(lambda: beats(directory) >= 1)
        directory.path.rename(directory.path.with_name("aside"))
        time.sleep(0.2)
        assert heart() is not None
    assert not directory.path.exists()


def test_heartbeats_continue_on_a_full_disk(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 128) as disk:
        directory = job_in(disk / "job")
        with sending_heartbeats(directory, 1):
            wait_until(lambda: beats(directory) >= 1)
            fill(disk)
            counted = beats(directory)
            wait_until(lambda: beats(directory) > counted + 2)


def test_no_heartbeat_file_if_the_disk_is_full_from_the_start(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 128) as disk:
        directory = job_in(disk / "job")
        fill(disk)
        with sending_heartbeats(directory, 1):
            time.sleep(0.2)
            assert beats(directory) == 0
            (disk / "ballast").unlink()
            wait_until(lambda: beats(directory) >= 1)


def fill(disk: Path) -> None:
    with (disk / "ballast").open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(512))
