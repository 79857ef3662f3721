"""Choose which jobs to reconcile: the active ones, and queued ones while slots are free, shared fairly between owners."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from sqlalchemy import and_, case, func, literal, or_, select
from sqlalchemy.orm import Session

from server.states import IN_RAY, Status
from server.store.models import ApiKey, Job


def jobs_to_reconcile(session: Session, admitted: Collection[str], *, max_active: int, max_per_owner: int | None) -> list[str]:
    """Return the ids of all jobs that may have a driver, and of queued jobs, up to `max_active` in total.

    Among queued jobs, the owner with the fewest active jobs goes first, with its oldest job. An owner has at most as many active
    jobs as its key allows, or else `max_per_owner` (None: unlimited). Jobs without an owner count as one owner without a limit.

    admitted: queued jobs that an earlier call returned and that are about to start; they count as active.
    """
    is_active = or_(Job.status.in_([s.value for s in IN_RAY]), and_(Job.status == Status.QUEUED.value, Job.id.in_(admitted)))
    active = session.execute(select(Job.id, Job.owner).where(is_active).order_by(Job.number)).all()
    chosen = [id for id, _ in active]
    if (free_slots := max_active - len(active)) <= 0:
        return chosen
    # An owner's n-th queued job would be its (active + n)-th active one; ordering by that number makes owners take turns.
    active_of = Counter(owner for _, owner in active)
    nth = func.row_number().over(partition_by=Job.owner, order_by=Job.number)
    queued = select(Job.id, Job.number, Job.owner, nth.label("nth"))
    waiting = queued.where(Job.status == Status.QUEUED.value, Job.id.not_in(admitted)).subquery()
    held = sum(
        (case((waiting.c.owner.is_not_distinct_from(owner), count), else_=0) for owner, count in active_of.items()), literal(0)
    )
    turn = waiting.c.nth + held
    limit = func.coalesce(ApiKey.max_running_jobs, max_per_owner)
    allowed = or_(waiting.c.owner.is_(None), limit.is_(None), turn <= limit)
    candidates = select(waiting.c.id).join(ApiKey, ApiKey.id == waiting.c.owner, isouter=True)
    return chosen + list(session.scalars(candidates.where(allowed).order_by(turn, waiting.c.number).limit(free_slots)))
