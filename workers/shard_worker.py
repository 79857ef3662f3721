"""The actor that owns a class shard: it runs one piece of work at a time and answers while it does."""

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
class Seat:
    """A worker's place among those that work together: what it needs to meet the others."""

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
class Device:
    """What a worker computes on."""

    name: str
    """For torch.device."""
    description: str
    """For people."""


class ShardWorker:
    """Rank `rank` of a gang. Its methods are called one at a time, by the driver."""

    def __init__(self, title: str, threads: int, use_gpu: bool) -> None:
        """threads: CPU threads of one operation."""
        self._title = title
        self._use_gpu = use_gpu
        self._background = Background(threads)
        logging.basicConfig(level=logging.INFO, format="%(message)s")

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
        self._background.begin(lambda report: work(seat, report))
        return Answer([], None)

    def poll(self, wait_s: float) -> Answer:
        """What happened since the last poll; waits up to wait_s for something to happen."""
        return self._background.poll(wait_s)
