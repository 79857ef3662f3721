"""Test the form of docker-compose.yml, and that its services work with their commands, environment, users and mounts."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
import yaml

from tests.deploy.compose import ROOT, Project, load
from tests.deploy.containers import Containers, unavailable_reason

COMPOSE = ROOT / "docker-compose.yml"
T = TypeVar("T")
UNAVAILABLE = unavailable_reason()
needs_namespaces = pytest.mark.skipif(UNAVAILABLE is not None, reason=str(UNAVAILABLE))


def document() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())
    return loaded


@pytest.mark.parametrize("file", ["docker-compose.yml", "deploy/publish-grafana.yml"])
def test_file_matches_the_compose_specification(file: str) -> None:
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(ROOT / file)]
    checked = subprocess.run(check, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


def test_every_service_is_hardened_and_has_a_memory_limit_and_a_health_check() -> None:
    for name, service in document()["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["user"].partition(":")[0] not in ("", "0", "root"), name
        assert service["restart"], name
        assert service["deploy"]["resources"]["limits"]["memory"], name
        assert name == "init" or service["healthcheck"]["test"], name
        assert ":" in service["image"], name
        assert not service["image"].endswith(":latest"), name


def test_only_the_api_is_published_and_by_default_on_loopback() -> None:
    services = document()["services"]
    assert {name for name, service in services.items() if "ports" in service or "outside" in service["networks"]} == {"api"}
    assert load(COMPOSE, {"cpu"}, {}).services["api"].ports == ["127.0.0.1:8000:8000"]
    assert load(COMPOSE, {"cpu"}, {}).networks == {"cluster": True, "outside": False}
    assert load(COMPOSE, set(), {"CAFE_BIND": "10.0.0.1", "CAFE_PORT": "80"}).services["api"].ports == ["10.0.0.1:80:8000"]


def test_profiles_select_the_workers() -> None:
    always = {"postgres", "init", "api", "ray-head", "prometheus", "grafana"}
    assert load(COMPOSE, set(), {}).services.keys() == always
    assert load(COMPOSE, {"cpu"}, {}).services.keys() == always | {"ray-worker-cpu"}
    assert load(COMPOSE, {"gpu"}, {}).services.keys() == always | {"ray-worker"}
    [device] = document()["services"]["ray-worker"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}


def test_secrets_are_private_files_and_not_in_the_configuration(tmp_path: Path) -> None:
    made = make_secrets(tmp_path)
    assert {path.name for path in made.iterdir()} == document()["secrets"].keys()
    assert made.stat().st_mode & 0o777 == 0o700
    before = {path.name: path.read_text() for path in made.iterdir()}
    assert len(set(before.values())) == len(before)
    assert min(map(len, before.values())) >= 43
    assert {path.name: path.read_text() for path in make_secrets(tmp_path).iterdir()} == before
    text = COMPOSE.read_text() + (ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text()
    assert not [name for name in before if before[name] in text]
    ignored = ["git", "-C", str(ROOT), "check-ignore", "--quiet", "deploy/secrets/admin_key"]
    assert subprocess.run(ignored, check=False).returncode == 0


def make_secrets(directory: Path) -> Path:
    """Run deploy/secrets.sh for `directory` in place of deploy/."""
    script = directory / "secrets.sh"
    script.write_bytes((ROOT / "deploy" / "secrets.sh").read_bytes())
    subprocess.run(["sh", str(script)], check=True, capture_output=True)
    return directory / "secrets"


@pytest.fixture(scope="module")
def containers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containers]:
    """Start the services of the profile `cpu` except Grafana, which is not available here, and wait until they are healthy."""
    directory = tmp_path_factory.mktemp("compose")
    secrets = make_secrets(directory)
    project = load(COMPOSE, {"cpu"}, {})
    project = Project(project.services, {name: secrets / name for name in project.secrets}, project.volumes, project.networks)
    with Containers(project, directory) as running:
        running.start([name for name in project.services if name != "grafana"])
        running.await_healthy()
        yield running


@pytest.fixture
def api(containers: Containers) -> Iterator[httpx.Client]:
    """Return a client of the API with its first key."""
    key = containers.project.secrets["admin_key"].read_text()
    url = f"http://{containers.running['api'].addresses['outside']}:8000"
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=30, trust_env=False) as client:
        yield client


def eventually(ask: Callable[[], T | None], within_s: float = 60) -> T:
    """Call `ask` until its result is true, and return the result."""
    deadline = time.monotonic() + within_s
    while not (answer := ask()):
        assert time.monotonic() < deadline, f"not within {within_s} s"
        time.sleep(0.3)
    return answer


@needs_namespaces
@pytest.mark.timeout(600)  # starts all services, which takes minutes on a busy machine
def test_job_runs_on_the_worker(containers: Containers, api: httpx.Client) -> None:
    spec = {
        "dataset": {"name": "digits"},
        "ipc": 1,
        "iterations": 2,
        "network": {"width": 8, "depth": 2},
        "resources": {"workers": 2},
        "method": {"max_outer": 2, "max_inner": 1},
        "evaluation": {"networks": [{"width": 8, "depth": 2}], "repeats": 1, "epochs": 2},
    }
    assert httpx.post(f"{api.base_url}/v1/jobs", json=spec, trust_env=False).status_code == 401
    eventually(lambda: len(api.get("/v1/cluster").json()["nodes"]) == 2)
    posted = api.post("/v1/jobs", json=spec)
    assert posted.status_code == 201, posted.text
    url = f"/v1/jobs/{posted.json()['id']}"
    where: set[str] = set()

    def ended() -> dict[str, Any] | None:
        where.update(nodes_of_drivers(containers))
        job: dict[str, Any] = api.get(url).json()
        return job if job["finished_at"] else None

    job = eventually(ended, within_s=400)
    assert job["status"] == "succeeded", (job, api.get(f"{url}/logs").text)
    assert where == {"ray-worker-cpu"}
    synthetic = api.get(f"{url}/synthetic", params={"format": "npz"})
    assert synthetic.status_code == 200
    assert synthetic.content.startswith(b"PK")
    workers = [event for event in api.get(f"{url}/events").json()["data"] if event["type"] == "workers"]
    addresses = {worker["node_ip"] for event in workers for worker in event["data"]["workers"]}
    assert addresses == {containers.running["ray-worker-cpu"].addresses["cluster"]}


def nodes_of_drivers(containers: Containers) -> set[str]:
    """Return the services in whose containers a driver is running."""
    listed = {name: containers.running[name].run(["ps", "-e", "-o", "args"]).stdout for name in ("ray-head", "ray-worker-cpu")}
    return {name for name, processes in listed.items() if "-m workers run --job-dir" in processes}


@needs_namespaces
def test_prometheus_scrapes_the_api_and_ray_on_every_node(containers: Containers) -> None:
    prometheus = containers.running["prometheus"]

    def series(query: str) -> list[dict[str, str]]:
        url = f"http://127.0.0.1:9090/api/v1/query?query={query}"
        answer = json.loads(prometheus.run(["wget", "-q", "-O", "-", url]).stdout)
        return [found["metric"] for found in answer["data"]["result"]]

    assert eventually(lambda: series("cafe_ray_up==1"))
    assert eventually(lambda: series("cafe_reconciler_leader==1"))
    nodes = {containers.running[name].addresses["cluster"] for name in ("ray-head", "ray-worker-cpu")}

    def measured() -> bool:
        return {metric["instance"].partition(":")[0] for metric in series("ray_node_mem_used")} == nodes

    assert eventually(measured)


@needs_namespaces
def test_only_the_port_of_the_api_is_reachable_from_outside(containers: Containers) -> None:
    visitor, _ = containers.add_namespace("visitor", ["outside"])
    api = containers.running["api"].addresses
    ports = {
        "postgres": [5432],
        "prometheus": [9090],
        "ray-head": [6379, 8265, 8080, 10001, 52365],
        "ray-worker-cpu": [8080, 52365],
        "api": [8000],
    }
    inside = [(name, containers.running[name].addresses["cluster"], port) for name in ports for port in ports[name]]
    assert connects(visitor, api["outside"], 8000)
    with ThreadPoolExecutor(len(inside)) as pool:  # each attempt takes a second to fail
        connected = list(pool.map(lambda each: connects(visitor, each[1], each[2]), inside))
    assert not [(name, port) for (name, _, port), reached in zip(inside, connected, strict=True) if reached]
    # These ports are open to their peers: it is the network that blocks the visitor.
    assert connects(containers.running["api"].namespace, containers.running["ray-head"].addresses["cluster"], 8265)
    assert connects(containers.running["api"].namespace, containers.running["postgres"].addresses["cluster"], 5432)
    assert listening(containers.running["api"].namespace) == {8000}


def connects(namespace: str, address: str, port: int) -> bool:
    program = f"import socket; socket.create_connection(({address!r}, {port}), timeout=1).close()"
    inside = ["ip", "netns", "exec", namespace, sys.executable, "-I", "-S", "-c", program]
    return subprocess.run(inside, capture_output=True, check=False).returncode == 0


def listening(namespace: str) -> set[int]:
    """Return the TCP ports to which other hosts can connect."""
    shown = subprocess.run(["ip", "netns", "exec", namespace, "ss", "-Hltn"], capture_output=True, text=True, check=True).stdout
    local = [line.split()[3] for line in shown.splitlines()]
    return {int(address.rpartition(":")[2]) for address in local if not address.startswith("127.")}


@needs_namespaces
def test_documented_backup_commands_work_in_the_services(containers: Containers) -> None:
    text = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
    wanted = re.findall(r"^docker compose exec -T (postgres pg_dump|api tar|postgres psql) (.*) [<>] backup/\S+$", text, re.M)
    (_, dump), (_, create), (_, restore) = wanted
    dumped = containers.running["postgres"].run(["pg_dump", *dump.split()])
    assert "COPY public.jobs" in dumped.stdout, dumped.stderr
    again = containers.running["postgres"].run(["sh", "-c", f"pg_dump {dump} | psql {restore}"])
    assert (again.returncode, again.stderr) == (0, "")
    listed = containers.running["api"].run(["sh", "-c", f"tar {create} | tar --list"])
    assert "./uploads/" in listed.stdout.splitlines(), listed.stderr


@needs_namespaces
@pytest.mark.parametrize("name", ["api", "postgres", "prometheus", "ray-head", "ray-worker-cpu"])
def test_services_have_no_privileges(containers: Containers, name: str) -> None:
    container = containers.running[name]
    status = dict(line.split(":\t", 1) for line in container.run(["cat", "/proc/self/status"]).stdout.splitlines())
    assert status["Uid"].split()[0] == container.service.user.partition(":")[0]
    assert int(status["CapEff"], 16) == 0
    assert status["NoNewPrivs"] == "1"
    assert container.run(["sh", "-c", "echo x > /etc/written"]).returncode != 0
    assert "Read-only file system" in container.run(["touch", "/written"], as_root=True).stderr


@needs_namespaces
@pytest.mark.parametrize("cache", ["TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"])
def test_compiled_code_runs_from_its_caches(containers: Containers, cache: str) -> None:
    worker = containers.running["ray-worker-cpu"]

    def run_from(directory: str) -> int:
        program = f"mkdir -p {directory} && cp /bin/true {directory}/program && {directory}/program"
        return worker.run(["sh", "-c", program]).returncode

    assert run_from(worker.environment[cache]) == 0
    assert run_from("/tmp/other") == 126  # noexec


@needs_namespaces
def test_secrets_are_in_no_environment_command_line_or_log(containers: Containers) -> None:
    secrets = [path.read_text() for path in containers.project.secrets.values()]
    for name, container in containers.running.items():
        if container.process.poll() is None:
            program = "cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2>/dev/null; true"
            seen = container.run(["sh", "-c", program], as_root=True).stdout
            assert "PATH=" in seen
            assert not [secret for secret in secrets if secret in seen], name
        assert not [secret for secret in secrets if secret in container.log.read_text(errors="replace")], name
