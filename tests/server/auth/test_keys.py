"""API keys: `cafe keys`, authentication, and a server without keys."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner
from sqlalchemy import select

from server.addresses import is_loopback
from server.auth import keys
from server.auth.access import credentials
from server.auth.keys import KeyLimits, Scope
from server.cli.main import main
from server.settings import Settings
from server.store.database import Database
from server.store.models import ApiKey
from server.webhooks.sender import signing_secret
from tests.server.auth.test_limits import npz, upload
from tests.server.conftest import Api, FakeRay, running
from tests.server.keyed import add_key, client_of, key_id, statuses

KEY = re.compile(r"cafe_[A-Za-z0-9_-]{43}")


@pytest.fixture
def keyed(settings: Settings, ray: FakeRay) -> Iterator[Api]:
    """A server with a key of scope admin, and a client that sends it."""
    key = add_key(settings, Scope.ADMIN)
    with running(settings, ray) as api:
        api.headers["Authorization"] = f"Bearer {key}"
        yield api


def cafe(*arguments: str, code: int = 0) -> str:
    """Run `cafe …` and return its standard output."""
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == code, result.output
    return result.stdout if code == 0 else result.output


def test_key_is_random_and_only_its_hash_is_stored(settings: Settings) -> None:
    made = {keys.new_key() for _ in range(50)}
    assert len(made) == 50
    assert all(KEY.fullmatch(key) and keys.is_key(key) for key in made)
    key = add_key(settings, Scope.READ)
    database = Database(settings.database)
    with database.read() as session:
        (row,) = session.execute(select(ApiKey.__table__)).all()
    database.close()
    assert key.removeprefix(keys.PREFIX) not in str(row)
    assert keys.hash_of(key) in str(row)


@pytest.mark.parametrize(
    ("scopes", "implied"),
    [([Scope.READ], "read"), ([Scope.WRITE], "read write"), ([Scope.ADMIN], "read write admin"), ([], "")],
)
def test_higher_scopes_imply_lower_ones(scopes: list[Scope], implied: str) -> None:
    assert keys.implied(scopes) == set(implied.split())


def test_creates_lists_and_revokes_keys(tmp_path: Path) -> None:
    data = ("--data-dir", str(tmp_path / "data"))
    key = cafe("keys", "create", "ann", "--scope", "write", "--max-running-jobs", "2", *data).strip()
    assert KEY.fullmatch(key)
    listed = cafe("keys", "list", *data)
    assert key not in listed
    id_ = listed.split()[0]
    assert re.fullmatch(rf"{id_}  write +\S+Z  ann\n", listed)
    assert "is revoked" in cafe("keys", "revoke", id_, *data)
    assert "is revoked" in cafe("keys", "revoke", id_, *data)
    assert "revoked 2" in cafe("keys", "list", *data)
    assert "there is no key 'key_x'" in cafe("keys", "revoke", "key_x", *data, code=2)


def test_webhook_secret_of_a_key_can_be_shown_again(tmp_path: Path) -> None:
    data = ("--data-dir", str(tmp_path / "data"))
    cafe("keys", "create", "ann", "--scope", "write", *data)
    id_ = cafe("keys", "list", *data).split()[0]
    secret = cafe("keys", "webhook-secret", id_, *data)
    assert secret.strip() == signing_secret(Settings(data_dir=tmp_path / "data"), id_)
    assert secret == cafe("keys", "webhook-secret", id_, *data) != cafe("keys", "webhook-secret", *data)
    assert "there is no key key_x" in cafe("keys", "webhook-secret", "key_x", *data, code=2)


def test_key_can_be_read_from_a_file(tmp_path: Path) -> None:
    data = ("--data-dir", str(tmp_path / "data"))
    file = tmp_path / "key"
    file.write_text(f"{keys.new_key()}\n")
    create = ("keys", "create", "operator", "--scope", "admin", "--key-file", str(file), *data)
    first = cafe(*create)
    assert re.fullmatch(r"key_\w+\n", first)
    assert cafe(*create) == first  # it is there: nothing happens
    assert len(cafe("keys", "list", *data).splitlines()) == 1
    cafe("keys", "revoke", first.strip(), *data)
    assert "is revoked" in cafe(*create, code=1)
    file.write_text("cafe_short")
    assert "contains no key" in cafe(*create, code=2)


@pytest.mark.parametrize(
    "authorization", [None, "Bearer", "Bearer cafe_" + "A" * 43, "Basic eDp5", "Basic !", "cafe_x", "Bearer \xff\xfe"]
)
def test_every_request_needs_a_valid_key(keyed: Api, authorization: str | None) -> None:
    with client_of(keyed, None) as stranger:
        headers = {} if authorization is None else {"Authorization": authorization.encode("latin-1")}
        for method, path in [("GET", "/v1/jobs"), ("POST", "/v1/datasets"), ("GET", "/metrics"), ("GET", "/nowhere")]:
            response = stranger.request(method, path, headers=headers)
            assert response.status_code == 401
            assert response.headers["WWW-Authenticate"] == "Bearer"
            assert response.headers["Content-Type"] == "application/problem+json"
        for path in ("/healthz", "/readyz", "/docs", "/openapi.json"):
            assert stranger.get(path, headers=headers).status_code == 200
    assert keyed.get("/v1/jobs").status_code == 200
    assert keyed.get("/nowhere").status_code == 404


def test_body_of_unauthorized_request_is_not_read(keyed: Api, settings: Settings) -> None:
    with client_of(keyed, add_key(settings, Scope.READ)) as reader, client_of(keyed, None) as stranger:
        await_taken(reader)
        for client, status in ((keyed, 400), (reader, 403), (stranger, 401)):  # 400: says who reads it
            response = client.post(
                "/v1/datasets", content=b"no form", headers={"Content-Type": "multipart/form-data; boundary=x"}
            )
            assert response.status_code == status


def test_new_and_revoked_keys_take_effect_within_a_second(keyed: Api, settings: Settings) -> None:
    key = add_key(settings, Scope.READ)
    with client_of(keyed, key) as reader:
        await_taken(reader)
        revoke(settings, key)
        await_status(reader, 401)
    assert keyed.get("/v1/jobs").status_code == 200


def test_long_poll_ends_when_key_is_revoked(keyed: Api, settings: Settings) -> None:
    key = add_key(settings, Scope.ADMIN)
    with client_of(keyed, key) as waiter:
        await_taken(waiter)
        job = keyed.make()
        current = keyed.await_status(job["id"], "starting")
        etag = keyed.get(f"/v1/jobs/{current['id']}").headers["ETag"]
        revoke(settings, key)
        response = waiter.get(f"/v1/jobs/{job['id']}", params={"wait": 3}, headers={"If-None-Match": etag})
        assert response.status_code == 401


def test_server_requires_key_as_soon_as_one_exists(api: Api, settings: Settings) -> None:
    job, dataset = api.make(), upload(api, npz()).json()
    things = (f"/v1/jobs/{job['id']}", f"/v1/datasets/{dataset['id']}")
    key = add_key(settings, Scope.ADMIN)
    await_status(api, 401)
    revoke(settings, key)
    time.sleep(1)
    assert api.get("/v1/jobs").status_code == 401  # for good
    with client_of(api, add_key(settings, Scope.WRITE)) as writer:
        await_taken(writer)
        assert statuses([writer.get(thing) for thing in things]) == [404, 404]  # of nobody: for admins
    with client_of(api, add_key(settings, Scope.ADMIN)) as admin:
        await_taken(admin)
        assert statuses([admin.get(thing) for thing in things]) == [200, 200]


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "10.0.0.1", "127.0.0.1.evil.example", "[::2]:80", "localhost.evil"]
)
def test_without_keys_other_names_of_the_host_are_refused(api: Api, host: str) -> None:
    response = api.get("/v1/jobs", headers={"Host": host})
    assert response.status_code == 403
    assert "localhost only" in response.json()["detail"]


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]:8000", "127.8.8.8", "cafe.localhost"])
def test_without_keys_loopback_names_are_accepted(api: Api, host: str) -> None:
    assert api.get("/v1/jobs", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(("site", "status"), [("cross-site", 403), ("same-site", 403), ("same-origin", 201), ("none", 201)])
def test_without_keys_cross_origin_changes_are_refused(api: Api, site: str, status: int) -> None:
    spec = {"kind": "condense", "dataset": {"name": "digits"}, "ipc": 1, "iterations": 1}
    assert api.post("/v1/jobs", json=spec, headers={"Sec-Fetch-Site": site}).status_code == status
    assert api.get("/v1/jobs", headers={"Sec-Fetch-Site": site}).status_code == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "http://localhost:1", "null", ""])
def test_without_keys_origin_header_alone_reveals_cross_origin(api: Api, origin: str) -> None:
    job = api.make()
    assert api.post(f"/v1/jobs/{job['id']}/cancel", headers={"Origin": origin}).status_code == 403
    own = f"{api.base_url.scheme}://{api.base_url.host}:{api.base_url.port}"
    assert api.post(f"/v1/jobs/{job['id']}/cancel", headers={"Origin": own}).status_code in (200, 202)


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Forwarded-For": "192.0.2.7"},
        {"X-Forwarded-For": "127.0.0.1"},
        {"X-Forwarded-Host": "cafe.example"},
        {"X-Forwarded-Proto": "https"},
        {"Forwarded": "for=192.0.2.7;proto=https"},
        {"X-Real-IP": "192.0.2.7"},
        {"Via": "1.1 proxy"},
    ],
)
def test_without_keys_proxied_requests_are_refused(api: Api, settings: Settings, headers: dict[str, str]) -> None:
    refused = api.get("/v1/jobs", headers=headers)
    assert refused.status_code == 403
    assert "cafe keys create" in refused.json()["detail"]
    assert api.get("/healthz", headers=headers).status_code == 200
    with client_of(api, add_key(settings, Scope.READ)) as reader:
        await_status(api, 401)
        assert reader.get("/v1/jobs", headers=headers).status_code == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.com"])
def test_server_without_keys_refuses_public_host(tmp_path: Path, host: str) -> None:
    said = cafe("serve", "--host", host, "--data-dir", str(tmp_path), "--ray-address", "http://127.0.0.1:1", code=2)
    assert "cafe keys create" in said


@pytest.mark.parametrize("text", ["localhost", "127.0.0.1", "::1", "[::1]", "::ffff:127.0.0.1", "a.localhost", "localhost."])
def test_loopback(text: str) -> None:
    assert is_loopback(text)


@pytest.mark.parametrize("text", ["", "0.0.0.0", "::", "localhost.evil", "127.1", "2130706433", "0x7f.1", "evil"])
def test_not_loopback(text: str) -> None:
    assert not is_loopback(text)


@pytest.mark.parametrize(
    ("header", "basic", "key"),
    [
        ("Bearer x", False, "x"),
        ("bearer  x", False, "x"),
        ("Basic dTpw", False, None),
        ("Basic dTpw", True, "p"),
        ("Basic dTpwOnE=", True, "p:q"),
        ("Basic dTo=", True, None),
        ("Basic ?", True, None),
        ("Basic /w==", True, None),
        ("", True, None),
    ],
)
def test_credentials(header: str, basic: bool, key: str | None) -> None:
    assert credentials(header, basic=basic) == key


def test_metrics_token_allows_only_metrics(tmp_path: Path, ray: FakeRay) -> None:
    settings = Settings(data_dir=tmp_path / "data", metrics_token="prometheus-only")
    key = add_key(settings, Scope.WRITE)
    with running(settings, ray) as api, client_of(api, "prometheus-only") as prometheus, client_of(api, key) as writer:
        assert prometheus.get("/metrics").status_code == 200
        assert prometheus.get("/v1/jobs").status_code == 401
        assert writer.get("/metrics").status_code == 403


def revoke(settings: Settings, key: str) -> None:
    database = Database(settings.database)
    with database.write() as session:
        keys.revoke(session, key_id(settings, key))
    database.close()


def await_taken(client: httpx.Client) -> None:
    await_status(client, 200)


def await_status(client: httpx.Client, status: int) -> None:
    """Wait until requests get this status."""
    deadline = time.monotonic() + 10
    while (response := client.get("/v1/jobs")).status_code != status:
        assert time.monotonic() < deadline, response.text
        time.sleep(0.05)


def test_limits_of_a_key_are_stored(settings: Settings) -> None:
    key = add_key(settings, Scope.WRITE, limits=KeyLimits(1, 2, 3, 2**40))
    database = Database(settings.database)
    with database.read() as session:
        row = keys.find(session, key)
    database.close()
    assert row is not None
    assert (row.max_running_jobs, row.requests_per_minute, row.max_upload_bytes, row.max_stored_bytes) == (1, 2, 3, 2**40)
