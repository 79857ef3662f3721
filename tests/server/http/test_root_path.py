"""Test a server behind a path prefix of a reverse proxy: every link, redirect and page has the prefix."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from pydantic import ValidationError

from server.auth.keys import Scope
from server.cli.main import main
from server.client import Client
from server.settings import Settings
from tests.server.cli.test_cli import finish
from tests.server.conftest import SPEC, Api, FakeRay, running
from tests.server.keyed import add_key

PROXY = {"X-Forwarded-For": "192.0.2.1", "X-Forwarded-Proto": "http"}


@pytest.fixture(scope="module", params=["--root-path", "X-Forwarded-Prefix"])
def behind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """A client of a server behind the prefix /cafe, with the headers that a proxy sends after it has removed the prefix."""
    configured = {"root_path": "/cafe/"} if request.param == "--root-path" else {"trust_forwarded_prefix": True}
    settings = Settings.model_validate({"data_dir": tmp_path_factory.mktemp("data"), **configured})
    key = add_key(settings, Scope.ADMIN)
    forwarded = {} if request.param == "--root-path" else {"X-Forwarded-Prefix": "/cafe"}
    with running(settings, FakeRay()) as api:
        api.headers.update({"Authorization": f"Bearer {key}", **PROXY, **forwarded})
        yield api


def test_prefix_proxy(behind: Api) -> None:
    created = behind.post("/v1/jobs", json=SPEC)
    job = created.json()
    assert created.headers["Location"] == f"/cafe/v1/jobs/{job['id']}"
    assert all(link is None or link.startswith(f"/cafe/v1/jobs/{job['id']}") for link in job["links"].values())
    path = f"/v1/jobs/{job['id']}"
    listed = behind.get("/v1/jobs").json()["data"]
    cancelled = behind.post(f"{path}/cancel").json()
    assert job["links"] == behind.get(path).json()["links"] == listed[0]["links"] == cancelled["links"]
    assert behind.get("/v1/cluster").json()["dashboard_url"].endswith("/cafe/dashboard/")


@pytest.mark.parametrize(("path", "target"), [("/dashboard", "/cafe/dashboard/"), ("/v1/jobs/", "/cafe/v1/jobs")])
def test_redirects_keep_the_prefix(behind: Api, path: str, target: str) -> None:
    answer = behind.get(path, follow_redirects=False)
    assert answer.status_code == 307
    assert answer.headers["Location"].removeprefix(str(behind.base_url).rstrip("/")) == target


@pytest.mark.parametrize("page", ["/docs", "/redoc"])
def test_pages_load_their_files_with_the_prefix(behind: Api, page: str) -> None:
    named = re.findall(r"""(?:src|href|url|spec-url)[=:]\s*['"](/[^'"]+)""", behind.get(page).text)
    assert len(named) >= 2
    for path in named:
        assert path.startswith("/cafe/")
        assert behind.get(path.removeprefix("/cafe")).status_code == 200
    assert behind.get("/openapi.json").json()["servers"] == [{"url": "/cafe"}]


def test_proxy_may_keep_the_prefix_in_the_path(behind: Api) -> None:
    assert behind.get("/cafe/healthz").status_code == 200
    assert behind.get("/cafe/docs", headers={"Authorization": ""}).status_code == 200
    assert behind.get("/cafe/v1/jobs", headers={"Authorization": ""}).status_code == 401
    assert behind.post("/cafe/v1/jobs", json=SPEC).headers["Location"].startswith("/cafe/v1/jobs/job_")
    assert behind.get("/cafeteria/v1/jobs").status_code == 404


def test_client_with_the_prefix_in_its_url(tmp_path: Path) -> None:
    settings, ray = Settings(data_dir=tmp_path / "data", root_path="/cafe"), FakeRay()
    with running(settings, ray) as api, Client(f"{api.base_url}/cafe") as client:
        job_id = client.submit(SPEC)["id"]
        finish(api, ray, settings, job_id)
        assert [event["type"] for event in client.follow(job_id)][-1] == "status"
        [file] = client.download(job_id, tmp_path / "out")
        assert file.read_text() == '{"images": 10}'
        [artifact] = api.get(f"/v1/jobs/{job_id}/artifacts").json()["data"]
        assert artifact["href"] == f"/cafe/v1/jobs/{job_id}/artifacts/result.json"
        assert api.get(artifact["href"]).content == file.read_bytes()


def test_forwarded_prefix_is_ignored_unless_the_operator_trusts_it(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    key = add_key(settings, Scope.WRITE)
    with running(settings, FakeRay()) as api:
        headers = {"Authorization": f"Bearer {key}", "X-Forwarded-Prefix": "/evil"}
        created = api.post("/v1/jobs", json=SPEC, headers=headers)
        assert created.headers["Location"] == f"/v1/jobs/{created.json()['id']}"
        assert "evil" not in api.get("/docs", headers=headers).text


NO_PREFIXES = ["/a/../b", "/a b", "https://evil.example", "/<script>", "/a//b", "/é", "/" + "a" * 256]


@pytest.mark.parametrize("prefix", NO_PREFIXES)
def test_setting_that_is_no_prefix_is_refused(tmp_path: Path, prefix: str) -> None:
    with pytest.raises(ValidationError, match="is not a path prefix"):
        Settings(data_dir=tmp_path, root_path=prefix)


def test_forwarded_prefix_that_is_no_prefix_is_ignored(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, trust_forwarded_prefix=True)
    key = add_key(settings, Scope.ADMIN)

    def location(api: Api, prefix: str) -> str:
        headers = {b"Authorization": f"Bearer {key}".encode(), b"X-Forwarded-Prefix": prefix.encode()}
        return api.get("/dashboard", headers=headers, follow_redirects=False).headers["Location"]

    with running(settings, FakeRay()) as api:
        assert {location(api, prefix) for prefix in NO_PREFIXES} == {"/dashboard/"}
        assert location(api, "//evil.example") == "/evil.example/dashboard/"  # a path, not another host


def test_invalid_root_path_is_wrong_usage(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["serve", "--data-dir", str(tmp_path), "--root-path", "https://example.com/cafe"])
    assert result.exit_code == 2
    assert "--root-path" in result.stderr or "root_path" in result.stderr
    assert "/cafe" in result.stderr
