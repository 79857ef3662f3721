"""Detect other servers on the same data directory: only if there are none may a server clean up after one that crashed.

While other servers run, something that looks abandoned (a job's directory without a row, a directory set aside for removal) may
belong to one of their open transactions.
"""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def server_presence(lock_file: Path, cleanup: Callable[[], None]) -> Iterator[None]:
    """Hold a shared lock while this server runs; if no other server holds it, call `cleanup` first.

    The lock is released when the server dies. It works across machines that share the file system.
    """
    with lock_file.open("ab") as file:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            cleanup()
        fcntl.flock(file, fcntl.LOCK_SH)  # waits while another server cleans up
        yield
