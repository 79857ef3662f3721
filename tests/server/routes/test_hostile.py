"""Hostile requests: their status, the server's peak memory, and that nothing stays on disk."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.server.conftest import SPEC
from tests.server.routes.hostile_uploads import UPLOADS, folder

PEAK_BYTES = 500 * 10**6


@dataclass(frozen=True)
class Served:
    """A server in its own process."""

    api: httpx.Client
    port: int
    pid: int
    data_dir: Path

    def peak_bytes(self) -> int:
        """Return the peak resident memory."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) * 1024

    def ask(self, raw: bytes, *, timeout_s: float = 20) -> int:
        """Send raw bytes and return the status; 0 if the connection was closed without a response."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=timeout_s) as connection:
            connection.sendall(raw)
            answer = connection.recv(64)
        return int(answer.split(b" ", 2)[1]) if answer else 0

    def kept(self) -> set[str]:
        """Return the ids of the uploads on disk."""
        return {path.name for path in (self.data_dir / "uploads").iterdir()}


@contextmanager
def served(data_dir: Path, **fields: object) -> Iterator[Served]:
    """Run a server over a FakeRay."""
    command = [sys.executable, "-m", "tests.server.served", str(data_dir), *[f"{name}={value}" for name, value in fields.items()]]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("CAFE_")}
    temporary = data_dir.parent / "tmp"
    temporary.mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ | {"TMPDIR": str(temporary)})
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as api:
            yield Served(api, port, process.pid, data_dir)
        assert process.poll() is None, "the server did not survive"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
        process.stdout.close()  # type: ignore[union-attr]


def _post(path: str, body: bytes, *headers: str) -> bytes:
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: localhost",
        "Content-Type: application/json",
        *headers,
        f"Content-Length: {len(body)}",
    ]
    return "\r\n".join(lines).encode("latin1") + b"\r\n\r\n" + body


def _get(path: str, *headers: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: localhost", *headers, "", ""]).encode("latin1")


def _spec(**fields: Any) -> bytes:
    return json.dumps(SPEC | fields).encode()


def _with(text: str) -> bytes:
    """Return a spec with a member that json.dumps would not write."""
    return json.dumps(SPEC).encode()[:-1] + b", " + text.encode() + b"}"


def _requests(job_id: str) -> list[tuple[str, bytes, int]]:
    """Return (name, raw bytes, expected status) of each request."""
    job, jobs = f"/v1/jobs/{job_id}", "/v1/jobs"
    multipart = b'--x\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n'
    fields = b"".join(multipart % (b"f%d" % i, b"", b"x" * 1000) for i in range(900)) + b"--x--\r\n"
    files = b"".join(multipart % (b"file", b'; filename="%d.zip"' % i, b"x" * 1000) for i in range(900)) + b"--x--\r\n"
    form = "Content-Type: multipart/form-data; boundary=x"
    return [
        ("spec: 100,000 brackets deep", _post(jobs, b"[" * 100_000 + b"]" * 100_000), 422),
        ("spec: objects 4000 deep", _post(jobs, b'{"a":' * 4000 + b"1" + b"}" * 4000), 422),
        ("spec: a name of 900 kB", _post(jobs, _spec(name="x" * 900_000)), 422),
        ("spec: a body of 2 MB", _post(jobs, _spec(name="x" * 2_000_000)), 413),
        ("spec: 5,000 unknown fields", _post(jobs, _spec(**{f"x{i}": i for i in range(5000)})), 422),
        ("spec: ipc of 10^4000", _post(jobs, _with('"ipc": 1' + "0" * 4000)), 422),
        ("spec: ipc of 10^5000, beyond Python's digits", _post(jobs, _with('"ipc": 1' + "0" * 5000)), 422),
        ("spec: seed of 1e400", _post(jobs, _with('"seed": 1e400')), 422),
        ("spec: NaN", _post(jobs, _with('"ipc": NaN')), 422),
        ("spec: Infinity", _post(jobs, _with('"iterations": -Infinity')), 422),
        ("spec: a field twice, the last one counts", _post(jobs, _with('"ipc": 0')), 422),
        ("spec: __proto__", _post(jobs, _with('"__proto__": {"admin": true}')), 422),
        ("spec: labels constructor and __class__", _post(jobs, _spec(labels={"constructor": "a", "__class__": "b"})), 201),
        ("spec: a NUL in the name", _post(jobs, _spec(name="a\0b")), 422),
        ("spec: a lone surrogate in the name", _post(jobs, _with(r'"name": "\ud800"')), 422),
        ("spec: bad UTF-8", _post(jobs, b'{"kind": "\xff\xfe"}'), 422),
        ("spec: UTF-16", _post(jobs, json.dumps(SPEC).encode("utf-16")), 201),
        ("spec: XML with entities", _post(jobs, b'<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>'), 422),
        ("spec: no body", _post(jobs, b""), 422),
        ("spec: half a body, then the end", _post(jobs, b"")[:-2] + b"X: y\r\n\r\n", 422),
        ("spec: a path out of the root", _post(jobs, _spec(dataset={"path": "../../../etc"})), 422),
        ("spec: an absolute path", _post(jobs, _spec(dataset={"path": "/etc/passwd"})), 422),
        ("spec: a path with a NUL", _post(jobs, _spec(dataset={"path": "a\0b"})), 422),
        ("spec: a device's path", _post(jobs, _spec(dataset={"path": "/dev/zero"})), 422),
        ("spec: an upload's id that is a path", _post(jobs, _spec(dataset={"id": "../uploads"})), 422),
        ("spec: as text", _post(jobs, _spec()).replace(b"application/json", b"text/plain"), 422),
        ("spec: as a form", _post(jobs, _spec()).replace(b"application/json", b"multipart/form-data"), 422),
        ("Idempotency-Key: 300 characters", _post(jobs, _spec(), "Idempotency-Key: " + "x" * 300), 422),
        ("Idempotency-Key: empty", _post(jobs, _spec(), "Idempotency-Key: "), 422),
        ("cursor: not one of ours", _get(f"{jobs}?cursor=%00%ff%27--"), 422),
        ("cursor: 10,000 characters", _get(f"{jobs}?cursor=" + "A" * 10_000), 422),
        ("limit: 10^30", _get(f"{jobs}?limit=1{'0' * 30}"), 422),
        ("label: SQL", _get(f"{jobs}?label=a%27%20OR%201=1--"), 200),
        ("label: a NUL", _get(f"{jobs}?label=%00"), 200),
        ("If-None-Match: 50,000 commas", _get(job, "If-None-Match: " + "," * 50_000), 200),
        ("Range: nonsense, of a preview that is not there", _get(f"{job}/preview.png", "Range: bytes=9-1,--,x"), 404),
        ("Last-Event-ID: no number", _get(f"{job}/events", "Accept: text/event-stream", "Last-Event-ID: x"), 422),
        ("Last-Event-ID: 10^30", _get(f"{job}/events", "Accept: text/event-stream", "Last-Event-ID: 1" + "0" * 30), 422),
        ("job id: ../", _get("/v1/jobs/..%2f..%2fetc%2fpasswd"), 404),
        ("job id: a NUL", _get("/v1/jobs/job_%00"), 404),
        ("job id: 5,000 characters", _get("/v1/jobs/" + "x" * 5000), 404),
        ("artifact: ../", _get(f"{job}/artifacts/..%2fjob.json"), 404),
        ("headers of 100 kB", _get(jobs, *[f"X-{i}: {'y' * 1000}" for i in range(100)]), 200),
        ("headers of 64 kB without an end", b"GET / HTTP/1.1\r\nX: ".ljust(65_537, b"y"), 400),
        ("a path of 100 kB", _get("/" + "x" * 100_000), 404),
        ("two lengths", _post(jobs, b"{}", "Content-Length: 5"), 400),
        ("a negative length", _get(jobs, "Content-Length: -1"), 400),
        ("no HTTP", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        ("a method of its own", _get(jobs).replace(b"GET", b"BREW"), 405),
        ("another Host (DNS rebinding)", _get(jobs).replace(b"localhost", b"evil.example"), 403),
        ("a form of 900 fields", _post("/v1/datasets", fields).replace(b"Content-Type: application/json", form.encode()), 400),
        ("a form of 900 files", _post("/v1/datasets", files).replace(b"Content-Type: application/json", form.encode()), 400),
        ("a form without a boundary", _post("/v1/datasets", fields).replace(b"application/json", b"multipart/form-data"), 400),
    ]  # fmt: skip


def test_hostile_requests_get_expected_status(tmp_path: Path) -> None:
    lines, wrong = ["| input | status |", "|---|---|"], []

    def note(name: str, wanted: int, status: int) -> None:
        lines.append(f"| {name} | {status} |")
        if status != wanted:
            wrong.append(f"{name}: {status}, not {wanted}")

    with served(tmp_path / "data") as server:
        job_id = server.api.post("/v1/jobs", json=SPEC).json()["id"]
        for name, filename, make, wanted in UPLOADS:
            response = server.api.post("/v1/datasets", files={"file": (filename, make())})
            note(name, wanted, response.status_code)
            if response.status_code == 201:
                assert server.api.delete(f"/v1/datasets/{response.json()['id']}").status_code == 204
            assert server.kept() == set(), name
        for name, raw, wanted in _requests(job_id):
            note(name, wanted, server.ask(raw))
        assert server.api.get(f"/v1/jobs/{job_id}").status_code == 200
        peak = server.peak_bytes()
    print(*lines, f"\nThe server's peak memory: {peak / 1e6:.0f} MB", sep="\n")
    assert wrong == []
    assert peak < PEAK_BYTES
    assert list((tmp_path / "tmp").iterdir()) == []


def test_documentation_lists_hostile_requests() -> None:
    document = (Path(__file__).parents[3] / "docs" / "reliability-tables.md").read_text(encoding="utf-8")
    _, _, table = document.partition("| input | status |\n|---|---|\n")
    written = [line.strip("| ").rsplit(" | ", 1) for line in table.partition("\n\n")[0].splitlines()]
    sent = [(name, wanted) for name, _, _, wanted in UPLOADS] + [(name, wanted) for name, _, wanted in _requests("job_x")]
    assert [(name, int(status)) for name, status in written] == sent


def test_interrupted_upload_leaves_no_files(tmp_path: Path) -> None:
    head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.zip"\r\n\r\n'
    with served(tmp_path / "data") as server:
        for sent in (b"", head[:20], head + folder()[:100], head + bytes(3 << 20)):
            with socket.create_connection(("127.0.0.1", server.port)) as connection:
                connection.sendall(
                    b"POST /v1/datasets HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n"
                    b"Content-Length: 5000000\r\n\r\n" + sent
                )
        deadline = time.monotonic() + 20
        while server.kept() or _open_temporary_files(server.pid, tmp_path / "tmp"):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert server.api.get("/v1/datasets").json()["data"][-1]["source"] == "builtin"


def _open_temporary_files(pid: int, directory: Path) -> list[str]:
    """Return deleted files that the process still holds open."""
    found = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = str(link.readlink())
        except FileNotFoundError:  # closed meanwhile
            continue
        if target.startswith(str(directory)):
            found.append(target)
    return found
