"""Work that holds much memory: checking uploads, planning jobs, converting synthetic sets. A bounded number at once, in threads.

The bound is what keeps the server's memory bounded; and as they wait for it here, and not in the threads that other routes share,
many such requests do not hold up the others. API keys take turns (:mod:`server.http.fair_turns`): who asks for much
waits for themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from typing import ParamSpec, TypeVar

from server.errors import TooManyRequestsError
from server.http.fair_turns import Turns

AT_ONCE = 2
PER_KEY = 1
"""Of those: there is room for another key's, however long one takes."""
RETRY_AFTER_S = 5

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(eq=False)
class _Turn:
    """Of one piece of work: waited for, then under way."""

    owner: str | None
    has_come: asyncio.Event


class HeavyWork:
    """Work of one sort: no other sort waits for it. Of one event loop."""

    def __init__(self, waiting_per_key: int) -> None:
        self._waiting_per_key = waiting_per_key
        self._turns = Turns(AT_ONCE, PER_KEY)
        self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="heavy work")
        self._waiting: list[_Turn] = []

    async def in_turn(self, owner: str | None, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """What `work` returns, called in a thread when it is its turn: of `owner`, an API key's id, first come, first served.

        Work whose request is given up before its turn is not begun. What has begun keeps its place until it ends, heard or not.
        Raises TooManyRequestsError where the key has as much waiting as may be; who has no key is alone, and is not bounded.
        """
        turn = await self._turn_of(owner)
        loop = asyncio.get_running_loop()
        working = self._threads.submit(partial(copy_context().run, work, *args, **kwargs))

        def ended(_working: object) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the server has stopped meanwhile
                loop.call_soon_threadsafe(self._end, turn)

        working.add_done_callback(ended)
        return await asyncio.wrap_future(working)

    async def _turn_of(self, owner: str | None) -> _Turn:
        if owner is not None and sum(turn.owner == owner for turn in self._waiting) >= self._waiting_per_key:
            raise TooManyRequestsError(
                f"{self._waiting_per_key} requests of this key wait to be worked on, which is as many as may be", RETRY_AFTER_S
            )
        turn = _Turn(owner, asyncio.Event())
        self._waiting.append(turn)
        self._begin()
        try:
            await turn.has_come.wait()
        except asyncio.CancelledError:
            if turn in self._waiting:
                self._waiting.remove(turn)
            else:  # it has come in this very moment
                self._end(turn)
            raise
        return turn

    def _begin(self) -> None:
        for turn in self._turns.begin(self._waiting):
            self._waiting.remove(turn)
            turn.has_come.set()

    def _end(self, turn: _Turn) -> None:
        self._turns.end(turn)
        self._begin()
