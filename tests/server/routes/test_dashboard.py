"""/dashboard/ in front of a fake Ray that records requests."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from server.auth.keys import Scope
from server.settings import Settings
from tests.server.conftest import Api, running
from tests.server.keyed import add_key, client_of
from workers.client import RayClient

TOKEN = "ray-token-that-stays-here"


class StandIn(ThreadingHTTPServer):
    """Respond to every request alike, with headers that must not be passed on."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        self.address = f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, StandIn)
        self.server.asked.append((self.command, self.path, {name.lower(): value for name, value in self.headers.items()}))
        content = b'{"answered": true}'
        self.send_response(200)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(content)),
            "Set-Cookie": f"ray-authentication-token={TOKEN}",
            "Keep-Alive": "timeout=5",
            "X-Ray": TOKEN,
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815

    def log_message(self, *_args: object) -> None:
        """Do not log."""


@pytest.fixture(scope="module")
def ray() -> Iterator[StandIn]:
    server = StandIn()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory, ray: StandIn) -> Iterator[dict[str, str]]:
    """Keys of scopes admin and write, and the URL of the server."""
    settings = Settings(data_dir=tmp_path_factory.mktemp("dashboard"))
    made = {scope.value: add_key(settings, scope) for scope in (Scope.ADMIN, Scope.WRITE)}
    with running(settings, RayClient(ray.address, TOKEN)) as api:
        yield made | {"url": str(api.base_url)}


@pytest.fixture
def admin(keys: dict[str, str], ray: StandIn) -> Iterator[Api]:
    ray.asked.clear()
    with client_of(Api(base_url=keys["url"]), keys["admin"]) as client:
        yield client


def of_dashboard(ray: StandIn, path: str) -> list[tuple[str, str, dict[str, str]]]:
    """Return the recorded requests of a path."""
    return [asked for asked in ray.asked if asked[1] == path]


@pytest.mark.parametrize(
    "path",
    [
        *("/", "/favicon.ico", "/static/js/main.1.js", "/nodes?view=summary", "/nodes/ab12", "/logical/actors/a?x=1", "/events"),
        *("/api/v0/tasks?limit=10&filter_keys=job_id", "/api/v0/tasks/summarize", "/api/v0/logs/file?filename=a.log"),
        *("/api/jobs/job_x-1", "/api/jobs/job_x-1/logs", "/api/cluster_status?format=1", "/static/a%20b"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_read_only_paths_are_passed_on(admin: Api, ray: StandIn, path: str, method: str) -> None:
    answer = admin.request(method, f"/dashboard{path}", headers={"Cookie": "a=b", "X-Other": "c"})
    assert answer.status_code == 200
    assert answer.content == (b'{"answered": true}' if method == "GET" else b"")
    ((asked_method, _, headers),) = of_dashboard(ray, path)
    assert asked_method == method
    assert headers["authorization"] == f"Bearer {TOKEN}"
    assert not {"cookie", "x-other", "x-forwarded-for"} & set(headers)
    assert not {"set-cookie", "x-ray", "keep-alive"} & set(answer.headers)
    assert TOKEN not in str(answer.headers) + answer.text


@pytest.mark.parametrize(
    "path",
    [
        *(
            "/worker/traceback?pid=1",
            "/worker/cpu_profile?pid=1",
            "/worker/gpu_profile",
            "/worker/jax_profile",
            "/memory_profile",
        ),
        *("/task/traceback", "/task/cpu_profile", "/test/dump", "/api/v0/delay/9", "/api/packages/gcs/a", "/api/authenticate"),
        *("/api/profiling_enabled", "/static/%2e%2e/worker/traceback", "/static/..%2fworker/traceback"),
        *(
            "/nodes/%2e%2e",
            "/api/jobs/x/stop",
            "/api/jobs/x/logs/tail",
            "//worker/traceback",
            "/%2e/memory_profile",
            "/nodes/a%0d%0a/b",
        ),
    ],
)
def test_paths_that_change_something_are_not_found(admin: Api, ray: StandIn, path: str) -> None:
    url = admin.base_url.copy_with(raw_path=f"/dashboard{path}".encode())
    assert admin.get(url).status_code == 404
    assert not any("traceback" in asked or "profile" in asked or ".." in asked for _, asked, _ in ray.asked)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_other_methods_are_refused(admin: Api, ray: StandIn, method: str) -> None:
    assert admin.request(method, "/dashboard/api/jobs/").status_code == 405
    assert not any(asked[0] == method for asked in ray.asked)


def test_dashboard_does_not_ask_for_ray_token(admin: Api) -> None:
    assert admin.get("/dashboard/api/authentication_mode").json() == {"authentication_mode": "disabled"}
    assert admin.get("/dashboard").headers["Location"] == "/dashboard/"


def test_a_browser_sends_the_key_as_the_password(keys: dict[str, str], ray: StandIn) -> None:
    ray.asked.clear()
    with Api(base_url=keys["url"]) as browser:
        asked = browser.get("/dashboard/")
        assert asked.status_code == 401
        assert asked.headers["WWW-Authenticate"].startswith("Basic realm=")
        for key, status in ((keys["admin"], 200), (keys["write"], 403), ("cafe_" + "A" * 43, 401), (TOKEN, 401)):
            basic = base64.b64encode(f"me:{key}".encode()).decode()
            assert browser.get("/dashboard/", headers={"Authorization": f"Basic {basic}"}).status_code == status
        basic = base64.b64encode(f"me:{keys['admin']}".encode()).decode()
        assert browser.get("/v1/jobs", headers={"Authorization": f"Basic {basic}"}).status_code == 401  # there only
        assert len(of_dashboard(ray, "/")) == 1
