"""/metrics: values, documentation, bounded labels, and cost with many jobs."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from pydantic import SecretStr
from sqlalchemy import insert

from cafe_core.jobs.jobdir import utc_now
from server.auth import keys
from server.auth.access import KEYS_FRESH_S
from server.auth.keys import KeyLimits, Scope
from server.settings import Settings
from server.states import Status
from server.store import models
from server.store.database import Database
from server.telemetry import job_metrics
from server.telemetry.commit_counts import count_commits
from server.telemetry.metrics import Metrics
from server.telemetry.scraping import FRESH_S
from tests.server.conftest import SPEC, Api, FakeRay, driver_of, running

DOCUMENT = Path(__file__).parents[3] / "docs" / "metrics.md"


def scrape(api: Api) -> dict[str, Metric]:
    """Scrape /metrics and return the families by name."""
    answer = api.get("/metrics")
    assert answer.status_code == 200, answer.text
    return {family.name: family for family in parse_text(answer.text)}


def value(api: Api, sample: str, **labels: str) -> float | None:
    """Return the current value of a sample; None if it is missing."""
    for family in scrape(api).values():
        for each in family.samples:
            if each.name == sample and each.labels == labels:
                return each.value
    return None


def awaited(api: Api, expected: Callable[[float | None], bool], sample: str, **labels: str) -> None:
    """Wait until the scrape (up to FRESH_S old) shows an expected value."""
    deadline = time.monotonic() + 15
    while not expected(seen := value(api, sample, **labels)):
        assert time.monotonic() < deadline, f"{sample}{labels} is {seen}"
        time.sleep(FRESH_S / 4)


ITERATION: dict[str, Any] = {
    "total": 10,
    "loss": 3.5,
    "feature_loss": 1.5,
    "discrimination_loss": 2.0,
    "query_accuracy": 0.75,
    "outer_steps": 4,
    "inner_epochs": 7,
    "real_images": 1000,
    "seconds": 0.5,
    "eta_s": 1,
}


def test_metrics_of_running_condensation(api: Api, settings: Settings) -> None:
    job = api.make(name="my run")["id"]
    with driver_of(settings, job) as report:
        report("phase", phase="condensing")
        report("iteration", iteration=1, **ITERATION | {"outer_steps": 2, "seconds": 1.5})
        report("iteration", iteration=2, **ITERATION)
        awaited(api, lambda done: done == 2, "cafe_job_iteration", job_id=job)

    families = scrape(api)
    of_job = {
        (each.name, *(v for k, v in sorted(each.labels.items()) if k != "job_id")): each.value
        for family in families.values()
        for each in family.samples
        if each.labels.get("job_id") == job
    }
    assert of_job.pop(("cafe_job_iteration_age_seconds",)) < 60
    assert of_job == {
        ("cafe_job_info", "digits", "condense", "cafe", "my run"): 1,
        ("cafe_job_attempt",): 1,
        ("cafe_job_progress_ratio",): 0.2,
        ("cafe_job_iteration",): 2,
        ("cafe_job_iterations",): 10,
        ("cafe_job_steps_per_second",): 3,  # (2 + 4) steps in (1.5 + 0.5) s
        ("cafe_job_images_per_second",): 1000,
        ("cafe_job_loss", "total"): 3.5,
        ("cafe_job_loss", "feature"): 1.5,
        ("cafe_job_loss", "discrimination"): 2.0,
        ("cafe_job_query_accuracy",): 0.75,
        ("cafe_job_outer_steps",): 4,
        ("cafe_job_inner_epochs",): 7,
    }
    assert value(api, "cafe_jobs", kind="condense", status="running") == 1

    api.post(f"/v1/jobs/{job}/cancel")
    api.await_status(job, "cancelled")
    awaited(api, lambda info: info is None, "cafe_job_iteration", job_id=job)
    assert value(api, "cafe_jobs_finished_total", kind="condense", status="cancelled") == 1
    assert value(api, "cafe_job_seconds_count", kind="condense", status="cancelled") == 1


def test_documentation_lists_exactly_the_metrics(api: Api, settings: Settings) -> None:
    rows = re.findall(r"^\| `(cafe_\w+)` \| (\w+) \| ([^|]*)\|", DOCUMENT.read_text(), re.MULTILINE)
    documented = {name: (type, set(re.findall(r"`(\w+)`", labels))) for name, type, labels in rows}
    other = set(re.findall(r"`(process_\w+)`", DOCUMENT.read_text()))

    job = api.make()["id"]
    with driver_of(settings, job) as report:
        report("phase", phase="condensing")
        report("iteration", iteration=1, **ITERATION)
        awaited(api, lambda done: done == 1, "cafe_job_iteration", job_id=job)
    api.post(f"/v1/jobs/{job}/cancel")
    api.await_status(job, "cancelled")
    job = api.make()["id"]  # all kinds of samples at once: one has ended, one runs
    with driver_of(settings, job) as report:
        report("phase", phase="condensing")
        report("iteration", iteration=1, **ITERATION)
        awaited(api, lambda done: done == 1, "cafe_job_iteration", job_id=job)

    there = {}
    for family in scrape(api).values():
        labels = {label for label in family.samples[0].labels if label != "le"}
        there[family.name + "_total" * (family.type == "counter")] = (family.type, labels)
        assert family.documentation
    assert {name: found for name, found in there.items() if name.startswith("cafe_")} == documented
    assert {name for name in there if not name.startswith("cafe_")} == other


def test_requests_are_counted_by_route_template(api: Api) -> None:
    for number in range(20):
        api.get(f"/v1/jobs/job_{number}")
        api.get(f"/no/such/{number}")
        api.request(f"MADEUP{number}", "/healthz")
    api.get("/docs")
    counted = {
        (s.labels["method"], s.labels["route"], s.labels["status"]): s.value for s in scrape(api)["cafe_http_requests"].samples
    }
    assert counted["GET", "/v1/jobs/{job_id}", "404"] == 20
    assert counted["GET", "unmatched", "404"] == 20
    assert counted["GET", "/docs", "200"] == 1
    assert {key for key in counted if key[0] == "OTHER"} == {("OTHER", "/healthz", "405")}
    assert len(counted) == 4
    assert value(api, "cafe_http_request_seconds_count", method="GET", route="/v1/jobs/{job_id}") == 20
    assert value(api, "cafe_http_requests_in_flight") == 1  # this one


@pytest.mark.parametrize(
    "accept",
    [
        "application/openmetrics-text; version=1.0.0",
        "application/openmetrics-text;version=abc,*/*",
        "text/plain",
        "*/*",
        "\xff;;=,",
    ],
)
def test_format_is_negotiated(api: Api, accept: str) -> None:
    answer = api.get("/metrics", headers={"Accept": accept.encode("latin-1")})
    assert answer.status_code == 200
    if "openmetrics" in accept:
        assert answer.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
        assert {family.name for family in parse_openmetrics(answer.text)} >= {"cafe_jobs", "cafe_http_requests"}
    else:
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        assert "cafe_http_requests_total" in answer.text


def test_metrics_are_served_while_ray_is_down(api: Api, ray: FakeRay) -> None:
    awaited(api, lambda up: up == 1, "cafe_ray_up")
    ray.down = True
    awaited(api, lambda up: up == 0, "cafe_ray_up")
    assert value(api, "cafe_database_up") == 1
    assert value(api, "cafe_reconciler_leader") == 1


def test_queue_metrics(settings: Settings) -> None:
    ray = FakeRay()
    with running(settings.model_copy(update={"max_active_jobs": 1}), ray) as api:
        first, second = api.make()["id"], api.make()["id"]
        awaited(api, lambda count: count == 1, "cafe_jobs", kind="condense", status="queued")
        awaited(api, lambda seconds: seconds is not None and seconds > 0.5, "cafe_queue_oldest_seconds")
        for job in (second, first):
            api.post(f"/v1/jobs/{job}/cancel")
        api.await_status(first, "cancelled")
        awaited(api, lambda seconds: seconds == 0, "cafe_queue_oldest_seconds")
        assert value(api, "cafe_jobs_finished_total", kind="condense", status="cancelled") == 2
        assert value(api, "cafe_job_seconds_count", kind="condense", status="cancelled") == 1  # the other never started


@pytest.fixture
def database(tmp_path: Path) -> Database:
    database = Database(f"sqlite:///{tmp_path / 'cafe.sqlite3'}")
    database.migrate()
    return database


def job_row(number: int, **fields: Any) -> dict[str, Any]:
    now = utc_now()
    return {"id": f"job_{number}", "kind": "condense", "spec": SPEC, "version": 1, "attempt": 1, "created_at": now} | fields


def test_scrape_with_ten_thousand_jobs_is_fast_and_bounded(database: Database) -> None:
    states = [status.value for status in Status]
    with database.write() as session:
        session.execute(insert(models.Job), [job_row(i, status=states[i % len(states)], last_event=0) for i in range(10_000)])
        session.execute(insert(models.Attempt), [{"job_id": f"job_{i}", "number": 1} for i in range(10_000)])
    with database.read() as session:
        started = time.perf_counter()
        seen = job_metrics.read_jobs(session)
        seconds = time.perf_counter() - started
    assert sum(seen.counts.values()) == 10_000
    assert len(seen.running) == job_metrics.JOBS_SHOWN
    assert seconds < 5  # 0.2 s on two busy cores, most of it for the 200 that run
    database.close()


def test_only_commits_are_counted(database: Database) -> None:
    metrics = Metrics("test")
    count_commits(database.sessions, metrics)

    def counted(sample: str, **labels: str) -> float:
        return metrics.registry.get_sample_value(sample, labels) or 0

    with database.write() as session:
        session.add(models.Job(**job_row(1, status="running") | {"started_at": utc_now()}))
        session.flush()
        session.add(models.Attempt(job_id="job_1", number=1))
        session.add(models.Delivery(id="d", job_id="job_1", url="", body="", next_try_at="1"))

    def end(status: str) -> None:
        with database.write() as session:
            job = session.query(models.Job).one()
            job.status, job.finished_at = status, utc_now()
            session.add(models.Attempt(job_id="job_1", number=2, cause="lost"))
            session.flush()
            if status == "failed":
                raise KeyError(status)

    with pytest.raises(KeyError):
        end("failed")
    end("succeeded")
    assert counted("cafe_jobs_finished_total", kind="condense", status="failed") == 0
    assert counted("cafe_jobs_finished_total", kind="condense", status="succeeded") == 1
    assert counted("cafe_job_seconds_count", kind="condense", status="succeeded") == 1
    assert counted("cafe_attempts_lost_total") == 1

    for changes in ({"tries": 1}, {"tries": 2, "next_try_at": None}):
        with database.write() as session:
            delivery = session.query(models.Delivery).one()
            for name, new in changes.items():
                setattr(delivery, name, new)
    assert [counted("cafe_webhooks_total", outcome=o) for o in ("delivered", "failed", "given_up")] == [0, 1, 1]
    database.close()


def test_metrics_need_admin_key_or_metrics_token(settings: Settings, ray: FakeRay) -> None:
    token = "prometheus-own-token"
    with running(settings.model_copy(update={"metrics_token": SecretStr(token)}), ray) as api:
        assert api.get("/metrics").status_code == 200
        made = {scope: keys.new_key() for scope in (Scope.READ, Scope.WRITE, Scope.ADMIN)}
        database = Database(settings.database)
        with database.write() as session:
            for scope, key in made.items():
                keys.create(session, key, scope.value, [scope], KeyLimits())
        database.close()
        time.sleep(2 * KEYS_FRESH_S)

        def status(path: str, key: str) -> int:
            return api.get(path, headers={"Authorization": f"Bearer {key}"}).status_code

        assert api.get("/metrics").status_code == 401
        assert {scope.value: status("/metrics", key) for scope, key in made.items()} == {"read": 403, "write": 403, "admin": 200}
        assert status("/metrics", token) == 200
        assert status("/metrics", token + "x") == 401
        assert status("/v1/jobs", token) == 401
