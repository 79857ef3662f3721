"""Test inputs and circumstances on which users reported that the command failed, with their smallest inputs.

A row of :func:`test_spec_text` gives the same answer at every door: a file, standard input and the REST API.
"""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from server.auth.keys import Scope
from server.cli.main import main
from server.cli.tables import dataset_lines, display_width, job_lines, table
from server.cli.watching import Display
from server.ray.embedded import EmbeddedRay
from server.settings import Settings
from tests.server.cli.test_cli import cafe
from tests.server.conftest import SPEC, Api, FakeRay, running
from tests.server.keyed import add_key

JSON = '{"dataset": {"name": "digits"}, "ipc": 1, "iterations": 3}'
YAML = "dataset: {name: digits}\nipc: 1\niterations: 3\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with running(Settings(data_dir=tmp_path_factory.mktemp("data")), FakeRay()) as api:
        yield api


PLAIN_STRINGS = b"dataset: digits\nmethod: kmeans\nnetwork: resnet18\nipc: 1\n"
SPEC_TEXTS: dict[str, tuple[str, bytes, dict[str, Any] | list[str]]] = {
    "spec_dup_yaml": ("dup.yaml", f"{YAML}ipc: 2\n".encode(), ["'ipc' is given twice", "line 4, column 1", "line 2, column 1"]),
    "spec_octal_yaml": ("octal.yaml", f"{YAML}seed: 010\n".encode(), {"seed": 10}),
    "spec_sci_yaml": ("sci.yaml", f"{YAML}method: {{image_lr: 1e-3}}\n".encode(), {"method.image_lr": 0.001}),
    "spec_norway_yaml": ("no.yaml", f"{YAML}labels: {{on: yes}}\nname: no\n".encode(), {"labels.on": "yes", "name": "no"}),
    "spec_norway_yaml, number as text": (
        "no.yaml",
        f"{YAML}name: 42\n".encode(),
        ["name: ", "got 42 (a number)", 'quotes: "42"'],
    ),
    "spec_date_yaml": ("date.yaml", f"{YAML}name: 2024-11-27\n".encode(), {"name": "2024-11-27"}),
    "spec_trailing_json": ("trailing.json", f"{JSON[:-1]},}}".encode(), ["line 1, column 58", "comma", "remove"]),
    "spec_bom_json": ("bom.json", JSON.encode("utf-8-sig"), {"ipc": 1}),
    "BOM in YAML": ("bom.yaml", YAML.encode("utf-8-sig"), {"ipc": 1}),
    "spec_utf16_json": ("utf16.json", JSON.encode("utf-16"), {"ipc": 1}),
    "UTF-16 in YAML": ("utf16.yaml", YAML.encode("utf-16"), {"ipc": 1}),
    "repeated key in JSON": ("dup.json", f'{JSON[:-1]},\n"ipc": 2}}'.encode(), ["'ipc' is given twice", "line 2, column 1"]),
    "plain strings": (
        "plain.yaml",
        PLAIN_STRINGS,
        {"network.name": "resnet18", "method.name": "kmeans", "dataset.name": "digits"},
    ),
    "misspelled dataset": ("plain.yaml", b"dataset: mnits\nipc: 1\n", ["dataset", "'mnits'", "did you mean mnist?"]),
}


def doors(name: str) -> list[str]:
    """Return the doors at which a file is accepted: the REST API reads JSON only."""
    return ["file", "standard input", *(["HTTP"] if name.endswith(".json") else [])]


@pytest.mark.parametrize(("case", "door"), [(case, door) for case, (name, _, _) in SPEC_TEXTS.items() for door in doors(name)])
def test_spec_text(server: Api, tmp_path: Path, case: str, door: str) -> None:
    name, content, expected = SPEC_TEXTS[case]
    if door == "HTTP":
        answer = server.post("/v1/jobs?dry_run=true", content=content, headers={"Content-Type": "application/json"})
        accepted, output, message = answer.status_code == 200, answer.text, answer.text
        assert accepted or (answer.status_code == 422 and answer.json()["errors"])
    else:
        (tmp_path / name).write_bytes(content)
        source = str(tmp_path / name) if door == "file" else "-"
        result = cafe(server, "submit", "--dry-run", source, input=content)
        accepted, output, message = result.exit_code == 0, result.stdout, result.stderr
        assert accepted or result.exit_code == 2
    if isinstance(expected, dict):
        assert accepted, message
        assert {path: field_at(json.loads(output)["spec"], path) for path in expected} == expected
    else:
        assert not accepted
        assert [part for part in expected if part not in message.replace('\\"', '"')] == [], message


def field_at(spec: Any, path: str) -> Any:
    for part in path.split("."):
        spec = spec[part]
    return spec


class Stranger(BaseHTTPRequestHandler):
    """A proxy or another service: it answers every request with 503, a redirect or a page."""

    def do_GET(self) -> None:
        status = {"/moved": 302, "/page": 200}.get(self.path.removesuffix("/v1/jobs?limit=50"), 503)
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "https://elsewhere.invalid/")
        self.send_header("Content-Length", "14")
        self.end_headers()
        self.wfile.write(b"<h1>sorry</h1>")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def stranger() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Stranger) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


CLOSED = "http://127.0.0.1:9"
ENVIRONMENTS: dict[str, tuple[dict[str, str], int, list[str]]] = {
    "proxy_socks": ({"ALL_PROXY": "socks5://127.0.0.1:1080"}, 0, []),
    "proxy_socks, NO_PROXY": ({"ALL_PROXY": "socks5://127.0.0.1:1080", "NO_PROXY": "127.0.0.1"}, 0, []),
    "http_proxy_loopback": ({"http_proxy": CLOSED}, 0, []),
    "proxy_socks, remote": (
        {"ALL_PROXY": "socks5://me:hidden@127.0.0.1:1080", "CAFE_URL": "http://cafe.invalid:8000"},
        2,
        ["socks5://127.0.0.1:1080", "pip install socksio", "NO_PROXY=cafe.invalid"],
    ),
    "proxy that is down": (
        {"http_proxy": CLOSED, "CAFE_URL": "http://cafe.invalid"},
        3,
        [f"the proxy {CLOSED}", "refused", "NO_PROXY=cafe.invalid"],
    ),
    "proxy without scheme": ({"http_proxy": "127.0.0.1:9", "CAFE_URL": "http://cafe.invalid"}, 3, [f"the proxy {CLOSED}"]),
    "proxy of unknown kind": ({"http_proxy": "ftp://127.0.0.1:9", "CAFE_URL": "http://cafe.invalid"}, 2, ["ftp://127.0.0.1:9"]),
    "proxy that answers itself": (
        {"http_proxy": "STRANGER", "CAFE_URL": "http://cafe.invalid"},
        3,
        ["the proxy http://127.0.0.1:", "answered instead of http://cafe.invalid", "503", "sorry", "NO_PROXY=cafe.invalid"],
    ),
    "another service, 503": ({"CAFE_URL": "STRANGER/busy"}, 3, ["is not a CAFE server, or a proxy", "503", "CAFE_URL"]),
    "another service, 200": ({"CAFE_URL": "STRANGER/page"}, 2, ["is not a CAFE server", "sorry", "CAFE_URL"]),
    "another service, redirect": ({"CAFE_URL": "STRANGER/moved"}, 2, ["redirects to https://elsewhere.invalid/"]),
    "URL without scheme": ({"CAFE_URL": "127.0.0.1:8000"}, 2, ["'127.0.0.1:8000'", "http://127.0.0.1:8000"]),
    "URL with another scheme": ({"CAFE_URL": "ftp://127.0.0.1"}, 2, ["'ftp://127.0.0.1'"]),
    "URL without host": ({"CAFE_URL": "http://:8000"}, 2, ["'http://:8000'"]),
    "port_out_of_range of a URL": ({"CAFE_URL": "http://127.0.0.1:99999"}, 2, ["99999"]),
    "API key that is no key": ({"CAFE_API_KEY": "clé"}, 2, ["CAFE_API_KEY"]),
    "API key with a line end of Windows": ({"CAFE_API_KEY": "cafe_key\r\n"}, 0, []),
}


@pytest.mark.parametrize(("environ", "code", "messages"), ENVIRONMENTS.values(), ids=ENVIRONMENTS)
def test_environment(server: Api, stranger: str, environ: dict[str, str], code: int, messages: list[str]) -> None:
    result = cafe(server, "list", **{name: value.replace("STRANGER", stranger) for name, value in environ.items()})
    assert result.exit_code == code, result.stderr
    assert [part for part in messages if part not in result.stderr] == [], result.stderr
    assert result.stderr.count("\n") == (code != 0)
    assert "hidden" not in result.stderr


@pytest.fixture
def taken_port() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield str(listening.getsockname()[1])


@pytest.mark.parametrize(
    ("options", "messages"),
    [
        (["--port", "99999"], ["99999", "0 to 65535", "--port"]),
        (["--port", "-1"], ["-1"]),
        (["--port", "TAKEN"], ["another program listens there", "--port"]),
        (["--port", "0", "--host", "127.0.0.300"], ["127.0.0.300", "--host"]),
    ],
    ids=["port_out_of_range", "negative port", "port_taken", "host that does not exist"],
)
def test_port_is_checked_before_ray_is_started(
    tmp_path: Path, taken_port: str, monkeypatch: pytest.MonkeyPatch, options: list[str], messages: list[str]
) -> None:
    monkeypatch.setattr(EmbeddedRay, "__enter__", lambda _: pytest.fail("Ray was started"))
    add_key(Settings(data_dir=tmp_path), Scope.READ)  # a server with a key may listen on any host
    arguments = ["serve", "--data-dir", str(tmp_path), *(option.replace("TAKEN", taken_port) for option in options)]
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == 2
    assert [part for part in messages if part not in result.stderr] == [], result.stderr
    assert result.stderr.count("\n") == 1
    assert "Ray" not in result.stderr


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """Return a directory that is on a read-only file system, or that only root may write to."""
    directory = tmp_path / "read-only"
    directory.mkdir()
    if os.geteuid() != 0:
        directory.chmod(0o500)
        yield directory
        return
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k,ro", "none", directory], capture_output=True, check=False)
    if mount.returncode:
        pytest.skip("this machine cannot mount a file system")
    yield directory
    subprocess.run(["umount", directory], check=True)


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "SPEC", "--out", "READ_ONLY"],
        ["run", "SPEC", "--out", "READ_ONLY/deep/below"],
        ["run", "SPEC", "--out", "out", "--data-dir", "READ_ONLY"],
        ["run", "SPEC", "--out", "SPEC/below"],
        ["run", "SPEC", "--out", "/proc/x"],
        ["run", "SPEC", "--out", os.fsdecode(b"out\xff")],
        ["serve", "--data-dir", "READ_ONLY/data"],
        ["download", "job_a", "--out", "READ_ONLY/set"],
    ],
    ids=["readonly_out", "below", "data directory", "a file as directory", "proc", "not UTF-8", "serve", "download"],
)
def test_directory_that_cannot_be_written_to(server: Api, tmp_path: Path, read_only: Path, arguments: list[str]) -> None:
    spec = tmp_path / "spec.json"
    spec.write_text(JSON)
    named = [part.replace("READ_ONLY", str(read_only)).replace("SPEC", str(spec)) for part in arguments]
    result = cafe(server, *named)
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert "choose another" in result.stderr


def test_limit_of_file_sizes_is_named() -> None:
    """`ulimit -f`: in a process of its own, because the limit cannot be raised again."""
    program = """
import pathlib, resource, sys
from cafe_core.errors import DiskFullError
from cafe_core.files import LineLog, write_atomically
path = pathlib.Path(sys.argv[1])
log = LineLog(path / "log")
log.append({"a": 1})
resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))
for write in (lambda: write_atomically(path / "file", bytes(2000)), lambda: log.append({"a": "x" * 2000})):
    try:
        write()
    except DiskFullError as error:
        print(error)
print((path / "log").read_text())
print([file.name for file in path.iterdir()])
"""
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        root = Path(__file__).parents[3]
        run = subprocess.run([sys.executable, "-c", program, directory], cwd=root, capture_output=True, text=True, timeout=60)
    lines = run.stdout.splitlines()
    assert [("ulimit -f" in line, "file" in line or "log" in line) for line in lines[:2]] == [(True, True)] * 2, run.stderr
    assert lines[2:] == ['{"a": 1}', "", "['log']"]


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Let SIGINT raise KeyboardInterrupt, also where the tests run in the background of a shell, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt_at_first(monkeypatch: pytest.MonkeyPatch, type: str) -> None:
    """Press Ctrl-C when the first event of a type is shown."""
    show = Display.show

    def show_and_interrupt(display: Display, event: dict[str, Any]) -> None:
        show(display, event)
        if event["type"] == type:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Display, "show", show_and_interrupt)


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("command", ["submit --wait", "watch"])
def test_ctrl_c_wait(server: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    spec = tmp_path / "slow.json"
    spec.write_text(JSON)
    interrupt_at_first(monkeypatch, "status")
    if command == "watch":
        result = cafe(server, "watch", cafe(server, "submit", str(spec)).stdout.strip())
    else:
        result = cafe(server, "submit", str(spec), "--wait")
    assert result.exit_code == 130
    job_id = server.get("/v1/jobs?limit=1").json()["data"][0]["id"]
    assert f"{job_id} goes on; `cafe watch {job_id}`" in result.stderr
    assert f"`cafe cancel {job_id}`" in result.stderr
    assert server.job(job_id)["status"] not in ("cancelling", "cancelled", "failed")


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_of_run_says_how_to_continue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps(SPEC | {"iterations": 3, "checkpoint_every": 1, "method": {"batch_real": 8, "max_outer": 1}}))
    arguments = ["run", str(spec), "--out", str(tmp_path / "out"), "--data-dir", str(tmp_path / "data")]
    with monkeypatch.context() as interrupted:
        interrupt_at_first(interrupted, "iteration")
        result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == 130
    assert f"run the same command again to continue from the last checkpoint in {tmp_path / 'out'}" in result.stderr
    again = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert again.exit_code == 0
    assert "iteration 3/3" in again.stderr


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("columns", [60, 80])
def test_tables_fit_the_terminal(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    job = {"id": "job_abcdefghijklmnop", "kind": "condense", "status": "succeeded", "name": "a long name " * 20}
    jobs = [job | {"progress": {"done": 5, "total": 2000}, "created_at": "2026-11-28T11:02:17.123456Z"}]
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(sys, "stdout", Terminal())
    header, row = map(click.unstyle, job_lines(jobs))
    assert header.split()[:4] == ["id", "kind", "status", "progress"]
    assert max(len(header), len(row)) <= columns
    assert row.endswith("…")
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    [whole] = job_lines(jobs)
    assert whole.endswith(job["name"].strip())
    assert "\x1b" not in whole


@pytest.mark.parametrize(
    ("columns", "names", "end"),
    [
        (37, ["id", "shape", "name"], "  3×32×32  動物の…"),
        (40, ["id", "shape", "name"], "  3×32×32  動物の写真"),
        (48, ["id", "classes", "shape", "name"], "  2        3×32×32  動物の写…"),
        (120, ["id", "source", "classes", "training", "test", "shape", "name"], "  8         2     3×32×32  動物の写真"),
    ],
)
def test_narrow_terminals_show_the_most_useful_columns(
    monkeypatch: pytest.MonkeyPatch, columns: int, names: list[str], end: str
) -> None:
    info = {"class_names": ["猫", "犬"], "class_counts": [4, 4], "test_count": 2, "channels": 3, "height": 32, "width": 32}
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(sys, "stdout", Terminal())
    dataset = {"id": f"ds_{'a' * 16}", "source": "uploaded", "info": info, "name": "動物の写真"}
    header, row = map(click.unstyle, dataset_lines([dataset]))
    assert header.split() == names
    assert row.endswith(end)
    assert display_width(row) <= columns


def test_columns_are_aligned_by_their_width_on_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Terminal())
    _, *rows = table(["name", "n"], [["猫", "1"], ["cafe\u0301", "2"], ["plain", "3"]])
    assert rows == ["猫     1", "cafe\u0301   2", "plain  3"]
