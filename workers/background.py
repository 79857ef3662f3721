"""Work in a thread of its own, so that the process can answer while it runs.

Its answers are the process's heartbeat, and the only way back for what the work reports, returns or raises, so nothing
overtakes.
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
"""report(type, **data)."""


@dataclass(frozen=True)
class Done:
    """The work returned."""

    value: Any


@dataclass(frozen=True)
class Raised:
    """The work raised. error is set for CafeErrors, which are meant for the user."""

    summary: str
    peer_lost: bool
    error: CafeError | None


@dataclass(frozen=True)
class Answer:
    """To a poll: what was reported since the last one, and the outcome if the work has ended."""

    records: list[tuple[str, dict[str, Any]]]
    outcome: Done | Raised | None


class Background:
    """Runs one piece of work at a time."""

    def __init__(self, threads: int) -> None:
        """threads: CPU threads of one operation. The order in which sums are taken depends on it, and so do results.

        To be made before torch is imported: it sets the environment that torch and its libraries read then.
        """
        self._threads = threads
        for library in ("OMP", "MKL", "OPENBLAS"):
            os.environ[f"{library}_NUM_THREADS"] = str(threads)
        self._changed = threading.Condition()
        self._records: list[tuple[str, dict[str, Any]]] = []
        self._outcome: Done | Raised | None = None

    def begin(self, work: Callable[[Report], Any]) -> None:
        """Start work(report); polls tell how it goes."""
        with self._changed:
            self._records, self._outcome = [], None
        # A daemon: it may be stuck in a collective when the process is to exit.
        threading.Thread(target=self._run, args=(work,), name="work", daemon=True).start()

    def poll(self, wait_s: float) -> Answer:
        """What happened since the last poll; waits up to wait_s for something to happen."""
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
            log.exception("the work ended with an error")
            outcome = Raised(str(error), peer_lost=False, error=error)
        except Exception as error:
            log.exception("the work ended with an exception")
            summary = traceback.format_exception_only(error)[-1].strip()
            outcome = Raised(summary, peer_lost=is_peer_loss(error), error=None)
        with self._changed:
            self._outcome = outcome
            self._changed.notify_all()

    def _report(self, type: str, **data: Any) -> None:
        with self._changed:
            self._records.append((type, data))
            self._changed.notify_all()


# What Gloo, NCCL and the key-value store say when a peer is gone or does not answer. Their other complaints (a shape
# that differs, a misuse) are bugs of ours, and starting again would not help.
_PEER_LOSS = re.compile(
    r"connection (closed|reset|refused|was)|timed? ?out|timeout|broken pipe|socket|remote process exited|aborted", re.I
)


def is_peer_loss(error: BaseException) -> bool:
    """Whether a collective failed because of another worker, rather than this one's own work."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None:
        return False
    if isinstance(error, distributed.DistNetworkError | distributed.DistStoreError):
        return True
    from_collective = isinstance(error, distributed.DistBackendError) or (
        type(error) is RuntimeError and re.search(r"gloo|nccl", str(error), re.I) is not None
    )
    return from_collective and _PEER_LOSS.search(str(error)) is not None
