"""The faults of the kill matrix. Each brings a scene's job to a moment, and does something to it or to what it runs on."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import httpx
import psutil

from tests.postgres import PostgresCluster
from tests.reliability import mortal
from tests.reliability.hosts import cut_between, cut_off
from tests.reliability.ray_nodes import AGENT, DASHBOARD, RAYLET, RayNodes
from tests.reliability.scene import Scene

CUT_S = 30.0
"""How long the network is cut."""
AWAY_S = 5.0
"""How long the database is away."""
FULL_S = 5.0
"""How long the disk is full."""
UNHEALTHY_S = 10.0
"""How long a health check takes to see that a node is to be started anew."""
FROZEN_S = 10.0
"""How long what is frozen for a while is."""


@dataclass(frozen=True)
class Case:
    """A row to be made."""

    fault: str
    moment: str
    happen: Callable[[Scene], None]
    attempts: int = 1
    """How many the job is to take."""
    restarts: tuple[int, int] = (0, 0)
    """Of its workers: at least, at most."""
    equal: bool = True
    """Whether the result is to have the same bytes: of as many workers it has, of fewer it has not."""


def kill_in_a_collective(rank: int) -> Callable[[Scene], None]:
    """Of a worker that waits in one, kill -9."""

    def happen(scene: Scene) -> None:
        scene.amid_condensing()
        other = scene.wait_in_a_collective(rank)
        scene.happens_now()
        os.kill(scene.pid_of(rank), signal.SIGKILL)
        os.kill(other, signal.SIGCONT)

    return happen


def freeze_in_a_collective(rank: int) -> Callable[[Scene], None]:
    """SIGSTOP, and it is never continued."""

    def happen(scene: Scene) -> None:
        scene.amid_condensing()
        other = scene.wait_in_a_collective(rank)
        scene.happens_now()
        os.kill(scene.pid_of(rank), signal.SIGSTOP)
        os.kill(other, signal.SIGCONT)

    return happen


def signal_to_an_evaluating_worker(how: signal.Signals) -> Callable[[Scene], None]:
    """Kill or freeze one of those that train networks on the result."""

    def happen(scene: Scene) -> None:
        scene.amid_evaluating()
        scene.happens_now()
        os.kill(scene.workers()[0]["pid"], how)

    return happen


def kill_driver(scene: Scene) -> None:
    """kill -9."""
    scene.amid_condensing()
    scene.happens_now()
    scene.driver().kill()


def kill_evaluating_driver(scene: Scene) -> None:
    """kill -9, while its workers evaluate."""
    scene.amid_evaluating()
    scene.happens_now()
    scene.driver().kill()


def freeze_driver_for_a_while(scene: Scene) -> None:
    """SIGSTOP, some seconds, SIGCONT."""
    scene.amid_condensing()
    driver = scene.driver()
    scene.happens_now()
    driver.suspend()
    time.sleep(FROZEN_S)
    driver.resume()


def freeze_driver(scene: Scene) -> None:
    """SIGSTOP, and it is never continued."""
    scene.amid_condensing()
    driver = scene.driver()
    scene.happens_now()
    driver.suspend()


def freeze_evaluating_driver(scene: Scene) -> None:
    """The same, while its workers evaluate."""
    scene.amid_evaluating()
    driver = scene.driver()
    scene.happens_now()
    driver.suspend()


def kill_supervisor(scene: Scene) -> None:
    """Ray's actor that started the driver."""
    scene.amid_condensing()
    supervisor = scene.supervisor()
    scene.happens_now()
    supervisor.kill()


def freeze_supervisor(scene: Scene) -> None:
    """Until the job has ended; Ray has nothing that would notice it."""
    scene.amid_condensing()
    supervisor = scene.supervisor()
    scene.happens_now()
    with frozen([supervisor]):
        scene.ended()


def freeze_driver_and_supervisor(scene: Scene) -> None:
    """Neither is continued: Ray hears that the driver is to stop, and nothing stops it."""
    scene.amid_condensing()
    frozen_for_good = [scene.supervisor(), scene.driver()]
    scene.happens_now()
    for process in frozen_for_good:
        process.suspend()


@contextlib.contextmanager
def frozen(processes: Iterable[psutil.Process]) -> Iterator[None]:
    """Within, they are stopped; those that are left are continued then."""
    stopped = list(processes)
    for process in stopped:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.suspend()
    try:
        yield
    finally:
        for process in stopped:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()


def freeze_server_for_a_while(scene: Scene) -> None:
    """SIGSTOP of `cafe serve`, some seconds, SIGCONT: the driver is not to be called silent for that."""
    scene.amid_condensing()
    scene.happens_now()
    with frozen([scene.server.process]):
        time.sleep(FROZEN_S)


def kill_server(scene: Scene) -> None:
    """kill -9 of `cafe serve`, and it is started again."""
    scene.amid_condensing()
    scene.happens_now()
    scene.server.kill()
    scene.server.start()


def die_at(step: str) -> Callable[[Scene], None]:
    """The server is killed at a step of the submission and started again; its client asks again with the same key."""

    def happen(scene: Scene) -> None:
        scene.server.stop()
        scene.server.start(dies_at=step)
        scene.happens_now()
        try:
            scene.submit()
        except httpx.TransportError:
            assert scene.job_id == ""
        scene.server.ended_by()
        heard = scene.job_id
        scene.happens_now()
        scene.server.start()
        scene.submit()
        assert heard in ("", scene.job_id)

    return happen


# What needs several nodes.


def nodes_of(scene: Scene) -> RayNodes:
    """The scene's Ray, which has several."""
    assert isinstance(scene.ray, RayNodes)
    return scene.ray


def _number_of(scene: Scene, rank: int) -> int:
    """The node that a worker runs on."""
    address = next(worker["node_ip"] for worker in scene.workers() if worker["rank"] == rank)
    return next(number for number, host in enumerate(nodes_of(scene).hosts) if host.address == address)


def lose_node(scene: Scene) -> None:
    """Rank 1's machine loses power."""
    scene.amid_condensing()
    number = _number_of(scene, 1)
    scene.happens_now()
    nodes_of(scene).kill(number)


def lose_two_nodes(scene: Scene) -> None:
    """The machines of both ranks lose power: one is left, so the gang is smaller."""
    scene.amid_condensing()
    numbers = [_number_of(scene, rank) for rank in range(2)]
    scene.happens_now()
    for number in numbers:
        nodes_of(scene).kill(number)


def kill_process(words: str) -> Callable[[Scene], None]:
    """Of the node of rank 1."""

    def happen(scene: Scene) -> None:
        scene.amid_condensing()
        [process] = nodes_of(scene).processes(_number_of(scene, 1), words)
        scene.happens_now()
        process.kill()

    return happen


def freeze_process(words: str) -> Callable[[Scene], None]:
    """Of the node of rank 1, until the job has ended."""

    def happen(scene: Scene) -> None:
        scene.amid_condensing()
        [process] = nodes_of(scene).processes(_number_of(scene, 1), words)
        scene.happens_now()
        with frozen([process]):
            scene.ended()

    return happen


def freeze_process_of_head(words: str) -> Callable[[Scene], None]:
    """Of the head, until the job has ended."""

    def happen(scene: Scene) -> None:
        scene.amid_condensing()
        [process] = nodes_of(scene).processes(0, words)
        scene.happens_now()
        with frozen([process]):
            scene.ended()

    return happen


def freeze_node(scene: Scene) -> None:
    """All that runs on rank 1's machine, until the job has ended; then it wakes up, and finds that Ray has given it up."""
    scene.amid_condensing()
    number = _number_of(scene, 1)
    scene.happens_now()
    with frozen(nodes_of(scene).processes(number, "")):
        scene.ended()


def kill_process_of_head(words: str) -> Callable[[Scene], None]:
    """Of the head, which is useless then; it is started anew, as its health check demands."""

    def happen(scene: Scene) -> None:
        scene.amid_condensing()
        [process] = nodes_of(scene).processes(0, words)
        scene.happens_now()
        process.kill()
        time.sleep(UNHEALTHY_S)
        nodes_of(scene).heal()

    return happen


def lose_head(scene: Scene) -> None:
    """The head's machine loses power, and the driver with it; a new head is started, and the other nodes are left to find out."""
    scene.amid_condensing()
    scene.happens_now()
    nodes_of(scene).kill(0)
    nodes_of(scene).heal()


def lose_all_nodes(scene: Scene) -> None:
    """All machines but the server's lose power, and are started again."""
    scene.amid_condensing()
    scene.happens_now()
    for number in range(len(nodes_of(scene).hosts)):
        nodes_of(scene).kill(number)
    nodes_of(scene).heal()


def cut_workers(scene: Scene) -> None:
    """The two workers' machines do not reach one another; the head reaches both."""
    scene.amid_condensing()
    hosts = [nodes_of(scene).hosts[_number_of(scene, rank)] for rank in range(2)]
    scene.happens_now()
    with cut_between(hosts):
        time.sleep(CUT_S)


def cut_node(scene: Scene) -> None:
    """Rank 1's machine reaches nobody."""
    scene.amid_condensing()
    host = nodes_of(scene).hosts[_number_of(scene, 1)]
    scene.happens_now()
    with cut_off(host):
        time.sleep(CUT_S)


def cut_head(scene: Scene) -> None:
    """The head, with the driver on it, reaches nobody: neither the workers nor the server."""
    scene.amid_condensing()
    host = nodes_of(scene).hosts[0]
    scene.happens_now()
    with cut_off(host):
        time.sleep(CUT_S)


IN_COLLECTIVES = [
    Case("kill -9 rank 0 in a collective", "condensing", kill_in_a_collective(0), restarts=(1, 1)),
    Case("kill -9 rank 1 in a collective", "condensing", kill_in_a_collective(1), restarts=(1, 1)),
    Case("freeze rank 0 in a collective", "condensing", freeze_in_a_collective(0), restarts=(1, 1)),
    Case("freeze rank 1 in a collective", "condensing", freeze_in_a_collective(1), restarts=(1, 1)),
    Case("kill -9 a worker", "evaluating", signal_to_an_evaluating_worker(signal.SIGKILL), restarts=(1, 1)),
    Case("freeze a worker", "evaluating", signal_to_an_evaluating_worker(signal.SIGSTOP), restarts=(1, 1)),
]
OF_DRIVERS = [
    Case("kill -9 the driver", "condensing", kill_driver, attempts=2),
    Case("kill -9 the driver", "evaluating", kill_evaluating_driver, attempts=2),
    Case("freeze the driver for 10 s", "condensing", freeze_driver_for_a_while),
    Case("freeze the driver", "condensing", freeze_driver, attempts=2),
    Case("freeze the driver", "evaluating", freeze_evaluating_driver, attempts=2),
    Case("kill -9 Ray's job supervisor", "condensing", kill_supervisor, attempts=2),
    Case("freeze Ray's job supervisor", "condensing", freeze_supervisor),
    Case("freeze the driver and Ray's job supervisor", "condensing", freeze_driver_and_supervisor, attempts=2),
]
OF_NODES = [
    Case("rank 1's node loses power", "condensing", lose_node, restarts=(1, 1)),
    Case("kill -9 the raylet of rank 1's node", "condensing", kill_process(RAYLET), restarts=(1, 1)),
    Case("kill -9 the dashboard agent of rank 1's node", "condensing", kill_process(AGENT), restarts=(1, 1)),
    Case("freeze rank 1's node", "condensing", freeze_node, restarts=(1, 1)),
    Case("freeze the raylet of rank 1's node", "condensing", freeze_process(RAYLET), restarts=(0, 1)),
    Case("freeze the dashboard agent of rank 1's node", "condensing", freeze_process(AGENT)),
    Case("freeze the dashboard agent of the head", "condensing", freeze_process_of_head(AGENT)),
    Case("both workers' nodes lose power, one spare", "condensing", lose_two_nodes, restarts=(1, 2), equal=False),
    Case("kill -9 the dashboard agent of the head, started anew", "condensing", kill_process_of_head(AGENT), attempts=2),
    Case("kill -9 the dashboard, the head started anew", "condensing", kill_process_of_head(DASHBOARD), attempts=2),
    Case("the head loses power and is started anew", "condensing", lose_head, attempts=2),
    Case("all of Ray loses power and is started anew", "condensing", lose_all_nodes, attempts=2),
]
OF_NETWORKS = [
    Case("the workers' nodes cut from one another for 30 s", "condensing", cut_workers, restarts=(1, 3)),
    Case("rank 1's node cut from all for 30 s", "condensing", cut_node, restarts=(1, 3)),
    Case("the head cut from all for 30 s", "condensing", cut_head, restarts=(0, 3)),
]
OF_SUBMISSIONS = [
    *(Case(f"kill -9 the server: {step}", "submission", die_at(step)) for step in mortal.STEPS),
    Case("kill -9 the server", "condensing", kill_server),
    Case("freeze the server for 10 s", "condensing", freeze_server_for_a_while),
]


def fill_disk(scene: Scene) -> None:
    """The data directory's disk, for long enough that the job fails for it; then there is room, and the job is resumed."""
    scene.amid_condensing()
    ballast = scene.server.data_dir / "everything else"
    scene.happens_now()
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(64 << 10))
    with ballast.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(512))
    time.sleep(FULL_S)
    ballast.unlink()
    failed = scene.ended()
    assert (failed["status"], failed["error"]["code"]) == ("failed", "disk_full"), failed
    assert scene.server.api.post(f"/v1/jobs/{scene.job_id}/resume").status_code == 202


OF_DISKS = [Case("the disk full for 5 s, then resumed by its owner", "condensing", fill_disk, attempts=2)]


def kill_process_of_local_ray(words: str) -> Callable[[Scene], None]:
    """Of the Ray that the server started for itself, and is to start again."""

    def happen(scene: Scene) -> None:
        scene.amid_condensing()
        started = scene.server.process.children(recursive=True)
        [process, *_] = [each for each in started if words in " ".join(each.cmdline())]
        scene.happens_now()
        process.kill()

    return happen


OF_LOCAL_RAYS = [
    Case("the server's own Ray: kill -9 its dashboard agent", "condensing", kill_process_of_local_ray(AGENT), attempts=2),
    Case("the server's own Ray: kill -9 its raylet", "condensing", kill_process_of_local_ray(RAYLET), attempts=2),
    Case("the server's own Ray: kill -9 its GCS", "condensing", kill_process_of_local_ray("/gcs/gcs_server"), attempts=2),
    Case("the server's own Ray: kill -9 its dashboard", "condensing", kill_process_of_local_ray(DASHBOARD), attempts=2),
]


BREAK = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"


def break_connections(database: PostgresCluster) -> Callable[[Scene], None]:
    """To the database, all of them, again and again."""

    def happen(scene: Scene) -> None:
        scene.amid_condensing()
        scene.happens_now()
        broken = 0
        for _ in range(10):
            broken += len(database.execute(BREAK))
            time.sleep(0.3)
        assert broken > 0

    return happen


def crash_database(database: PostgresCluster, away_s: float) -> Callable[[Scene], None]:
    """It is away for so long."""

    def happen(scene: Scene) -> None:
        scene.amid_condensing()
        scene.happens_now()
        with database.down():
            time.sleep(away_s)

    return happen


def of_databases(database: PostgresCluster) -> list[Case]:
    """The rows of a server whose database this is."""
    return [
        Case("all connections to PostgreSQL broken, ten times in 3 s", "condensing", break_connections(database)),
        Case("PostgreSQL crashes and is back at once", "condensing", crash_database(database, 0)),
        Case("PostgreSQL crashes and is away for 5 s", "condensing", crash_database(database, AWAY_S)),
    ]
