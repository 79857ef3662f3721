"""A sweep, an evaluation of its result, and an extension of a set, from request to result on a real Ray."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from cafe_core.algorithm.method import ignore_events
from cafe_core.data.digits import digits_source
from cafe_core.jobs import local
from cafe_core.jobs.jobdir import JobDir
from cafe_core.synthetic_set.synthetic_set import SyntheticSet
from server.ray.embedded import EmbeddedRay
from server.settings import Settings
from tests.server.conftest import SPEC, Api, attempt_dir, running
from workers.client import RayClient

pytestmark = pytest.mark.timeout(600)  # minutes on a busy machine

JUDGING = {"networks": [{"name": "mlp", "width": 16}], "repeats": 2, "epochs": 5}
SWEEP = {
    "kind": "sweep",
    "base": SPEC | {"iterations": 2, "method": {"batch_real": 16}, "evaluation": JUDGING},
    "space": {"method.init": {"grid": ["noise", "real"]}},
}


def succeeded(api: Api, spec: dict[str, Any]) -> dict[str, Any]:
    job = api.await_status(api.submit(spec)["id"], "succeeded", "failed", timeout_s=300)
    assert job["status"] == "succeeded", job["error"]
    return job


def test_sweep_and_evaluation_of_its_best_set(tmp_path: Path, embedded_ray: EmbeddedRay) -> None:
    ray = embedded_ray
    settings = Settings(data_dir=tmp_path / "data")
    with running(settings, RayClient(ray.address, ray.token)) as api:
        sweep = succeeded(api, SWEEP)
        rows = api.get(f"/v1/jobs/{sweep['id']}/trials").json()["data"]
        assert [(row["status"], row["iterations"]) for row in rows] == [("succeeded", 2)] * 2
        best = max(rows, key=lambda row: (row["metric"], -row["trial"]))
        assert {key: sweep["result"]["best"][key] for key in best} == best
        assert sweep["progress"] == {"done": 2, "total": 2, "eta_s": None}
        artifacts = {artifact["name"] for artifact in api.get(f"/v1/jobs/{sweep['id']}/artifacts").json()["data"]}
        assert artifacts == {"preview.png", "result.json", "synthetic.safetensors", "trials.csv", "trials.json"}
        assert api.get(f"/v1/jobs/{sweep['id']}/artifacts/trials.csv").text == (
            api.get(f"/v1/jobs/{sweep['id']}/trials", params={"format": "csv"}).text
        )
        trial = settings.job_dir(sweep["id"]).trial(best["trial"]).attempt(1)
        assert api.get(f"/v1/jobs/{sweep['id']}/synthetic").content == trial.synthetic_file.read_bytes()

        evaluation = succeeded(api, {"kind": "evaluate", "synthetic": {"job_id": sweep["id"]}, **JUDGING})
        judged = settings.job_dir(evaluation["id"]).input_file
        assert (SyntheticSet.load(judged).images == SyntheticSet.load(trial.synthetic_file).images).all()
        assert evaluation["result"]["networks"][0]["mean"] == best["metric"]  # the same seed, networks and images
        accuracies = [row["accuracy"] for row in api.get(f"/v1/jobs/{evaluation['id']}/trials").json()["data"]]
        assert sorted(accuracies) == sorted(evaluation["result"]["networks"][0]["accuracies"])
        kept = json.loads(attempt_dir(settings, evaluation["id"]).result_file.read_bytes())
        assert kept == evaluation["result"]

        named = actor_names(ray, sweep["id"], evaluation["id"])
        assert named["TuneWorker"] == {f"{sweep['id']}/attempt 1/sweep", f"{evaluation['id']}/attempt 1/evaluation"}
        gangs = {re.sub(r"driver \d+", "driver N", name) for name in named["ShardWorker"]}
        assert gangs == {f"{sweep['id']}/trial {trial}, driver N/shard 0 of 1" for trial in (0, 1)}


def test_extension_of_a_set(tmp_path: Path, embedded_ray: EmbeddedRay) -> None:
    """Extend a set of nine digits, made in this process, by the tenth; a job's own set is extended by nothing."""
    settings = Settings(data_dir=tmp_path / "data")
    nine = settings.roots.datasets / "nine.npz"
    nine.parent.mkdir(parents=True)
    digits = digits_source()
    known = digits.labels < 9
    np.savez(nine, images=digits.images[known, 0], labels=digits.labels[known])
    method = {"name": "dance", "pool_size": 1, "pool_epochs": 1, "batch_real": 4}
    base = {"dataset": {"path": "nine.npz"}, "ipc": 1, "iterations": 2, "method": method, "network": {"width": 4, "depth": 1}}
    local.prepare(base, tmp_path / "base", settings.roots).run(ignore_events)
    made = SyntheticSet.load(JobDir(tmp_path / "base").attempt(1).synthetic_file)
    made.save(settings.roots.datasets / "base.safetensors")

    with running(settings, RayClient(embedded_ray.address, embedded_ray.token)) as api:
        spec = {"kind": "extend", "base": {"path": "base.safetensors"}, "dataset": {"name": "digits"}}
        extended = succeeded(api, spec | {"resources": {"workers": 2}})
        assert extended["kind"] == "extend"
        assert extended["result"]["extended"] == {"condensed": ["9"], "kept": 9}
        grown = SyntheticSet.load(attempt_dir(settings, extended["id"]).synthetic_file)
        assert grown.images[:9].tobytes() == made.images.tobytes()
        assert api.get("/v1/jobs", params={"kind": "extend"}).json()["data"][0]["id"] == extended["id"]
        again = api.await_status(api.submit(spec | {"base": {"job_id": extended["id"]}})["id"], "failed", timeout_s=300)
        assert "no class of digits is new, changed or gone" in again["error"]["message"]


def actor_names(ray: EmbeddedRay, *job_ids: str) -> dict[str, set[str]]:
    """Return the names of these jobs' actors, by class, from Ray's dashboard."""
    headers = {"Authorization": f"Bearer {ray.token}"}
    answer = httpx.get(f"{ray.address}/api/v0/actors", params={"detail": 1}, headers=headers, trust_env=False, timeout=60)
    named: dict[str, set[str]] = {}
    for actor in answer.raise_for_status().json()["data"]["result"]["result"]:
        if actor["repr_name"].startswith(job_ids):
            named.setdefault(actor["class_name"], set()).add(actor["repr_name"])
    return named
