"""Test TuneRun on a real cluster: its observations, and recovery from lost workers."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import RayActorError

from cafe_core.errors import NonFiniteLossError
from tests.workers.conftest import actor_processes, is_running
from tests.workers.standins import Count, DeadlyToTakeOver, RefuseTrial, Unreadable
from workers import tune_run
from workers.policy import Failure, Kind
from workers.tune_run import Observation, TrialFailure, TrialReport, TrialResult, TuneRun, Worker
from workers.tune_worker import TrialWork

pytestmark = pytest.mark.usefixtures("leaves_nothing")


@contextmanager
def running(works: Sequence[TrialWork], storage: Path, *, concurrency: int = 2, **options: Any) -> Iterator[TuneRun]:
    options = {"reuse": True, "max_failures": -1} | options
    run = TuneRun(works, bundle={"CPU": 1.0}, concurrency=concurrency, storage=storage / "tune", title="test", **options)
    try:
        yield run
    finally:
        run.stop()
    assert not (storage / "tune").exists()


def watch(run: TuneRun, enough: Callable[[list[Observation]], bool], silence_s: float = 60) -> list[Observation]:
    seen: list[Observation] = []
    deadline = time.monotonic() + 180  # on a busy machine, workers take a minute to start
    while not run.over and not enough(seen):
        assert time.monotonic() < deadline, seen
        seen += run.watch(0.2, silence_s)
    return seen


def to_the_end(run: TuneRun, silence_s: float = 60) -> list[Observation]:
    return watch(run, lambda _: False, silence_s)


def counted(seen: list[Observation], trial: int) -> list[int]:
    return [s.data["i"] for s in seen if isinstance(s, TrialReport) and s.trial == trial]


def returned(seen: list[Observation]) -> dict[int, Any]:
    return {s.trial: s.value for s in seen if isinstance(s, TrialResult)}


def failures(seen: list[Observation]) -> list[TrialFailure]:
    return [s for s in seen if isinstance(s, TrialFailure)]


def test_reports_of_trials_arrive_complete_and_workers_are_reused(cluster: str, tmp_path: Path) -> None:  # noqa: ARG001
    with running([Count(20, pause_s=0.05) for _ in range(12)], tmp_path) as run:
        seen = to_the_end(run)
        assert [worker["rank"] for worker in run.describe()] == [0, 1]
        pids = {worker["pid"] for worker in run.describe()}
    assert all(counted(seen, trial) == list(range(20)) for trial in range(12))
    assert returned(seen).keys() == set(range(12))
    assert {pid for pid, _ in returned(seen).values()} <= pids
    assert {threads for _, threads in returned(seen).values()} == {1}


@pytest.mark.parametrize(("trouble", "kind"), [(signal.SIGKILL, Kind.DIED), (signal.SIGSTOP, Kind.HUNG)])
def test_lost_worker_repeats_only_unreported_work(
    trouble: signal.Signals,
    kind: Kind,
    cluster: str,  # noqa: ARG001
    tmp_path: Path,
) -> None:
    works = [Count(5, at=3, once=tmp_path / "once", trouble=trouble), Count(5)]
    with running(works, tmp_path) as run:
        seen = to_the_end(run, silence_s=8 if kind is Kind.HUNG else 60)
    [failed] = failures(seen)
    assert (failed.trial, failed.failure.kind, failed.ended) == (0, kind, False)
    assert counted(seen, 0) == counted(seen, 1) == [0, 1, 2, 3, 4]
    assert returned(seen).keys() == {0, 1}


@pytest.mark.soak
def test_lost_worker_is_replaced_while_others_work(cluster: str, tmp_path: Path) -> None:  # noqa: ARG001
    """Tune's own scheduler would give the trial to the next free worker, and end the process that starts for it."""
    works = [Count(3, at=2, once=tmp_path / "once"), *(Count(3, pause_s=0.1) for _ in range(60))]
    with running(works, tmp_path) as run:
        to_the_end(run)
        assert len(run.workers) == 2
        assert run.workers[1].rank == 2


def test_worker_lost_while_taking_over_a_trial_affects_only_that_trial(cluster: str, tmp_path: Path) -> None:  # noqa: ARG001
    """Tune alone gives up such a trial, whatever its retry limit."""
    with running([DeadlyToTakeOver(3, once=tmp_path / "once") for _ in range(6)], tmp_path, concurrency=1) as run:
        seen = to_the_end(run)
    [failed] = failures(seen)
    assert (failed.failure.kind, failed.ended) == (Kind.DIED, False)
    assert returned(seen).keys() == set(range(6))
    assert all(counted(seen, trial) == [0, 1, 2] for trial in range(6))


def test_lost_worker_between_two_trials_is_found_among_idle_workers(cluster: str) -> None:  # noqa: ARG001
    run = TuneRun.__new__(TuneRun)
    actors = [ray.remote(num_cpus=0)(_Idle).remote() for _ in range(2)]
    run.workers = [Worker(rank, actor, trial=None, answered_at=0.0) for rank, actor in enumerate(actors)]
    answer = actors[1].wait.remote()
    ray.kill(actors[1])
    with pytest.raises(RayActorError) as raised:
        ray.get(answer)
    found = run._lost_worker(4, raised.value)
    assert found is not None
    assert found.rank == 1
    run.workers.remove(found)
    assert run._lost_worker(4, raised.value) is None
    ray.kill(actors[0])


class _Idle:
    def wait(self) -> None:
        time.sleep(60)


def test_a_trial_fails_alone(cluster: str, tmp_path: Path) -> None:  # noqa: ARG001
    with running([Count(1), RefuseTrial(), Count(1)], tmp_path) as run:
        seen = to_the_end(run)
    [failed] = failures(seen)
    assert (failed.trial, failed.failure.kind, failed.ended) == (1, Kind.REFUSED, True)
    assert type(failed.failure.error) is NonFiniteLossError
    assert returned(seen).keys() == {0, 2}


def test_trial_fails_after_too_many_lost_workers(cluster: str, tmp_path: Path) -> None:  # noqa: ARG001
    works = [Count(1), Count(1, at=0)]
    with running(works, tmp_path, max_failures=1, reuse=False) as run:
        seen = to_the_end(run)
    assert [(failed.trial, failed.ended) for failed in failures(seen)] == [(1, False), (1, True)]
    assert returned(seen).keys() == {0}


def test_worker_that_cannot_start_reports_the_reason(cluster: str, tmp_path: Path) -> None:  # noqa: ARG001
    with running([Unreadable()], tmp_path) as run:
        failed = failures(watch(run, lambda seen: bool(failures(seen))))[0]
    assert failed.failure.kind is Kind.BROKEN
    assert "No module named 'no_such_module'" in failed.failure.detail


@pytest.mark.soak
def test_worker_that_freezes_while_starting_is_replaced(
    cluster: str,  # noqa: ARG001
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tune_run, "START_TIMEOUT_S", 4.0)
    monkeypatch.setattr(tune_run, "STARTING_LOOK_S", 0.2)
    with running([Count(1)], tmp_path, concurrency=1) as run:
        deadline = time.monotonic() + 30
        while not (starting := run.starting()):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        [(pid, _)] = starting.values()
        os.kill(pid, signal.SIGSTOP)
        seen = to_the_end(run)
    assert [failed.failure.kind for failed in failures(seen)] == [Kind.DIED]
    assert returned(seen).keys() == {0}
    assert not is_running(pid)


@pytest.mark.parametrize("frozen", [pytest.param(False, marks=pytest.mark.soak), True])
def test_stop_ends_running_trials(frozen: bool, cluster: str, tmp_path: Path) -> None:  # noqa: ARG001
    with running([Count(1_000_000, pause_s=0.01) for _ in range(50)], tmp_path, concurrency=2) as run:
        watch(run, lambda _: len(run.describe()) == 2)
        if frozen:
            os.kill(run.describe()[1]["pid"], signal.SIGSTOP)
        started = time.monotonic()
        run.stop()
        assert time.monotonic() - started < 5
        assert not actor_processes()


def test_lost_worker_is_named_by_its_rank(cluster: str, tmp_path: Path) -> None:  # noqa: ARG001
    with running([Count(1_000_000, pause_s=0.01) for _ in range(2)], tmp_path) as run:
        watch(run, lambda _: len(run.describe()) == 2)
        os.kill(run.describe()[1]["pid"], signal.SIGKILL)
        [failed] = failures(watch(run, lambda seen: bool(failures(seen))))
        assert failed.failure == Failure(1, Kind.DIED, "died")
        assert [worker["rank"] for worker in run.describe()] == [0]
