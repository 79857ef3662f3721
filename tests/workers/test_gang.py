"""Test the gang on a real cluster: its observations, and that it ends its workers."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from cafe_core.errors import NonFiniteLossError
from cafe_core.spec.resources import ResourcesSpec
from tests.workers.conftest import is_running
from tests.workers.standins import Greet, Refuse, Stumble, SumForever
from workers.gang import Gang, GangFailedError, Observation, Reservation, WorkerReport, WorkerResult
from workers.interruption import Interruption
from workers.policy import Failure, Kind
from workers.shard_worker import Work


@contextmanager
def standing_gang(*imports: str) -> Iterator[Gang]:
    reservation = Reservation(ResourcesSpec(workers=2, gpus_per_worker=0), 2, "test")
    gang = Gang(reservation, "test", imports)
    try:
        assert reservation.ready(10)
        gang.start(Interruption())
        yield gang
    finally:
        gang.stop()
        reservation.release()


@pytest.fixture
def gang(cluster: str, leaves_nothing: None) -> Iterator[Gang]:  # noqa: ARG001
    with standing_gang("torch") as gang:
        yield gang


def watch(
    gang: Gang, enough: Callable[[list[Observation]], bool], silence_s: float = 60, within_s: float = 30
) -> list[Observation]:
    seen: list[Observation] = []
    deadline = time.monotonic() + within_s
    while not enough(seen):
        assert time.monotonic() < deadline, seen
        seen += gang.watch(0.5, silence_s)
    return seen


def begin(gang: Gang, work: Work) -> None:
    for worker in gang.workers:
        gang.begin(worker, work)


def failures(seen: list[Observation]) -> dict[int, Failure]:
    return {s.rank: s for s in seen if isinstance(s, Failure)}


def test_reports_of_workers_arrive_complete_and_in_order(cluster: str, leaves_nothing: None) -> None:  # noqa: ARG001
    with standing_gang() as gang:
        assert [described["classes"] for described in gang.describe(range(5))] == [[0, 1], [2, 3, 4]]
        for _ in range(2):  # workers can run work repeatedly
            begin(gang, Greet(200))
            seen = watch(gang, lambda seen: sum(isinstance(s, WorkerResult) for s in seen) == 2)
            for rank, described in enumerate(gang.describe(range(5))):
                told = [s for s in seen if s.rank == rank]
                assert [s.data["i"] for s in told if isinstance(s, WorkerReport)] == list(range(200))
                assert told[-1] == WorkerResult(rank, (rank, described["pid"]))

        begin(gang, Refuse())
        refused = failures(watch(gang, lambda seen: len(seen) == 2))[1]
        assert refused.kind is Kind.REFUSED
        assert type(refused.error) is NonFiniteLossError
        assert str(refused.error) == "the loss became nan in iteration 3"

        begin(gang, Stumble())
        assert failures(watch(gang, lambda seen: len(seen) == 2)) == {0: Failure(0, Kind.BROKEN, "ValueError: a bug")}


def test_killed_worker_is_reported_dead_and_the_other_reports_peer_loss(gang: Gang) -> None:
    begin(gang, SumForever(timeout_s=60))
    watch(gang, lambda seen: len(seen) >= 2)
    os.kill(gang.describe(range(2))[1]["pid"], signal.SIGKILL)
    found = failures(watch(gang, lambda seen: len(failures(seen)) == 2))
    assert found[1] == Failure(1, Kind.DIED, "died")
    assert found[0].kind is Kind.PEER_LOST

    gang.dismiss({1})  # the gang continues with the other worker
    begin(gang, Greet(0))
    [returned] = watch(gang, lambda seen: len(seen) == 1)
    assert isinstance(returned, WorkerResult)
    assert returned.rank == 0


def test_frozen_worker_is_reported_hung_and_can_be_ended(gang: Gang) -> None:
    begin(gang, SumForever(timeout_s=2))
    watch(gang, lambda seen: len(seen) >= 2)
    pids = [described["pid"] for described in gang.describe(range(2))]
    os.kill(pids[1], signal.SIGSTOP)
    found = failures(watch(gang, lambda seen: len(failures(seen)) == 2, silence_s=2))
    assert found[1].kind is Kind.HUNG
    assert found[0].kind is Kind.PEER_LOST

    gang.stop()
    assert not any(is_running(pid) for pid in pids)  # when stop returns: Ray itself would end the frozen one 5 s later


def test_failed_import_in_a_worker_is_reported(cluster: str, leaves_nothing: None) -> None:  # noqa: ARG001
    with pytest.raises(GangFailedError, match="No module named 'no_such_module'") as raised, standing_gang("no_such_module"):
        pass
    assert raised.value.failures[0].kind is Kind.BROKEN
