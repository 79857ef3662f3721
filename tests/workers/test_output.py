from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cafe_core.jobs.jobdir import AttemptDir
from server.files.job_logs import BLOCK_BYTES, read_log
from tests.workers.conftest import ROOT


def driver(attempt: AttemptDir, body: str, *, limit: int = 8 << 20) -> subprocess.CompletedProcess[bytes]:
    """A process whose output is copied to the attempt's directory."""
    code = f"""
import os, signal, sys, workers.output
from pathlib import Path
workers.output.LIMIT_BYTES = {limit}
with workers.output.copying_output(Path({str(attempt.log_file)!r}), Path({str(attempt.older_log_file)!r})):
    {body}
print("after")
"""
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, timeout=60, check=False, start_new_session=True
    )


def printed(attempt: AttemptDir, tail: int | None = None) -> str | None:
    """Return the attempt's log as the server reads it, as one text."""
    pieces = read_log(attempt, tail)
    return None if pieces is None else "".join(pieces)


def await_log(attempt: AttemptDir, wanted: str) -> None:
    deadline = time.monotonic() + 20
    while wanted not in (printed(attempt) or ""):
        assert time.monotonic() < deadline, printed(attempt)
        time.sleep(0.02)


def test_output_goes_to_stdout_and_to_the_log(tmp_path: Path) -> None:
    attempt = AttemptDir(tmp_path / "attempts" / "1")
    body = "print('one', flush=True); os.write(2, b'two\\n'); os.system('echo three')"
    done = driver(attempt, body)
    assert done.stdout == b"one\ntwo\nthree\nafter\n"
    assert printed(attempt) == "one\ntwo\nthree\n"


def test_last_output_of_a_killed_driver_is_kept(tmp_path: Path) -> None:
    attempt = AttemptDir(tmp_path / "1")
    done = driver(attempt, "print('alive', flush=True); os.kill(os.getpid(), signal.SIGKILL)")
    assert done.returncode == -signal.SIGKILL
    await_log(attempt, "alive\n")


def test_signal_to_the_process_group_does_not_stop_the_copier(tmp_path: Path) -> None:
    attempt = AttemptDir(tmp_path / "1")
    body = "signal.signal(15, lambda *_: None); print('on', flush=True); os.killpg(0, 15); print('cancelled', flush=True)"
    done = driver(attempt, body)
    assert done.returncode == 0, done.stderr
    assert printed(attempt) == "on\ncancelled\n"


def test_long_log_keeps_the_newest_output(tmp_path: Path) -> None:
    attempt = AttemptDir(tmp_path / "1")
    limit = 1 << 20
    done = driver(attempt, "[print(f'line {i:6}', flush=i % 100 == 0) for i in range(300_000)]", limit=limit)
    assert done.returncode == 0
    text = printed(attempt)
    assert text is not None
    assert text.startswith("[earlier output is left out]\n")
    assert text.endswith("line 299999\n")
    assert limit < len(text) <= 2 * limit
    assert printed(attempt, 100_000) == "".join(f"line {i:6}\n" for i in range(200_000, 300_000))


def test_failing_disk_affects_only_the_copy(tmp_path: Path) -> None:
    attempt = AttemptDir(tmp_path / "file" / "1")
    (tmp_path / "file").write_text("where a directory should be")
    done = driver(attempt, "print('x' * 100_000)")
    assert (done.returncode, len(done.stdout)) == (0, 100_001 + len("after\n"))


def test_full_disk_affects_only_the_copy(tmp_path: Path) -> None:
    attempt = AttemptDir(tmp_path / "1")
    attempt.path.mkdir()
    attempt.log_file.symlink_to("/dev/full")
    assert driver(attempt, "print('lost', flush=True)").stdout == b"lost\nafter\n"


@pytest.mark.parametrize("tail", [None, 1, 2, 5, 1000])
def test_tail_is_read_from_the_end(tmp_path: Path, tail: int | None) -> None:
    attempt = AttemptDir(tmp_path)
    older = [f"{i} {'x' * (i % 3 * BLOCK_BYTES // 2)}\n" for i in range(20)]
    newer = ["a\n", "\n", "é without an end"]
    attempt.older_log_file.write_text("".join(older))
    attempt.log_file.write_text("".join(newer))
    everything = older + newer
    assert printed(attempt, tail) == "".join(everything if tail is None else everything[-tail:])


def test_missing_log_reads_as_none(tmp_path: Path) -> None:
    assert read_log(AttemptDir(tmp_path / "none"), 5) is None
