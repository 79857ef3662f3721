"""Compare two workers with one, count the numbers they send, and measure a step's memory for few and for many classes."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch

from cafe_core.algorithm.collectives import Comm
from cafe_core.algorithm.model import Budget
from cafe_core.data.class_store import ClassStore
from tests.benchmarks.figures import Figure
from tests.cafe_core.gangs import free_port
from tests.cafe_core.live_memory import LiveBytes
from tests.cafe_core.made_data import make_spec, make_store
from tests.cafe_core.started import start_run

CPU = torch.device("cpu")
STEPS = 6
T = TypeVar("T")


def _steps_per_second(rank: int, world: int, port: int, store: Path, checkpoints: Path) -> tuple[float, float, int]:
    """Run one worker of a gang with one thread; return (steps/s, numbers sent per step, K·D)."""
    torch.set_num_threads(1)
    data = ClassStore.open(store)
    comm = Comm.connect(rank=rank, world=world, address=f"127.0.0.1:{port}", device=CPU, timeout_s=300, host="127.0.0.1")
    spec = make_spec(data, ipc=10, precision="float32", network={}, method={"batch_real": 64})
    run, shard = start_run(spec, data, comm, Budget.of(CPU), checkpoints)
    run.update_images(shard, 0, 0)
    comm.all_reduce(torch.zeros(1))  # wait until all ranks have warmed up
    sent, began = comm.numbers, time.perf_counter()
    for outer in range(STEPS):
        run.update_images(shard, 0, outer + 1)
    taken = time.perf_counter() - began
    numbers = (comm.numbers - sent) / STEPS
    comm.close()
    return STEPS / taken, numbers, data.info.num_classes * run.context.model.network.feature_dim


def peak_of_a_step(classes: int, directory: Path, *, batch_real: int = 64) -> float:
    """Return the peak MiB of the tensors that one outer step allocates.

    Tensors are traced as they are allocated and freed. Resident memory is unsuitable: it peaks before the step, while the data
    is prepared, and a step with few classes does not exceed that peak.
    """
    torch.set_num_threads(2)
    data = make_store(directory / f"store {classes}", [batch_real] * classes, side=32, channels=3)
    spec = make_spec(data, ipc=10, precision="float32", network={}, method={"batch_real": batch_real})
    run, shard = start_run(spec, data, Comm.single(), Budget.of(CPU), directory / f"checkpoints {classes}")
    with LiveBytes() as live:
        run.update_images(shard, 0, 0)
    return live.peak / 2**20


def _silent(_type: str, **_data: object) -> None:
    pass


def _in_processes(work: Callable[..., T], argument_lists: list[tuple[Any, ...]]) -> list[T]:
    """Call work(*arguments) for each argument list in a fresh process, all at once; return the results in order."""
    with ProcessPoolExecutor(len(argument_lists), mp_context=multiprocessing.get_context("spawn")) as pool:
        return [future.result() for future in [pool.submit(work, *arguments) for arguments in argument_lists]]


def measure() -> Iterator[Figure]:
    """Measure the speed-up by a second worker, the numbers sent per step, and the memory at K = 10 and K = 200."""
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
        yield Figure("outer steps per second, one worker with one thread", speeds[1], "/s")
        yield Figure("outer steps per second, two workers with one thread each", speeds[2], "/s")
        yield Figure("two workers against one", speeds[2] / speeds[1], "×", "≥ 1.7")
        yield Figure(
            "numbers sent per worker and outer step, beyond 2·K·D", numbers - 2 * per_collective, "numbers", "a constant"
        )

        peaks = {K: _in_processes(peak_of_a_step, [(K, directory)])[0] for K in (10, 200)}
        yield Figure("tensors that an outer step holds at its peak, K = 10", peaks[10], "MiB")
        yield Figure("tensors that an outer step holds at its peak, K = 200", peaks[200], "MiB")
        yield Figure("memory at K = 200 against K = 10", peaks[200] / peaks[10], "×", "about 1")
