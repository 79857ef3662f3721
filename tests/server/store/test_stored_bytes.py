"""Which files count against a key's limit of stored bytes, and what is refused beyond it."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

import server.reconciler.job_keeper
from cafe_core.files import write_atomically
from server.auth.keys import KeyLimits, Scope
from server.auth.limits import stored_bytes
from server.files.job_files import bytes_in
from server.settings import Settings
from server.states import ENDED, Status
from server.store.database import Database
from tests.server.conftest import SPEC, Api, FakeRay, running
from tests.server.keyed import add_key, client_of, key_id, statuses
from tests.server.kinds import EVALUATE, SWEEP, digits_set, running_job
from workers.client import RayJob, RayJobState

pytestmark = pytest.mark.both_databases


def cancelled_job(client: Api, settings: Settings, ray: FakeRay, size: int) -> str:
    """Create a job that was cancelled while running, with a checkpoint of `size` bytes."""
    job_id = running_job(client, ray, SPEC)
    checkpoint = settings.job_dir(job_id).checkpoints / "checkpoint-00000001.safetensors"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(bytes(size))
    client.post(f"/v1/jobs/{job_id}/cancel")
    client.await_status(job_id, "cancelled")
    return job_id


def test_files_of_ended_jobs_count(settings: Settings, ray: FakeRay) -> None:
    key = add_key(settings, Scope.WRITE)
    with running(settings, ray) as api, client_of(api, key) as client:
        made: dict[Status, str] = {}
        for status in ENDED:
            job_id = made[status] = running_job(client, ray, SWEEP)
            directory = settings.job_dir(job_id)
            trial = directory.trial(3).checkpoints
            trial.mkdir(parents=True)
            (trial / "checkpoint-00000001.safetensors").write_bytes(bytes(5000))
            end_attempt(client, settings, ray, job_id, status)
            client.await_status(job_id, status)
        files = {job_id: sum(path.stat().st_size for path in files_of(settings, job_id)) for job_id in made.values()}
        assert min(files.values()) > 5000
        assert stored(settings, key) == sum(files.values())
        deleted = made[Status.FAILED]
        assert client.delete(f"/v1/jobs/{deleted}").status_code == 204
        assert stored(settings, key) == sum(files.values()) - files[deleted]


def end_attempt(client: Api, settings: Settings, ray: FakeRay, job_id: str, status: Status) -> None:
    """End the first attempt like its driver, its user or Ray would."""
    if status is Status.CANCELLED:
        client.post(f"/v1/jobs/{job_id}/cancel")
        return
    if status is Status.SUCCEEDED:
        attempt = settings.job_dir(job_id).attempt(1)
        write_atomically(attempt.result_file, b"{}")
        write_atomically(attempt.manifest_file, b'{"artifacts": []}')
        ray.jobs[job_id, 1] = RayJob(RayJobState.SUCCEEDED, "", 0)
    else:
        ray.jobs[job_id, 1] = RayJob(RayJobState.STOPPED, "")


def files_of(settings: Settings, job_id: str) -> list[Path]:
    return [path for path in settings.job_dir(job_id).path.rglob("*") if path.is_file()]


def stored(settings: Settings, key: str) -> int:
    """Return the bytes that count against the key's limit."""
    database = Database(settings.database)
    try:
        with database.read() as session:
            return stored_bytes(session, key_id(settings, key))
    finally:
        database.close()


def test_files_of_a_lost_attempt_count(settings: Settings, ray: FakeRay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.reconciler.job_keeper, "RETRY_PAUSE_S", 0.0)
    key = add_key(settings, Scope.WRITE)
    with running(settings, ray) as api, client_of(api, key) as client:
        job_id = running_job(client, ray, SPEC)
        assert stored(settings, key) == 0
        write_atomically(settings.job_dir(job_id).validated_file, bytes(5000))
        ray.jobs[job_id, 1] = RayJob(RayJobState.FAILED, "it died")
        client.await_job(job_id, lambda job: job["attempt"] == 2)
        assert stored(settings, key) > 5000


def test_input_sets_count_from_submission(settings: Settings, ray: FakeRay) -> None:
    judged = settings.roots.datasets / "set.safetensors"
    digits_set(images=np.zeros((400, 1, 8, 8), np.float32), labels=np.repeat(np.arange(10), 40)).save(judged)
    size = judged.stat().st_size
    key = add_key(settings, Scope.WRITE, limits=KeyLimits(max_stored_bytes=2 * size + size // 2))
    with running(settings, ray) as api, client_of(api, key) as client:
        spec = EVALUATE | {"synthetic": {"path": judged.name}}
        answers = [client.post("/v1/jobs", json=spec) for _ in range(4)]
        assert statuses(answers) == [201, 201, 413, 413]
        assert stored(settings, key) == 2 * size
        made = [answer.json()["id"] for answer in answers[:2]]
        assert {path.name for path in (settings.data_dir / "jobs").iterdir()} == set(made)
        client.post(f"/v1/jobs/{made[0]}/cancel")
        client.await_status(made[0], "cancelled")
        assert client.delete(f"/v1/jobs/{made[0]}").status_code == 204
        assert client.post("/v1/jobs", json=spec).status_code == 201


def test_resume_is_checked_against_the_limits_of_the_owner(settings: Settings, ray: FakeRay) -> None:
    full = add_key(settings, Scope.WRITE, limits=KeyLimits(max_stored_bytes=20_000))
    roomy = add_key(settings, Scope.WRITE)
    operator = add_key(settings, Scope.ADMIN, limits=KeyLimits(max_stored_bytes=1))
    with ExitStack() as stack:
        api = stack.enter_context(running(settings, ray))
        full_client, roomy_client, admin = (stack.enter_context(client_of(api, key)) for key in (full, roomy, operator))
        made = [cancelled_job(client, settings, ray, 20_000) for client in (full_client, roomy_client)]
        assert statuses([admin.post(f"/v1/jobs/{job_id}/resume") for job_id in made]) == [413, 202]


def test_bytes_in_directory(tmp_path: Path) -> None:
    assert bytes_in(tmp_path / "absent") == 0
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "c").write_bytes(bytes(10))
    (tmp_path / "a" / "b" / ".hidden").write_bytes(bytes(100))
    (tmp_path / "a" / "large").symlink_to("/bin/sh")
    assert 110 <= bytes_in(tmp_path) < 200
