"""Provide the collectives of a gang of workers.

The sharded method needs three operations. Each counts the numbers that it sends, so that communication per step can be
measured. A gang of one makes the same calls, which then send nothing.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class Comm:
    """The communicator of rank `rank` in a gang of `world` workers."""

    def __init__(self, rank: int, world: int, group: Any = None) -> None:
        self.rank = rank
        self.world = world
        self.numbers = 0
        """Numbers this rank has contributed to collectives so far."""
        self._group = group

    @classmethod
    def single(cls) -> Comm:
        """Return the communicator of a gang of one."""
        return cls(0, 1)

    @classmethod
    def connect(
        cls, *, rank: int, world: int, address: str, device: torch.device, timeout_s: float, host: str | None = None
    ) -> Comm:
        """Join a gang: NCCL between GPUs, Gloo between CPUs.

        address: HOST:PORT where rank 0's key-value store listens. host: address of this worker's network interface for Gloo
        (default: what the host's name resolves to). timeout_s: limit of the rendezvous and of every collective; exceeding it
        raises RuntimeError on the waiting ranks.
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
            # Pass a socket, because by default the store listens on all interfaces.
            master_listen_fd=listener.detach() if listener is not None else None,
        )
        return cls(rank, world, _process_group(store, rank, world, device, timeout, host))

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Sum `tensor` over all ranks, in place."""
        self.numbers += tensor.numel()
        if self._group is not None:
            self._group.allreduce([tensor]).wait()
        return tensor

    def all_reduce_all(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Sum each of the tensors over all ranks, in a single collective. Return the sums; a gang of one returns the tensors."""
        if self._group is None:
            self.numbers += sum(tensor.numel() for tensor in tensors)
            return list(tensors)
        flat = self.all_reduce(torch.cat([tensor.flatten() for tensor in tensors]))
        parts = flat.split_with_sizes([tensor.numel() for tensor in tensors])
        return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]

    def gather_rows(self, rows: Tensor, start: int, total: int) -> Tensor:
        """Gather all ranks' rows on every rank: this rank's rows (n, D) become rows [start, start + n) of (total, D).

        Shards differ in size, so this sums buffers that are zero outside each rank's own rows. The sum is exact (x + 0 = x)
        and sends `total`·D numbers without padding. A gang of one that holds all `total` rows
        returns the tensor itself.
        """
        if self.world == 1 and len(rows) == total:
            return self.all_reduce(rows)
        gathered = rows.new_zeros(total, *rows.shape[1:])
        gathered[start : start + len(rows)] = rows
        return self.all_reduce(gathered)

    def gather_to_root(self, rows: Tensor, counts: list[int]) -> Tensor | None:
        """Concatenate all ranks' rows in rank order on rank 0; return None on other ranks. counts: rows of each rank."""
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
    # Create process groups directly, because init_process_group keeps one global group per process. This lets a test run
    # a whole gang in one process, and lets a worker choose the interface it listens on.
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
