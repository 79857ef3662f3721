"""Two workers against one, what they send, and how much memory a step takes as the number of classes grows."""

from __future__ import annotations

import multiprocessing
import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch

from cafe_core.algorithm.collectives import Comm
from cafe_core.algorithm.condense import Run
from cafe_core.algorithm.model import Budget
from cafe_core.algorithm.run_state import start
from cafe_core.algorithm.shard_context import ShardContext
from cafe_core.data.class_store import ClassStore
from tests.benchmarks.figures import Figure
from tests.cafe_core.gangs import free_port
from tests.cafe_core.made_data import make_spec, make_store

CPU = torch.device("cpu")
STEPS = 6
T = TypeVar("T")


def _steps_per_second(rank: int, world: int, port: int, store: Path, checkpoints: Path) -> tuple[float, float, int]:
    """One worker of a gang, with one thread: (steps/s, numbers sent per step, K·D)."""
    torch.set_num_threads(1)
    data = ClassStore.open(store)
    comm = Comm.connect(rank=rank, world=world, address=f"127.0.0.1:{port}", device=CPU, timeout_s=300, host="127.0.0.1")
    spec = make_spec(data, ipc=10, precision="float32", network={}, method={"batch_real": 64})
    run = Run(ShardContext.of(spec, data, comm, CPU, Budget.of(CPU)))
    _, shard = start(run.rank, checkpoints, _silent)
    run.rank.model.renew(spec.seed, 0)
    run.update_images(shard, 0, 0)
    comm.all_reduce(torch.zeros(1))  # all ranks are warm
    sent, started = comm.numbers, time.perf_counter()
    for outer in range(STEPS):
        run.update_images(shard, 0, outer + 1)
    taken = time.perf_counter() - started
    numbers = (comm.numbers - sent) / STEPS
    comm.close()
    return STEPS / taken, numbers, data.info.num_classes * run.rank.model.network.feature_dim


def _peak_of_a_step(classes: int, directory: Path) -> float:
    """MiB that one outer step adds to the peak of resident memory."""
    torch.set_num_threads(2)
    data = make_store(directory / f"store {classes}", [64] * classes, side=32, channels=3)
    spec = make_spec(data, ipc=10, precision="float32", network={}, method={"batch_real": 64})
    run = Run(ShardContext.of(spec, data, Comm.single(), CPU, Budget.of(CPU)))
    _, shard = start(run.rank, directory / f"checkpoints {classes}", _silent)
    run.rank.model.renew(spec.seed, 0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run.update_images(shard, 0, 0)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def _silent(_type: str, **_data: object) -> None:
    pass


def _in_processes(work: Callable[..., T], argument_lists: list[tuple[Any, ...]]) -> list[T]:
    """work(*arguments) in a fresh process each, at the same time; the results in order."""
    with ProcessPoolExecutor(len(argument_lists), mp_context=multiprocessing.get_context("spawn")) as pool:
        return [future.result() for future in [pool.submit(work, *arguments) for arguments in argument_lists]]


def measure() -> list[Figure]:
    """Speed-up by a second worker, numbers per step, and memory at K = 10 and K = 200."""
    with TemporaryDirectory() as name:
        directory = Path(name)
        store = make_store(directory / "store", [200] * 10, side=32, channels=3).path
        speeds = {}
        for world in (1, 2):
            port = free_port()
            arguments = [(rank, world, port, store, directory / f"{world}") for rank in range(world)]
            results = _in_processes(_steps_per_second, arguments)
            speeds[world] = min(speed for speed, _, _ in results)
            _, numbers, per_collective = results[0]
        peaks = {K: _in_processes(_peak_of_a_step, [(K, directory)])[0] for K in (10, 200)}
    return [
        Figure("outer steps per second, one worker with one thread", speeds[1], "/s"),
        Figure("outer steps per second, two workers with one thread each", speeds[2], "/s"),
        Figure("two workers against one", speeds[2] / speeds[1], "×", "≥ 1.7"),
        Figure("numbers sent per worker and outer step, beyond 2·K·D", numbers - 2 * per_collective, "numbers", "a constant"),
        Figure("memory that an outer step adds, K = 10", peaks[10], "MiB"),
        Figure("memory that an outer step adds, K = 200", peaks[200], "MiB"),
        Figure("memory at K = 200 against K = 10", peaks[200] / peaks[10], "×", "about 1"),
    ]
