"""Several "machines" on one: network namespaces on a bridge of their own, which the caller reaches too.

::

    the caller ── 10.x.y.254 ──┬── 10.x.y.1   host 0
                    (bridge)   ├── 10.x.y.2   host 1
                               └── …

A host shares the files and the process ids of the machine, and nothing of its network: a cut is a real one, packets vanish
without an answer. Needs root.
"""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass


def reason_for_none() -> str | None:
    """Why this machine has no network namespaces to give, or None where it has."""
    if os.geteuid() != 0:
        return "only root can make network namespaces"
    name = f"cafe-try-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"this machine makes no network namespace: {made.stderr.strip()}"
    _ip("netns", "delete", name)
    return None


@dataclass(frozen=True)
class Host:
    """One namespace. `port` is its end at the bridge."""

    name: str
    address: str
    port: str

    def command(self, *command: str) -> list[str]:
        """`command` as it is run on this host."""
        return ["ip", "netns", "exec", self.name, *command]

    def pids(self) -> list[int]:
        """All processes that run on this host."""
        found = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True, check=True)
        return [int(pid) for pid in found.stdout.split()]


@contextmanager
def hosts(count: int) -> Iterator[list[Host]]:
    """So many hosts. Their processes are the caller's to end before."""
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
            undo.callback(_ip, "netns", "delete", host.name)  # and with it both ends of its cable
            _ip("link", "add", host.port, "type", "veth", "peer", "name", "eth0", "netns", host.name)
            _ip("link", "set", host.port, "master", bridge, "up")
            _ip("-n", host.name, "address", "add", f"{host.address}/24", "dev", "eth0")
            _ip("-n", host.name, "link", "set", "eth0", "up")
            _ip("-n", host.name, "link", "set", "lo", "up")
            made.append(host)
        yield made


@contextmanager
def cut_between(cut: Sequence[Host]) -> Iterator[None]:
    """Within, these hosts do not reach one another; all others reach them."""
    for host in cut:
        _isolated(host, "on")
    try:
        yield
    finally:
        for host in cut:
            _isolated(host, "off")


@contextmanager
def cut_off(host: Host) -> Iterator[None]:
    """Within, the host reaches nobody."""
    _ip("link", "set", host.port, "down")
    try:
        yield
    finally:
        _ip("link", "set", host.port, "up")


def _isolated(host: Host, state: str) -> None:
    """Isolated ports of a bridge forward nothing to one another."""
    subprocess.run(["bridge", "link", "set", "dev", host.port, "isolated", state], check=True)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
