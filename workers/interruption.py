"""Cancelling: SIGTERM, which is how Ray stops a job, and SIGINT end what the driver does, wherever it is."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any


class Interruption:
    """While entered, the first SIGTERM or SIGINT raises KeyboardInterrupt in the main thread, and later ones nothing.

    KeyboardInterrupt, because it is what Ray's C++ waits let through; any other exception they swallow. Where one was
    swallowed all the same (a destructor, a callback), the next :meth:`check` raises it. Later signals must not disturb
    the cleaning up that the first one started.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        """The first signal received."""
        self._shields = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        self._previous = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        self.install()
        return self

    def __exit__(self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        _forget_that_python_saw_it()

    def install(self) -> None:
        """Take the signals (back: ray.init takes SIGTERM)."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle)

    def disarm(self) -> None:
        """Ignore signals from here on: what they would break off is done."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.signal is not None:
            return
        self.signal = number
        if not self._shields:
            raise KeyboardInterrupt

    def check(self) -> None:
        """Raise KeyboardInterrupt if a signal has come. Not for code that cleans up."""
        if self.signal is not None:
            raise KeyboardInterrupt

    @contextmanager
    def shielded(self) -> Iterator[None]:
        """A block that no signal breaks off: one that comes meanwhile is raised after it."""
        before = self.signal
        self._shields += 1
        try:
            yield
        finally:
            self._shields -= 1
        if before is None and not self._shields:
            self.check()


def _forget_that_python_saw_it() -> None:
    """Make the process end with the exit code it chooses, although a KeyboardInterrupt was raised in it.

    CPython notes a KeyboardInterrupt that leaves code given as text to exec (as namedtuple and torch's imports do), and
    a `python -m` ends by SIGINT for that note alone, even where the exception was caught further up. Evaluating any
    text takes the note back (run_eval_code_obj in Python/pythonrun.c).
    """
    eval("None")
