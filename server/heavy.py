"""Work that holds much memory: checking uploads, planning jobs, converting synthetic sets. A bounded number at once, in threads.

The bound is what keeps the server's memory bounded; and as they wait for it here, and not in the threads that other routes share,
many such requests do not hold up the others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import ParamSpec, TypeVar

AT_ONCE = 2

P = ParamSpec("P")
T = TypeVar("T")

_threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="heavy work")


async def in_turn(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What `work` returns, called in a thread when it is its turn: first come, first served, `AT_ONCE` at a time.

    Work whose request is given up before its turn is not begun. What has begun keeps its place until it ends, heard or not: the
    threads themselves are the bound, and not a count of those who wait for them.
    """
    called = partial(copy_context().run, work, *args, **kwargs)
    return await asyncio.get_running_loop().run_in_executor(_threads, called)
