"""Copy a driver's output to its attempt's directory, so that it survives the node and Ray's own logs.

A separate process copies the output. It is forked before anything else is loaded, and receives even the last lines of a driver
that crashes or is killed. It ends when the driver, and every process that inherited the driver's output, has ended.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

LIMIT_BYTES = 8 << 20
"""Limit for each of the two files. The newest output is kept."""
TRUNCATION_NOTE = b"[earlier output is left out]\n"
CLOSE_WITHIN_S = 2.0
CHUNK_BYTES = 64 << 10
STDOUT, STDERR = 1, 2
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Signals that stop a driver, often sent to its whole process group."""


@contextlib.contextmanager
def copying_output(log: Path, older: Path) -> Iterator[None]:
    """Copy everything printed inside the `with` block, even by C code and child processes, to `log`.

    A full `log` is renamed to `older`. Enter this before any thread starts, because it forks. A failing disk affects only the
    copy.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    reading, writing = os.pipe()
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # until the copier has set its handlers
    copier = os.fork()
    if copier == 0:
        _copy_and_exit(reading, writing, log, older)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    os.close(reading)
    before = os.dup(STDOUT), os.dup(STDERR)
    os.dup2(writing, STDOUT)
    os.dup2(writing, STDERR)
    os.close(writing)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(before[0], STDOUT)
        os.dup2(before[1], STDERR)
        for descriptor in before:
            os.close(descriptor)
        _wait_for(copier)


def _wait_for(copier: int) -> None:
    """Wait briefly until all output is written: a process that outlives the driver may still hold the pipe."""
    deadline = time.monotonic() + CLOSE_WITHIN_S
    while os.waitpid(copier, os.WNOHANG) == (0, 0) and time.monotonic() < deadline:
        time.sleep(0.005)


def _copy_and_exit(reading: int, writing: int, log: Path, older: Path) -> None:
    """Run the copier process. It ignores signals to the driver's group, and ends at the end of the output."""
    status = 1
    try:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        os.close(writing)
        copy = _BoundedLog(log, older)
        while chunk := os.read(reading, CHUNK_BYTES):
            with contextlib.suppress(OSError):  # the reader is gone
                _write_all(STDOUT, chunk)
            copy.write(chunk)
        status = 0
    finally:
        os._exit(status)


def _write_all(descriptor: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


class _BoundedLog:
    """A log file that is renamed when it reaches the limit, replacing the previous older file."""

    def __init__(self, path: Path, older: Path) -> None:
        self._path = path
        self._older = older
        self._descriptor: int | None = None
        self._lost = 0

    def write(self, content: bytes) -> None:
        """Write `content`. If that fails, count the bytes, and write the count once writing works again."""
        try:
            descriptor = self._open()
            if os.fstat(descriptor).st_size + len(content) > LIMIT_BYTES:
                descriptor = self._rotate(descriptor)
            if self._lost:
                _write_all(descriptor, f"\n[{self._lost} bytes of output could not be written here]\n".encode())
                self._lost = 0
            _write_all(descriptor, content)
        except OSError:
            self._lost += len(content)

    def _open(self) -> int:
        if self._descriptor is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        return self._descriptor

    def _rotate(self, full: int) -> int:
        drops_output = self._older.exists()
        self._path.replace(self._older)
        os.close(full)
        self._descriptor = None
        descriptor = self._open()
        if drops_output:
            self._mark_truncated()
        return descriptor

    def _mark_truncated(self) -> None:
        """Overwrite the start of the older file with a note that output is missing. Its first line may be incomplete anyway."""
        with self._older.open("r+b") as file:
            file.write(TRUNCATION_NOTE)
