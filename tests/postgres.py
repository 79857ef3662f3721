"""A real PostgreSQL for tests: a cluster of its own in a temporary directory, reached by a unix socket, gone with the tests.

    with postgres_cluster() as postgres:
        url = postgres.create("a_database")

It is not durable (no fsync), so that a database is made and thrown away in a few milliseconds.
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

STARTS_WITHIN_S = 60
ABSENT = "PostgreSQL's server is not installed (Debian: apt-get install postgresql)"

# Ends PostgreSQL when the tests end, however they do: then its standard input is closed.
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
    """The directory with `initdb` and `postgres`, of the newest version; None where PostgreSQL is not installed."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name), reverse=True)
    on_path = [Path(found).resolve().parent] if (found := shutil.which("postgres")) else []
    return next((path for path in [*debian, *on_path] if (path / "initdb").exists() and (path / "postgres").exists()), None)


class PostgresCluster:
    """A cluster in `directory`, made by :func:`postgres_cluster`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        found = binaries()
        assert found is not None, ABSENT
        self._binaries = found

    def initialise(self) -> None:
        """Make the cluster's files."""
        if os.geteuid() == 0:
            shutil.chown(self._directory, "postgres", "postgres")
        command = [self._binaries / "initdb", "--pgdata", self._data, "--username=cafe", "--auth=trust", "--encoding=UTF8"]
        made = subprocess.run([*command, "--no-locale", "--no-sync"], **_not_as_root(), cwd="/", capture_output=True, text=True)
        assert made.returncode == 0, made.stderr

    def start(self) -> None:
        """Start it; returns when it answers."""
        assert self._process is None
        settings = [word for name, value in _SETTINGS.items() for word in ("-c", f"{name}={value}")]
        command = [self._binaries / "postgres", "-D", self._data, "-k", self._directory, *settings]
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                ["sh", "-c", _GUARD, "sh", *map(str, command)],
                **_not_as_root(),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,  # Ctrl-C is for the tests, which end it then
            )
        deadline = time.monotonic() + STARTS_WITHIN_S
        while not self._answers():
            assert self._process.poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.02)

    def stop(self) -> None:
        """End it as a crash does: connections break, nobody is told, what was committed stays."""
        if self._process is None:
            return
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=30)
        finally:
            self._kill_what_is_left()
            self._process = None

    @contextmanager
    def down(self) -> Iterator[None]:
        """Not there within the block."""
        self.stop()
        try:
            yield
        finally:
            self.start()

    def url(self, database: str) -> str:
        """As CAFE_DATABASE_URL says it."""
        return f"postgresql://cafe@/{database}?host={self._directory}"

    def create(self, database: str, *, template: str = "template0") -> str:
        """A new database, a copy of `template`, which nobody is connected to; its URL."""
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
        """What it printed."""
        return (self._directory / "log").read_text()

    @property
    def _data(self) -> Path:
        return self._directory / "data"

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.url("postgres"), connect_timeout=5).close()
        except psycopg.OperationalError:
            return False
        return True

    def _kill_what_is_left(self) -> None:
        pid_file = self._data / "postmaster.pid"
        if pid_file.exists():  # it did not end by itself
            os.kill(int(pid_file.read_text().split()[0]), signal.SIGKILL)
            pid_file.unlink()


@contextmanager
def postgres_cluster() -> Iterator[PostgresCluster]:
    """A running cluster; removed with all its databases at the end of the block."""
    directory = Path(tempfile.mkdtemp(prefix="cafe-pg-", dir="/tmp"))  # the path of a unix socket is short
    cluster = PostgresCluster(directory)
    try:
        cluster.initialise()
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(directory)


def _not_as_root() -> dict[str, object]:
    """How to start a process as somebody whom PostgreSQL accepts."""
    return {"user": "postgres", "group": "postgres", "extra_groups": []} if os.geteuid() == 0 else {}
