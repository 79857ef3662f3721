"""Test that a job whose error or events quote names that are not UTF-8 breaks no list."""

from __future__ import annotations

import json

from sqlalchemy import text

from server.settings import Settings
from server.store.database import Database
from tests.server.conftest import SPEC, Api, FakeRay, driver_of
from tests.server.kinds import running_job
from workers.client import RayJob, RayJobState

BAD = "train/d0/bad\udcff.png \0 \ud800"
SHOWN = r"train/d0/bad\xff.png \x00 \ud800"


def failed_job(api: Api, ray: FakeRay, settings: Settings) -> str:
    """Run a job to a failure whose message and events are not printable."""
    job_id = running_job(api, ray, SPEC)
    with driver_of(settings, job_id) as report:
        report("phase", phase="preparing")
        report("notes", notes=[{"code": "ignored", "message": BAD}])
        report("failed", error={"code": "invalid_dataset", "message": BAD, "retryable": False})
    ray.jobs[job_id, 1] = RayJob(RayJobState.FAILED, "", 1)
    api.await_status(job_id, "failed")
    return job_id


def check_lists(api: Api, job_id: str) -> None:
    """Check that the job and every list that it is in can be read."""
    assert api.get(f"/v1/jobs/{job_id}").json()["error"]["message"] == SHOWN
    assert [job["error"]["message"] for job in api.get("/v1/jobs").json()["data"]] == [SHOWN]
    events = {event["type"]: event["data"] for event in api.get(f"/v1/jobs/{job_id}/events").json()["data"]}
    assert events["notes"]["notes"][0]["message"] == events["failed"]["error"]["message"] == SHOWN
    stream = api.get(f"/v1/jobs/{job_id}/events", headers={"Accept": "text/event-stream"})
    assert json.dumps(SHOWN)[1:-1] in stream.text


def test_texts_of_drivers_become_printable(api: Api, ray: FakeRay, settings: Settings) -> None:
    check_lists(api, failed_job(api, ray, settings))


def test_texts_that_an_earlier_version_stored_become_printable(api: Api, ray: FakeRay, settings: Settings) -> None:
    job_id = failed_job(api, ray, settings)
    database = Database(settings.database)
    error = {"code": "invalid_dataset", "message": BAD, "retryable": False}
    changes = {
        "UPDATE jobs SET error = :json": json.dumps(error),
        "UPDATE events SET data = :json WHERE type = 'failed'": json.dumps({"error": error}),
    }
    with database.engine.execution_options(writes=True).begin() as connection:
        for statement, stored in changes.items():
            connection.execute(text(statement), {"json": stored})
    database.close()
    check_lists(api, job_id)
    assert api.delete(f"/v1/jobs/{job_id}").status_code == 204
