"""Submitting extend jobs: accepted specs, refusals, and the set kept with the job."""

from __future__ import annotations

from typing import Any

import pytest

from server.settings import Settings
from tests.server.conftest import SPEC, Api, FakeRay, attempt_dir
from tests.server.kinds import extendable_set, running_job
from tests.server.routes.test_jobs_api import refused
from tests.server.routes.test_results_api import finish


def test_extension_keeps_copy_of_set_of_other_job(api: Api, ray: FakeRay, settings: Settings) -> None:
    made = running_job(api, ray, SPEC | {"method": {"name": "dance", "factor": 1}, "seed": 3, "iterations": 10})
    spec = {"kind": "extend", "base": {"job_id": made}, "dataset": {"name": "digits"}}
    assert "only the set of a job that has succeeded" in refused(api.post("/v1/jobs", json=spec))["base.job_id"]
    finish(api, ray, settings, made, class_sha256=["0"] * 10)
    file = attempt_dir(settings, made).synthetic_file
    job = api.submit(spec | {"iterations": 5})
    assert (job["kind"], job["progress"]["total"]) == ("extend", 5)
    assert (job["spec"]["ipc"], job["spec"]["seed"], job["spec"]["method"]["name"]) == (SPEC["ipc"], 3, "dance")
    assert settings.job_dir(job["id"]).input_file.read_bytes() == file.read_bytes()
    assert api.submit(job["spec"])["spec"] == job["spec"]


@pytest.mark.parametrize(
    ("fields", "loc", "message"),
    [
        ({"base": {"job_id": "job_unknown"}}, "base.job_id", "there is no job 'job_unknown'"),
        ({"base": {"path": "absent.npz"}}, "base.path", "there is no 'absent.npz'"),
        ({"base": {}}, "base", "exactly one of job_id and path"),
        ({"dataset": {"name": "digits", "image_size": 16}}, "dataset", "the set has images of 1×8×8"),
        ({"ipc": 2}, "ipc", "keeps the value of its base, 1"),
        ({"resources": {"workers": 11}}, "resources.workers", "11 workers for 10 classes"),
    ],
)
def test_unusable_extensions_are_refused(api: Api, settings: Settings, fields: dict[str, Any], loc: str, message: str) -> None:
    extendable_set().save(settings.roots.datasets / "base.safetensors")
    spec = {"kind": "extend", "base": {"path": "base.safetensors"}, "dataset": {"name": "digits"}} | fields
    assert message in refused(api.post("/v1/jobs", json=spec))[loc]
