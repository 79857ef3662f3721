"""Servers that share a data directory know whether another one is there: only alone may one tidy up what a dead one left.

What looks abandoned while others serve (a job's directory without a row, a directory set aside) may be a request of theirs
amid its transaction.
"""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def present(lock_file: Path, when_alone: Callable[[], None]) -> Iterator[None]:
    """Around all that a server serves. Before that, `when_alone` is called where no other server is there.

    A lock on a file: it is let go when the server dies, and held by several machines where they share the file system.
    """
    with lock_file.open("ab") as file:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            when_alone()
        fcntl.flock(file, fcntl.LOCK_SH)  # waits for another one that tidies up
        yield
