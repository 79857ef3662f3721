"""What a driver prints also goes to its attempt's directory, so that it outlives Ray and the node.

A process of its own copies it, forked before anything else is loaded: it hears also the last words of a driver that crashes or
is killed, and takes nothing from it. It ends when the driver, and whatever inherited its output, has.
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
"""Of each of the two files: the newest output is kept."""
LEFT_OUT = b"[earlier output is left out]\n"
CLOSE_WITHIN_S = 2.0
CHUNK_BYTES = 64 << 10
STDOUT, STDERR = 1, 2
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""By which a driver is stopped, often its whole group."""


@contextlib.contextmanager
def copied_to(log: Path, older: Path) -> Iterator[None]:
    """Everything printed within, by C code and child processes as well, also goes to `log`; once that is long, to a new one.

    To be entered before there are threads: it forks. A disk that fails costs the copy, nothing else.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    reading, writing = os.pipe()
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # one that comes now would find the copier unprepared
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
    """What was printed has arrived then, unless a process that is left still holds the pipe."""
    deadline = time.monotonic() + CLOSE_WITHIN_S
    while os.waitpid(copier, os.WNOHANG) == (0, 0) and time.monotonic() < deadline:
        time.sleep(0.005)


def _copy_and_exit(reading: int, writing: int, log: Path, older: Path) -> None:
    """In the copier. Signals that are meant for the driver reach its whole group: it decides when the output ends."""
    status = 1
    try:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        os.close(writing)
        copy = _BoundedLog(log, older)
        while chunk := os.read(reading, CHUNK_BYTES):
            with contextlib.suppress(OSError):  # nobody reads it any more
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
    """A file that is moved aside when it has become long; the one before it is given up then."""

    def __init__(self, path: Path, older: Path) -> None:
        self._path = path
        self._older = older
        self._descriptor: int | None = None
        self._lost = 0

    def write(self, content: bytes) -> None:
        """What cannot be written is counted, and the count written when it can."""
        try:
            descriptor = self._open()
            if os.fstat(descriptor).st_size + len(content) > LIMIT_BYTES:
                descriptor = self._move_on(descriptor)
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

    def _move_on(self, full: int) -> int:
        something_goes = self._older.exists()
        self._path.replace(self._older)
        os.close(full)
        self._descriptor = None
        descriptor = self._open()
        if something_goes:
            self._mark_older()
        return descriptor

    def _mark_older(self) -> None:
        """Say in front of what is kept that there was more: over its first line, which may be a part of one anyway."""
        with self._older.open("r+b") as file:
            file.write(LEFT_OUT)
