"""`python -m tests.server.probed DATA_DIR [FIELD=VALUE…]`: as tests.server.served, and for each line that it reads it prints for
how many seconds the event loop was held at most since the last one.

Held means: the loop's thread computed for so long, or nothing ran on the loop for so long while this process computed as much,
as when a thread keeps the interpreter to itself. Both are measured in the processor's time, so that other work on the machine
does not count.
"""

from __future__ import annotations

import asyncio
import sys
import time

from tests.server.served import Telling, configured

EVERY_S = 0.01


class Lag:
    """Of the event loop that it is measured on."""

    longest_s = 0.0

    async def measure(self) -> None:
        """Until cancelled."""
        before = (time.monotonic(), time.thread_time(), time.process_time())
        while True:
            await asyncio.sleep(EVERY_S)
            now = (time.monotonic(), time.thread_time(), time.process_time())
            passed, computed, computed_by_all = (later - earlier for later, earlier in zip(now, before, strict=True))
            self.longest_s = max(self.longest_s, computed, min(passed, computed_by_all) - EVERY_S)
            before = now


class _Probed(Telling):
    async def startup(self, sockets: list[object] | None = None) -> None:
        self._lag = Lag()
        self._tasks = [asyncio.create_task(self._lag.measure()), asyncio.create_task(self._tell())]
        await super().startup(sockets)

    async def _tell(self) -> None:
        while await asyncio.to_thread(sys.stdin.readline):
            print(self._lag.longest_s, flush=True)
            self._lag.longest_s = 0.0


if __name__ == "__main__":
    _Probed(configured(sys.argv[1:])).run()
