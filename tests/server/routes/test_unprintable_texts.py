"""Test that a job whose error or events quote names that are not UTF-8 breaks no list."""

from __future__ import annotations

import json
import os
from pathlib import Path

from sqlalchemy import text

from server.settings import Settings
from server.store.database import Database
from tests.cafe_core.data.image_folders import picture
from tests.server.conftest import SPEC, Api, FakeRay, driver_of
from tests.server.kinds import running_job
from tests.server.routes.test_jobs_api import refused
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


def test_damaged_image_with_such_a_name_is_refused_before_a_job_is_queued(api: Api, settings: Settings) -> None:
    for name in (b"d0/bad\xff.png", b"d1/0.png"):
        path = Path(os.fsdecode(bytes(settings.roots.datasets / "data" / "train") + b"/" + name))
        path.parent.mkdir(parents=True, exist_ok=True)
        picture().save(path)
    damaged = Path(os.fsdecode(bytes(settings.roots.datasets / "data/train/d1") + b"/cut\xfe.png"))
    damaged.write_bytes(b"damaged")
    spec = {"dataset": {"path": "data"}, "ipc": 1, "method": "random"}
    for query in ("", "?dry_run=true"):
        refusal = refused(api.post(f"/v1/jobs{query}", json=spec))
        assert r"data: train/d1/cut\xfe.png is not an image that can be read" in refusal["dataset"]
    assert api.get("/v1/jobs").json()["data"] == []
    damaged.unlink()
    assert api.post("/v1/jobs", json=spec).status_code == 201


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
