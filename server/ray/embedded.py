"""Run a local Ray for the server: `ray start --head --block` in its own session, bound to loopback, without importing ray.

Several can run on one machine: all ports are free ones or chosen by Ray, and each session has its own directory (with a short
path, because socket paths are limited to 107 bytes). Token authentication is on. The token is created per server and stored in
a file that only this user can read; it appears on no command line and in no job.

Ray ends with the server: `close` ends it, or PR_SET_PDEATHSIG if the server dies; Ray then ends its own processes.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

import httpx

READY_WITHIN_S = 120.0
START_TRIES = 3
STOP_WITHIN_S = 10.0
PARENT = Path("/tmp")
DIRECTORY_PREFIX = "cafe-ray-"
LOCK = "lock"
ASSIGNED_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")
"""Linux's file with the first and the last port that the kernel assigns to programs that ask for any port."""
LOWEST_PORT = 20_000
"""The lowest port that is chosen for Ray."""
JOB_STOP_WAIT_S = 20
"""Time between Ray's SIGTERM and SIGKILL to a driver, in which it ends its workers and writes its terminal event."""

_UNTIL_PARENT_DIES = """
import ctypes, os, signal, sys
ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
if os.getppid() != int(sys.argv[1]):
    sys.exit("the server has already died")
os.execv(sys.argv[2], sys.argv[2:])
"""


class EmbeddedRayError(Exception):
    """The local Ray did not start; the message contains its output."""


class EmbeddedRay:
    """A context manager that runs a local Ray. Enter it in the main thread: Ray ends with the thread that started it."""

    def __init__(self, *, num_cpus: int | None = None) -> None:
        self._num_cpus = num_cpus
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: BinaryIO | None = None
        self.directory = Path()
        """Contains its session, logs and token."""
        self.token = secrets.token_hex(32)
        self.token_file = Path()
        self.address = ""

    def __enter__(self) -> EmbeddedRay:
        _remove_stale_directories()
        self.directory, self._lock = _new_directory()
        try:
            self._start_on_free_port()
        except BaseException:
            self.close()
            raise
        return self

    @property
    def pid(self) -> int:
        """Return the id of the process that started the others, which is also their session id."""
        assert self._process is not None
        return self._process.pid

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def has_ended(self) -> bool:
        """Return whether it can no longer run jobs: its process has ended, or its only node is dead because a daemon died.

        Return False if that is unknown: it is starting or does not answer.
        """
        if self._process is None or self._process.poll() is not None:
            return True
        with self._http() as http, contextlib.suppress(httpx.TransportError):
            nodes = http.get("/nodes", params={"view": "summary"})
            states = [node["raylet"].get("state") for node in nodes.json()["data"]["summary"]] if nodes.is_success else []
            return bool(states) and "ALIVE" not in states
        return False

    def restart(self) -> None:
        """Start it again after it has ended, at the same address, without waiting until it is ready."""
        self._end()
        self._start()

    def _http(self) -> httpx.Client:
        headers = {"Authorization": f"Bearer {self.token}"}
        return httpx.Client(base_url=self.address, headers=headers, timeout=5, trust_env=False)

    def _start_on_free_port(self) -> None:
        """Start Ray. A port that was free when chosen may be taken when Ray binds it seconds later; retry then."""
        for tries_left in reversed(range(START_TRIES)):
            self._start()
            try:
                self._wait_until_ready()
            except EmbeddedRayError:
                if not tries_left or "occupied" not in self.output():
                    raise
                self._end()
                self.address = ""
            else:
                return

    def _start(self) -> None:
        self.token_file = self.directory / "token"
        self.token_file.touch(mode=0o600)
        self.token_file.write_text(self.token, encoding="utf-8")
        port, client_port = _free_ports(2)
        self.address = self.address or f"http://127.0.0.1:{port}"
        command = [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"),
            *("--node-ip-address", "127.0.0.1", "--port", "0", "--min-worker-port", "0", "--max-worker-port", "0"),
            *("--include-dashboard", "true", "--dashboard-host", "127.0.0.1"),
            *("--dashboard-port", str(urlsplit(self.address).port)),
            *("--dashboard-agent-listen-port", "0", "--ray-client-server-port", str(client_port)),
            *("--include-log-monitor", "false", "--log-color", "false", "--temp-dir", str(self.directory / "ray")),
        ]
        if self._num_cpus is not None:
            command += ["--num-cpus", str(self._num_cpus)]
        with (self.directory / "output").open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _UNTIL_PARENT_DIES, str(os.getpid()), *command],
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that Ctrl-C in the terminal reaches only the server
            )

    def _environment(self) -> dict[str, str]:
        # Do not pass on the server's settings: they contain secrets, and drivers run what users describe.
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "CAFE_"))}
        here = str(Path(__file__).resolve().parents[2])
        return inherited | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token_file),
            "RAY_USAGE_STATS_ENABLED": "0",
            # With 0, Ray uses 127.0.0.1 as the node's address, so all ports are bound to loopback.
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",  # there is no other node to drain to
            "RAY_JOB_STOP_WAIT_TIME_S": str(JOB_STOP_WAIT_S),
            # Metrics ports are fixed by default, so a second Ray on the machine would find them taken.
            "AUTOSCALER_METRIC_PORT": str(_free_ports(1)[0]),
            "DASHBOARD_METRIC_PORT": str(_free_ports(1)[0]),
            # Let drivers import `workers` from where this server was imported, whether installed or not.
            "PYTHONPATH": os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")])),
        }

    def _wait_until_ready(self) -> None:
        """Wait until jobs can be submitted. Raises EmbeddedRayError."""
        assert self._process is not None
        deadline = time.monotonic() + READY_WITHIN_S
        with self._http() as http:
            while time.monotonic() < deadline:
                if self._process.poll() is not None:
                    raise EmbeddedRayError(f"the local Ray exited with code {self._process.returncode}:\n{self.output()}")
                with contextlib.suppress(httpx.TransportError):
                    nodes = http.get("/nodes", params={"view": "summary"})
                    if nodes.is_success and nodes.json()["data"]["summary"] and http.get("/api/jobs/").is_success:
                        return
                time.sleep(0.1)
        raise EmbeddedRayError(f"the local Ray was not ready within {READY_WITHIN_S:g} s:\n{self.output()}")

    def output(self) -> str:
        """Return the end of its output since its last start."""
        return (self.directory / "output").read_text(encoding="utf-8", errors="replace")[-4000:]

    def close(self) -> None:
        """End Ray and remove its directory. Idempotent."""
        self._end()
        if self._lock is not None:
            shutil.rmtree(self.directory, ignore_errors=True)
            self._lock.close()
            self._lock = None

    def _end(self) -> None:
        if self._process is None:
            return
        session = self._process.pid
        self._process.terminate()
        try:
            self._process.wait(STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        _end_session(session)
        self._process = None


def _end_session(session: int) -> None:
    """Kill the processes that remain in Ray's session, such as daemons that outlived it.

    Drivers have their own sessions; Ray's watchers end them once their supervisors are gone.
    """
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # the process has ended
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(fields[3]) == session and fields[0] != "Z":
                    os.kill(int(entry.name), signal.SIGKILL)


def _new_directory() -> tuple[Path, BinaryIO]:
    """Create a directory and lock it until this server ends.

    It gets its final name once it is locked, so that no other server mistakes it for a stale one.
    """
    unnamed = Path(tempfile.mkdtemp(prefix=f".{DIRECTORY_PREFIX}", dir=PARENT))
    lock = (unnamed / LOCK).open("wb")
    fcntl.flock(lock, fcntl.LOCK_EX)
    return unnamed.rename(unnamed.with_name(unnamed.name.removeprefix("."))), lock


def _remove_stale_directories() -> None:
    """Remove directories that killed servers of this user left behind: their locks are free.

    Unlike process ids, locks work across PID namespaces that share /tmp. Servers that start at the same time may run this
    together.
    """
    for directory in PARENT.glob(f"{DIRECTORY_PREFIX}*"):
        try:
            if directory.lstat().st_uid != os.getuid():
                continue
            with (directory / LOCK).open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(directory, ignore_errors=True)
        except (FileNotFoundError, BlockingIOError):
            continue  # another server has just removed it, or it is in use


def _free_ports(count: int) -> list[int]:
    """Return unused ports of 127.0.0.1, below those that the kernel assigns by itself, if there are enough.

    Ray binds them seconds later. Another program that binds any free port in the meantime must not get one of them: Ray ends if
    its client server cannot bind its port.
    """
    first_assigned = int(ASSIGNED_PORTS.read_text().split()[0]) if ASSIGNED_PORTS.exists() else 0
    choices = range(LOWEST_PORT, first_assigned)
    with contextlib.ExitStack() as stack:
        found: list[int] = []
        while len(found) < count:
            listener = stack.enter_context(socket.socket())
            with contextlib.suppress(OSError):  # the port is in use
                listener.bind(("127.0.0.1", secrets.choice(choices) if len(choices) > 1000 else 0))
                found.append(listener.getsockname()[1])
        return found
