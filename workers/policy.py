"""What to do when workers are lost: decisions from facts alone, without Ray.

::

    REFUSED      a worker raised a CafeError (NaN, disk full, …): doing it again would end the same → the job fails
    DIED         the process is gone                                                    ┐
    HUNG         the process is there but answers nothing                               ├ the gang starts again from
    PEER_LOST    a collective broke or timed out, so some *other* worker is the cause   ┘ the last checkpoint
    BROKEN       any other exception: a bug → the job fails as internal
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
    """One worker's failure. detail is for people; error is set for REFUSED alone."""

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


def decisive(failures: Iterable[Failure]) -> bool:
    """Whether the cause is known; if not, it is worth a moment's wait.

    Survivors of a lost worker may report their broken collective before Ray reports the loss.
    """
    return any(failure.kind in (Kind.REFUSED, Kind.DIED, Kind.HUNG) for failure in failures)


def decide(failures: Sequence[Failure], *, restarts: int, max_restarts: int) -> Restart | GiveUp:
    """What follows from a gang's failures (at least one), after `restarts` restarts.

    A cause outranks its consequences: a CafeError, then a lost worker, then an unexpected exception; a broken
    collective alone is the consequence of a loss that nobody saw, and is treated as one.
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
        return GiveUp(WorkerLostError(f"{reason} (restarted {restarts} times, which is as often as the job allows)"))
    return Restart(reason)


def workers_that_fit(nodes: Iterable[Mapping[str, float]], bundle: Mapping[str, float]) -> int:
    """How many bundles the nodes' resources hold. A bundle lies on one node."""
    # The margin keeps three thirds of a GPU a whole one.
    return sum(int(min(node.get(resource, 0.0) / amount for resource, amount in bundle.items()) + 1e-6) for node in nodes)


def gang_size(wanted: int, *, fits_now: int, capacity_now: int, capacity_at_start: int) -> int:
    """Workers of a gang that has waited for `wanted` bundles in vain.

    All that fit now if the cluster has become smaller than when the job started; else `wanted` still: a cluster that
    is merely busy gets free again, so waiting gives the job what it asked for. At least one.
    """
    if capacity_now < capacity_at_start and 1 <= fits_now < wanted:
        return fits_now
    return wanted
