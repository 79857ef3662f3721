"""Decide what to do when workers are lost. Pure functions, without Ray.

::

    REFUSED      a worker raised a CafeError (NaN, disk full, …); a repetition would fail again → the job fails, except that a
                 condensation is repeated with smaller chunks if a GPU ran out of memory (`gang_backend`)
    DIED         the process is gone                                                  ┐
    HUNG         the process exists but does not answer                               ├ restart the gang from
    PEER_LOST    a collective broke or timed out, so *another* worker is the cause    ┘ the last checkpoint
    BROKEN       any other exception: a bug → the job fails with the code `internal`
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from cafe_core.errors import CafeError, WorkerLostError


class Kind(Enum):
    """How a worker failed."""

    REFUSED = auto()
    DIED = auto()
    HUNG = auto()
    PEER_LOST = auto()
    BROKEN = auto()


@dataclass(frozen=True)
class Failure:
    """The failure of one worker. `detail` is for people; `error` is set for REFUSED only."""

    rank: int
    kind: Kind
    detail: str
    error: CafeError | None = None


@dataclass(frozen=True)
class Restart:
    """End the gang and start it again."""

    reason: str


@dataclass(frozen=True)
class GiveUp:
    """Fail the job with this error."""

    error: CafeError


def cause_known(failures: Iterable[Failure]) -> bool:
    """Return whether one of the failures is a cause. If not, waiting a moment may reveal it.

    Survivors may report a broken collective before Ray reports the lost worker.
    """
    return any(failure.kind in (Kind.REFUSED, Kind.DIED, Kind.HUNG) for failure in failures)


def decide(failures: Sequence[Failure], *, restarts: int, max_restarts: int) -> Restart | GiveUp:
    """Decide what follows from a gang's failures (at least one), after `restarts` restarts.

    Causes have priority over consequences: a CafeError, then a lost worker, then an unexpected exception. If only broken
    collectives are known, an unnoticed loss caused them, and they are treated as one.
    """
    for failure in failures:
        if failure.error is not None:
            return GiveUp(failure.error)
    lost = [failure for failure in failures if failure.kind in (Kind.DIED, Kind.HUNG)]
    broken = [failure for failure in failures if failure.kind is Kind.BROKEN]
    if broken and not lost:
        return GiveUp(CafeError("; ".join(f"worker {failure.rank}: {failure.detail}" for failure in broken)))
    reason = "; ".join(f"worker {failure.rank} {failure.detail}" for failure in lost or failures)
    if restarts >= max_restarts:
        return GiveUp(WorkerLostError(f"{reason} (restart limit reached: {restarts} restarts)"))
    return Restart(reason)


def workers_that_fit(nodes: Iterable[Mapping[str, float]], bundle: Mapping[str, float]) -> int:
    """Return how many bundles the nodes' resources hold. Each bundle must fit on one node."""
    # The margin lets three workers with a third of a GPU each fit on one GPU despite rounding.
    return sum(int(min(node.get(resource, 0.0) / amount for resource, amount in bundle.items()) + 1e-6) for node in nodes)


def gang_size(wanted: int, *, fits_now: int, capacity_now: int, capacity_at_start: int) -> int:
    """Return the number of workers for a gang that has waited for `wanted` bundles without success.

    If the cluster has become smaller since the job started, this is the number that fits now, at least one. Otherwise it is
    `wanted`, because the resources of a busy cluster become free again.
    """
    if capacity_now < capacity_at_start and 1 <= fits_now < wanted:
        return fits_now
    return wanted
