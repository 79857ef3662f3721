"""Test that jobs survive when something that they need is killed, frozen, full or cut off: the kill matrix.

Each row is a real job on a real server and a real Ray. `make test` runs a few rows, `make soak` all of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from server.ray.embedded import EmbeddedRay
from tests.cafe_core.jobs.test_disk_full import small_disk
from tests.postgres import ABSENT, PostgresCluster, binaries, postgres_cluster
from tests.reliability import faults, mortal
from tests.reliability.faults import Case
from tests.reliability.measured import JobResult, Row, measure, result_of
from tests.reliability.ray_nodes import RayNodes
from tests.reliability.scene import SPEC, Ray, Scene
from tests.reliability.served import Server
from workers.client import submission_id

SMALL = SPEC | {
    "iterations": 30,
    "resources": {"workers": 1},
    "evaluation": {"networks": [{"width": 16, "depth": 2}], "repeats": 2, "epochs": 5},
}
SHORT = [faults.DRIVER_FAULTS[0], next(case for case in faults.SERVER_FAULTS if "in flight" in case.fault)]
"""The rows of `make test`. Lost workers are tested in tests/workers."""
ON_SEVERAL_NODES = [*faults.WORKER_FAULTS, *faults.DRIVER_FAULTS, *faults.NODE_FAULTS, *faults.NETWORK_FAULTS]

pytestmark = pytest.mark.timeout(900)


TIMEOUTS = {"CAFE_COLLECTIVE_TIMEOUT_S": "8", "CAFE_DRIVER_SILENCE_S": "15"}
"""Shorter than by default, for a silent worker and a silent driver. Longer than FROZEN_S for the driver."""


def environ_of(ray: Ray) -> dict[str, str]:
    """Return the environment of a server that uses this Ray."""
    return {"CAFE_RAY_ADDRESS": ray.address, "CAFE_RAY_TOKEN": ray.token, **TIMEOUTS}


def undisturbed_result(scene: Scene) -> JobResult:
    """Run the job without a fault and return its result."""
    scene.submit()
    assert scene.await_end()["status"] == "succeeded", scene.job()
    return result_of(scene)


def run_case(case: Case, scene: Scene, undisturbed: JobResult, rows: list[Row]) -> None:
    """Inject the fault, add a row with its effect, and check the row."""
    case.inject(scene)
    scene.await_end()
    row = measure(scene, case.fault, case.moment, undisturbed)
    rows.append(row)
    log = f"{row}\n{scene.job()['error']}\n{scene.server.output()}"
    assert row.outcome == "succeeded", log
    assert row.left_behind == (), log
    assert row.complete, log
    assert row.attempts == case.attempts, log
    assert case.restarts[0] <= row.restarts <= case.restarts[1], log
    assert row.same_bytes or (not case.same_bytes and row.difference < 0.1), log
    assert row.recovery_s is not None, log


@pytest.mark.parametrize("name", mortal.STEPS)
def test_function_of_each_submission_step_exists(name: str) -> None:
    mortal.owner_of(mortal.STEPS[name])


@pytest.fixture(scope="module")
def small(embedded_ray: EmbeddedRay, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Ray, Server, JobResult]]:
    """Return a Ray of one node, a server, and the result of the small job without a fault."""
    with Server(tmp_path_factory.mktemp("small") / "data", **environ_of(embedded_ray)) as server:
        yield embedded_ray, server, undisturbed_result(Scene(embedded_ray, server, SMALL))


@pytest.mark.parametrize("case", SHORT, ids=lambda case: case.fault)
def test_job_survives(case: Case, small: tuple[Ray, Server, JobResult], rows: list[Row]) -> None:
    ray, server, undisturbed = small
    run_case(case, Scene(ray, server, SMALL), undisturbed, rows)


@pytest.fixture(scope="module")
def large(ray_nodes: RayNodes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RayNodes, Server, JobResult]]:
    """Return a Ray of four nodes, a server, and the result of the job without a fault."""
    with Server(tmp_path_factory.mktemp("large") / "data", **environ_of(ray_nodes)) as server:
        yield ray_nodes, server, undisturbed_result(Scene(ray_nodes, server))


@pytest.mark.soak
@pytest.mark.parametrize("case", ON_SEVERAL_NODES, ids=lambda case: f"{case.fault} ({case.moment})")
def test_job_on_several_nodes_survives(case: Case, large: tuple[RayNodes, Server, JobResult], rows: list[Row]) -> None:
    nodes, server, undisturbed = large
    nodes.restore()
    run_case(case, Scene(nodes, server), undisturbed, rows)


@pytest.mark.soak
@pytest.mark.parametrize("case", faults.DISK_FAULTS, ids=lambda case: case.fault)
def test_job_survives_a_full_disk(case: Case, small: tuple[Ray, Server, JobResult], rows: list[Row], tmp_path: Path) -> None:
    ray, _, undisturbed = small
    with small_disk(tmp_path / "disk", 32 << 10) as disk, Server(disk, **environ_of(ray)) as server:
        run_case(case, Scene(ray, server, SMALL), undisturbed, rows)


@pytest.mark.soak
@pytest.mark.parametrize("case", faults.SERVER_FAULTS, ids=lambda case: f"{case.fault} ({case.moment})")
def test_job_survives_faults_of_the_server(case: Case, small: tuple[Ray, Server, JobResult], rows: list[Row]) -> None:
    ray, server, undisturbed = small
    scene = Scene(ray, server, SMALL)
    before = jobs_of(server)
    run_case(case, scene, undisturbed, rows)
    assert jobs_of(server) - before == {scene.job_id}
    assert [name for name in submissions_to(ray) if scene.job_id in name] == [submission_id(scene.job_id, 1)]


def jobs_of(server: Server) -> set[str]:
    """Return the IDs of all jobs that the server lists."""
    return {job["id"] for job in server.api.get("/v1/jobs", params={"limit": 500}).json()["data"]}


def submissions_to(ray: Ray) -> list[str]:
    """Return the names of all jobs that were submitted to Ray."""
    answer = httpx.get(f"{ray.address}/api/jobs/", headers={"Authorization": f"Bearer {ray.token}"}, timeout=30, trust_env=False)
    return [job["submission_id"] for job in answer.raise_for_status().json() if job["submission_id"]]


@dataclass(frozen=True)
class RayOfServer:
    """The Ray that a server started itself."""

    address: str
    token: str

    @classmethod
    def of(cls, server: Server) -> RayOfServer:
        """Read the address and the token from the output of the server."""
        found = re.search(r"dashboard: (http\S+) \(token in (\S+)\)", server.log.read_text())
        assert found is not None, server.output()
        return cls(found[1], Path(found[2]).read_text())


@pytest.mark.soak
@pytest.mark.parametrize("case", faults.EMBEDDED_RAY_FAULTS, ids=lambda case: case.fault)
def test_job_survives_faults_of_the_embedded_ray(
    case: Case, small: tuple[Ray, Server, JobResult], rows: list[Row], tmp_path: Path
) -> None:
    with Server(tmp_path / "data", "--num-cpus", "2", **TIMEOUTS) as server:
        run_case(case, Scene(RayOfServer.of(server), server, SMALL), small[2], rows)


@pytest.fixture(scope="module")
def database() -> Iterator[PostgresCluster]:
    if binaries() is None:
        pytest.skip(ABSENT)
    with postgres_cluster() as running:
        yield running


@pytest.mark.soak
@pytest.mark.parametrize("number", range(3), ids=["connections", "crash", "away"])
def test_job_survives_faults_of_the_database(
    number: int, small: tuple[Ray, Server, JobResult], database: PostgresCluster, rows: list[Row], tmp_path: Path
) -> None:
    ray, _, undisturbed = small
    url = database.create(f"lost_{number}")
    with Server(tmp_path / "data", CAFE_DATABASE_URL=url, **environ_of(ray)) as server:
        run_case(faults.database_faults(database)[number], Scene(ray, server, SMALL), undisturbed, rows)
