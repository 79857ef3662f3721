"""A local Ray of the server's own: `ray start --head --block` in a process group of its own, bound to loopback.

No ray is imported. Several may run on one machine: every port is free or chosen by Ray, the session lies in a directory
of its own (short: the paths of its sockets may take 107 bytes). Token authentication is on; the token is made for each
start, lies in a file that only this user can read, and is on no command line and in no job's record.

It ends with the server: on `close`, and on the server's death by PR_SET_PDEATHSIG, upon which Ray ends what it started.
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
JOB_STOP_WAIT_S = 20
"""Between Ray's SIGTERM and SIGKILL to a driver: time to end its workers and write a last event."""

_UNTIL_PARENT_DIES = """
import ctypes, os, signal, sys
ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
if os.getppid() != int(sys.argv[1]):
    sys.exit("the server has died already")
os.execv(sys.argv[2], sys.argv[2:])
"""


class EmbeddedRayError(Exception):
    """The local Ray did not start; the message holds what it printed."""


class EmbeddedRay:
    """A context manager around a running local Ray. Enter it in the main thread: Ray lives as long as that does."""

    def __init__(self, *, num_cpus: int | None = None) -> None:
        self._num_cpus = num_cpus
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: BinaryIO | None = None
        self.directory = Path()
        """Its session, logs and token."""
        self.token = secrets.token_hex(32)
        self.token_file = Path()
        self.address = ""

    def __enter__(self) -> EmbeddedRay:
        _remove_left_over()
        self.directory, self._lock = _new_directory()
        try:
            self._start_somewhere()
        except BaseException:
            self.close()
            raise
        return self

    @property
    def pid(self) -> int:
        """The process that the others were started by; also the id of their session."""
        assert self._process is not None
        return self._process.pid

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def has_ended(self) -> bool:
        """Whether it runs no jobs any more: what was started has ended, or its only node has left with one of its daemons.

        False where that is not known: it starts, or does not answer.
        """
        if self._process is None or self._process.poll() is not None:
            return True
        with self._http() as http, contextlib.suppress(httpx.TransportError):
            nodes = http.get("/nodes", params={"view": "summary"})
            states = [node["raylet"].get("state") for node in nodes.json()["data"]["summary"]] if nodes.is_success else []
            return bool(states) and "ALIVE" not in states
        return False

    def restart(self) -> None:
        """Start it again, at the same address, without waiting until it is ready. For one that has ended."""
        self._end()
        self._start()

    def _http(self) -> httpx.Client:
        headers = {"Authorization": f"Bearer {self.token}"}
        return httpx.Client(base_url=self.address, headers=headers, timeout=5, trust_env=False)

    def _start_somewhere(self) -> None:
        """A port that is free when it is chosen may be taken when Ray, seconds later, binds it: then another one is tried."""
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
                start_new_session=True,  # Ctrl-C in the server's terminal is the server's to handle
            )

    def _environment(self) -> dict[str, str]:
        # Nothing of the server's own: its settings hold secrets, and drivers run what users describe.
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "CAFE_"))}
        here = str(Path(__file__).resolve().parents[2])
        return inherited | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token_file),
            "RAY_USAGE_STATS_ENABLED": "0",
            # Named after where it is the default: Ray then takes 127.0.0.1 for the node's address, so all ports are loopback's.
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",  # nobody is left to drain for
            "RAY_JOB_STOP_WAIT_TIME_S": str(JOB_STOP_WAIT_S),
            # Ports of metrics that are fixed otherwise, so that a second Ray would find them taken.
            "AUTOSCALER_METRIC_PORT": str(_free_ports(1)[0]),
            "DASHBOARD_METRIC_PORT": str(_free_ports(1)[0]),
            # Drivers find `workers` where this server found itself, installed or not.
            "PYTHONPATH": os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")])),
        }

    def _wait_until_ready(self) -> None:
        """Returns when jobs can be submitted. Raises EmbeddedRayError."""
        assert self._process is not None
        deadline = time.monotonic() + READY_WITHIN_S
        with self._http() as http:
            while time.monotonic() < deadline:
                if self._process.poll() is not None:
                    raise EmbeddedRayError(f"the local Ray ended with code {self._process.returncode}:\n{self.output()}")
                with contextlib.suppress(httpx.TransportError):
                    nodes = http.get("/nodes", params={"view": "summary"})
                    if nodes.is_success and nodes.json()["data"]["summary"] and http.get("/api/jobs/").is_success:
                        return
                time.sleep(0.1)
        raise EmbeddedRayError(f"the local Ray was not ready within {READY_WITHIN_S:g} s:\n{self.output()}")

    def output(self) -> str:
        """The end of what it has printed since it was started last."""
        return (self.directory / "output").read_text(encoding="utf-8", errors="replace")[-4000:]

    def close(self) -> None:
        """End what was started, and remove its directory. Safe to call twice."""
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
    """End what is left of the session that Ray was started in: its daemons, should they have outlived it.

    Drivers have sessions of their own; Ray's own watchers end them once their supervisors are gone.
    """
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # ended meanwhile
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(fields[3]) == session and fields[0] != "Z":
                    os.kill(int(entry.name), signal.SIGKILL)


def _new_directory() -> tuple[Path, BinaryIO]:
    """A directory of this server's own, and the lock that says so for as long as it is open, that is, the server lives.

    It gets its name when it is locked, so that nobody takes it for left over before.
    """
    unnamed = Path(tempfile.mkdtemp(prefix=f".{DIRECTORY_PREFIX}", dir=PARENT))
    lock = (unnamed / LOCK).open("wb")
    fcntl.flock(lock, fcntl.LOCK_EX)
    return unnamed.rename(unnamed.with_name(unnamed.name.removeprefix("."))), lock


def _remove_left_over() -> None:
    """Remove the directories of servers of this user that were killed before they could: nobody holds their locks.

    A lock is known across PID namespaces that share /tmp, as a process id is not. Servers that start at once may meet here.
    """
    for directory in PARENT.glob(f"{DIRECTORY_PREFIX}*"):
        try:
            if directory.lstat().st_uid != os.getuid():
                continue
            with (directory / LOCK).open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(directory, ignore_errors=True)
        except (FileNotFoundError, BlockingIOError):
            continue  # removed by another server just now; or in use


def _free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
