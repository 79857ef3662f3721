"""Define the actor that owns a class shard. It runs one piece of work at a time, and answers polls meanwhile."""

from __future__ import annotations

import importlib
import logging
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import ray

from workers.background import Answer, Background, Report
from workers.processes import Process


@dataclass(frozen=True)
class WorkerAssignment:
    """The rank and device of a worker, and the addresses for reaching the other workers."""

    rank: int
    world: int
    address: str
    """HOST:PORT of rank 0's key-value store."""
    host: str
    """The address of this worker."""
    device: str
    """The name for torch.device."""
    threads: int


class Work(Protocol):
    """A callable that runs on a worker. It is pickled."""

    def __call__(self, assignment: WorkerAssignment, report: Report) -> Any: ...


@dataclass(frozen=True)
class Device:
    """The device of a worker."""

    name: str
    """The name for torch.device."""
    description: str
    """A description for people."""


class ShardWorker:
    """One worker of a gang. The driver calls its methods one at a time."""

    def __init__(self, title: str, threads: int, use_gpu: bool) -> None:
        """threads: CPU threads of one operation."""
        self._title = title
        self._use_gpu = use_gpu
        self._background = Background(threads)
        logging.basicConfig(level=logging.INFO, format="%(message)s")

    def __repr__(self) -> str:
        return self._title  # Ray's dashboard and log lines show it

    def process(self) -> Process:
        """Return this worker's process. Called first, so that it can be ended whatever happens next."""
        return Process.current()

    def prepare(self, imports: Sequence[str]) -> Device:
        """Import modules in advance (torch takes seconds), and return the device."""
        for module in imports:
            importlib.import_module(module)
        if not self._use_gpu:
            return Device("cpu", "cpu")
        import torch

        # Ray shows each worker only its own GPUs, so the one it uses is number 0.
        return Device("cuda:0", f"cuda:{','.join(map(str, ray.get_gpu_ids()))} {torch.cuda.get_device_name(0)}")

    def free_port(self, host: str) -> int:
        """Return a free port on `host`, this worker's address."""
        with socket.socket() as listener:
            listener.bind((host, 0))
            port: int = listener.getsockname()[1]
            return port

    def begin(self, work: Work, assignment: WorkerAssignment) -> Answer:
        """Start `work` in a thread, and immediately return an empty answer, as from a first poll."""
        self._background.begin(lambda report: work(assignment, report))
        return Answer([], None)

    def poll(self, wait_s: float) -> Answer:
        """Return what happened since the last poll; wait up to wait_s for something to happen."""
        return self._background.poll(wait_s)
