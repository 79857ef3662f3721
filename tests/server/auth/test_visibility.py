"""Jobs and datasets of other keys are not found at any endpoint. Generated from /openapi.json, which covers new endpoints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from fastapi import APIRouter

from server.app import create_app
from server.auth.keys import Scope
from server.routes import artifacts, dashboard, datasets, events, jobs, metrics, pools, system, trials
from server.settings import Settings
from tests.server.auth.test_limits import npz, upload
from tests.server.conftest import SPEC, Api, FakeRay, running
from tests.server.keyed import add_key, client_of

OPEN = {"/healthz", "/readyz"}
OF_THE_SERVER = {
    ("POST", "/v1/jobs"),
    ("GET", "/v1/jobs"),
    ("POST", "/v1/datasets"),
    ("GET", "/v1/datasets"),
    ("GET", "/v1/cluster"),
}


@dataclass(frozen=True)
class Operation:
    """A method of a path and its documented scope; None: no key needed."""

    method: str
    path: str
    scope: str | None

    def of(self, job_id: str, dataset_id: str) -> str:
        """Return the path with the id of a job, a dataset or a pool filled in."""
        return self.path.format(job_id=job_id, dataset_id=dataset_id, pool_id="pool_" + 24 * "a", name="synthetic.safetensors")


def operations() -> list[Operation]:
    """Return all documented operations."""
    schema = create_app(Settings(), FakeRay()).openapi()
    return [
        Operation(method.upper(), path, _scope(operation))
        for path, methods in schema["paths"].items()
        for method, operation in methods.items()
    ]


def _scope(operation: dict[str, Any]) -> str | None:
    security = operation.get("security")
    if not security:
        return None
    ((scope,),) = (requirement["api_key"] for requirement in security)
    return str(scope)


ALL = operations()
OF_A_THING = [each for each in ALL if "{" in each.path and each.scope != "admin"]
"""Operations on what belongs to a key."""


@dataclass(frozen=True)
class Site:
    """A server with two owners, each with a job and a dataset, and further keys."""

    api: Api
    clients: dict[str, Api]
    job_id: str
    dataset_id: str
    """A job and a dataset of ann."""


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    url = None
    if request.param == "postgresql":
        url = request.getfixturevalue("postgres").create("site", template="migrated")
    settings = Settings(data_dir=tmp_path_factory.mktemp("site"), database_url=url)
    scopes = {"ann": Scope.WRITE, "bob": Scope.WRITE, "reader": Scope.READ, "admin": Scope.ADMIN}
    keys = {name: add_key(settings, scope, name=name) for name, scope in scopes.items()}
    with running(settings, FakeRay()) as api:
        clients = {name: client_of(api, key) for name, key in keys.items()}
        job_id = clients["ann"].make()["id"]
        dataset_id = upload(clients["ann"], npz()).json()["id"]
        try:
            yield Site(api, clients, job_id, dataset_id)
        finally:
            for client in clients.values():
                client.close()


def ask(client: httpx.Client, operation: Operation, path: str) -> httpx.Response:
    with client.stream(operation.method, path) as response:
        if not response.headers.get("content-type", "").startswith("text/event-stream"):
            response.read()
        return response


def named(operation: Operation) -> str:
    return f"{operation.method} {operation.path}"


def test_operations_were_found() -> None:
    assert len(OF_A_THING) >= 15
    assert {(each.method, each.path) for each in ALL} >= OF_THE_SERVER


def test_every_endpoint_documents_its_scope() -> None:
    for operation in ALL:
        assert (operation.scope is None) == (operation.path in OPEN), operation
        if operation.path.startswith("/v1/pools"):
            assert operation.scope == "admin"
        elif operation.path.startswith("/v1/"):
            assert operation.scope == ("read" if operation.method in ("GET", "HEAD") else "write"), operation
    schema = create_app(Settings(), FakeRay()).openapi()
    assert schema["components"]["securitySchemes"]["api_key"]["scheme"] == "bearer"
    for path, methods in schema["paths"].items():
        for operation in methods.values():
            assert path in OPEN or {"401", "403", "429"} <= set(operation["responses"]), path


def test_only_listed_routes_are_undocumented() -> None:
    modules = (artifacts, dashboard, datasets, events, jobs, metrics, pools, system, trials)
    routers = [router for module in modules for router in vars(module).values() if isinstance(router, APIRouter)]
    assert len(routers) == len(modules) + 1  # system has two
    hidden = {route.path for router in routers for route in router.routes if not route.include_in_schema}
    assert hidden == {"/dashboard", "/dashboard/api/authentication_mode", "/dashboard/{path:path}"}
    app = create_app(Settings(), FakeRay())
    assert len(app.routes) == 5 + len(routers)  # and the pages of the documentation


@pytest.mark.parametrize("operation", OF_A_THING, ids=named)
def test_resource_of_other_key_is_not_found(site: Site, operation: Operation) -> None:
    theirs = ask(site.clients["bob"], operation, operation.of(site.job_id, site.dataset_id))
    absent_job, absent_dataset = "job_" + "a" * 16, "ds_" + "a" * 16
    nobodys = ask(site.clients["bob"], operation, operation.of(absent_job, absent_dataset))
    assert theirs.status_code == 404
    same = theirs.text.replace(site.job_id, absent_job).replace(site.dataset_id, absent_dataset)
    assert (same, theirs.headers["content-type"]) == (nobodys.text, nobodys.headers["content-type"])
    assert nobodys.status_code == 404
    assert site.clients["ann"].get(f"/v1/jobs/{site.job_id}").json()["status"] in ("queued", "starting")
    assert site.clients["ann"].get(f"/v1/datasets/{site.dataset_id}").status_code == 200


@pytest.mark.parametrize("operation", [each for each in ALL if each.scope], ids=named)
def test_request_without_key_is_unauthorized(site: Site, operation: Operation) -> None:
    response = ask(site.api, operation, operation.of(site.job_id, site.dataset_id))
    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize("operation", [each for each in ALL if each.scope not in (None, "read")], ids=named)
def test_insufficient_scope_is_forbidden(site: Site, operation: Operation) -> None:
    response = ask(site.clients["reader"], operation, operation.of(site.job_id, site.dataset_id))
    assert response.status_code == 403
    # A request that changes something needs the scope write before any other.
    needed = operation.scope if operation.method in ("GET", "HEAD") else "write"
    assert operation.method == "HEAD" or str(needed) in response.json()["detail"]


@pytest.mark.parametrize("operation", [each for each in OF_A_THING if each.method in ("GET", "HEAD")], ids=named)
def test_owner_and_admin_see_resource(site: Site, operation: Operation) -> None:
    path = operation.of(site.job_id, site.dataset_id)
    for name in ("ann", "admin"):
        response = ask(site.clients[name], operation, path)
        assert response.status_code == 200 or "there is no job" not in response.text, response.text
        assert response.status_code in (200, 404), response.text  # 404: it has no result yet


def test_lists_contain_only_own_resources(site: Site) -> None:
    def listed(name: str, path: str) -> list[str]:
        return [each["id"] for each in site.clients[name].get(path).json()["data"]]

    for name, sees in {"ann": True, "bob": False, "reader": False, "admin": True}.items():
        assert (site.job_id in listed(name, "/v1/jobs")) == sees
        assert (site.dataset_id in listed(name, "/v1/datasets")) == sees
        assert "digits" in listed(name, "/v1/datasets")


@pytest.mark.parametrize("dry_run", [False, True])
def test_specs_can_refer_only_to_visible_resources(site: Site, dry_run: bool) -> None:
    mine = upload(site.clients["bob"], npz(1)).json()["id"]
    base = SPEC | {"dataset": {"id": site.dataset_id}}
    sweep = {"kind": "sweep", "base": SPEC | {"dataset": {"id": mine}, "evaluation": {"repeats": 1}}, "samples": 1}
    judged = {"kind": "evaluate", "synthetic": {"job_id": site.job_id}}
    specs: list[tuple[dict[str, Any], str]] = [
        (base, site.dataset_id),
        (
            {"kind": "evaluate", "synthetic": {"dataset": {"id": site.dataset_id}, "selection": "random", "ipc": 1}},
            site.dataset_id,
        ),
        (sweep | {"space": {"dataset.id": {"grid": [site.dataset_id]}}}, site.dataset_id),
        (judged, site.job_id),
    ]
    for spec, named_id in specs:
        post = site.clients["bob"].post("/v1/jobs", json=spec, params={"dry_run": dry_run})
        unknown = named_id[:-16] + "a" * 16
        other = site.clients["bob"].post("/v1/jobs", json=_with(spec, named_id, unknown), params={"dry_run": dry_run})
        assert post.status_code == other.status_code == 422, post.text
        assert post.text.replace(named_id, unknown) == other.text
    assert site.clients["ann"].post("/v1/jobs", json=base, params={"dry_run": True}).status_code == 200


def _with(value: Any, old: str, new: str) -> Any:
    if isinstance(value, dict):
        return {key: _with(each, old, new) for key, each in value.items()}
    if isinstance(value, list):
        return [_with(each, old, new) for each in value]
    return new if value == old else value


def test_idempotency_keys_are_per_api_key(site: Site) -> None:
    headers = {"Idempotency-Key": "the same"}
    first, second = (site.clients[name].post("/v1/jobs", json=SPEC, headers=headers) for name in ("ann", "bob"))
    assert (first.status_code, second.status_code) == (201, 201)
    assert first.json()["id"] != second.json()["id"]
    assert site.clients["ann"].post("/v1/jobs", json=SPEC, headers=headers).json()["id"] == first.json()["id"]
