"""Search for secrets everywhere the service writes something, after a job on a real Ray."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from server.addresses import is_loopback
from server.auth.keys import Scope
from server.settings import Settings
from server.store.database import Database
from tests.server.conftest import FakeRay, running
from tests.server.keyed import add_key, client_of
from tests.server.ray.test_embedded_ray import Served, serving, succeeded

METRICS, WEBHOOK, CLIENT = "metrics-secret-6b1f", "webhook-secret-9c2e", "cafe_client-secret-77"

pytestmark = [pytest.mark.real_ray, pytest.mark.timeout(600)]


@dataclass
class Site:
    """A server with its own Ray on which a job has succeeded."""

    served: Served
    data_dir: Path
    key: str
    job_id: str
    ray_token: str
    ray_dir: Path
    processes: list[psutil.Process]

    @property
    def secrets(self) -> list[str]:
        """Return the secrets to search for."""
        return [self.key, self.ray_token, METRICS, WEBHOOK, CLIENT]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    data_dir = tmp_path_factory.mktemp("secrets")
    key = add_key(Settings(data_dir=data_dir), Scope.ADMIN)
    environ = {"CAFE_METRICS_TOKEN": METRICS, "CAFE_WEBHOOK_SECRET": WEBHOOK, "CAFE_API_KEY": CLIENT}
    with serving(data_dir, "--num-cpus", "2", **environ) as served, client_of(served.api, key) as api:
        job_id = api.make(iterations=2, evaluation={"networks": [{"width": 8, "depth": 2}], "repeats": 1, "epochs": 1})["id"]
        assert succeeded(api, job_id)["result"]["evaluation"]["networks"][0]["n"] == 1
        processes = psutil.Process(served.process.pid).children(recursive=True)
        tokens = {token for process in processes if (token := environment(process).get("RAY_AUTH_TOKEN_PATH"))}
        (token_file,) = tokens
        token = Path(token_file).read_text()
        yield Site(served, data_dir, key, job_id, token, Path(token_file).parent, processes)


def environment(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except psutil.Error:
        return {}


def _connections(process: psutil.Process) -> list[Any]:
    """Return the TCP sockets of a process; empty if it has ended."""
    try:
        return list(process.net_connections("tcp"))
    except psutil.NoSuchProcess:
        return []


def holds(content: str | bytes, secrets: list[str]) -> list[str]:
    """Return the secrets in a text."""
    raw = content.encode() if isinstance(content, str) else content
    return [secret for secret in secrets if secret.encode() in raw]


def test_responses_contain_no_secrets(site: Site) -> None:
    schema = site.served.api.get("/openapi.json").json()
    with client_of(site.served.api, site.key) as api:
        paths = [
            path.format(job_id=site.job_id, dataset_id="digits", pool_id="pool_" + 24 * "a", name="result.json")
            for path in schema["paths"]
        ]
        asked = [*paths, "/v1/jobs/nothing", "/dashboard/", "/dashboard/api/jobs/", f"/dashboard/api/jobs/{site.job_id}-1"]
        for path in [
            *asked,
            "/dashboard/nodes?view=summary",
            "/dashboard/api/v0/workers?detail=1",
            "/dashboard/api/v0/actors?detail=1",
        ]:
            answer = api.get(path, headers={"Accept": "application/json"})
            assert answer.status_code in (200, 404, 405), (path, answer.text)
            assert holds(answer.content + str(answer.headers).encode(), site.secrets) == [], path


def test_ray_processes_and_jobs_have_no_secrets(site: Site) -> None:
    assert len(site.processes) > 5
    for process in site.processes:
        inherited = environment(process)
        assert not [name for name in inherited if name.startswith("CAFE_")], process
        assert holds("\0".join(inherited.values()), site.secrets) == [], process


def test_command_lines_contain_no_secrets(site: Site) -> None:
    lines = "\n".join(" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"]))
    assert str(site.data_dir) in lines
    assert holds(lines, site.secrets) == []


def test_files_contain_no_secrets(site: Site) -> None:
    """Search the data directory and Ray's sessions, except for the token file."""
    looked = 0
    for root in (site.data_dir, site.ray_dir):
        for directory, _, names in os.walk(root):
            for path in (Path(directory) / name for name in names):
                if path == site.ray_dir / "token" or not path.is_file():
                    continue
                looked += 1
                assert holds(path.read_bytes(), site.secrets) == [], path
    assert looked > 30


def test_debug_log_contains_no_secrets(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = Settings(data_dir=tmp_path / "data", metrics_token=METRICS, webhook_secret=WEBHOOK)
    key = add_key(settings, Scope.ADMIN)
    with caplog.at_level(logging.DEBUG), running(settings, FakeRay()) as api, client_of(api, key) as admin:
        admin.make()
        for wrong_or_other, path, status in ((METRICS, "/metrics", 200), (key + "x", "/v1/jobs", 401)):
            with client_of(api, wrong_or_other) as client:
                assert client.get(path).status_code == status
    assert len(caplog.records) > 10
    assert holds(caplog.text, [key, METRICS, WEBHOOK]) == []


def test_database_errors_contain_no_secrets(tmp_path: Path) -> None:
    password = "database-secret-51d0"
    database = Database(f"postgresql://cafe:{password}@127.0.0.1:1/cafe")
    with pytest.raises(SQLAlchemyError) as error, database.read() as session:
        session.execute(text("SELECT 1"))
    assert holds(f"{error.value!r} {error.value} {database.engine.url!r}", [password]) == []
    database.close()
    sqlite = Database(f"sqlite:///{tmp_path / 'x.sqlite3'}")
    with pytest.raises(SQLAlchemyError) as refused, sqlite.write() as session:
        session.execute(text("INSERT INTO nowhere VALUES (:value)"), {"value": password})
    assert holds(f"{refused.value!r} {refused.value}", [password]) == []
    sqlite.close()


def test_settings_show_no_secrets() -> None:
    environ = {"CAFE_METRICS_TOKEN": METRICS, "CAFE_WEBHOOK_SECRET": WEBHOOK, "CAFE_DATABASE_URL": "postgresql://a:hidden@b/c"}
    settings = Settings.load(environ)
    shown = f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()}"
    assert holds(shown, [METRICS, WEBHOOK, "hidden"]) == []


def test_ray_dashboard_requires_token(site: Site) -> None:
    with client_of(site.served.api, site.key) as api:
        page = api.get("/dashboard/")
        assert "<title>Ray Dashboard</title>" in page.text
        script = page.text.partition('src="./')[2].partition('"')[0]
        assert len(api.get(f"/dashboard/{script}").content) > 100_000
        assert urlsplit(api.get("/v1/cluster").json()["dashboard_url"]).path == "/dashboard/"
    for process in site.processes:
        for connection in _connections(process):
            assert connection.status != psutil.CONN_LISTEN or is_loopback(connection.laddr.ip), process
    assert httpx.get(str(site.served.api.base_url.join("/dashboard/api/jobs/"))).status_code == 401
