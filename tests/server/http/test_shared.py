"""Sharing results between requests, and /readyz, which needs no key."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import event

import server.telemetry.readiness
from server.http.shared_result import SharedResult
from server.settings import Settings
from server.store.database import Database
from server.telemetry.readiness import Readiness
from tests.server.conftest import FakeRay, running
from workers.client import RayCluster


class Question:
    """A function that returns its number of calls once `may_answer` is set."""

    def __init__(self) -> None:
        self.asked = 0
        self.may_answer = asyncio.Event()
        self.error: Exception | None = None

    async def __call__(self) -> int:
        self.asked += 1
        answer = self.asked
        await self.may_answer.wait()
        if self.error is not None:
            raise self.error
        return answer


def test_concurrent_and_recent_callers_share_result() -> None:
    async def scenario() -> None:
        question = Question()
        shared = SharedResult(question, fresh_s=0.5)
        assert shared.last is None
        waiting = [asyncio.create_task(shared.get()) for _ in range(50)]
        await asyncio.sleep(0.05)
        waiting[0].cancel()  # who asked first leaves
        await asyncio.sleep(0.05)
        question.may_answer.set()
        assert await asyncio.gather(*waiting[1:]) == [1] * 49
        assert (await shared.get(), shared.last) == (1, 1)
        await asyncio.sleep(0.6)
        assert shared.last == 1
        assert await asyncio.gather(shared.get(), shared.get()) == [2, 2]

    asyncio.run(scenario())


def test_failure_is_shared_by_waiting_callers_and_not_cached() -> None:
    async def scenario() -> None:
        question = Question()
        question.error = ValueError("no")
        shared = SharedResult(question, fresh_s=60)
        waiting = [asyncio.create_task(shared.get()) for _ in range(3)]
        await asyncio.sleep(0.05)
        question.may_answer.set()
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert outcomes == [question.error] * 3
        assert question.asked == 1
        question.error = None
        assert await shared.get() == 2

    asyncio.run(scenario())


class CountingRay(FakeRay):
    """A Ray that counts readiness checks and hangs while `hangs` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0
        self.hangs = False

    async def ready(self) -> bool:
        self.asked += 1
        while self.hangs:
            await asyncio.sleep(0.01)
        return await super().ready()


def test_concurrent_readiness_checks_share_one_query(settings: Settings) -> None:
    settings.data_dir.mkdir()
    database, ray = Database(settings.database), CountingRay()
    database.migrate()
    queries: list[str] = []
    event.listen(database.engine, "before_cursor_execute", lambda *arguments: queries.append(arguments[2]))

    async def scenario() -> None:
        readiness = Readiness(database, ray)
        assert await asyncio.gather(*(readiness.obstacle() for _ in range(100))) == [None] * 100
        assert ray.asked == len([query for query in queries if "FROM jobs" in query]) == 1
        ray.down = True
        assert await readiness.obstacle() is None
        await asyncio.sleep(1.1)
        assert "Ray does not" in str(await readiness.obstacle())
        ray.down = False
        assert "Ray does not" in str(await readiness.obstacle())
        await asyncio.sleep(1.1)
        assert await readiness.obstacle() is None
        assert ray.asked == 3

    try:
        asyncio.run(scenario())
    finally:
        database.close()


def test_hanging_query_is_not_repeated(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.telemetry.readiness, "WITHIN_S", 0.2)
    ray = CountingRay()
    ray.hangs = True
    with running(settings, ray) as api, ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            answers = list(pool.map(lambda _: api.get("/readyz"), range(8)))
            assert [answer.status_code for answer in answers] == [503] * 8
            assert "within 0.2 s" in answers[0].json()["detail"]
        assert ray.asked == 1
        ray.hangs = False
        deadline = time.monotonic() + 20
        while api.get("/readyz").status_code != 200:
            assert time.monotonic() < deadline


def test_concurrent_submissions_share_one_cluster_query(settings: Settings) -> None:
    class SlowRay(FakeRay):
        cluster_looks = 0

        async def cluster(self) -> RayCluster:
            self.cluster_looks += 1
            await asyncio.sleep(0.3)
            return await super().cluster()

    ray = SlowRay()
    with running(settings, ray) as api, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: api.get("/v1/cluster"), range(8)))
    assert [answer.status_code for answer in answers] == [200] * 8
    assert ray.cluster_looks == 1
