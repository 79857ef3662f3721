"""One answer for all who ask within a moment: what anybody may ask costs what it is asked of no more for that."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Shared(Generic[T]):
    """What `ask` returns, at most `fresh_s` old. Who asks while it is being found out waits for the same. Of one event loop."""

    def __init__(self, ask: Callable[[], Awaitable[T]], fresh_s: float) -> None:
        self._ask = ask
        self._fresh_s = fresh_s
        self._asking: asyncio.Task[T] | None = None
        self._answers: list[T] = []
        self._asked_at = float("-inf")

    @property
    def last(self) -> T | None:
        """The newest answer, however old; None: there has been none."""
        return self._answers[-1] if self._answers else None

    async def get(self) -> T:
        """The answer. Raises what `ask` does to all who wait for it; who comes after them asks anew."""
        if self._answers and time.monotonic() - self._asked_at <= self._fresh_s:
            return self._answers[-1]
        if self._asking is None:
            self._asking = asyncio.create_task(self._find_out())
        return await asyncio.shield(self._asking)  # the others want it also when this one leaves

    async def _find_out(self) -> T:
        asked_at = time.monotonic()
        try:
            answer = await self._ask()
            self._answers = [answer]
            self._asked_at = asked_at
            return answer
        finally:
            self._asking = None
