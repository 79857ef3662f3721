"""End processes reliably on any node of the cluster.

`ray.kill` asks a process to exit. A frozen process (SIGSTOP, or stuck in a device driver) does not react, and Ray 2.60 sends
SIGKILL only after 5 s (measured). A gang must not start while a worker of the previous one may still write.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cafe_core.errors import WorkerLostError
from workers.cluster import nodes

EXIT_GRACE_S = 1.0
"""Time that a process gets to exit by itself before SIGKILL."""
KILL_TIMEOUT_S = 30.0
"""How long SIGKILL may take, because the kernel first finishes pending device operations."""
NODE_LOST_WITHIN_S = 90.0
"""How long Ray may take to declare a frozen node dead: five health checks of up to 13 s each, as configured."""


@dataclass(frozen=True)
class Process:
    """Identify a process of the cluster. Unlike a pid, it never identifies a later process as well."""

    pid: int
    started: int
    """Clock ticks since the machine started."""
    node_id: str

    @classmethod
    def current(cls) -> Process:
        """Return the calling process, which must run inside Ray."""
        started = _start_time(os.getpid())
        assert started is not None
        return cls(os.getpid(), started, ray.get_runtime_context().get_node_id())

    def is_alive(self) -> bool:
        """Return whether the process still runs on this machine."""
        return _start_time(self.pid) == self.started


def _start_time(pid: int) -> int | None:
    """Return field 22 of /proc/PID/stat, or None if there is no such process or only a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(")")[2].split()  # the name in parentheses may contain anything
    return None if fields[0] in "ZX" else int(fields[19])


def process_of(pid: int, node_id: str) -> Process | None:
    """Return the process that now has this pid on a node, or None if there is none or the node is not alive."""
    if node_id == ray.get_runtime_context().get_node_id():
        started = _start_time(pid)
    elif all(node.id != node_id for node in nodes()):
        return None
    else:
        there = NodeAffinitySchedulingStrategy(node_id, soft=False)
        ask = ray.remote(_start_time).options(num_cpus=0, name=f"look for process {pid}", scheduling_strategy=there)
        started = ray.get(ask.remote(pid), timeout=KILL_TIMEOUT_S)
    return None if started is None else Process(pid, started, node_id)


def end_here(processes: list[Process]) -> list[Process]:
    """Wait for processes of this machine to exit, SIGKILL those that do not, and return those that still remain."""
    remaining = _wait_until_gone(processes, EXIT_GRACE_S)
    for process in remaining:
        try:
            os.kill(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue  # it exited just now
    return _wait_until_gone(remaining, KILL_TIMEOUT_S)


def _wait_until_gone(processes: list[Process], timeout_s: float) -> list[Process]:
    deadline = time.monotonic() + timeout_s
    while (remaining := [process for process in processes if process.is_alive()]) and time.monotonic() < deadline:
        time.sleep(0.02)
    return remaining


def end_everywhere(processes: Iterable[Process]) -> None:
    """End processes on every node that is alive, as :func:`end_here` does. Processes on a dead node have ended with it.

    Raises WorkerLostError if a process cannot be ended.
    """
    here = ray.get_runtime_context().get_node_id()
    alive = {node.id for node in nodes()}
    by_node = {node: list(group) for node, group in groupby(sorted(processes, key=_node), key=_node)}
    end_remotely = ray.remote(end_here)
    elsewhere = {
        node: end_remotely.options(
            num_cpus=0, name=f"end {len(group)} workers", scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
        ).remote(group)
        for node, group in by_node.items()
        if node != here and node in alive
    }
    remaining = end_here(by_node.get(here, []))
    for node, answer in elsewhere.items():
        try:
            left: list[Process] = ray.get(answer, timeout=KILL_TIMEOUT_S + NODE_LOST_WITHIN_S)
            remaining += left
        except RayError:
            if any(alive.id == node for alive in nodes()):
                raise
    if remaining:
        named = ", ".join(f"{process.pid} on node {process.node_id}" for process in remaining)
        raise WorkerLostError(f"SIGKILL does not end process {named}; restart that machine, then resume the job")


def _node(process: Process) -> str:
    return process.node_id
