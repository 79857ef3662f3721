"""Run a Ray of several nodes, each on its own host, started as an operator would: `ray start`, with a token.

The first node is the head. It has no CPUs, so that only drivers run on it; the other nodes have one CPU each for workers.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.reliability.hosts import Host

READY_WITHIN_S = 180.0
ROOT = Path(__file__).parents[2]
RAYLET, DASHBOARD, AGENT = "/raylet/raylet ", "/ray/dashboard/dashboard.py", "ray::DashboardAgent"
"""Parts of the command lines of a node's processes."""


class RayNodes:
    """A context manager that runs a Ray with node n on host n."""

    def __init__(self, hosts: Sequence[Host]) -> None:
        self.hosts = list(hosts)
        self.token = secrets.token_hex(32)
        self.address = f"http://{hosts[0].address}:8265"
        self.directory = Path()
        self._started: dict[int, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> RayNodes:
        self.directory = Path(tempfile.mkdtemp(prefix="cafe-nodes-", dir="/tmp"))  # the paths of Ray's sockets must be short
        (self.directory / "token").write_text(self.token, encoding="utf-8")
        try:
            self.restore()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def start(self, number: int) -> None:
        """Start node `number`, without waiting for it."""
        host = self.hosts[number]
        role = ("--head", "--port", "6379", "--dashboard-host", host.address) if number == 0 else ("--address", self._gcs)
        command = [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats", "--log-color", "false"),
            *("--node-ip-address", host.address, "--num-cpus", "0" if number == 0 else "1", "--num-gpus", "0", *role),
            *("--object-store-memory", str(100 << 20), "--temp-dir", str(self.directory / str(number))),
        ]
        with (self.directory / f"output-{number}").open("ab") as output:
            self._started[number] = subprocess.Popen(
                host.command(*command),
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def _gcs(self) -> str:
        return f"{self.hosts[0].address}:6379"

    def _environment(self) -> dict[str, str]:
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "CAFE_"))}
        return inherited | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.directory / "token"),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_JOB_STOP_WAIT_TIME_S": "20",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
        }

    def kill(self, number: int) -> None:
        """Kill all processes on a host, as if it lost power."""
        while pids := self.hosts[number].pids():
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        self._started.pop(number).wait()

    def processes(self, number: int, words: str) -> list[psutil.Process]:
        """Return the processes on a host whose command line contains `words`."""
        found = []
        for pid in self.hosts[number].pids():
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(pid)
                if process.status() != psutil.STATUS_ZOMBIE and words in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def restore(self) -> None:
        """Restart nodes that have ended or that Ray has given up, all of them if the head has. Wait until Ray lists all nodes."""
        old: set[str] = set()
        if not self._is_healthy(0):
            for number in list(self._started):
                self.kill(number)
            self.start(0)
            self._wait_until(lambda: [*self._nodes().values()] == [self.hosts[0].address])
        else:
            old = {id for id, address in self._nodes().items() if not self._is_healthy(self._number(address))}
        for number in range(1, len(self.hosts)):
            if not self._is_healthy(number) or self.hosts[number].address not in self._nodes().values():
                if number in self._started:
                    self.kill(number)
                self.start(number)
        everywhere = sorted(host.address for host in self.hosts)
        self._wait_until(
            lambda: (
                sorted(self._nodes().values()) == everywhere
                and old.isdisjoint(self._nodes())
                and self._get("/api/jobs/").is_success
            )
        )

    def _is_healthy(self, number: int) -> bool:
        """Return whether a node passes its health check: `ray start --block` keeps running without raylet and agent."""
        if number not in self._started or self._started[number].poll() is not None or not self.processes(number, RAYLET):
            return False
        return number != 0 or bool(self.processes(0, DASHBOARD))

    def _number(self, address: str) -> int:
        return next(number for number, host in enumerate(self.hosts) if host.address == address)

    def _wait_until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + READY_WITHIN_S
        while True:
            with contextlib.suppress(httpx.TransportError, KeyError):
                if condition():
                    return
            assert time.monotonic() < deadline, self.output()
            time.sleep(0.2)

    def output(self) -> str:
        """Return the end of the output of each node."""
        return "\n".join(f"{path.name}: {path.read_text()[-2000:]}" for path in sorted(self.directory.glob("output-*")))

    def _get(self, path: str, **options: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.token}"}
        return httpx.get(f"{self.address}{path}", headers=headers, timeout=10, trust_env=False, **options)

    def _nodes(self) -> dict[str, str]:
        """Return the nodes that Ray lists as alive: {id: address}."""
        summary = self._get("/nodes", params={"view": "summary"}).json()["data"]["summary"]
        alive = [entry["raylet"] for entry in summary if entry["raylet"].get("state") == "ALIVE"]
        return {raylet["nodeId"]: raylet["nodeManagerAddress"] for raylet in alive}

    def close(self) -> None:
        """Kill all processes on the hosts and delete the files of the nodes. Idempotent."""
        for number in list(self._started):
            self.kill(number)
        shutil.rmtree(self.directory, ignore_errors=True)


def remaining_resources(address: str, token: str) -> list[str]:
    """Return the placement groups and actors that have not ended. `address` is that of Ray's dashboard."""
    found = []
    for kind, ended in (("placement_groups", "REMOVED"), ("actors", "DEAD")):
        url, headers = f"{address}/api/v0/{kind}", {"Authorization": f"Bearer {token}"}
        answer = httpx.get(url, params={"detail": 1, "limit": 1000}, headers=headers, timeout=30, trust_env=False)
        listed = answer.raise_for_status().json()["data"]["result"]["result"]
        found += [f"{kind[:-1]} {each.get('name') or each.get('class_name')}" for each in listed if each["state"] != ended]
    return found
