"""Test the list of pools and their removal with pools that real jobs have trained."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from cafe_core.jobs import local
from server.auth.keys import Scope
from server.settings import Settings
from tests.server.conftest import Api
from tests.server.keyed import add_key, client_of, statuses

DANCE: dict[str, Any] = {
    "dataset": {"name": "digits"},
    "ipc": 1,
    "iterations": 1,
    "network": {"name": "mlp", "width": 4},
    "method": {"name": "dance", "pool_size": 2, "pool_epochs": 1, "pool_batch": 512, "batch_real": 2},
}


def run(settings: Settings, out: Path, **method: Any) -> None:
    local.prepare(DANCE | {"method": DANCE["method"] | method}, out, settings.roots).run(lambda _type, **_data: None)


@pytest.fixture
def trained(settings: Settings, tmp_path: Path) -> None:
    """Train a pool of two networks, then one of three that shares them, then one with another recipe."""
    run(settings, tmp_path / "two")
    run(settings, tmp_path / "three", pool_size=3)
    run(settings, tmp_path / "other", pool_seed=1, pool_size=1)


@pytest.mark.usefixtures("trained")
def test_pools_are_listed_and_deleted(api: Api, settings: Settings, tmp_path: Path) -> None:
    other, first = api.get("/v1/pools").json()["data"]
    assert (first["networks"], other["networks"]) == (3, 1)
    assert (first["dataset"], first["precision"], first["network"]["name"]) == ("digits", "float32", "mlp")
    assert (first["recipe"]["pool_seed"], other["recipe"]["pool_seed"]) == (0, 1)
    assert first["bytes"] > 2.5 * other["bytes"] > 0
    assert first["changed_at"] < other["changed_at"]
    assert api.delete(f"/v1/pools/{first['id']}").status_code == 204
    assert [pool["id"] for pool in api.get("/v1/pools").json()["data"]] == [other["id"]]
    assert api.delete(f"/v1/pools/{first['id']}").status_code == 404
    run(settings, tmp_path / "again")
    assert [pool["networks"] for pool in api.get("/v1/pools").json()["data"]] == [2, 1]


@pytest.mark.usefixtures("trained")
def test_damaged_and_foreign_files_are_not_listed(api: Api, settings: Settings) -> None:
    (directory,) = settings.roots.artifacts.iterdir()
    (directory / "torn.safetensors").write_bytes(b"\x10\x00")
    (directory / "huge.safetensors").write_bytes((1 << 40).to_bytes(8, "little") + b"{}")
    headers = [
        {"__metadata__": {"key": '{"artifact": "other"}'}},
        {"__metadata__": {"key": '{"artifact": "network of a pool"}'}},
        {"__metadata__": {"key": "[]"}},
        ["__metadata__"],
    ]
    for number, header in enumerate(headers):
        text = json.dumps(header).encode()
        (directory / f"other-{number}.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    assert len(api.get("/v1/pools").json()["data"]) == 2


@pytest.mark.usefixtures("trained")
def test_pools_need_a_key_of_scope_admin(api: Api, settings: Settings) -> None:
    (other, _) = api.get("/v1/pools").json()["data"]
    writer, admin = (add_key(settings, scope) for scope in (Scope.WRITE, Scope.ADMIN))
    deadline = time.monotonic() + 10
    while api.get("/v1/pools").status_code != 401:  # the server reads new keys at intervals
        assert time.monotonic() < deadline
        time.sleep(0.05)
    for key, expected in ((writer, [403, 403]), (admin, [200, 204])):
        with client_of(api, key) as client:
            assert statuses([client.get("/v1/pools"), client.delete(f"/v1/pools/{other['id']}")]) == expected


def test_no_pool_is_listed_before_a_job_has_trained_one(api: Api) -> None:
    assert api.get("/v1/pools").json() == {"data": []}
    assert api.delete("/v1/pools/nothing").status_code == 422
