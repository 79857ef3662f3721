"""Test the decisions about lost workers, without a cluster."""

from __future__ import annotations

import pytest

from cafe_core.errors import CafeError, CheckpointError, NonFiniteLossError, WorkerLostError
from workers.policy import Failure, GiveUp, Kind, Restart, cause_known, decide, gang_size, workers_that_fit

DIED = Failure(1, Kind.DIED, "died")
HUNG = Failure(2, Kind.HUNG, "has not answered for 6 s")
PEER = Failure(0, Kind.PEER_LOST, "RuntimeError: Connection closed by peer")
BROKEN = Failure(0, Kind.BROKEN, "ValueError: a bug")
NAN = Failure(3, Kind.REFUSED, "nan", NonFiniteLossError("nan"))
DISK = Failure(0, Kind.REFUSED, "disk full", CheckpointError("disk full"))


@pytest.mark.parametrize(
    ("failures", "reason"),
    [
        ([DIED], "worker 1 died"),
        ([PEER, DIED], "worker 1 died"),
        ([PEER, HUNG], "worker 2 has not answered for 6 s"),
        ([DIED, HUNG], "worker 1 died; worker 2 has not answered for 6 s"),
        ([PEER], "worker 0 RuntimeError: Connection closed by peer"),
        ([BROKEN, DIED], "worker 1 died"),  # an unexpected exception is taken for a consequence of the loss
    ],
)
def test_lost_worker_restarts_the_gang_and_is_named(failures: list[Failure], reason: str) -> None:
    assert decide(failures, restarts=0, max_restarts=1) == Restart(reason)


@pytest.mark.parametrize(
    ("failures", "error"),
    [
        ([NAN], NAN.error),
        ([PEER, NAN], NAN.error),
        ([DIED, DISK], DISK.error),
        ([NAN, BROKEN], NAN.error),
    ],
)
def test_cafe_error_ends_the_job_without_restart(failures: list[Failure], error: CafeError) -> None:
    assert decide(failures, restarts=0, max_restarts=3) == GiveUp(error)


@pytest.mark.parametrize("failures", [[BROKEN], [PEER, BROKEN], [BROKEN, PEER]])
def test_unexpected_exception_ends_the_job_as_internal(failures: list[Failure]) -> None:
    decision = decide(failures, restarts=0, max_restarts=3)
    assert isinstance(decision, GiveUp)
    assert decision.error.as_dict() == {"code": "internal", "message": "worker 0: ValueError: a bug", "retryable": False}


def test_exceeding_the_restart_limit_is_retryable() -> None:
    assert isinstance(decide([DIED], restarts=2, max_restarts=3), Restart)
    decision = decide([DIED], restarts=3, max_restarts=3)
    assert isinstance(decision, GiveUp)
    assert isinstance(decision.error, WorkerLostError)
    assert decision.error.retryable
    assert "worker 1 died" in str(decision.error)
    assert isinstance(decide([HUNG], restarts=0, max_restarts=0), GiveUp)


@pytest.mark.parametrize(
    ("failures", "expected"),
    [
        ([], False),
        ([PEER], False),
        ([BROKEN], False),
        ([PEER, BROKEN], False),
        ([PEER, DIED], True),
        ([HUNG], True),
        ([NAN], True),
    ],
)
def test_cause_known_ignores_consequences(failures: list[Failure], expected: bool) -> None:
    assert cause_known(failures) is expected


@pytest.mark.parametrize(
    ("nodes", "bundle", "expected"),
    [
        ([{"CPU": 4.0}, {"CPU": 3.0}], {"CPU": 2.0}, 3),  # not (4 + 3) // 2 by luck: 2 + 1
        ([{"CPU": 3.0}, {"CPU": 3.0}], {"CPU": 2.0}, 2),  # not (3 + 3) // 2
        ([{"CPU": 8.0, "GPU": 2.0}], {"CPU": 1.0, "GPU": 1.0}, 2),
        ([{"CPU": 8.0}], {"CPU": 1.0, "GPU": 1.0}, 0),
        ([{"CPU": 8.0, "GPU": 1.0}], {"CPU": 1.0, "GPU": 1 / 3}, 3),
        ([{"CPU": 8.0, "GPU": 0.9}], {"CPU": 1.0, "GPU": 0.3}, 3),
        ([], {"CPU": 1.0}, 0),
    ],
)
def test_each_bundle_must_fit_on_one_node(nodes: list[dict[str, float]], bundle: dict[str, float], expected: int) -> None:
    assert workers_that_fit(nodes, bundle) == expected


@pytest.mark.parametrize(
    ("fits_now", "capacity_now", "expected"),
    [
        (2, 2, 2),  # half the cluster is gone: continue with the rest
        (0, 2, 4),  # gone, and the rest is busy: wait
        (1, 2, 1),
        (2, 4, 4),  # as large as before, but busy: wait for all
        (3, 8, 4),  # grown, but busy
        (4, 3, 4),
    ],
)
def test_gang_shrinks_only_if_the_cluster_shrank(fits_now: int, capacity_now: int, expected: int) -> None:
    assert gang_size(4, fits_now=fits_now, capacity_now=capacity_now, capacity_at_start=4) == expected
