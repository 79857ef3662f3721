"""Run work in a thread, so that the process can answer polls meanwhile.

The answers are the process's heartbeat. Reports, return values and exceptions are sent only in answers, so they always arrive in
order.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cafe_core.errors import CafeError

log = logging.getLogger(__name__)

Report = Callable[..., None]
"""`report(type, **data)` sends a record to the driver."""


@dataclass(frozen=True)
class Done:
    """The work returned."""

    value: Any


@dataclass(frozen=True)
class Raised:
    """The work raised an exception. `error` is set for a CafeError, whose message is meant for the user."""

    summary: str
    peer_lost: bool
    error: CafeError | None


@dataclass(frozen=True)
class Answer:
    """The answer to a poll: the records since the last poll, and the outcome once the work has ended."""

    records: list[tuple[str, dict[str, Any]]]
    outcome: Done | Raised | None


class Background:
    """Run one piece of work at a time."""

    def __init__(self, threads: int) -> None:
        """Set the number of CPU threads. Create this before torch is imported, because torch reads the environment then.

        threads: CPU threads of one operation. The order of summation, and so the result, depends on it.
        """
        self._threads = threads
        for library in ("OMP", "MKL", "OPENBLAS"):
            os.environ[f"{library}_NUM_THREADS"] = str(threads)
        self._changed = threading.Condition()
        self._records: list[tuple[str, dict[str, Any]]] = []
        self._outcome: Done | Raised | None = None

    def begin(self, work: Callable[[Report], Any]) -> None:
        """Start work(report). Its progress is read with :meth:`poll`."""
        with self._changed:
            self._records, self._outcome = [], None
        # A daemon, so that the process can exit while the thread is stuck in a collective.
        threading.Thread(target=self._run, args=(work,), name="work", daemon=True).start()

    def poll(self, wait_s: float) -> Answer:
        """Return what happened since the last poll; wait up to wait_s for something to happen."""
        with self._changed:
            self._changed.wait_for(lambda: self._records or self._outcome, timeout=wait_s)
            records, self._records = self._records, []
            return Answer(records, self._outcome)

    def _run(self, work: Callable[[Report], Any]) -> None:
        outcome: Done | Raised
        try:
            if "torch" in sys.modules:
                sys.modules["torch"].set_num_threads(self._threads)  # OpenMP keeps this number per thread
            outcome = Done(work(self._report))
        except CafeError as error:
            log.exception("the work failed")
            outcome = Raised(str(error), peer_lost=False, error=error)
        except Exception as error:
            log.exception("the work raised an unexpected exception")
            summary = traceback.format_exception_only(error)[-1].strip()
            outcome = Raised(summary, peer_lost=is_peer_loss(error), error=None)
        with self._changed:
            self._outcome = outcome
            self._changed.notify_all()

    def _report(self, type: str, **data: Any) -> None:
        with self._changed:
            self._records.append((type, data))
            self._changed.notify_all()


# Messages of Gloo, NCCL and the key-value store when a peer is gone or does not answer. Their other errors (mismatched shapes,
# misuse) are our bugs, and a restart would not help.
_PEER_LOSS = re.compile(
    r"connection (closed|reset|refused|was)|timed? ?out|timeout|broken pipe|socket|remote process exited|aborted", re.I
)


def is_peer_loss(error: BaseException) -> bool:
    """Return whether a collective failed because of another worker."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None:
        return False
    if isinstance(error, distributed.DistNetworkError | distributed.DistStoreError):
        return True
    from_collective = isinstance(error, distributed.DistBackendError) or (
        type(error) is RuntimeError and re.search(r"gloo|nccl", str(error), re.I) is not None
    )
    return from_collective and _PEER_LOSS.search(str(error)) is not None
