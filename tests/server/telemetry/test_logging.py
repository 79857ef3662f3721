"""Logs: one line of JSON per record, with the ids of request and job and without secrets. X-Request-ID in every response."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import SecretStr

import server.reconciler.job_keeper
from server.settings import Settings
from server.telemetry import logs
from server.telemetry.logs import JsonFormatter, Redaction, TextFormatter
from tests.server.conftest import Api, FakeRay, running

TOKEN = "s3cr3t-token-of-ray"
ODD = 'with "quotes" \\ and ü'
KEY = "cafe_" + "Ab-_9" * 8 + "xyz"


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    """Capture the log of this process as JSON, and restore logging afterwards."""
    names = ("", "uvicorn", "uvicorn.error", "uvicorn.access", "httpx", "httpcore", "alembic")
    before = [(each := logging.getLogger(name or None), each.handlers[:], each.level, each.propagate) for name in names]
    stream = io.StringIO()
    logs.configure("json", [TOKEN], stream)
    yield stream
    for logger, handlers, level, propagate in before:
        logger.handlers, logger.level, logger.propagate = handlers, level, propagate


def lines(written: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in written.getvalue().splitlines()]


def accesses(written: io.StringIO) -> list[dict[str, Any]]:
    return [line for line in lines(written) if line["logger"] == "cafe.access"]


def test_each_request_is_logged(written: io.StringIO, settings: Settings, ray: FakeRay) -> None:
    with running(settings, ray) as api:
        job = api.make()["id"]
        answer = api.get(f"/v1/jobs/{job}", headers={"X-Request-ID": "mine-1"})
        assert answer.headers["X-Request-ID"] == "mine-1"
        api.get("/healthz")
        api.get("/no/such/thing?token=abc")
    own = next(line for line in accesses(written) if line.get("request_id") == "mine-1")
    assert own | {"time": "", "seconds": 0.0} == {
        "time": "",
        "level": "info",
        "logger": "cafe.access",
        "message": "GET /v1/jobs/{job_id} 200",
        "request_id": "mine-1",
        "job_id": job,
        "method": "GET",
        "route": "/v1/jobs/{job_id}",
        "status": 200,
        "seconds": 0.0,
    }
    assert 0 < own["seconds"] < 20
    assert [(line["route"], line["status"]) for line in accesses(written)] == [
        ("/v1/jobs", 201),
        ("/v1/jobs/{job_id}", 200),
        ("unmatched", 404),
    ]
    assert "token=abc" not in written.getvalue()


@pytest.mark.parametrize("sent", ["a" * 129, "two words", "a\tb", "ü", "", "a/b", "x;y"])
def test_invalid_request_id_is_replaced(api: Api, sent: str) -> None:
    answer = api.get("/healthz", headers={"X-Request-ID": sent.encode("latin-1")})
    assert answer.status_code == 200
    assert len(answer.headers["X-Request-ID"]) == 16
    assert answer.headers.get_list("X-Request-ID") != [sent]


def test_every_response_has_request_id(
    written: io.StringIO, settings: Settings, ray: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def breaks() -> bool:
        raise RuntimeError(f"unexpected, with {TOKEN} in it")

    with running(settings, ray) as api:
        own = {"X-Request-ID": "id-7"}
        answers = [
            api.get("/v1/jobs/none", headers=own),
            api.get("/nowhere", headers=own),
            api.put("/v1/jobs", headers=own),
            api.post("/v1/jobs", content=b"{", headers=own),
            api.post("/v1/jobs", content=bytes(2 << 20), headers=own),
            api.get("/healthz", headers=own | {"Host": "evil.example"}),
            api.get("/v1/jobs", headers=own | {"Host": "evil.example"}),
        ]
        monkeypatch.setattr(ray, "ready", breaks)
        answers.append(api.get("/readyz", headers=own))
    assert [answer.status_code for answer in answers] == [404, 404, 405, 422, 413, 200, 403, 500]
    assert [answer.headers.get_list("X-Request-ID") for answer in answers] == [["id-7"]] * 8
    assert {line["request_id"] for line in accesses(written)} == {"id-7"}
    failure = next(line for line in lines(written) if line["logger"] == "server.error_handlers")
    assert failure["request_id"] == "id-7"
    assert "RuntimeError: unexpected, with [redacted] in it" in failure["exception"]
    assert "breaks" in failure["exception"]
    assert TOKEN not in written.getvalue()
    assert "RuntimeError" not in answers[-1].text


def test_uvicorn_logs_json(written: io.StringIO) -> None:
    logging.getLogger("uvicorn.error").warning("Invalid HTTP request received.")
    [line] = lines(written)
    assert (line["logger"], line["level"], line["message"]) == ("uvicorn.error", "warning", "Invalid HTTP request received.")


def test_log_lines_of_job_have_its_id(
    written: io.StringIO, settings: Settings, ray: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.reconciler.job_keeper, "SUBMIT_WITHIN_S", 0.3)
    with running(settings, ray) as api:
        ray.refuse = True
        job = api.make()["id"]
        api.await_status(job, "failed")
    about = [line for line in lines(written) if line["logger"] == "server.reconciler.job_keeper"]
    assert about
    assert {line["job_id"] for line in about} == {job}
    assert not any("request_id" in line for line in about)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"token {TOKEN}!", "token [redacted]!"),
        (f"odd {ODD}, twice {ODD}", "odd [redacted], twice [redacted]"),
        (f"key={KEY}, a job job_7q2xkd3m5nab4cvw", "key=[redacted], a job job_7q2xkd3m5nab4cvw"),
        (f"line\n{KEY}", "line\n[redacted]"),
        ("Authorization: Bearer abcdefgh1234", "Authorization: Bearer [redacted]"),
        ("authorization: basic dXNlcjpwYXNz", "authorization: basic [redacted]"),
        ("at postgresql://cafe:p%40ss@db/cafe", "at postgresql://cafe:[redacted]@db/cafe"),
        ("at http://127.0.0.1:8000/v1", "at http://127.0.0.1:8000/v1"),
    ],
)
@pytest.mark.parametrize("formatter", [JsonFormatter, TextFormatter])
def test_secrets_are_redacted(text: str, shown: str, formatter: type[JsonFormatter | TextFormatter]) -> None:
    make = formatter(Redaction([TOKEN, ODD, "abc"]))
    try:
        raise ValueError(text)
    except ValueError as error:
        info = (type(error), error, error.__traceback__)
    record = logging.LogRecord("x", logging.ERROR, "", 0, "says %s", (text,), info)
    record.fields = {"nested": [{"deep": text}]}
    written = make.format(record)
    if isinstance(make, JsonFormatter):
        line = json.loads(written)
        assert line["message"] == f"says {shown}"
        assert line["nested"] == [{"deep": shown}]
        assert line["exception"].endswith(f"ValueError: {shown}")
    else:
        assert written.count(shown.replace("\n", "\\n")) + written.count(shown) * ("\n" in shown) == 3
        assert KEY not in written
        assert TOKEN not in written


def test_text_format_escapes_line_breaks() -> None:
    record = logging.LogRecord("x", logging.ERROR, "", 0, "a\nERROR forged\r\n", (), None)
    assert "\n" not in TextFormatter(Redaction()).format(record)
    assert "\n" not in JsonFormatter(Redaction()).format(record)


def test_secrets_of_settings_are_redacted(settings: Settings) -> None:
    own = settings.model_copy(
        update={
            "ray_token": SecretStr("ray-token"),
            "metrics_token": SecretStr("metrics-token"),
            "database_url": SecretStr("postgresql://cafe:p%40ssword@db/cafe"),
        }
    )
    assert set(logs.secrets_of(own)) == {"ray-token", "metrics-token", "postgresql://cafe:p%40ssword@db/cafe", "p@ssword"}
