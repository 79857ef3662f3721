"""Cancel a driver by SIGTERM, which Ray sends to stop a job, or by SIGINT."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any


class Interruption:
    """Raise KeyboardInterrupt in the main thread at the first SIGTERM or SIGINT, and ignore later ones. A context manager.

    It is KeyboardInterrupt because Ray's C++ waits swallow any other exception. If the exception is swallowed anyway (in a
    destructor or a callback), the next :meth:`check` raises it again. Later signals must not disturb the clean-up that the first
    one started.
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
        _reset_interrupt_flag()

    def install(self) -> None:
        """Install the signal handlers. Call it again after ray.init, which replaces the one for SIGTERM."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle)

    def disarm(self) -> None:
        """Ignore signals from now on, because there is nothing left to cancel."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.signal is not None:
            return
        self.signal = number
        if not self._shields:
            raise KeyboardInterrupt

    def check(self) -> None:
        """Raise KeyboardInterrupt if a signal was received. Do not call it in clean-up code."""
        if self.signal is not None:
            raise KeyboardInterrupt

    @contextmanager
    def shielded(self) -> Iterator[None]:
        """Delay interruption: a signal received inside the `with` block raises KeyboardInterrupt at its end."""
        before = self.signal
        self._shields += 1
        try:
            yield
        finally:
            self._shields -= 1
        if before is None and not self._shields:
            self.check()


def _reset_interrupt_flag() -> None:
    """Let the process exit with its own exit code although a KeyboardInterrupt was raised in it.

    CPython sets a flag when a KeyboardInterrupt leaves code that was passed to exec as text (namedtuple and torch's imports do
    so). `python -m` then ends by SIGINT, even if the exception was caught. Evaluating any text clears the flag
    (run_eval_code_obj in Python/pythonrun.c).
    """
    eval("None")
