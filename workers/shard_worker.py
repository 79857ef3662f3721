"""The actor that owns a class shard: it runs one piece of work at a time and answers while it does.

The work has a thread of its own, so that the actor's main thread can answer :meth:`ShardWorker.poll`: its answers are
the worker's heartbeat, and the only way back for what the work reports, returns or raises, so nothing overtakes.
"""

from __future__ import annotations

import importlib
import logging
import os
import re
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import ray

from cafe_core.errors import CafeError
from workers.processes import Process

log = logging.getLogger(__name__)

Report = Callable[..., None]


@dataclass(frozen=True)
class Seat:
    """A worker's place in its gang: what it needs to meet the others."""

    rank: int
    world: int
    address: str
    """HOST:PORT of rank 0's key-value store."""
    host: str
    """This worker's own address."""
    device: str
    """For torch.device."""
    threads: int


class Work(Protocol):
    """Something to do on a worker. Pickled on its way there."""

    def __call__(self, seat: Seat, report: Report) -> Any: ...


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


@dataclass(frozen=True)
class Device:
    """What a worker computes on."""

    name: str
    """For torch.device."""
    description: str
    """For people."""


class ShardWorker:
    """Rank `rank` of a gang. Its methods are called one at a time, by the driver."""

    def __init__(self, title: str, threads: int, use_gpu: bool) -> None:
        """threads: CPU threads of one operation. The order in which sums are taken depends on it, and so do results."""
        self._title = title
        self._threads = threads
        self._use_gpu = use_gpu
        for library in ("OMP", "MKL", "OPENBLAS"):
            os.environ[f"{library}_NUM_THREADS"] = str(threads)
        logging.basicConfig(level=logging.INFO, format="%(message)s")
        self._changed = threading.Condition()
        self._records: list[tuple[str, dict[str, Any]]] = []
        self._outcome: Done | Raised | None = None

    def __repr__(self) -> str:
        return self._title  # Ray's dashboard and log lines show it

    def process(self) -> Process:
        """This worker's process: asked first of all, so that it can be ended whatever happens next."""
        return Process.current()

    def prepare(self, imports: Sequence[str]) -> Device:
        """Import what the work will need: seconds, for torch, that no work then waits for."""
        for module in imports:
            importlib.import_module(module)
        if not self._use_gpu:
            return Device("cpu", "cpu")
        import torch

        # Ray shows each worker its own GPUs only, so the one it uses is number 0.
        return Device("cuda:0", f"cuda:{','.join(map(str, ray.get_gpu_ids()))} {torch.cuda.get_device_name(0)}")

    def free_port(self, host: str) -> int:
        """A port that is free on `host`, this worker's address."""
        with socket.socket() as listener:
            listener.bind((host, 0))
            port: int = listener.getsockname()[1]
            return port

    def begin(self, work: Work, seat: Seat) -> Answer:
        """Start `work` in its own thread; polls tell how it goes, and this, which answers at once, is the first."""
        with self._changed:
            self._records, self._outcome = [], None
        # A daemon: it may be stuck in a collective when the process is to exit.
        threading.Thread(target=self._run, args=(work, seat), name="work", daemon=True).start()
        return Answer([], None)

    def poll(self, wait_s: float) -> Answer:
        """What happened since the last poll; waits up to wait_s for something to happen."""
        with self._changed:
            self._changed.wait_for(lambda: self._records or self._outcome, timeout=wait_s)
            records, self._records = self._records, []
            return Answer(records, self._outcome)

    def _run(self, work: Work, seat: Seat) -> None:
        outcome: Done | Raised
        try:
            if "torch" in sys.modules:
                sys.modules["torch"].set_num_threads(self._threads)  # OpenMP keeps this number per thread
            outcome = Done(work(seat, self._report))
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
