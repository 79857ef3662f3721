"""Share the result of an expensive call between requests that arrive within a short time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class SharedResult(Generic[T]):
    """Cache the result of `ask` for `fresh_s`. Concurrent callers share one call. Belongs to one event loop."""

    def __init__(self, ask: Callable[[], Awaitable[T]], fresh_s: float) -> None:
        self._ask = ask
        self._fresh_s = fresh_s
        self._asking: asyncio.Task[T] | None = None
        self._answers: list[T] = []
        self._asked_at = float("-inf")

    @property
    def last(self) -> T | None:
        """Return the newest result, however old; None if there is none yet."""
        return self._answers[-1] if self._answers else None

    async def get(self) -> T:
        """Return the result. If `ask` raises, all waiting callers get the exception and the next caller calls it again."""
        if self._answers and time.monotonic() - self._asked_at <= self._fresh_s:
            return self._answers[-1]
        if self._asking is None:
            self._asking = asyncio.create_task(self._call())
        return await asyncio.shield(self._asking)  # a cancelled caller must not cancel the others

    async def _call(self) -> T:
        asked_at = time.monotonic()
        try:
            answer = await self._ask()
            self._answers = [answer]
            self._asked_at = asked_at
            return answer
        finally:
            self._asking = None
