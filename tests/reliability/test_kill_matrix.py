"""The kill matrix: what becomes of a job when something that it needs is killed, frozen, full or cut.

Every row is a real job on a real server and a real Ray. A short form runs in `make test`, all of it in `make soak`.
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
from tests.reliability.measured import Row, Yield, measure, yield_of
from tests.reliability.ray_nodes import RayNodes
from tests.reliability.scene import SPEC, Ray, Scene
from tests.reliability.served import Server
from workers.client import submission_id

SMALL = SPEC | {"iterations": 30, "evaluation": {"networks": [{"width": 16, "depth": 2}], "repeats": 2, "epochs": 5}}
SHORT = [
    faults.IN_COLLECTIVES[1],
    faults.OF_DRIVERS[0],
    next(case for case in faults.OF_SUBMISSIONS if "on its way" in case.fault),
]
ON_SEVERAL_NODES = [*faults.IN_COLLECTIVES, *faults.OF_DRIVERS, *faults.OF_NODES, *faults.OF_NETWORKS]

pytestmark = pytest.mark.timeout(900)


WAITS = {"CAFE_COLLECTIVE_TIMEOUT_S": "8", "CAFE_DRIVER_SILENCE_S": "15"}
"""For a silent worker, and for a silent driver: longer than the one that is frozen for a while."""


def environ_of(ray: Ray) -> dict[str, str]:
    """For a server on this Ray."""
    return {"CAFE_RAY_ADDRESS": ray.address, "CAFE_RAY_TOKEN": ray.token, **WAITS}


def undisturbed_yield(scene: Scene) -> Yield:
    """What the job comes to when nothing happens to it."""
    scene.submit()
    assert scene.ended()["status"] == "succeeded", scene.job()
    return yield_of(scene)


def make_row(case: Case, scene: Scene, undisturbed: Yield, rows: list[Row]) -> None:
    """Let it happen, note what came of it, and judge that."""
    case.happen(scene)
    scene.ended()
    row = measure(scene, case.fault, case.moment, undisturbed)
    rows.append(row)
    log = f"{row}\n{scene.job()['error']}\n{scene.server.printed()}"
    assert row.outcome == "succeeded", log
    assert row.left_behind == (), log
    assert row.complete, log
    assert row.attempts == case.attempts, log
    assert case.restarts[0] <= row.restarts <= case.restarts[1], log
    assert row.equal or (not case.equal and row.difference < 0.1), log
    assert row.recovery_s is not None, log


@pytest.mark.parametrize("name", mortal.STEPS)
def test_the_steps_of_a_submission_are_in_the_server(name: str) -> None:
    mortal.owner_of(mortal.STEPS[name])


@pytest.fixture(scope="module")
def small(embedded_ray: EmbeddedRay, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Ray, Server, Yield]]:
    """Return a Ray of one node, a server, and what the small job yields."""
    with Server(tmp_path_factory.mktemp("small") / "data", **environ_of(embedded_ray)) as server:
        yield embedded_ray, server, undisturbed_yield(Scene(embedded_ray, server, SMALL))


@pytest.mark.parametrize("case", SHORT, ids=lambda case: case.fault)
def test_a_job_survives(case: Case, small: tuple[Ray, Server, Yield], rows: list[Row]) -> None:
    ray, server, undisturbed = small
    make_row(case, Scene(ray, server, SMALL), undisturbed, rows)


@pytest.fixture(scope="module")
def large(ray_nodes: RayNodes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RayNodes, Server, Yield]]:
    """A Ray of four nodes, a server, and what the job yields."""
    with Server(tmp_path_factory.mktemp("large") / "data", **environ_of(ray_nodes)) as server:
        yield ray_nodes, server, undisturbed_yield(Scene(ray_nodes, server))


@pytest.mark.soak
@pytest.mark.parametrize("case", ON_SEVERAL_NODES, ids=lambda case: f"{case.fault} ({case.moment})")
def test_on_several_nodes(case: Case, large: tuple[RayNodes, Server, Yield], rows: list[Row]) -> None:
    nodes, server, undisturbed = large
    nodes.heal()
    make_row(case, Scene(nodes, server), undisturbed, rows)


@pytest.mark.soak
@pytest.mark.parametrize("case", faults.OF_DISKS, ids=lambda case: case.fault)
def test_a_full_disk(case: Case, small: tuple[Ray, Server, Yield], rows: list[Row], tmp_path: Path) -> None:
    ray, _, undisturbed = small
    with small_disk(tmp_path / "disk", 32 << 10) as disk, Server(disk, **environ_of(ray)) as server:
        make_row(case, Scene(ray, server, SMALL), undisturbed, rows)


@pytest.mark.soak
@pytest.mark.parametrize("case", faults.OF_SUBMISSIONS, ids=lambda case: f"{case.fault} ({case.moment})")
def test_a_server_killed(case: Case, small: tuple[Ray, Server, Yield], rows: list[Row]) -> None:
    ray, server, undisturbed = small
    scene = Scene(ray, server, SMALL)
    before = jobs_of(server)
    make_row(case, scene, undisturbed, rows)
    assert jobs_of(server) - before == {scene.job_id}
    assert [name for name in submissions_to(ray) if scene.job_id in name] == [submission_id(scene.job_id, 1)]


def jobs_of(server: Server) -> set[str]:
    """The ids of all jobs that the server lists."""
    return {job["id"] for job in server.api.get("/v1/jobs", params={"limit": 500}).json()["data"]}


def submissions_to(ray: Ray) -> list[str]:
    """The names of all jobs that Ray was given."""
    answer = httpx.get(f"{ray.address}/api/jobs/", headers={"Authorization": f"Bearer {ray.token}"}, timeout=30, trust_env=False)
    return [job["submission_id"] for job in answer.raise_for_status().json() if job["submission_id"]]


@dataclass(frozen=True)
class LocalRay:
    """A server's own."""

    address: str
    token: str

    @classmethod
    def of(cls, server: Server) -> LocalRay:
        """From what the server has printed."""
        found = re.search(r"dashboard: (http\S+) \(token in (\S+)\)", server.log.read_text())
        assert found is not None, server.printed()
        return cls(found[1], Path(found[2]).read_text())


@pytest.mark.soak
@pytest.mark.parametrize("case", faults.OF_LOCAL_RAYS, ids=lambda case: case.fault)
def test_the_servers_own_ray(case: Case, small: tuple[Ray, Server, Yield], rows: list[Row], tmp_path: Path) -> None:
    with Server(tmp_path / "data", "--num-cpus", "2", **WAITS) as server:
        make_row(case, Scene(LocalRay.of(server), server, SMALL), small[2], rows)


@pytest.fixture(scope="module")
def database() -> Iterator[PostgresCluster]:
    if binaries() is None:
        pytest.skip(ABSENT)
    with postgres_cluster() as running:
        yield running


@pytest.mark.soak
@pytest.mark.parametrize("number", range(3), ids=["connections", "crash", "away"])
def test_a_lost_database(
    number: int, small: tuple[Ray, Server, Yield], database: PostgresCluster, rows: list[Row], tmp_path: Path
) -> None:
    ray, _, undisturbed = small
    url = database.create(f"lost_{number}")
    with Server(tmp_path / "data", CAFE_DATABASE_URL=url, **environ_of(ray)) as server:
        make_row(faults.of_databases(database)[number], Scene(ray, server, SMALL), undisturbed, rows)
