"""A database and a data directory that version 0.1.0 (commit 8c782fe) made are served, and their interrupted job resumes.

`version_0_1/` was made by `cafe serve` of that commit: one job that had succeeded, and one whose server and driver were killed
with SIGKILL after iteration 30. The database is kept as text; heartbeats, logs and reserved blocks are left out.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
import time
from pathlib import Path

import pytest
import torch

from cafe_core.algorithm.checkpoint import Checkpoints
from cafe_core.algorithm.collectives import Comm
from cafe_core.algorithm.condense import condense
from cafe_core.algorithm.method import ignore_events
from cafe_core.data import sources
from cafe_core.data.class_store import ClassStore
from cafe_core.spec.condense import CondenseSpec
from cafe_core.spec.job import parse_job_spec
from server.settings import Settings
from tests.server.conftest import FakeRay, running

KEPT = Path(__file__).with_name("version_0_1")
SUCCEEDED, INTERRUPTED = "job_hwsegfe6uatnxnhk", "job_w4vha5ao2wikrey7"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings for a copy of the data directory."""
    data = tmp_path / "data"
    shutil.copytree(KEPT / "jobs", data / "jobs")
    database = sqlite3.connect(data / "cafe.sqlite3")
    database.executescript((KEPT / "database.sql").read_text(encoding="utf-8"))
    database.close()
    return Settings(data_dir=data)


def test_jobs_are_listed_and_artifacts_downloaded(settings: Settings, ray: FakeRay) -> None:
    with running(settings, ray) as api:
        listed = {job["id"]: job for job in api.get("/v1/jobs").json()["data"]}
        assert listed[SUCCEEDED]["status"] == "succeeded"
        assert listed[SUCCEEDED]["result"]["evaluation"]["networks"][0]["n"] == 1
        artifacts = api.get(f"/v1/jobs/{SUCCEEDED}/artifacts").json()["data"]
        assert {artifact["name"] for artifact in artifacts} == {"preview.png", "result.json", "synthetic.safetensors"}
        for artifact in artifacts:
            content = api.get(artifact["href"]).content
            assert hashlib.sha256(content).hexdigest() == artifact["sha256"]
        for query in ("synthetic?format=npz", "synthetic?format=zip", "preview.png"):
            assert api.get(f"/v1/jobs/{SUCCEEDED}/{query}").status_code == 200
        events = api.get(f"/v1/jobs/{SUCCEEDED}/events", params={"limit": 1000}).json()["data"]
        assert [event["data"]["iteration"] for event in events if event["type"] == "iteration"] == [1, 2, 3]


def test_the_interrupted_job_gets_a_new_attempt(settings: Settings, ray: FakeRay) -> None:
    with running(settings, ray) as api:
        job = api.await_job(INTERRUPTED, lambda job: job["attempt"] == 2)
        assert job["status"] in ("queued", "starting")
        deadline = time.monotonic() + 20
        while (INTERRUPTED, 2) not in ray.submissions:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert api.get(f"/v1/jobs/{INTERRUPTED}/synthetic").status_code == 200


def test_its_checkpoint_continues_the_run(settings: Settings, tmp_path: Path) -> None:
    """The checkpoint belongs to the spec in the database, and further iterations start from it."""
    torch.set_num_threads(1)
    row = sqlite3.connect(settings.data_dir / "cafe.sqlite3").execute("SELECT spec FROM jobs WHERE id = ?", [INTERRUPTED])
    text = row.fetchone()[0]
    spec = parse_job_spec(json.loads(text))
    assert isinstance(spec, CondenseSpec)
    roots = settings.roots.model_copy(update={"cache": tmp_path / "cache"})
    store = ClassStore.open(sources.prepare(spec.dataset, roots))
    checkpoints = Checkpoints(settings.job_dir(INTERRUPTED).checkpoints)
    before = checkpoints.latest(spec)
    assert before is not None
    assert before.iteration == 30
    shard = condense(spec, store, Comm.single(), torch.device("cpu"), checkpoints=checkpoints, report=ignore_events, until=31)
    assert 0 < (shard.images - before.images).abs().max() < before.images.abs().max()
