"""Read an attempt's log in pieces, from two files as if they were one."""

from __future__ import annotations

import random
import tracemalloc
from pathlib import Path

import pytest

from cafe_core.jobs.jobdir import AttemptDir
from server.files.job_logs import BLOCK_BYTES, read_log
from server.settings import Settings
from tests.server.conftest import Api, FakeRay, attempt_dir
from tests.server.reconciler.test_reconciler import submitted

MIB = 1 << 20


def printed(attempt: AttemptDir, tail: int | None) -> str:
    pieces = read_log(attempt, tail)
    assert pieces is not None
    return "".join(pieces)


@pytest.mark.parametrize("seed", range(20))
def test_tail_spans_both_files(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.files.job_logs.BLOCK_BYTES", 7)  # splits lines and characters everywhere
    attempt, draw = AttemptDir(tmp_path), random.Random(seed)
    older, newer = (
        "".join(draw.choice(["\n", "\n", "a", "\r", "é", "😀", "\u2028"]) for _ in range(draw.randrange(60))) for _ in range(2)
    )
    attempt.older_log_file.write_bytes(older.encode())
    attempt.log_file.write_bytes(newer.encode())
    lines = [line + "\n" for line in (older + newer).split("\n")]
    lines[-1] = lines[-1][:-1]
    lines = [line for line in lines if line]
    assert printed(attempt, None) == older + newer
    for tail in range(1, len(lines) + 3):
        assert printed(attempt, tail) == "".join(lines[-tail:])


@pytest.mark.parametrize("tail", [None, 60_000, 1_000_000])
def test_long_log_is_streamed(tmp_path: Path, tail: int | None) -> None:
    attempt, line = AttemptDir(tmp_path), b"x" * 127 + b"\n"
    for path in (attempt.older_log_file, attempt.log_file):
        path.write_bytes(line * (8 * MIB // len(line)))
    lines = 0
    tracemalloc.start()
    try:
        pieces = read_log(attempt, tail)
        assert pieces is not None
        for piece in pieces:
            lines += piece.count("\n")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert lines == min(tail or 1_000_000, 16 * MIB // len(line))
    assert peak < MIB


def test_unread_log_is_closed(tmp_path: Path) -> None:
    """Otherwise Python's warning about an unclosed file would fail the test."""
    attempt = AttemptDir(tmp_path)
    attempt.log_file.write_text("one\n")
    pieces = read_log(attempt, None)
    assert pieces is not None
    del pieces
    pieces = read_log(attempt, None)
    assert pieces is not None
    attempt.log_file.unlink()
    assert "".join(pieces) == "one\n"


def test_output_during_a_read_is_not_included(tmp_path: Path) -> None:
    attempt = AttemptDir(tmp_path)
    attempt.log_file.write_text("one\n")
    pieces = read_log(attempt, None)
    assert pieces is not None
    with attempt.log_file.open("a") as file:
        file.write("two\n")
    assert "".join(pieces) == "one\n"


def test_log_route_streams_both_files(api: Api, ray: FakeRay, settings: Settings) -> None:
    job_id = submitted(api, ray)
    attempt = attempt_dir(settings, job_id)
    attempt.path.mkdir(parents=True)
    attempt.older_log_file.write_bytes(b"one\n" + "é".encode() * BLOCK_BYTES + b"half a li")
    attempt.log_file.write_bytes(b"ne\n\xff\n")
    answer = api.get(f"/v1/jobs/{job_id}/logs")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.headers["transfer-encoding"] == "chunked"
    assert answer.content.decode() == "one\n" + "é" * BLOCK_BYTES + "half a line\n\N{REPLACEMENT CHARACTER}\n"
    assert api.get(f"/v1/jobs/{job_id}/logs", params={"tail": 1}).text == "\N{REPLACEMENT CHARACTER}\n"
    attempt.older_log_file.unlink()
    attempt.log_file.write_bytes(b"")
    assert api.get(f"/v1/jobs/{job_id}/logs").content == b""
