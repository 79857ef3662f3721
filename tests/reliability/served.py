"""Run `cafe serve` as a process on its own port, which tests kill and restart."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil

from tests.server.conftest import Api

START_WITHIN_S = 180.0
ROOT = Path(__file__).parents[2]


class Server:
    """A context manager that runs `cafe serve`. It has the same port after a restart."""

    def __init__(self, data_dir: Path, *options: str, **environ: str) -> None:
        """options: for `cafe serve`. environ: added to the environment of this process."""
        self.data_dir = data_dir
        self.log = data_dir.parent / f"{data_dir.name}.log"
        self.port = free_port()
        self.api = Api(base_url=f"http://127.0.0.1:{self.port}", timeout=40, trust_env=False)
        self._options = options
        self._environ = environ
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Server:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def start(self, *, kill_at: str | None = None) -> None:
        """Start the server and wait until it is ready. kill_at: a step of :mod:`tests.reliability.mortal`."""
        program = ["-m", "tests.reliability.mortal", kill_at] if kill_at else ["-c", "from server.cli.main import main; main()"]
        command = [sys.executable, *program, "serve", "--port", str(self.port), "--data-dir", str(self.data_dir), *self._options]
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(command, env=os.environ | self._environ, cwd=ROOT, stdout=output, stderr=output)
        deadline = time.monotonic() + START_WITHIN_S
        while not self._is_ready():
            assert self._process.poll() is None, self.output()
            assert time.monotonic() < deadline, self.output()
            time.sleep(0.1)

    def _is_ready(self) -> bool:
        try:
            return self.api.get("/readyz").is_success
        except httpx.TransportError:
            return False

    @property
    def pid(self) -> int:
        """Return the process ID."""
        assert self._process is not None
        return self._process.pid

    @property
    def process(self) -> psutil.Process:
        """Return the process."""
        return psutil.Process(self.pid)

    def kill(self) -> None:
        """Kill the server with SIGKILL and wait until it has ended."""
        self.await_exit(signal.SIGKILL)

    def await_exit(self, number: signal.Signals | None = None) -> None:
        """Send a signal, if one is given, and wait until the server has ended."""
        assert self._process is not None
        if number is not None:
            self._process.send_signal(number)
        self._process.wait(60)

    def output(self) -> str:
        """Return the end of the server's output."""
        return self.log.read_text()[-6000:]

    def stop(self) -> None:
        """Stop the server with SIGTERM, and wait until it has ended. Kill it if it takes too long."""
        assert self._process is not None
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def close(self) -> None:
        """Stop the server and close the connections to it. Idempotent."""
        if self._process is not None and self._process.poll() is None:
            self.stop()
        self.api.close()


def free_port() -> int:
    """Return a port of 127.0.0.1 that is free now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
