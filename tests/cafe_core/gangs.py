"""A whole gang in one process: a thread per rank, real Gloo between them."""

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
    """work(comm) on every rank; the results in rank order. The first exception is raised."""
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
