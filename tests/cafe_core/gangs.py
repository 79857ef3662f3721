"""Run a whole gang in one process: one thread per rank, connected by real Gloo."""

from __future__ import annotations

import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from cafe_core.algorithm.collectives import Comm

T = TypeVar("T")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def run_gang(world: int, work: Callable[[Comm], T], timeout_s: float = 60) -> list[T]:
    """Call `work(comm)` on every rank. Return the results in rank order, or raise the first exception."""
    address = f"127.0.0.1:{free_port()}"

    def rank_main(rank: int) -> T:
        device = torch.device("cpu")
        comm = Comm.connect(rank=rank, world=world, address=address, device=device, timeout_s=timeout_s, host="127.0.0.1")
        try:
            return work(comm)
        finally:
            comm.close()

    with ThreadPoolExecutor(world) as pool:
        return [future.result() for future in [pool.submit(rank_main, rank) for rank in range(world)]]
