from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any

import httpx
import httpx_sse
import pytest

import server.event_streams
from server.http.negotiation import preferred
from server.settings import Settings
from tests.server.conftest import Api, FakeRay, driver_of, running

JSON, STREAM = "application/json", "text/event-stream"


def submitted(api: Api, ray: FakeRay) -> str:
    job_id: str = api.make()["id"]
    api.await_job(job_id, lambda _: (job_id, 1) in ray.submissions)
    return job_id


@contextmanager
def stream(api: Api, job_id: str, last_event_id: int | None = None, **params: Any) -> Iterator[httpx_sse.EventSource]:
    headers = {} if last_event_id is None else {"Last-Event-ID": str(last_event_id)}
    with httpx_sse.connect_sse(api, "GET", f"/v1/jobs/{job_id}/events", headers=headers, params=params) as source:
        assert source.response.status_code == 200, source.response.read()
        yield source


def ids(source: httpx_sse.EventSource) -> list[int]:
    return [int(sse.id) for sse in source.iter_sse() if sse.data]


def end(api: Api, job_id: str) -> list[int]:
    """Return the numbers of all events of a job."""
    api.post(f"/v1/jobs/{job_id}/cancel")
    api.await_status(job_id, "cancelled")
    return [event["id"] for event in api.get(f"/v1/jobs/{job_id}/events", params={"limit": 1000}).json()["data"]]


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        (None, JSON),
        ("", JSON),
        ("*/*", JSON),
        ("nonsense", JSON),
        ("text/event-stream", STREAM),
        ("TEXT/Event-Stream; charset=utf-8", STREAM),
        ("text/*", STREAM),
        ("application/json, text/event-stream", JSON),
        ("application/json;q=0.5, text/event-stream", STREAM),
        ("text/event-stream;q=0.5, application/json;q=0.9", JSON),
        ("text/event-stream, */*", STREAM),
        ("text/event-stream;q=0, */*;q=0.1", JSON),
        ("text/event-stream;q=0", None),
        ('text/html;level="1,2", text/event-stream', STREAM),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", JSON),
        ("text/html", None),
        ("application/json;q=0, text/*;q=0.3", STREAM),
        ("text/event-stream;q=2, application/json;q=0.001", JSON),
    ],
)
def test_preferred_media_type(accept: str | None, wanted: str | None) -> None:
    assert preferred(accept, (JSON, STREAM)) == wanted


@pytest.mark.parametrize("accept", ['\\"' * 32_000, '"\\' * 32_000, '"' * 64_001, ';x="' * 16_000])
def test_parsing_accept_header_takes_linear_time(accept: str) -> None:
    started = time.perf_counter()
    preferred(accept, (JSON, STREAM))
    assert time.perf_counter() - started < 10  # half a minute where it is searched from each quote; some milliseconds else


def test_unacceptable_media_type_gets_406(api: Api) -> None:
    path = f"/v1/jobs/{api.make()['id']}/events"
    refused = api.get(path, headers={"Accept": "image/png"})
    assert (refused.status_code, refused.headers["content-type"]) == (406, "application/problem+json")
    page = api.get(path)
    assert (page.headers["content-type"], page.headers["vary"]) == (JSON, "Accept")
    assert api.get("/v1/jobs/job_unknown/events", headers={"Accept": STREAM}).status_code == 404
    assert api.get(path, headers={"Accept": STREAM, "Last-Event-ID": "x"}).status_code == 422


def test_both_forms_are_documented(api: Api) -> None:
    responses = api.get("/openapi.json").json()["paths"]["/v1/jobs/{job_id}/events"]["get"]["responses"]
    assert set(responses["200"]["content"]) == {JSON, STREAM}
    assert {"204", "404", "406", "422"} <= set(responses)


def test_stream_sends_all_events_until_job_ends(api: Api, ray: FakeRay, settings: Settings) -> None:
    job_id = submitted(api, ray)
    seen: list[tuple[str, dict[str, Any]]] = []
    with stream(api, job_id) as source:
        assert source.response.headers["content-type"].startswith(STREAM)
        with driver_of(settings, job_id) as report:
            for sse in source.iter_sse():
                if not sse.data:
                    assert sse.retry == server.event_streams.RETRY_MS
                    continue
                event = json.loads(sse.data)
                assert (str(event["id"]), event["type"]) == (sse.id, sse.event)
                seen.append((sse.event, event["data"]))
                if event["data"].get("status") == "starting":
                    report("phase", phase="condensing")
                if sse.event == "phase":
                    report("iteration", iteration=1, total=10, note="a\nb\u2028c")
                if sse.event == "iteration":
                    api.post(f"/v1/jobs/{job_id}/cancel")
    assert [type for type, _ in seen] == ["status", "status", "phase", "status", "iteration", "status", "status"]
    assert seen[4][1]["note"] == "a\nb\u2028c"
    assert seen[-1][1]["status"] == "cancelled"
    page = api.get(f"/v1/jobs/{job_id}/events").json()["data"]
    assert [(event["type"], event["data"]) for event in page] == seen


def test_stream_resumes_after_last_event_id(api: Api, ray: FakeRay) -> None:
    job_id = submitted(api, ray)
    last = end(api, job_id)[-1]
    with stream(api, job_id) as source:
        assert ids(source) == list(range(1, last + 1))
    with stream(api, job_id, after=2) as source:
        assert ids(source) == list(range(3, last + 1))
    with stream(api, job_id, last_event_id=1, after=2) as source:
        assert ids(source) == list(range(2, last + 1))
    done = api.get(f"/v1/jobs/{job_id}/events", headers={"Accept": STREAM, "Last-Event-ID": str(last)})
    assert (done.status_code, done.content) == (204, b"")


def test_more_than_a_page_is_streamed_in_order(api: Api, ray: FakeRay, settings: Settings) -> None:
    job_id = submitted(api, ray)
    count = 2 * server.event_streams.PAGE + 7
    with driver_of(settings, job_id) as report:
        for i in range(count):
            report("iteration", iteration=i, total=count)
    api.await_job(job_id, lambda j: j["progress"]["done"] == count - 1)
    end(api, job_id)
    with stream(api, job_id) as source:
        got = ids(source)
    assert got == list(range(1, len(got) + 1))
    assert len(got) > count


def test_stream_sends_comments_while_silent(api: Api, ray: FakeRay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.event_streams, "HEARTBEAT_S", 0.1)
    job_id = submitted(api, ray)
    with api.stream("GET", f"/v1/jobs/{job_id}/events", headers={"Accept": STREAM}) as response:
        comments = 0
        for line in response.iter_lines():
            comments += line.startswith(":")
            if comments == 3:
                break


def open_streams(api: Api) -> int:
    metrics = api.get("/metrics").text
    return int(float(next(line for line in metrics.splitlines() if line.startswith("cafe_event_streams ")).split()[1]))


def await_open(api: Api, count: int) -> None:
    deadline = time.monotonic() + 20
    while open_streams(api) != count:
        assert time.monotonic() < deadline, open_streams(api)
        time.sleep(0.05)


def test_stream_ends_when_client_disconnects(api: Api, ray: FakeRay) -> None:
    job_id = submitted(api, ray)
    with stream(api, job_id) as source:
        events = source.iter_sse()
        next(events)
        await_open(api, 1)
        events.close()
        await_open(api, 0)


def test_deleting_job_ends_its_streams(api: Api, ray: FakeRay) -> None:
    job_id = submitted(api, ray)
    finished = threading.Event()

    def follow() -> None:
        with stream(api, job_id) as source:
            ids(source)
        finished.set()

    thread = threading.Thread(target=follow)
    thread.start()
    await_open(api, 1)
    api.post(f"/v1/jobs/{job_id}/cancel")
    api.await_status(job_id, "cancelled")
    assert api.delete(f"/v1/jobs/{job_id}").status_code == 204
    thread.join(20)
    assert finished.is_set()


def test_stopping_server_ends_streams_and_long_polls(settings: Settings, ray: FakeRay) -> None:
    with ExitStack() as stack:
        with running(settings, ray) as api:
            job_id = submitted(api, ray)
            api.await_job(job_id, lambda j: j["status"] == "starting")
            other = stack.enter_context(closing(Api(base_url=api.base_url, timeout=40)))
            source = stack.enter_context(stream(other, job_id))
            events = source.iter_sse()
            while (sse := next(events)).id != "2":
                pass
            etag = api.get(f"/v1/jobs/{job_id}").headers["ETag"]
            answers: list[httpx.Response] = []

            def wait() -> None:
                with Api(base_url=api.base_url, timeout=40) as waiting:
                    answers.append(waiting.get(f"/v1/jobs/{job_id}", params={"wait": 30}, headers={"If-None-Match": etag}))

            waiting = threading.Thread(target=wait)
            waiting.start()
            time.sleep(0.5)
            stopped_at = time.monotonic()
        assert time.monotonic() - stopped_at < 2.0  # what uvicorn would wait for those that do not end
        assert list(events) == []  # whole, not broken off
        waiting.join()
        assert answers[0].status_code == 304
        with running(settings, ray) as api:
            everything = end(api, job_id)
            with stream(api, job_id, last_event_id=int(sse.id)) as source:
                assert ids(source) == everything[2:]


def test_client_that_does_not_read_delays_no_other(settings: Settings, ray: FakeRay) -> None:
    with running(settings, ray) as api:
        job_id = submitted(api, ray)
        host, port = api.base_url.host, api.base_url.port
        assert port is not None
        with socket.socket() as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.connect((host, port))
            deaf.sendall(f"GET /v1/jobs/{job_id}/events HTTP/1.1\r\nHost: {host}\r\nAccept: {STREAM}\r\n\r\n".encode())
            await_open(api, 1)
            count = 600
            with driver_of(settings, job_id) as report:
                for i in range(count):
                    report("iteration", iteration=i, total=count, filling="x" * 8000)
            api.await_job(job_id, lambda j: j["progress"]["done"] == count - 1)
            end(api, job_id)
            with stream(api, job_id) as source:
                assert len(ids(source)) > count
            assert open_streams(api) == 1
        await_open(api, 0)


def test_streams_of_a_job_share_their_reads(api: Api, ray: FakeRay, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    read = server.event_streams._page

    def counted(*arguments: Any) -> server.event_streams.Page:
        reads.append(arguments[2])
        return read(*arguments)

    monkeypatch.setattr(server.event_streams, "_page", counted)
    job_id = submitted(api, ray)
    threads_before = threading.active_count()
    watchers = 100
    with ExitStack() as stack:
        sources = []
        limits = httpx.Limits(max_connections=None)
        client = stack.enter_context(Api(base_url=api.base_url, timeout=40, limits=limits))
        for _ in range(watchers):
            sources.append(stack.enter_context(stream(client, job_id)))
        await_open(api, watchers)
        time.sleep(1.2)  # changes that other servers make are looked for once
        reads.clear()
        with driver_of(settings, job_id) as report:
            report("iteration", iteration=1, total=10)
        api.await_job(job_id, lambda j: j["progress"]["done"] == 1)
        everything = tuple(end(api, job_id))
        assert {tuple(ids(source)) for source in sources} == {everything}
    assert len(reads) < watchers / 2, f"{len(reads)} reads of {watchers} streams"
    assert threading.active_count() - threads_before < 30


def test_changes_made_by_another_server_are_streamed(settings: Settings, ray: FakeRay) -> None:
    with running(settings, ray) as api, running(settings, ray) as other:
        job_id = submitted(api, ray)
        for here in (api, other):
            got: list[int] = []
            with stream(here, job_id) as source:
                for sse in source.iter_sse():
                    got += [int(sse.id)] if sse.data else []
                    if sse.data and json.loads(sse.data)["data"].get("status") == "starting":
                        break
            assert got[-1] == 2
        etag = other.get(f"/v1/jobs/{job_id}").headers["ETag"]
        with driver_of(settings, job_id) as report:
            report("phase", phase="condensing")
            for server_ in (api, other):
                server_.await_status(job_id, "running")
            changed = other.get(f"/v1/jobs/{job_id}", params={"wait": 20}, headers={"If-None-Match": etag})
            assert changed.json()["status"] == "running"
        ended: list[list[int]] = []

        def follow(server_: Api) -> None:
            with stream(server_, job_id) as source:
                ended.append(ids(source))

        threads = [threading.Thread(target=follow, args=(server_,)) for server_ in (api, other)]
        for thread in threads:
            thread.start()
        time.sleep(1.5)
        everything = end(api, job_id)
        for thread in threads:
            thread.join(20)
        assert ended == [everything] * 2
