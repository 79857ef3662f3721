"""Measure an evaluation that Ray Tune distributes over two workers: 20 ConvNet-3 networks on digits, 300 epochs, ipc 1."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from cafe_core.data import sources
from cafe_core.data.roots import DataRoots
from cafe_core.evaluation.tasks import EvaluationSetup, EvaluationTask, all_tasks
from cafe_core.spec.dataset import DatasetSpec
from cafe_core.spec.evaluation import EvaluationSpec
from cafe_core.spec.network import NetworkSpec
from cafe_core.spec.resources import ResourcesSpec
from tests.benchmarks.figures import Figure
from workers.background import Report
from workers.shard_worker import WorkerAssignment
from workers.work import ACCURACY, TrainNetworks

WORKERS = 2
NETWORKS = 20
ROUNDS = 3
T = TypeVar("T")


@dataclass(frozen=True)
class TimedNetworks(TrainNetworks):
    """Train networks as TrainNetworks does, and report how long each took."""

    def __call__(self, assignment: WorkerAssignment, report: Report) -> None:
        import torch

        from cafe_core.evaluation.run import train_networks

        began = time.time()
        for task, accuracy in train_networks(self.chunk, self.setup, torch.device(assignment.device)):
            ended = time.time()
            report(ACCURACY, task=task, accuracy=accuracy, began=began, seconds=ended - began)
            began = ended


@dataclass(frozen=True)
class Times:
    """Times in seconds.

    `start` lasts from the request until the first network begins, `working` from there until the last accuracy.
    """

    start: float
    working: float
    training: float
    """The sum over the networks."""

    @property
    def total(self) -> float:
        return self.start + self.working

    @property
    def cost(self) -> float:
        """Return the time that the workers spend on anything but training, as a fraction of their training time."""
        return (self.working * WORKERS - self.training) / self.training


def _evaluation(store: Path) -> tuple[list[EvaluationTask], EvaluationSetup]:
    spec = EvaluationSpec(networks=[NetworkSpec().resolved()], repeats=NETWORKS, epochs=300)
    return all_tasks(spec, "random"), EvaluationSetup(spec, seed=0, store=store, synthetic=None, ipc=1)


def _by_ray(store: Path, directory: Path) -> Times:
    """Evaluate with Ray Tune, as a job does."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # see tests/workers/conftest.py
    import ray

    ray.init(address="local", num_cpus=WORKERS, num_gpus=0, include_dashboard=False, _node_ip_address="127.0.0.1")
    times = _run_tune(store, directory)
    ray.shutdown()
    return times


def _run_tune(store: Path, directory: Path) -> Times:
    tasks, setup = _evaluation(store)
    requested = time.time()
    from workers.cluster import bundle_of
    from workers.evaluation import split_tasks
    from workers.tune_run import TrialReport, TuneRun

    resources = ResourcesSpec(workers=WORKERS, gpus_per_worker=0)
    run = TuneRun(
        [TimedNetworks(chunk, setup) for chunk in split_tasks(tasks, resources)],
        bundle=bundle_of(resources),
        concurrency=WORKERS,
        storage=directory / "tune",
        title="benchmark",
        reuse=True,
        max_failures=0,
    )
    trained = []
    while len(trained) < len(tasks):
        trained += [seen.data for seen in run.watch(0.5, 60) if isinstance(seen, TrialReport)]
    ended = time.time()
    run.stop()
    began = min(data["began"] for data in trained)
    return Times(began - requested, ended - began, sum(data["seconds"] for data in trained))


def _one_after_the_other(store: Path) -> Times:
    """Evaluate in one process with one thread, as `cafe run` does."""
    requested = time.time()
    import torch

    from cafe_core.evaluation.run import train_networks

    torch.set_num_threads(1)
    tasks, setup = _evaluation(store)
    began = time.time()
    assert len(list(train_networks(tasks, setup, torch.device("cpu")))) == NETWORKS
    taken = time.time() - began
    return Times(began - requested, taken, taken)


def _in_process(work: Callable[..., T], *arguments: object) -> T:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def measure() -> list[Figure]:
    """Run both three times and take the best times of each."""
    with TemporaryDirectory() as name:
        directory = Path(name)
        roots = DataRoots(datasets=directory, uploads=directory, downloads=directory, cache=directory / "cache")
        store = sources.prepare(DatasetSpec(name="digits"), roots)
        alone, by_tune = [], []
        for _ in range(ROUNDS):  # alternate, because the machine's speed varies over time
            alone.append(_in_process(_one_after_the_other, store))
            by_tune.append(_in_process(_by_ray, store, directory))
    working, total, start = (
        [min(getattr(times, name) for times in rounds) for rounds in (alone, by_tune)] for name in ("working", "total", "start")
    )
    return [
        Figure("20 networks one after the other in one process", working[0], "s"),
        Figure("20 networks by Tune on two workers", working[1], "s"),
        Figure("fan-out against one after the other", working[1] / working[0], "×", "≤ 0.6"),
        Figure("the same with both starts", total[1] / total[0], "×"),
        Figure("fan-out: start, until the first network trains", start[1], "s"),
        Figure("fan-out: cost per network beyond its training", 100 * min(times.cost for times in by_tune), "%", "< 10"),
    ]
