"""`cafe serve` as a process on a port of its own, to be killed and started again at will."""

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
    """A context manager around it. It keeps its port from one start to the next."""

    def __init__(self, data_dir: Path, *options: str, **environ: str) -> None:
        """options: of `cafe serve`; environ: added to this process's environment."""
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

    def start(self, *, dies_at: str | None = None) -> None:
        """Start it and wait until it is ready; dies_at: a step of :mod:`tests.reliability.mortal`."""
        program = ["-m", "tests.reliability.mortal", dies_at] if dies_at else ["-c", "from server.cli.main import main; main()"]
        command = [sys.executable, *program, "serve", "--port", str(self.port), "--data-dir", str(self.data_dir), *self._options]
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(command, env=os.environ | self._environ, cwd=ROOT, stdout=output, stderr=output)
        deadline = time.monotonic() + START_WITHIN_S
        while not self._is_ready():
            assert self._process.poll() is None, self.printed()
            assert time.monotonic() < deadline, self.printed()
            time.sleep(0.1)

    def _is_ready(self) -> bool:
        try:
            return self.api.get("/readyz").is_success
        except httpx.TransportError:
            return False

    @property
    def pid(self) -> int:
        """Its process's number."""
        assert self._process is not None
        return self._process.pid

    @property
    def process(self) -> psutil.Process:
        """Its process, to be measured."""
        return psutil.Process(self.pid)

    def kill(self) -> None:
        """SIGKILL."""
        self.ended_by(signal.SIGKILL)

    def ended_by(self, how: signal.Signals | None = None) -> None:
        """Send it a signal, if one is given, and wait until it has ended."""
        assert self._process is not None
        if how is not None:
            self._process.send_signal(how)
        self._process.wait(60)

    def printed(self) -> str:
        """The end of what it has printed."""
        return self.log.read_text()[-6000:]

    def stop(self) -> None:
        """End it, as an operator does; what it had to end is gone then."""
        assert self._process is not None
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def close(self) -> None:
        """End it, and the connections to it. Safe to call twice."""
        if self._process is not None and self._process.poll() is None:
            self.stop()
        self.api.close()


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
