"""Test the copy of the evaluated set that is kept with a job: it exists if, and only if, the job does."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import event, select
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from cafe_core.jobs.backend import TrialOutcome
from cafe_core.jobs.jobdir import JobDir
from cafe_core.spec.job import parse_job_spec
from cafe_core.synthetic_set.synthetic_set import SyntheticSet
from server.files.inputs import _may_exist, remove_abandoned, stage_input
from server.settings import Settings
from server.store import jobs
from server.store.database import Database
from server.store.models import Job
from tests.server.conftest import SPEC, Api, FakeRay, running
from tests.server.kinds import EVALUATE, SWEEP, digits_set, end_trial, jobs_directory, running_job
from tests.server.routes.test_jobs_api import refused
from tests.server.routes.test_results_api import checkpoint


def test_evaluation_keeps_copy_of_set_of_other_job(api: Api, ray: FakeRay, settings: Settings) -> None:
    made = running_job(api, ray, SPEC)
    spec = EVALUATE | {"synthetic": {"job_id": made}}
    assert "no synthetic set yet" in refused(api.post("/v1/jobs", json=spec))["synthetic.job_id"]
    checkpoint(settings, made, 2)
    job = api.submit(spec)
    assert job["spec"]["dataset"] == {"name": "digits"}
    checkpoint(settings, made, 8)
    kept = settings.job_dir(job["id"]).input_file
    assert SyntheticSet.load(kept).iteration == 2
    assert kept.read_bytes() == api.get(f"/v1/jobs/{job['id']}/synthetic").content

    of_evaluation = api.submit(EVALUATE | {"synthetic": {"job_id": job["id"]}})
    assert settings.job_dir(of_evaluation["id"]).input_file.read_bytes() == kept.read_bytes()
    checkpoint(settings, made, 9).write_bytes(b"torn")
    for path in settings.job_dir(made).checkpoint_files():
        path.write_bytes(b"torn")
    assert "no checkpoint of the job can be read" in refused(api.post("/v1/jobs", json=spec))["synthetic.job_id"]


def test_best_set_of_sweep_can_be_evaluated(api: Api, ray: FakeRay, settings: Settings) -> None:
    made = running_job(api, ray, SWEEP)
    spec = EVALUATE | {"synthetic": {"job_id": made}}
    assert "none of its trials has finished" in refused(api.post("/v1/jobs", json=spec))["synthetic.job_id"]
    end_trial(settings.job_dir(made), TrialOutcome(1, "succeeded", 70.0, 10, 1.0), level=0.1)
    end_trial(settings.job_dir(made), TrialOutcome(0, "succeeded", 80.0, 10, 1.0), level=0.2)
    job = api.submit(spec)
    assert SyntheticSet.load(settings.job_dir(job["id"]).input_file).images.mean() == pytest.approx(0.2)


def test_random_real_images_are_not_a_set(api: Api) -> None:
    made = api.submit(EVALUATE)
    errors = refused(api.post("/v1/jobs", json=EVALUATE | {"synthetic": {"job_id": made["id"]}}))
    assert "it evaluates real images (random)" in errors["synthetic.job_id"]


def test_idempotency_key_creates_one_job_with_one_set(api: Api, settings: Settings) -> None:
    digits_set().save(settings.roots.datasets / "set.safetensors")
    spec = EVALUATE | {"synthetic": {"path": "set.safetensors"}}
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: api.post("/v1/jobs", json=spec, headers={"Idempotency-Key": "k"}), range(8)))
    assert sorted(answer.status_code for answer in answers) == [200] * 7 + [201]
    assert jobs_directory(settings) == [answers[0].json()["id"]]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_failed_insert_leaves_no_set(api: Api, settings: Settings) -> None:
    digits_set().save(settings.roots.datasets / "set.safetensors")
    with sqlite3.connect(settings.database.removeprefix("sqlite:///")) as connection:
        connection.execute("CREATE TRIGGER full BEFORE INSERT ON jobs BEGIN SELECT RAISE(ABORT, 'the disk is full'); END")
    connection.close()
    response = api.post("/v1/jobs", json=EVALUATE | {"synthetic": {"path": "set.safetensors"}})
    assert response.status_code == 500
    assert jobs_directory(settings) == []


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    settings.data_dir.mkdir()
    database = Database(settings.database)
    database.migrate()
    yield database
    database.close()


def make_kept(database: Database, directory: JobDir) -> None:
    """Create an evaluate job as a submission does."""
    with stage_input(database, directory, digits_set()) as keep, database.write() as session:
        assert directory.input_file.exists()
        jobs.create(session, directory.path.name, parse_job_spec(EVALUATE))
        keep(session)


def test_failed_write_of_set_creates_no_job(settings: Settings, database: Database) -> None:
    directory = settings.job_dir("job_a")
    directory.path.parent.write_text("in the way")
    with pytest.raises(OSError, match="jobs"):
        make_kept(database, directory)
    directory.path.parent.unlink()
    make_kept(database, directory)
    assert jobs_directory(settings) == ["job_a"]


@pytest.mark.parametrize("database_url", ["sqlite", "postgresql"], indirect=True)
@pytest.mark.parametrize("committed", [True, False])
def test_commit_with_lost_response_keeps_set(settings: Settings, database: Database, committed: bool) -> None:
    def break_off(_session: Session) -> None:
        raise OperationalError("COMMIT", {}, sqlite3.OperationalError("the connection is lost"))

    event.listen(database.sessions, "after_commit" if committed else "before_commit", break_off, once=True)
    with pytest.raises(OperationalError, match="connection is lost"):
        make_kept(database, settings.job_dir("job_a"))
    assert jobs_directory(settings) == (["job_a"] if committed else [])
    with database.read() as session:
        assert list(session.scalars(select(Job.id))) == jobs_directory(settings)


def test_set_is_kept_when_outcome_of_commit_is_unknown(
    settings: Settings, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    def close(_session: Session) -> None:
        threading.Thread(target=database.close).start()  # it waits for this transaction
        while not database._closed:
            time.sleep(0.001)
        raise OperationalError("COMMIT", {}, sqlite3.OperationalError("the connection is lost"))

    event.listen(database.sessions, "before_commit", close, once=True)
    with pytest.raises(OperationalError):
        make_kept(database, settings.job_dir("job_a"))
    assert jobs_directory(settings) == ["job_a"]
    assert "cannot tell whether job job_a" in caplog.text
    remove_abandoned(settings.data_dir / "jobs", set())  # as the next server does
    assert jobs_directory(settings) == []


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_existence_of_job_is_checked_after_its_transaction(settings: Settings, database: Database) -> None:
    """PostgreSQL may still be committing after its client has lost the connection."""
    directory, asked = settings.job_dir("job_a"), ThreadPoolExecutor(1)
    with asked, stage_input(database, directory, digits_set()) as keep:
        with database.write() as session:
            jobs.create(session, "job_a", parse_job_spec(EVALUATE))
            keep(session)
            answer = asked.submit(_may_exist, database, "job_a")
            with pytest.raises(TimeoutError):
                answer.result(timeout=0.5)
        assert answer.result(timeout=20) is True


def test_leftovers_of_interrupted_submission_are_removed(settings: Settings, ray: FakeRay) -> None:
    directory = settings.data_dir / "jobs"
    with running(settings, ray) as api:
        digits_set().save(settings.roots.datasets / "set.safetensors")
        known = api.submit(EVALUATE | {"synthetic": {"path": "set.safetensors"}})["id"]
        api.await_job(known, lambda _: ray.submissions != [])
    digits_set().save(JobDir(directory / "job_amid").input_file)
    (directory / "job_of_a_lost_database").mkdir()
    JobDir(directory / "job_of_a_lost_database").job_file.write_text("{}")
    JobDir(directory / known).job_file.unlink()  # as of a job that waits in the queue
    with running(settings, ray):
        assert sorted(jobs_directory(settings)) == sorted([known, "job_of_a_lost_database"])
    assert JobDir(directory / known).input_file.exists()
    remove_abandoned(settings.data_dir / "nowhere", {known})
