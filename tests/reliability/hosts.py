"""Run several "machines" on one: network namespaces on a bridge of their own, which the caller can reach too.

::

    the caller ── 10.x.y.254 ──┬── 10.x.y.1   host 0
                    (bridge)   ├── 10.x.y.2   host 1
                               └── …

A host shares the files and the process IDs of the machine, but not its network. If a network is cut, packets are dropped
without an answer. Needs root.
"""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass


def unavailable_reason() -> str | None:
    """Return why network namespaces cannot be created on this machine, or None if they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    name = f"cafe-try-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"cannot create a network namespace: {made.stderr.strip()}"
    _ip("netns", "delete", name)
    return None


@dataclass(frozen=True)
class Host:
    """A network namespace. `port` is its interface at the bridge."""

    name: str
    address: str
    port: str

    def command(self, *command: str) -> list[str]:
        """Return the command that runs `command` on this host."""
        return ["ip", "netns", "exec", self.name, *command]

    def pids(self) -> list[int]:
        """Return the IDs of all processes on this host."""
        found = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True, check=True)
        return [int(pid) for pid in found.stdout.split()]


@contextmanager
def hosts(count: int) -> Iterator[list[Host]]:
    """Create `count` hosts. The caller must end their processes before the end of the block."""
    tag = f"{random.randrange(16**4):04x}"
    network = f"10.{random.randrange(100, 250)}.{random.randrange(1, 250)}"
    bridge = f"cafe{tag}"
    with ExitStack() as undo:
        _ip("link", "add", bridge, "type", "bridge")
        undo.callback(_ip, "link", "delete", bridge)
        _ip("address", "add", f"{network}.254/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        made = []
        for number in range(count):
            host = Host(f"cafe-{tag}-{number}", f"{network}.{number + 1}", f"cafe{tag}p{number}")
            _ip("netns", "add", host.name)
            undo.callback(_ip, "netns", "delete", host.name)  # and with it both interfaces of its link
            _ip("link", "add", host.port, "type", "veth", "peer", "name", "eth0", "netns", host.name)
            _ip("link", "set", host.port, "master", bridge, "up")
            _ip("-n", host.name, "address", "add", f"{host.address}/24", "dev", "eth0")
            _ip("-n", host.name, "link", "set", "eth0", "up")
            _ip("-n", host.name, "link", "set", "lo", "up")
            made.append(host)
        yield made


@contextmanager
def cut_between(cut: Sequence[Host]) -> Iterator[None]:
    """Cut these hosts off from each other within the block. All others still reach them."""
    for host in cut:
        _set_isolated(host, "on")
    try:
        yield
    finally:
        for host in cut:
            _set_isolated(host, "off")


@contextmanager
def cut_off(host: Host) -> Iterator[None]:
    """Cut the host off from all others within the block."""
    _ip("link", "set", host.port, "down")
    try:
        yield
    finally:
        _ip("link", "set", host.port, "up")


def _set_isolated(host: Host, state: str) -> None:
    """Set whether a port is isolated. Isolated ports of a bridge forward nothing to each other."""
    subprocess.run(["bridge", "link", "set", "dev", host.port, "isolated", state], check=True)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
