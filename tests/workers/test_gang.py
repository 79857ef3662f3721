"""The gang on a real cluster: what it sees of its workers, and that it ends them for certain."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator

import pytest

from cafe_core.config import ResourcesSpec
from cafe_core.errors import NonFiniteLossError
from tests.workers.standins import Greet, Refuse, Stumble, SumForever
from workers.gang import Gang, Observation, Reported, Reservation, Returned
from workers.interruption import Interruption
from workers.policy import Failure, Kind
from workers.shard_worker import Work

pytestmark = pytest.mark.usefixtures("leaves_nothing")


@pytest.fixture
def gang(cluster: str) -> Iterator[Gang]:  # noqa: ARG001
    reservation = Reservation(ResourcesSpec(workers=2, gpus_per_worker=0), 2, "test")
    gang = Gang(reservation, "test", ("torch",))
    assert reservation.ready(10)
    try:
        gang.start(Interruption())
        yield gang
    finally:
        gang.stop()
        reservation.release()


def watch(gang: Gang, enough: Callable[[list[Observation]], bool], silence_s: float = 60, within_s: float = 30) -> list[Observation]:
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


def test_workers_report_in_order_and_return(gang: Gang) -> None:
    begin(gang, Greet(200))
    seen = watch(gang, lambda seen: sum(isinstance(s, Returned) for s in seen) == 2)
    for rank, described in enumerate(gang.describe(5)):
        told = [s for s in seen if s.rank == rank]
        assert [s.data["i"] for s in told if isinstance(s, Reported)] == list(range(200))
        assert told[-1] == Returned(rank, (rank, described["pid"]))
    assert [described["classes"] for described in gang.describe(5)] == [[0, 1], [2, 3, 4]]


def test_workers_take_work_again(gang: Gang) -> None:
    for _ in range(2):
        begin(gang, Greet(1))
        watch(gang, lambda seen: sum(isinstance(s, Returned) for s in seen) == 2)


def test_a_cafe_error_arrives_whole(gang: Gang) -> None:
    begin(gang, Refuse())
    failure = failures(watch(gang, failures))[1]
    assert failure.kind is Kind.REFUSED
    assert type(failure.error) is NonFiniteLossError
    assert str(failure.error) == "the loss became nan in iteration 3"


def test_a_bug_is_told_from_a_lost_peer(gang: Gang) -> None:
    begin(gang, Stumble())
    assert failures(watch(gang, failures)) == {0: Failure(0, Kind.BROKEN, "ValueError: a bug")}


def test_a_killed_worker_died_and_the_other_lost_its_peer(gang: Gang) -> None:
    begin(gang, SumForever(timeout_s=60))
    watch(gang, lambda seen: len(seen) >= 2)
    os.kill(gang.describe(2)[1]["pid"], signal.SIGKILL)
    found = failures(watch(gang, lambda seen: len(failures(seen)) == 2))
    assert found[1] == Failure(1, Kind.DIED, "died")
    assert found[0].kind is Kind.PEER_LOST


def test_a_frozen_worker_is_hung_and_the_collective_times_out(gang: Gang) -> None:
    begin(gang, SumForever(timeout_s=2))
    watch(gang, lambda seen: len(seen) >= 2)
    os.kill(gang.describe(2)[1]["pid"], signal.SIGSTOP)
    found = failures(watch(gang, lambda seen: len(failures(seen)) == 2, silence_s=2))
    assert found[1].kind is Kind.HUNG
    assert found[0].kind is Kind.PEER_LOST


def test_stopping_ends_frozen_workers_too(gang: Gang) -> None:
    pids = [described["pid"] for described in gang.describe(2)]
    os.kill(pids[0], signal.SIGSTOP)
    started = time.monotonic()
    gang.stop()
    assert time.monotonic() - started < 3
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_the_gang_goes_on_without_a_dismissed_worker(gang: Gang) -> None:
    gang.dismiss(0)
    begin(gang, Greet(0))
    [returned] = watch(gang, lambda seen: len(seen) == 1)
    assert isinstance(returned, Returned)
    assert returned.rank == 1


def test_a_worker_that_cannot_import_says_so(cluster: str) -> None:  # noqa: ARG001
    from workers.gang import GangFailedError

    reservation = Reservation(ResourcesSpec(workers=1, gpus_per_worker=0), 1, "test")
    gang = Gang(reservation, "test", ("no_such_module",))
    try:
        with pytest.raises(GangFailedError, match="No module named 'no_such_module'") as raised:
            gang.start(Interruption())
    finally:
        gang.stop()
        reservation.release()
    assert raised.value.failures[0].kind is Kind.BROKEN
