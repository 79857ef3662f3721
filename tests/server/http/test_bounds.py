"""Bounds per request: threads for heavy work, errors in a refusal, parts of a body, bytes of a listing."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

import pytest
from pydantic import ValidationError

import server.submission.planning
from cafe_core.spec.job import parse_job_spec
from cafe_core.spec.json_text import MAX_PARTS
from cafe_core.spec.sweep import MAX_NESTING
from server.auth.keys import Scope
from server.client import Client
from server.errors import SHOWN_CHARACTERS, SHOWN_ERRORS, TooManyRequestsError, spec_refusal
from server.http.heavy_work import MAX_THREADS, HeavyWork
from server.settings import Settings
from server.store import jobs
from server.store.database import Database
from server.submission.planning import Plan
from tests.server.auth.test_limits import npz, upload
from tests.server.conftest import SPEC, Api, FakeRay, running
from tests.server.keyed import add_key, client_of
from tests.server.kinds import SWEEP


class Work:
    """Work that blocks until `may_end` is set and counts how much of it runs at once."""

    def __init__(self) -> None:
        self.may_end = threading.Event()
        self.begun: list[int] = []
        self.most = 0
        self._now = 0
        self._lock = threading.Lock()

    def __call__(self, number: int) -> int:
        with self._lock:
            self.begun.append(number)
            self._now += 1
            self.most = max(self.most, self._now)
        assert self.may_end.wait(20)
        with self._lock:
            self._now -= 1
        return number


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


def asked(heavy: HeavyWork, owner: str | None, work: Work, number: int) -> asyncio.Task[int]:
    """Submit work for an owner."""
    return asyncio.create_task(heavy.run_fair(owner, work, number))


def test_heavy_work_runs_in_order_with_limited_concurrency() -> None:
    async def scenario() -> None:
        heavy, work = HeavyWork(waiting_per_key=2), Work()
        tasks = [asked(heavy, None, work, number) for number in range(7)]
        others = asked(heavy, "a", work, 7)
        await _until(lambda: len(work.begun) == MAX_THREADS)
        await asyncio.sleep(0.2)
        assert sorted(work.begun) == [0, 7]
        tasks[3].cancel()  # who waits may leave
        await asyncio.wait({tasks[3]})
        work.may_end.set()
        outcomes = await asyncio.gather(*tasks, others, return_exceptions=True)
        assert [outcome for outcome in outcomes if isinstance(outcome, int)] == [0, 1, 2, 4, 5, 6, 7]
        assert work.most <= MAX_THREADS
        assert [number for number in work.begun if number != 7] == [0, 1, 2, 4, 5, 6]

    asyncio.run(scenario())


def test_key_with_much_heavy_work_delays_only_itself() -> None:
    async def scenario() -> None:
        heavy, endless, quick = HeavyWork(waiting_per_key=3), Work(), Work()
        quick.may_end.set()
        much = [asked(heavy, "a", endless, number) for number in range(4)]
        await _until(lambda: endless.begun == [0])
        with pytest.raises(TooManyRequestsError) as refused:
            await asked(heavy, "a", endless, 4)
        assert refused.value.headers == {"Retry-After": "5"}
        assert [await asked(heavy, "b", quick, number) for number in range(5)] == [0, 1, 2, 3, 4]
        assert endless.begun == [0]
        much[1].cancel()
        await asyncio.wait({much[1]})
        much.append(asked(heavy, "a", endless, 5))  # in the place of the one that has left
        endless.may_end.set()
        outcomes = await asyncio.gather(*much, return_exceptions=True)
        assert [outcome for outcome in outcomes if isinstance(outcome, int)] == [0, 2, 3, 5]

    asyncio.run(scenario())


def test_keys_take_turns_at_heavy_work() -> None:
    async def scenario() -> None:
        heavy, hold, work = HeavyWork(waiting_per_key=9), Work(), Work()
        held = [asked(heavy, owner, hold, 0) for owner in "ab"]
        await _until(lambda: len(hold.begun) == MAX_THREADS)
        waiting = [asked(heavy, owner, work, number) for number, owner in enumerate("aaabbbc")]
        await asyncio.sleep(0)
        work.may_end.set()
        held.pop().cancel()  # heard or not, it keeps its place
        await asyncio.sleep(0.1)
        assert work.begun == []
        hold.may_end.set()
        await asyncio.gather(*waiting)
        assert work.begun.index(6) < 3  # c, which came last, had no turn before
        assert [number for number in work.begun if number < 3] == [0, 1, 2]
        await asyncio.gather(*held)

    asyncio.run(scenario())


def test_cancelled_work_keeps_its_thread_until_it_ends() -> None:
    async def scenario() -> None:
        heavy, abandoned, next_ = HeavyWork(waiting_per_key=9), Work(), Work()
        first = [asked(heavy, owner, abandoned, 0) for owner in "ab"]
        await _until(lambda: len(abandoned.begun) == MAX_THREADS)
        for task in first:
            task.cancel()
        await asyncio.gather(*first, return_exceptions=True)
        after = asked(heavy, "c", next_, 9)
        await asyncio.sleep(0.2)
        assert next_.begun == []
        abandoned.may_end.set()
        next_.may_end.set()
        assert await after == 9

    asyncio.run(scenario())


def test_turn_of_cancelled_request_passes_to_the_next() -> None:
    async def scenario() -> None:
        heavy, first, work = HeavyWork(waiting_per_key=9), Work(), Work()
        first.may_end.set()
        work.may_end.set()
        begun = asked(heavy, "a", first, 0)
        given_up, after = (asked(heavy, "a", work, number) for number in (1, 2))
        end = heavy._end

        def end_and_give_up(turn: Any) -> None:
            end(turn)
            given_up.cancel()

        heavy._end = end_and_give_up  # type: ignore[method-assign]
        async with asyncio.timeout(20):
            assert [await begun, await after] == [0, 2]
        assert work.begun == [2]

    asyncio.run(scenario())


def test_many_plans_of_one_key_delay_no_other_key_and_no_upload(
    settings: Settings, ray: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, may_end, planned = server.submission.planning.plan, threading.Event(), threading.Semaphore(0)

    def slow(spec: Any, *rest: Any) -> Plan:
        if spec.name == "slow":
            planned.release()
            assert may_end.wait(60)
        return plan(spec, *rest)

    monkeypatch.setattr(server.submission.planning, "plan", slow)
    greedy, other = (add_key(settings, Scope.WRITE) for _ in range(2))
    with running(settings, ray) as api, client_of(api, greedy) as client, client_of(api, other) as another:
        with ThreadPoolExecutor(70) as pool:
            slow_spec = SPEC | {"name": "slow"}
            asked = [pool.submit(client.post, "/v1/jobs", json=slow_spec, params={"dry_run": True}) for _ in range(70)]
            try:
                assert planned.acquire(timeout=20)
                refused = next(as_completed(asked, timeout=20)).result()
                assert (refused.status_code, refused.headers["Retry-After"]) == (429, "5")
                assert another.post("/v1/jobs", json=SPEC).status_code == 201
                assert upload(client, npz()).status_code == 201
            finally:
                may_end.set()
        counted = Counter(answer.result().status_code for answer in asked)
        assert counted == {200: 65, 429: 5}  # one under way and 64 that wait


def _refusal(spec: dict[str, Any]) -> tuple[str, list[tuple[str, str]]]:
    """Return (detail, [(loc, msg)]) of the refusal of a spec."""
    with pytest.raises(ValidationError) as refused:
        parse_job_spec(spec)
    refusal = spec_refusal(refused.value)
    return refusal.detail, [(error.loc, error.msg) for error in refusal.errors or []]


def test_refusal_shows_first_errors_and_counts_all() -> None:
    detail, errors = _refusal(SPEC | {f"x{number}": 1 for number in range(SHOWN_ERRORS + 1)})
    assert errors == [(f"x{number}", "unknown field") for number in range(SHOWN_ERRORS)]
    assert detail.endswith("x99: unknown field; … 101 errors in all; the first 100 are shown")
    detail, errors = _refusal(SPEC | {f"x{number}": 1 for number in range(SHOWN_ERRORS)})
    assert len(errors) == SHOWN_ERRORS
    assert detail.endswith("x99: unknown field")


def test_refusal_truncates_long_names() -> None:
    detail, [(loc, _)] = _refusal(SPEC | {"x" * 100_000: 1})
    assert loc == "x" * (SHOWN_CHARACTERS - 1) + "…"
    assert len(detail) < 2 * SHOWN_CHARACTERS


@pytest.mark.parametrize("field", ["labels", "space"])
def test_dict_with_too_many_entries_is_one_error(field: str) -> None:
    _, errors = _refusal(SWEEP | {field: {f"x{number}": None for number in range(65)}})
    assert errors == [(field, "Dictionary should have at most 64 items after validation, not 65")]


def test_refusal_over_http_is_bounded(api: Api) -> None:
    refused = api.post("/v1/jobs", json=SPEC | {f"x{number}": 1 for number in range(5000)})
    assert refused.status_code == 422
    assert len(refused.json()["errors"]) == SHOWN_ERRORS
    assert "5000 errors in all" in refused.json()["detail"]


@pytest.mark.parametrize("part", ['"x": 1', "[]", "{}", '":"'])
def test_refuses_body_with_too_many_parts_before_parsing(api: Api, part: str) -> None:
    values = ",".join([part if ":" not in part or part == '":"' else f"{{{part}}}"] * (MAX_PARTS + 1))
    for headers in ({"Content-Type": "application/json"}, {"Content-Type": "Application/Problem+JSON; charset=utf-8"}):
        refused = api.post("/v1/jobs", content=f"[{values}]", headers=headers)
        assert refused.status_code == 422
        assert f"the limit is {MAX_PARTS} fields" in refused.json()["detail"]


def test_accepts_sweep_with_maximum_number_of_values(api: Api) -> None:
    """Larger sweeps are refused by the spec, not by the limit on the body."""
    space = {"method.beta": {"grid": [number / 7 for number in range(10_000)]}, "seed": {"grid": [1, 2]}}
    refused = api.post("/v1/jobs", json=SWEEP | {"space": space})
    assert refused.json()["errors"] == [{"loc": "space", "msg": "20000 trials are more than 10000"}]
    space = {"method.beta": {"choice": [number / 7 for number in range(10_000)]}, "seed": {"choice": [1]}}
    refused = api.post("/v1/jobs", json=SWEEP | {"space": space})
    assert refused.json()["errors"] == [{"loc": "space", "msg": "10001 values to choose from are more than 10000"}]


@pytest.mark.parametrize("kind", ["grid", "choice"])
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_limits_nesting_of_sweep_values(kind: str, opening: str, closing: str) -> None:
    def spec(depth: int) -> dict[str, Any]:
        value = json.loads(opening * depth + "1" + closing * depth)
        return SWEEP | {"space": {"ipc": {kind: [1, value]}}}

    parse_job_spec(spec(MAX_NESTING - 1))
    _, [(loc, message)] = _refusal(spec(MAX_NESTING))
    assert loc == f"space.ipc.{kind}"
    assert f"at most {MAX_NESTING - 1} levels" in message


def test_page_of_large_jobs_ends_early_and_continues_at_cursor(
    api: Api, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.routes.jobs, "ROWS_AT_ONCE", 3)
    monkeypatch.setattr(server.routes.jobs, "PAGE_BYTES", 20_000)
    sizes = [10_000, 10, 10, 10, 10, 30_000, 10, 10, 10, 10, 10]  # oldest first
    made = [api.make(labels={"size": str(size)})["id"] for size in sizes]
    for job_id in made:  # the reconciler does not change jobs that have ended
        api.post(f"/v1/jobs/{job_id}/cancel")
        api.await_status(job_id, "cancelled")
    database = Database(settings.database)
    with database.write() as session:
        for job_id, size in zip(made, sizes, strict=True):
            jobs.get(session, job_id).error = {"code": "x", "message": "y" * size, "retryable": False}
    database.close()

    def listed(**params: Any) -> list[list[str]]:
        pages, cursor = [], {}
        while True:
            page = api.get("/v1/jobs", params=params | cursor).json()
            pages.append([job["id"] for job in page["data"]])
            if page["next_cursor"] is None:
                return pages
            cursor = {"cursor": page["next_cursor"]}

    newest_first = made[::-1]
    assert listed(limit=500) == [newest_first[:6], newest_first[6:]]
    assert listed(limit=4) == [newest_first[:4], newest_first[4:7], newest_first[7:]]
    assert listed(limit=1) == [[job_id] for job_id in newest_first]
    with contextlib.closing(Client(str(api.base_url))) as client:
        assert [job["id"] for job in client.jobs(None, "condense", (), 9)] == newest_first[:9]
        assert [job["id"] for job in client.jobs(None, None, ("size=10",), 500)] == [
            job_id for job_id, size in zip(newest_first, sizes[::-1], strict=True) if size == 10
        ]
