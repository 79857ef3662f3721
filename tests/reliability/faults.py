"""Define the faults of the kill matrix. Each submits a job, waits for a moment in it, and kills, freezes or cuts something."""

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
"""How long the network stays cut."""
DOWN_S = 5.0
"""How long the database stays down."""
FULL_S = 5.0
"""How long the disk stays full."""
UNHEALTHY_S = 10.0
"""How long a health check takes to detect that a node must be restarted."""
FROZEN_S = 10.0
"""How long a process that is frozen temporarily stays frozen."""


@dataclass(frozen=True)
class Case:
    """A fault and its expected effect."""

    fault: str
    moment: str
    inject: Callable[[Scene], None]
    attempts: int = 1
    """Expected number of attempts."""
    restarts: tuple[int, int] = (0, 0)
    """Expected restarts of workers: minimum, maximum."""
    same_bytes: bool = True
    """True if the result must be byte-identical. False for faults that reduce the number of workers, which changes rounding."""


def kill_worker_in_collective(rank: int) -> Callable[[Scene], None]:
    """Kill a worker that waits in a collective."""

    def inject(scene: Scene) -> None:
        scene.start_condensing()
        other = scene.block_in_collective(rank)
        scene.record_fault_time()
        os.kill(scene.pid_of(rank), signal.SIGKILL)
        os.kill(other, signal.SIGCONT)

    return inject


def freeze_worker_in_collective(rank: int) -> Callable[[Scene], None]:
    """Freeze a worker that waits in a collective, and never continue it."""

    def inject(scene: Scene) -> None:
        scene.start_condensing()
        other = scene.block_in_collective(rank)
        scene.record_fault_time()
        os.kill(scene.pid_of(rank), signal.SIGSTOP)
        os.kill(other, signal.SIGCONT)

    return inject


def signal_evaluating_worker(number: signal.Signals) -> Callable[[Scene], None]:
    """Send a signal to a worker that trains networks on the result."""

    def inject(scene: Scene) -> None:
        scene.start_evaluating()
        scene.record_fault_time()
        os.kill(scene.workers()[0]["pid"], number)

    return inject


def kill_driver(scene: Scene) -> None:
    """Kill the driver."""
    scene.start_condensing()
    scene.record_fault_time()
    scene.driver().kill()


def kill_evaluating_driver(scene: Scene) -> None:
    """Kill the driver while its workers evaluate."""
    scene.start_evaluating()
    scene.record_fault_time()
    scene.driver().kill()


def freeze_driver_temporarily(scene: Scene) -> None:
    """Freeze the driver, and continue it after FROZEN_S."""
    scene.start_condensing()
    driver = scene.driver()
    scene.record_fault_time()
    driver.suspend()
    time.sleep(FROZEN_S)
    driver.resume()


def freeze_driver(scene: Scene) -> None:
    """Freeze the driver, and never continue it."""
    scene.start_condensing()
    driver = scene.driver()
    scene.record_fault_time()
    driver.suspend()


def freeze_evaluating_driver(scene: Scene) -> None:
    """Freeze the driver while its workers evaluate, and never continue it."""
    scene.start_evaluating()
    driver = scene.driver()
    scene.record_fault_time()
    driver.suspend()


def kill_supervisor(scene: Scene) -> None:
    """Kill Ray's job supervisor, the actor that started the driver."""
    scene.start_condensing()
    supervisor = scene.supervisor()
    scene.record_fault_time()
    supervisor.kill()


def freeze_supervisor(scene: Scene) -> None:
    """Freeze Ray's job supervisor until the job has ended. Ray does not detect this."""
    scene.start_condensing()
    supervisor = scene.supervisor()
    scene.record_fault_time()
    with frozen([supervisor]):
        scene.await_end()


def freeze_driver_and_supervisor(scene: Scene) -> None:
    """Freeze both, and never continue them. Ray accepts the request to stop the driver, but nothing stops it."""
    scene.start_condensing()
    both = [scene.supervisor(), scene.driver()]
    scene.record_fault_time()
    for process in both:
        process.suspend()


@contextlib.contextmanager
def frozen(processes: Iterable[psutil.Process]) -> Iterator[None]:
    """Freeze processes within the block, then continue those that still exist."""
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


def freeze_server_temporarily(scene: Scene) -> None:
    """Freeze `cafe serve`, and continue it after FROZEN_S. It must not count the driver as silent because of that."""
    scene.start_condensing()
    scene.record_fault_time()
    with frozen([scene.server.process]):
        time.sleep(FROZEN_S)


def kill_server(scene: Scene) -> None:
    """Kill `cafe serve` and restart it."""
    scene.start_condensing()
    scene.record_fault_time()
    scene.server.kill()
    scene.server.start()


def kill_server_at(step: str) -> Callable[[Scene], None]:
    """Kill the server at a step of the submission and restart it. The client repeats its request with the same key."""

    def inject(scene: Scene) -> None:
        scene.server.stop()
        scene.server.start(kill_at=step)
        scene.record_fault_time()
        try:
            scene.submit()
        except httpx.TransportError:
            assert scene.job_id == ""
        scene.server.await_exit()
        known_id = scene.job_id
        scene.record_fault_time()
        scene.server.start()
        scene.submit()
        assert known_id in ("", scene.job_id)

    return inject


# -- faults that need several nodes


def nodes_of(scene: Scene) -> RayNodes:
    """Return the Ray of the scene, which must have several nodes."""
    assert isinstance(scene.ray, RayNodes)
    return scene.ray


def _node_of(scene: Scene, rank: int) -> int:
    """Return the number of the node that a worker runs on."""
    address = next(worker["node_ip"] for worker in scene.workers() if worker["rank"] == rank)
    return next(number for number, host in enumerate(nodes_of(scene).hosts) if host.address == address)


def lose_node(scene: Scene) -> None:
    """Kill all processes on the node of rank 1, as if it lost power."""
    scene.start_condensing()
    number = _node_of(scene, 1)
    scene.record_fault_time()
    nodes_of(scene).kill(number)


def lose_two_nodes(scene: Scene) -> None:
    """Kill all processes on the nodes of both ranks. One node is left, so the new gang is smaller."""
    scene.start_condensing()
    numbers = [_node_of(scene, rank) for rank in range(2)]
    scene.record_fault_time()
    for number in numbers:
        nodes_of(scene).kill(number)


def kill_process_of_node(words: str) -> Callable[[Scene], None]:
    """Kill a process of the node of rank 1."""

    def inject(scene: Scene) -> None:
        scene.start_condensing()
        [process] = nodes_of(scene).processes(_node_of(scene, 1), words)
        scene.record_fault_time()
        process.kill()

    return inject


def freeze_process_of_node(words: str) -> Callable[[Scene], None]:
    """Freeze a process of the node of rank 1 until the job has ended."""

    def inject(scene: Scene) -> None:
        scene.start_condensing()
        [process] = nodes_of(scene).processes(_node_of(scene, 1), words)
        scene.record_fault_time()
        with frozen([process]):
            scene.await_end()

    return inject


def freeze_process_of_head(words: str) -> Callable[[Scene], None]:
    """Freeze a process of the head until the job has ended."""

    def inject(scene: Scene) -> None:
        scene.start_condensing()
        [process] = nodes_of(scene).processes(0, words)
        scene.record_fault_time()
        with frozen([process]):
            scene.await_end()

    return inject


def freeze_node(scene: Scene) -> None:
    """Freeze all processes of the node of rank 1 until the job has ended. By then Ray has given the node up."""
    scene.start_condensing()
    number = _node_of(scene, 1)
    scene.record_fault_time()
    with frozen(nodes_of(scene).processes(number, "")):
        scene.await_end()


def kill_process_of_head(words: str) -> Callable[[Scene], None]:
    """Kill a process that the head needs, and restart the nodes after the time that a health check takes."""

    def inject(scene: Scene) -> None:
        scene.start_condensing()
        [process] = nodes_of(scene).processes(0, words)
        scene.record_fault_time()
        process.kill()
        time.sleep(UNHEALTHY_S)
        nodes_of(scene).restore()

    return inject


def lose_head(scene: Scene) -> None:
    """Kill all processes on the head, including the driver, and restart the nodes."""
    scene.start_condensing()
    scene.record_fault_time()
    nodes_of(scene).kill(0)
    nodes_of(scene).restore()


def lose_all_nodes(scene: Scene) -> None:
    """Kill all processes on all nodes, and restart the nodes. The server keeps running."""
    scene.start_condensing()
    scene.record_fault_time()
    for number in range(len(nodes_of(scene).hosts)):
        nodes_of(scene).kill(number)
    nodes_of(scene).restore()


def cut_workers(scene: Scene) -> None:
    """Cut the nodes of the two workers off from each other. The head reaches both."""
    scene.start_condensing()
    hosts = [nodes_of(scene).hosts[_node_of(scene, rank)] for rank in range(2)]
    scene.record_fault_time()
    with cut_between(hosts):
        time.sleep(CUT_S)


def cut_node(scene: Scene) -> None:
    """Cut the node of rank 1 off from all others."""
    scene.start_condensing()
    host = nodes_of(scene).hosts[_node_of(scene, 1)]
    scene.record_fault_time()
    with cut_off(host):
        time.sleep(CUT_S)


def cut_head(scene: Scene) -> None:
    """Cut the head, on which the driver runs, off from the workers and the server."""
    scene.start_condensing()
    host = nodes_of(scene).hosts[0]
    scene.record_fault_time()
    with cut_off(host):
        time.sleep(CUT_S)


WORKER_FAULTS = [
    Case("kill -9 rank 0 in a collective", "condensing", kill_worker_in_collective(0), restarts=(1, 1)),
    Case("kill -9 rank 1 in a collective", "condensing", kill_worker_in_collective(1), restarts=(1, 1)),
    Case("freeze rank 0 in a collective", "condensing", freeze_worker_in_collective(0), restarts=(1, 1)),
    Case("freeze rank 1 in a collective", "condensing", freeze_worker_in_collective(1), restarts=(1, 1)),
    Case("kill -9 a worker", "evaluating", signal_evaluating_worker(signal.SIGKILL), restarts=(1, 1)),
    Case("freeze a worker", "evaluating", signal_evaluating_worker(signal.SIGSTOP), restarts=(1, 1)),
]
DRIVER_FAULTS = [
    Case("kill -9 the driver", "condensing", kill_driver, attempts=2),
    Case("kill -9 the driver", "evaluating", kill_evaluating_driver, attempts=2),
    Case("freeze the driver for 10 s", "condensing", freeze_driver_temporarily),
    Case("freeze the driver", "condensing", freeze_driver, attempts=2),
    Case("freeze the driver", "evaluating", freeze_evaluating_driver, attempts=2),
    Case("kill -9 Ray's job supervisor", "condensing", kill_supervisor, attempts=2),
    Case("freeze Ray's job supervisor", "condensing", freeze_supervisor),
    Case("freeze the driver and Ray's job supervisor", "condensing", freeze_driver_and_supervisor, attempts=2),
]
NODE_FAULTS = [
    Case("rank 1's node loses power", "condensing", lose_node, restarts=(1, 1)),
    Case("kill -9 the raylet of rank 1's node", "condensing", kill_process_of_node(RAYLET), restarts=(1, 1)),
    Case("kill -9 the dashboard agent of rank 1's node", "condensing", kill_process_of_node(AGENT), restarts=(1, 1)),
    Case("freeze rank 1's node", "condensing", freeze_node, restarts=(1, 1)),
    Case("freeze the raylet of rank 1's node", "condensing", freeze_process_of_node(RAYLET), restarts=(0, 1)),
    Case("freeze the dashboard agent of rank 1's node", "condensing", freeze_process_of_node(AGENT)),
    Case("freeze the dashboard agent of the head", "condensing", freeze_process_of_head(AGENT)),
    Case("both workers' nodes lose power, one spare", "condensing", lose_two_nodes, restarts=(1, 2), same_bytes=False),
    Case("kill -9 the dashboard agent of the head, then restart the head", "condensing", kill_process_of_head(AGENT), attempts=2),
    Case("kill -9 the dashboard, then restart the head", "condensing", kill_process_of_head(DASHBOARD), attempts=2),
    Case("the head loses power and is restarted", "condensing", lose_head, attempts=2),
    Case("all of Ray loses power and is restarted", "condensing", lose_all_nodes, attempts=2),
]
NETWORK_FAULTS = [
    Case("the workers' nodes cut off from each other for 30 s", "condensing", cut_workers, restarts=(1, 3)),
    Case("rank 1's node cut off from all nodes for 30 s", "condensing", cut_node, restarts=(1, 3)),
    Case("the head cut off from all nodes for 30 s", "condensing", cut_head, restarts=(0, 3)),
]
SERVER_FAULTS = [
    *(Case(f"kill -9 the server: {step}", "submission", kill_server_at(step)) for step in mortal.STEPS),
    Case("kill -9 the server", "condensing", kill_server),
    Case("freeze the server for 10 s", "condensing", freeze_server_temporarily),
]


def fill_disk(scene: Scene) -> None:
    """Fill the disk of the data directory until the job fails, then free it and resume the job."""
    scene.start_condensing()
    ballast = scene.server.data_dir / "everything else"
    scene.record_fault_time()
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(64 << 10))
    with ballast.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(512))
    time.sleep(FULL_S)
    ballast.unlink()
    failed = scene.await_end()
    assert (failed["status"], failed["error"]["code"]) == ("failed", "disk_full"), failed
    assert scene.server.api.post(f"/v1/jobs/{scene.job_id}/resume").status_code == 202


DISK_FAULTS = [Case("disk full for 5 s, then the job is resumed by hand", "condensing", fill_disk, attempts=2)]


def kill_process_of_embedded_ray(words: str) -> Callable[[Scene], None]:
    """Kill a process of the Ray that the server started itself and must restart."""

    def inject(scene: Scene) -> None:
        scene.start_condensing()
        started = scene.server.process.children(recursive=True)
        [process, *_] = [each for each in started if words in " ".join(each.cmdline())]
        scene.record_fault_time()
        process.kill()

    return inject


EMBEDDED_RAY_FAULTS = [
    Case("embedded Ray: kill -9 its dashboard agent", "condensing", kill_process_of_embedded_ray(AGENT), attempts=2),
    Case("embedded Ray: kill -9 its raylet", "condensing", kill_process_of_embedded_ray(RAYLET), attempts=2),
    Case("embedded Ray: kill -9 its GCS", "condensing", kill_process_of_embedded_ray("/gcs/gcs_server"), attempts=2),
    Case("embedded Ray: kill -9 its dashboard", "condensing", kill_process_of_embedded_ray(DASHBOARD), attempts=2),
]


DISCONNECT = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
)


def break_connections(database: PostgresCluster) -> Callable[[Scene], None]:
    """Break all connections to the database, several times."""

    def inject(scene: Scene) -> None:
        scene.start_condensing()
        scene.record_fault_time()
        broken = 0
        for _ in range(10):
            broken += len(database.execute(DISCONNECT))
            time.sleep(0.3)
        assert broken > 0

    return inject


def crash_database(database: PostgresCluster, down_s: float) -> Callable[[Scene], None]:
    """Crash the database and keep it down for some time."""

    def inject(scene: Scene) -> None:
        scene.start_condensing()
        scene.record_fault_time()
        with database.down():
            time.sleep(down_s)

    return inject


def database_faults(database: PostgresCluster) -> list[Case]:
    """Return the faults of the database that a server uses."""
    return [
        Case("all connections to PostgreSQL broken, ten times in 3 s", "condensing", break_connections(database)),
        Case("PostgreSQL crashes and restarts immediately", "condensing", crash_database(database, 0)),
        Case("PostgreSQL crashes and stays down for 5 s", "condensing", crash_database(database, DOWN_S)),
    ]
