"""Run memory-intensive work (validating uploads, planning jobs, converting sets) in a small number of threads.

The number of threads bounds the server's memory. Work waits here rather than in the threads that other routes share, so that it
does not delay them. API keys take turns (:mod:`server.http.fair_turns`): a key with many requests delays only itself.
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

MAX_THREADS = 2
THREADS_PER_KEY = 1
"""Fewer than MAX_THREADS, so that one stays free for other keys, however long the work takes."""
RETRY_AFTER_S = 5

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(eq=False)
class _Turn:
    """A piece of work that waits for its turn, or runs."""

    owner: str | None
    started: asyncio.Event


class HeavyWork:
    """Run one kind of work; different kinds do not wait for each other. Belongs to one event loop."""

    def __init__(self, waiting_per_key: int) -> None:
        self._waiting_per_key = waiting_per_key
        self._turns = Turns(MAX_THREADS, THREADS_PER_KEY)
        self._threads = ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="heavy work")
        self._waiting: list[_Turn] = []

    async def run_fair(self, owner: str | None, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `work` in a thread when it is the turn of `owner`, an API key's id, and return its result.

        Work whose request is cancelled while it waits does not start. Work that has started keeps its thread until it ends, even
        if its request is cancelled. Raises TooManyRequestsError if the key's queue is full; without keys there is no limit.
        """
        turn = await self._turn_of(owner)
        loop = asyncio.get_running_loop()
        working = self._threads.submit(partial(copy_context().run, work, *args, **kwargs))

        def ended(_working: object) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the server has stopped
                loop.call_soon_threadsafe(self._end, turn)

        working.add_done_callback(ended)
        return await asyncio.wrap_future(working)

    async def _turn_of(self, owner: str | None) -> _Turn:
        if owner is not None and sum(turn.owner == owner for turn in self._waiting) >= self._waiting_per_key:
            raise TooManyRequestsError(
                f"queue limit reached: {self._waiting_per_key} waiting requests per API key; retry later", RETRY_AFTER_S
            )
        turn = _Turn(owner, asyncio.Event())
        self._waiting.append(turn)
        self._begin()
        try:
            await turn.started.wait()
        except asyncio.CancelledError:
            if turn in self._waiting:
                self._waiting.remove(turn)
            else:  # it has just started
                self._end(turn)
            raise
        return turn

    def _begin(self) -> None:
        for turn in self._turns.begin(self._waiting):
            self._waiting.remove(turn)
            turn.started.set()

    def _end(self, turn: _Turn) -> None:
        self._turns.end(turn)
        self._begin()
