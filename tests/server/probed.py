"""`python -m tests.server.probed DATA_DIR [FIELD=VALUE…]`: serve as tests.server.served does, and measure the event loop.

For each line on standard input, print the longest time in seconds for which the loop was blocked since the previous line. Blocked
means that the loop's thread computed for this long, or that nothing ran on the loop while another thread of this process computed
(e.g. holding the GIL). Both are CPU time, so that other work on the machine does not count.
"""

from __future__ import annotations

import asyncio
import sys
import time

from tests.server.served import Telling, configured

EVERY_S = 0.01


class Lag:
    """Measure how long the current event loop is blocked."""

    longest_s = 0.0

    async def measure(self) -> None:
        """Measure until cancelled."""
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
