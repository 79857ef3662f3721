"""Start a temporary PostgreSQL cluster for tests.

The cluster lives in a temporary directory, listens on a Unix socket only, and is removed after the tests:

    with postgres_cluster() as postgres:
        url = postgres.create("a_database")

It is not durable (no fsync), so that creating and dropping a database takes a few milliseconds.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import psycopg

START_TIMEOUT_S = 60
ABSENT = "PostgreSQL's server is not installed (Debian: apt-get install postgresql)"

# Run PostgreSQL and kill it when standard input is closed, which happens however the test process ends.
_GUARD = """
"$@" & child=$!
trap 'kill -QUIT $child 2>/dev/null' TERM INT HUP
cat >/dev/null
kill -QUIT $child 2>/dev/null
wait $child
"""
_SETTINGS = {
    "listen_addresses": "",
    "fsync": "off",
    "full_page_writes": "off",
    "max_connections": "200",
    "shared_buffers": "32MB",
    "autovacuum": "off",
}


@cache
def binaries() -> Path | None:
    """Return the directory with `initdb` and `postgres` of the newest version, or None if PostgreSQL is not installed."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name), reverse=True)
    on_path = [Path(found).resolve().parent] if (found := shutil.which("postgres")) else []
    return next((path for path in [*debian, *on_path] if (path / "initdb").exists() and (path / "postgres").exists()), None)


class PostgresCluster:
    """A PostgreSQL cluster in `directory`. Use :func:`postgres_cluster` to create one."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        found = binaries()
        assert found is not None, ABSENT
        self._binaries = found

    def initialise(self) -> None:
        """Create the cluster's files."""
        if os.geteuid() == 0:
            shutil.chown(self._directory, "postgres", "postgres")
        command = [self._binaries / "initdb", "--pgdata", self._data, "--username=cafe", "--auth=trust", "--encoding=UTF8"]
        made = subprocess.run(
            [*command, "--no-locale", "--no-sync"], **_unprivileged_user(), cwd="/", capture_output=True, text=True
        )
        assert made.returncode == 0, made.stderr

    def start(self) -> None:
        """Start the server and wait until it accepts connections."""
        assert self._process is None
        settings = [word for name, value in _SETTINGS.items() for word in ("-c", f"{name}={value}")]
        command = [self._binaries / "postgres", "-D", self._data, "-k", self._directory, *settings]
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                ["sh", "-c", _GUARD, "sh", *map(str, command)],
                **_unprivileged_user(),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,  # so that Ctrl-C reaches only the tests, which then stop the server
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._accepts_connections():
            assert self._process.poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.02)

    def stop(self) -> None:
        """Stop the server as a crash would: connections break without notice, and committed transactions are kept."""
        if self._process is None:
            return
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=30)
        finally:
            self._kill_if_still_running()
            self._process = None

    @contextmanager
    def down(self) -> Iterator[None]:
        """Stop the server for the duration of the block."""
        self.stop()
        try:
            yield
        finally:
            self.start()

    def url(self, database: str) -> str:
        """Return the URL of a database, in the form of CAFE_DATABASE_URL."""
        return f"postgresql://cafe@/{database}?host={self._directory}"

    def create(self, database: str, *, template: str = "template0") -> str:
        """Create a database as a copy of `template`, which must have no open connections, and return its URL."""
        self.execute(f'CREATE DATABASE "{database}" TEMPLATE "{template}"')
        return self.url(database)

    def drop(self, database: str) -> None:
        """Remove a database and break all connections to it."""
        self.execute(f'DROP DATABASE IF EXISTS "{database}" WITH (FORCE)')

    def execute(self, statement: str, *, database: str = "postgres") -> list[tuple[object, ...]]:
        """Run a statement in a transaction of its own, and return its rows."""
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            cursor = connection.execute(statement)  # type: ignore[call-overload]  # statements of tests, not of users
            return cursor.fetchall() if cursor.description else []

    def log(self) -> str:
        """Return the output of the server."""
        return (self._directory / "log").read_text()

    @property
    def _data(self) -> Path:
        return self._directory / "data"

    def _accepts_connections(self) -> bool:
        try:
            psycopg.connect(self.url("postgres"), connect_timeout=5).close()
        except psycopg.OperationalError:
            return False
        return True

    def _kill_if_still_running(self) -> None:
        pid_file = self._data / "postmaster.pid"
        if pid_file.exists():  # the server did not stop by itself
            os.kill(int(pid_file.read_text().split()[0]), signal.SIGKILL)
            pid_file.unlink()


@contextmanager
def postgres_cluster() -> Iterator[PostgresCluster]:
    """Start a cluster, and remove it with all its databases at the end of the block."""
    directory = Path(tempfile.mkdtemp(prefix="cafe-pg-", dir="/tmp"))  # in /tmp, because the path of a Unix socket must be short
    cluster = PostgresCluster(directory)
    try:
        cluster.initialise()
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(directory)


def _unprivileged_user() -> dict[str, object]:
    """Return the arguments of `subprocess` that avoid running as root, which PostgreSQL refuses."""
    return {"user": "postgres", "group": "postgres", "extra_groups": []} if os.geteuid() == 0 else {}
