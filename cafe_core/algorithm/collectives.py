"""The collectives of one gang of workers.

Three operations carry the whole sharded method; each counts the numbers it puts on the wire, so that what a
step communicates is measured, not assumed. A gang of one makes the same calls, which then move nothing.
"""

from __future__ import annotations

import socket
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class Comm:
    """Rank `rank` of a gang of `world` workers."""

    def __init__(self, rank: int, world: int, group: Any = None) -> None:
        self.rank = rank
        self.world = world
        self.numbers = 0
        """Numbers this rank has contributed to collectives so far."""
        self._group = group

    @classmethod
    def single(cls) -> Comm:
        """A gang of one."""
        return cls(0, 1)

    @classmethod
    def connect(
        cls, *, rank: int, world: int, address: str, device: torch.device, timeout_s: float, host: str | None = None
    ) -> Comm:
        """Join a gang: NCCL between GPUs, Gloo between CPUs.

        address: HOST:PORT where rank 0's key-value store listens. host: the address of this worker's own network
        interface, which Gloo listens on (default: what the host's name resolves to). timeout_s bounds the rendezvous
        and every later collective; what exceeds it raises RuntimeError on the ranks that wait.
        """
        if world == 1:
            return cls.single()
        timeout = timedelta(seconds=timeout_s)
        store_host, store_port = address.rsplit(":", 1)
        listener = socket.create_server((store_host, int(store_port))) if rank == 0 else None
        store = dist.TCPStore(  # type: ignore[attr-defined]
            store_host,
            int(store_port),
            world,
            is_master=rank == 0,
            timeout=timeout,
            # A socket of ours: left to itself the store listens on all of the machine's interfaces.
            master_listen_fd=listener.detach() if listener is not None else None,
        )
        return cls(rank, world, _process_group(store, rank, world, device, timeout, host))

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Sum `tensor` over all ranks, in place."""
        self.numbers += tensor.numel()
        if self._group is not None:
            self._group.allreduce([tensor]).wait()
        return tensor

    def gather_rows(self, rows: Tensor, start: int, total: int) -> Tensor:
        """All ranks' rows, on every rank: rows (n, D), this rank's, become rows [start, start + n) of (total, D).

        Shards differ in size, so this is a sum of buffers that are zero outside one's own rows: exact (x + 0 = x),
        and `total`·D numbers without padding.
        """
        gathered = rows.new_zeros(total, *rows.shape[1:])
        gathered[start : start + len(rows)] = rows
        return self.all_reduce(gathered)

    def gather_to_root(self, rows: Tensor, counts: list[int]) -> Tensor | None:
        """All ranks' rows, concatenated in rank order, on rank 0 only (None elsewhere). counts: rows of each rank."""
        self.numbers += rows.numel() if self.rank else 0
        if self._group is None:
            return rows
        if self.rank:
            self._group.send([rows.contiguous()], 0, 0).wait()
            return None
        parts = [rows]
        for rank in range(1, self.world):
            part = rows.new_empty(counts[rank], *rows.shape[1:])
            self._group.recv([part], rank, 0).wait()
            parts.append(part)
        return torch.cat(parts)

    def close(self) -> None:
        """Leave the gang."""
        if self._group is not None:
            self._group.shutdown()
            self._group = None


def _process_group(store: Any, rank: int, world: int, device: torch.device, timeout: timedelta, host: str | None) -> Any:
    # The process groups are made directly rather than by init_process_group, which keeps one global group per
    # process: this way a test can be a whole gang in one process, and a worker can say which interface it listens on.
    if device.type == "cuda":
        nccl = dist.ProcessGroupNCCL.Options()
        nccl._timeout = timeout
        return dist.ProcessGroupNCCL(store, rank, world, nccl)
    gloo = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    gloo._timeout = timeout
    gloo._devices = [
        dist.ProcessGroupGloo.create_device(hostname=host) if host else dist.ProcessGroupGloo.create_default_device()
    ]
    return dist.ProcessGroupGloo(store, rank, world, gloo)
