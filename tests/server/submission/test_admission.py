"""Test which queued jobs may start: limits in total and per key, and fairness among keys."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from cafe_core.spec.job import parse_job_spec
from server.settings import Settings
from server.states import Status
from server.store import jobs
from server.store.admission import jobs_to_reconcile
from server.store.database import Database
from server.store.models import ApiKey
from tests.server.conftest import SPEC, FakeRay, running


@pytest.fixture
def database(tmp_path: Path) -> Database:
    database = Database(f"sqlite:///{tmp_path / 'cafe.db'}")
    database.migrate()
    return database


def queue(database: Database, owners: str, *, bounds: dict[str, int] | None = None) -> None:
    """Queue job_0, job_1, …, one per letter of `owners`, which names its owner; `-` is no owner."""
    spec = parse_job_spec(SPEC)
    with database.write() as session:
        for owner in sorted(set(owners) - {"-"}):
            bound = (bounds or {}).get(owner)
            session.add(ApiKey(id=owner, name=owner, hash=owner, scopes="write", max_running_jobs=bound))
        session.flush()
        for number, owner in enumerate(owners):
            jobs.create(session, f"job_{number}", spec, owner=None if owner == "-" else owner)


def chosen(database: Database, admitted: str = "", *, max_active: int, max_per_owner: int | None = None) -> str:
    """Return the numbers of the jobs to reconcile, as digits."""
    before = {f"job_{number}" for number in admitted}
    with database.read() as session:
        named = jobs_to_reconcile(session, before, max_active=max_active, max_per_owner=max_per_owner)
    return "".join(name.removeprefix("job_") for name in named)


def start(database: Database, numbers: str) -> None:
    with database.write() as session:
        for number in numbers:
            jobs.transition(session, jobs.get(session, f"job_{number}"), Status.STARTING)


def test_owners_take_turns_and_the_oldest_job_is_first(database: Database) -> None:
    queue(database, "aaaabb-c")
    assert chosen(database, max_active=4) == "0467"
    assert chosen(database, max_active=6) == "046715"
    start(database, "0")
    assert chosen(database, max_active=4) == "0467"
    start(database, "467")
    assert chosen(database, max_active=6) == "046715"
    assert chosen(database, max_active=4) == "0467"
    assert chosen(database, max_active=2) == "0467"  # jobs that have a driver are reconciled whatever the limit


def test_limit_of_a_key_overrides_the_default(database: Database) -> None:
    queue(database, "aaabbb--", bounds={"b": 2})
    assert chosen(database, max_active=9, max_per_owner=1) == "03647"  # a's first, b's two, nobody's
    assert chosen(database, max_active=9) == "0361472"
    start(database, "03")
    assert chosen(database, max_active=9, max_per_owner=1) == "03647"


def test_admitted_jobs_count_towards_the_limit(database: Database) -> None:
    queue(database, "aab")
    assert chosen(database, max_active=1) == "0"
    assert chosen(database, "1", max_active=1) == "1"  # already admitted
    assert chosen(database, "1", max_active=2) == "12"


def test_choosing_among_thousands_of_queued_jobs_is_fast(database: Database) -> None:
    queue(database, "-" * 3000 + "a" * 1000 + "b" * 1000)
    with database.read() as session:
        started = time.monotonic()
        for _ in range(5):
            named = jobs_to_reconcile(session, set(), max_active=8, max_per_owner=2)
        seconds = (time.monotonic() - started) / 5
    assert len(named) == 8
    assert seconds < 1  # 10 ms on an idle machine


def test_queued_job_starts_when_another_ends(settings: Settings, ray: FakeRay) -> None:
    with running(settings.model_copy(update={"max_active_jobs": 1}), ray) as api:
        first, second = (api.make()["id"] for _ in range(2))
        api.await_status(first, "starting")
        assert api.job(second)["status"] == "queued"
        api.post(f"/v1/jobs/{first}/cancel")
        api.await_status(second, "starting")
