"""Deletion is atomic, whatever fails or dies in between."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest

from cafe_core.data import sources
from cafe_core.spec.dataset import DatasetSpec
from server.files.removal import finish_removals, stage_removal
from server.settings import Settings
from tests.server.conftest import Api, FakeRay, running
from tests.server.routes.test_datasets_api import ARRAYS


def test_failed_transaction_restores_the_directory(tmp_path: Path) -> None:
    directory = tmp_path / "job_a"
    directory.mkdir()
    (directory / "file").write_text("kept")

    def remove() -> None:
        with stage_removal(directory) as set_aside:
            set_aside()
            assert not directory.exists()
            raise sqlite3.OperationalError("disk I/O error")  # like a failing commit

    with pytest.raises(sqlite3.OperationalError):
        remove()
    assert (directory / "file").read_text() == "kept"
    with stage_removal(directory) as set_aside:
        set_aside()
    assert list(tmp_path.iterdir()) == []


def test_failed_removal_keeps_a_concurrent_one(tmp_path: Path) -> None:
    (tmp_path / "job_a").mkdir()
    with stage_removal(tmp_path / "job_a") as set_aside:
        set_aside()
        with pytest.raises(LookupError), stage_removal(tmp_path / "job_a"):
            raise LookupError("deleted already")
        assert not (tmp_path / "job_a").exists()
    assert list(tmp_path.iterdir()) == []


def test_failed_cleanup_is_retried_at_the_next_start(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def fail(_: Path) -> None:
        raise PermissionError("not now")

    (tmp_path / "job_a").mkdir()
    with stage_removal(tmp_path / "job_a", fail) as set_aside:
        set_aside()
    assert "could not remove" in caplog.text
    finish_removals(tmp_path, known=set())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.both_databases
def test_interrupted_deletion_is_finished_or_undone(settings: Settings, ray: FakeRay) -> None:
    with running(settings, ray) as api:
        kept, gone = (cancelled(api, ray) for _ in range(2))
        dataset = api.post("/v1/datasets", files={"file": ("a.npz", ARRAYS)}).json()["id"]
        assert api.delete(f"/v1/jobs/{gone}").status_code == 204
    jobs, uploads = settings.data_dir / "jobs", settings.roots.uploads
    (jobs / kept).rename(jobs / f".deleted-{kept}")  # the server died before the commit
    (uploads / dataset).rename(uploads / f".deleted-{dataset}")
    (jobs / f".deleted-{gone}").mkdir()  # … and after it
    (uploads / ".deleted-ds_gone").mkdir()
    with running(settings, ray) as api:
        assert {path.name for path in jobs.iterdir()} == {kept}
        assert {path.name for path in uploads.iterdir()} == {dataset}
        assert api.delete(f"/v1/jobs/{kept}").status_code == 204
        assert list(jobs.iterdir()) == []


def cancelled(api: Api, ray: FakeRay) -> str:
    job_id: str = api.make()["id"]
    api.await_job(job_id, lambda _: (job_id, 1) in ray.submissions)
    api.post(f"/v1/jobs/{job_id}/cancel")
    api.await_status(job_id, "cancelled")
    return job_id


@pytest.mark.both_databases
def test_deleting_an_upload_removes_its_class_stores(api: Api, settings: Settings) -> None:
    mine, other = (api.post("/v1/datasets", files={"file": ("a.npz", ARRAYS)}).json()["id"] for _ in range(2))
    roots = settings.roots
    stores = [sources.prepare(DatasetSpec(id=mine, image_size=size), roots) for size in (None, 4)]
    kept = sources.prepare(DatasetSpec(id=other), roots)
    for store in (*stores, kept):  # networks trained on its images
        (roots.artifacts / store.name).mkdir(parents=True)
        (roots.artifacts / store.name / "network.safetensors").touch()
    shutil.copytree(kept, roots.cache / f".{stores[0].name}.1.tmp")  # left by a killed builder
    assert len(list(roots.cache.iterdir())) == 3 * 2 + 2  # stores, their locks, the builder's leftovers, artifacts
    assert api.delete(f"/v1/datasets/{mine}").status_code == 204
    assert {path.name for path in roots.cache.iterdir()} == {kept.name, f"{kept.name}.lock", "artifacts"}
    assert [path.name for path in roots.artifacts.iterdir()] == [kept.name]
    assert {path.name for path in roots.uploads.iterdir()} == {other}
