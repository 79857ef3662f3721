"""Test submitting evaluate and sweep jobs: accepted specs, refusals, and the limits of the cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import yaml

from cafe_core.jobs.jobdir import JobFile
from cafe_core.spec.dataset import DatasetInfo
from cafe_core.spec.dataset_facts import DatasetFacts
from cafe_core.spec.job import KINDS
from cafe_core.spec.sweep import SweepSpec
from cafe_core.spec.trials import datasets_of, trials
from server.schemas import JobKind
from server.settings import Settings
from tests.server.conftest import SPEC, Api, FakeRay, running
from tests.server.kinds import EVALUATE, HERDING, SWEEP, digits_set, extendable_set, jobs_directory, running_job
from tests.server.routes.test_datasets_api import LABELS, npz
from tests.server.routes.test_jobs_api import refused

LARGE = HERDING | {"dataset": {"name": "digits", "image_size": 512}, "ipc": 100}
WIDE = {"width": 4096, "depth": 1}
EXAMPLES = sorted((Path(__file__).parents[3] / "docs" / "examples").glob("*.yaml"))


def sweep(space: dict[str, Any], **base: Any) -> dict[str, Any]:
    return SWEEP | {"base": SWEEP["base"] | base, "space": space}


# -- what is taken


def test_accepts_evaluation(api: Api) -> None:
    job = api.submit(
        EVALUATE | {"baselines": ["random", "whole"], "augment": ["none", "dsa"], "repeats": 3, "labels": {"a": "b"}}
    )
    assert (job["kind"], job["status"], job["labels"]) == ("evaluate", "queued", {"a": "b"})
    assert job["progress"]["total"] == 2 * 2 * 2 * 3  # random is both what is judged and a baseline: once
    assert job["spec"]["dataset"] == {"name": "digits"}
    assert job["spec"]["networks"][1] == {"name": "mlp", "width": 128}
    assert job["spec"]["whole_epochs"] == 300
    assert job["links"]["trials"] == f"/v1/jobs/{job['id']}/trials"
    assert [listed["id"] for listed in api.get("/v1/jobs", params={"kind": "evaluate"}).json()["data"]] == [job["id"]]


def test_accepts_sweep(api: Api) -> None:
    job = api.submit(SWEEP)
    assert (job["kind"], job["progress"]["total"]) == ("sweep", 4)
    assert job["spec"]["max_concurrent"] == 4
    assert job["spec"]["base"]["resources"] == {"gpus_per_worker": 0.0}
    assert job["links"]["trials"] == f"/v1/jobs/{job['id']}/trials"
    assert api.make()["links"]["trials"] is None


def test_driver_gets_unresolved_sweep(api: Api, ray: FakeRay, settings: Settings) -> None:
    """Resolved defaults of one method would be unknown fields of another."""
    job_id = running_job(api, ray, sweep({"method.name": {"grid": ["cafe", "dm", "herding"]}}, iterations=0))
    file = JobFile.model_validate_json(settings.job_dir(job_id).job_file.read_bytes())
    assert isinstance(file.spec, SweepSpec)
    info = api.post("/v1/jobs?dry_run=true", json=SPEC).json()["dataset"]
    dataset = DatasetInfo.model_validate(info)
    found = trials(file.spec, DatasetFacts.gather(datasets_of(file.spec), lambda _: dataset))
    assert [trial.spec.method.name for trial in found] == ["cafe", "dm", "herding"]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_the_examples_are_accepted(api: Api, settings: Settings, path: Path) -> None:
    extendable_set().save(settings.roots.datasets / "base.safetensors")
    response = api.post("/v1/jobs?dry_run=true", json=yaml.safe_load(path.read_text()))
    assert response.status_code == 200, response.text


def test_schema_names_each_kind() -> None:
    assert get_args(JobKind) == KINDS


def test_examples_cover_each_kind() -> None:
    assert {yaml.safe_load(path.read_text())["kind"] for path in EXAMPLES} == set(KINDS)


def test_dry_run_shows_total_and_trials(api: Api) -> None:
    condense, evaluate, coreset, swept = (
        api.post("/v1/jobs?dry_run=true", json=spec).json()
        for spec in (SPEC, EVALUATE, EVALUATE | {"synthetic": HERDING}, sweep({"ipc": {"grid": list(range(1, 31))}}))
    )
    assert (condense["total"], condense["trials"]) == (10, None)
    assert (evaluate["total"], evaluate["trials"], evaluate["spec"]["kind"]) == (40, None, "evaluate")
    assert (swept["total"], swept["trials"]["total"]) == (30, 30)
    assert swept["trials"]["first"] == [{"ipc": ipc} for ipc in range(1, 21)]
    alone = api.post("/v1/jobs?dry_run=true", json=SWEEP["base"] | {"ipc": 30}).json()
    assert swept["estimates"] == alone["estimates"]  # the largest trial's
    assert 600 << 20 < evaluate["estimates"]["memory_bytes"] < coreset["estimates"]["memory_bytes"]  # choosing holds more
    assert api.get("/v1/jobs").json()["data"] == []


def test_dry_run_has_notes_about_the_images(api: Api, settings: Settings) -> None:
    random = np.random.default_rng(0)
    arrays = {"images": random.integers(0, 256, (4, 8, 8), dtype=np.uint8), "labels": np.array([0, 0, 0, 1])}
    settings.roots.datasets.mkdir(parents=True, exist_ok=True)
    np.savez(settings.roots.datasets / "own.npz", **arrays)
    spec = {"kind": "condense", "dataset": {"path": "own.npz"}, "ipc": 2, "method": {"name": "random"}}
    notes = api.post("/v1/jobs?dry_run=true", json=spec).json()["notes"]
    assert [note["code"] for note in notes] == ["repeated"]
    grid = {"kind": "sweep", "base": spec, "space": {"seed": {"grid": [1, 2]}}}
    grid["base"] = spec | {"dataset": {"path": "own.npz", "test_fraction": 0.3}, "evaluation": {"repeats": 1}}
    response = api.post("/v1/jobs?dry_run=true", json=grid)
    assert "test_fraction: " in response.text  # class 1 has one image
    grid["base"]["dataset"] = {"name": "digits"}
    grid["base"]["ipc"] = 144
    swept = api.post("/v1/jobs?dry_run=true", json=grid).json()["notes"]
    assert [note["code"] for note in swept] == ["repeated"]


def test_openapi_shows_all_kinds(api: Api) -> None:
    schema = api.get("/openapi.json").json()
    body = schema["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    shown = {option["$ref"].rpartition("/")[2] for option in body["oneOf"]}
    assert shown == {"CondenseSpec", "EvaluateSpec", "SweepSpec", "ExtendSpec"}
    components = schema["components"]["schemas"]
    assert {components[name]["properties"]["kind"]["const"] for name in shown} == set(KINDS)


# -- what is refused


@pytest.mark.parametrize(
    ("change", "loc", "message"),
    [
        ({"kind": "bake"}, "kind", "must be one of condense, evaluate, sweep"),
        ({"method": {"name": "magic"}}, "method.name", "must be one of cafe, dance, dc, dm"),
        ({"method": {"beta": -1}}, "method.beta", "greater than or equal to 0"),
        ({"method": {"name": "dm", "beta": 1}}, "method.beta", "unknown field"),
        ({"method": {"name": "forgetting", "network_epochs": 1}}, "method.network_epochs", "at least 2"),
        ({"method": {"name": "herding"}, "iterations": 3}, "iterations", "has no iterations"),
        ({"method": {"name": "herding"}, "iterations": 0, "validation": {"every": 1}}, "validation", "makes one set"),
        ({"evaluation": {"augment": "flip"}}, "evaluation.augment", "'dsa'"),
        ({"evaluation": {"augment": ["dsa", "flip"]}}, "evaluation.augment.1", "'dsa'"),
        ({"evaluation": {"augment": ["dsa", "dsa"]}}, "evaluation.augment", "may be given once"),
    ],
)
def test_refuses_impossible_condensation_with_field(api: Api, change: dict[str, Any], loc: str, message: str) -> None:
    errors = refused(api.post("/v1/jobs", json=SPEC | change))
    assert list(errors) == [loc]
    assert message in errors[loc]


@pytest.mark.parametrize("body", [[], "a", 1])
def test_refuses_spec_that_is_not_an_object(api: Api, body: Any) -> None:
    assert refused(api.post("/v1/jobs", json=body)).keys() == {""}


@pytest.mark.parametrize(
    ("change", "loc", "message"),
    [
        ({"ipc": 1}, "ipc", "unknown field"),
        ({"synthetic": {}}, "synthetic", "exactly one of job_id, path and dataset"),
        ({"synthetic": {"job_id": "job_unknown"}}, "synthetic.job_id", "there is no job 'job_unknown'"),
        ({"synthetic": {"job_id": "7"}}, "synthetic.job_id", "String should match"),
        ({"synthetic": {"path": "absent.npz"}}, "synthetic.path", "there is no 'absent.npz'"),
        ({"synthetic": {"path": "../../etc/passwd"}}, "synthetic.path", "is not a path under the server's dataset root"),
        ({"synthetic": {"path": "damaged.safetensors"}}, "synthetic.path", "damaged.safetensors: "),
        ({"synthetic": {"path": "larger.safetensors"}}, "synthetic", "its images are 1×12×12"),
        ({"synthetic": {"path": "set.safetensors"}, "dataset": {"name": "cifar10"}}, "synthetic", "images of cifar10 3×32×32"),
        ({"synthetic": {"path": "nine.safetensors"}}, "synthetic", "it has 9 classes, digits has 10"),
        ({"synthetic": {"path": "gone.safetensors"}}, "dataset.path", "there is no 'gone'"),
        ({"synthetic": {"path": "nameless.safetensors"}}, "dataset", "does not name a dataset"),
        ({"synthetic": HERDING | {"dataset": {"path": "nowhere"}}}, "synthetic.dataset.path", "there is no 'nowhere'"),
        ({"synthetic": HERDING | {"dataset": {"name": "imagenet"}}}, "synthetic.dataset.name", "Input should be 'digits'"),
        ({"synthetic": HERDING | {"selection": "best"}}, "synthetic.selection", "'random', 'whole'"),
        ({"dataset": {"name": "mnist"}}, "dataset", "evaluated on its own test images"),
        ({"networks": [{"name": "mlp", "depth": 2}]}, "networks.0", "mlp has no option 'depth'"),
        ({"networks": []}, "networks", "at least 1 item"),
        ({"augment": "flip"}, "augment", "'dsa'"),
        ({"resources": {"workers": 5}}, "resources", "5 workers of 1 CPU each, but the cluster"),
        ({"resources": {"gpus_per_worker": 1}}, "resources", "0 GPUs in all"),
        ({"synthetic": LARGE, "networks": [{"name": "resnet18"}]}, "resources", "but has 8.00 GiB"),
    ],
)  # fmt: skip
def test_refuses_impossible_evaluation_with_field(
    api: Api, settings: Settings, change: dict[str, Any], loc: str, message: str
) -> None:
    root = settings.roots.datasets
    digits_set().save(root / "set.safetensors")
    digits_set(shape=(1, 12, 12)).save(root / "larger.safetensors")
    nine = digits_set()
    digits_set(images=nine.images[:9], labels=nine.labels[:9], class_names=nine.class_names[:9]).save(root / "nine.safetensors")
    digits_set(spec={"dataset": {"path": "gone"}}).save(root / "gone.safetensors")
    digits_set(spec={}).save(root / "nameless.safetensors")
    (root / "damaged.safetensors").write_bytes(b"damaged")
    errors = refused(api.post("/v1/jobs", json=EVALUATE | change))
    assert message in errors[loc]
    assert jobs_directory(settings) == []


@pytest.mark.parametrize(
    ("spec", "loc", "message"),
    [
        (SWEEP | {"space": {}}, "space", "at least 1 item"),
        (SWEEP | {"space": {"method.beta": {"grid": []}}}, "space.method.beta.grid", "at least 1 item"),
        (SWEEP | {"space": {"method.beta": {"uniform": [2, 1]}}}, "space.method.beta", "uniform: [2.0, 1.0] must increase"),
        (SWEEP | {"space": {"method.beta": {"normal": [0, 1]}}}, "space.method.beta.normal", "unknown field"),
        (SWEEP | {"space": {"seed": {"grid": list(range(101))}}, "samples": 100}, "space", "10100 trials are more than 10000"),
        (SWEEP | {"scheduler": "hyperband"}, "scheduler", "'fifo' or 'asha'"),
        (SWEEP | {"ipc": 1}, "ipc", "unknown field"),
        (SWEEP | {"base": SPEC}, "base.evaluation", "give base an evaluation"),
        (SWEEP | {"base": SWEEP["base"] | {"webhook": "https://example.org/"}}, "base.webhook", "set webhook on the sweep"),
        (sweep({"methods.beta": {"grid": [1]}}), "space.methods.beta", "unknown field"),
        (sweep({"method.betta": {"grid": [1]}}), "space.method.betta", "1: unknown field"),
        (sweep({"name": {"grid": ["a"]}}), "space.name", "cannot vary this field"),
        (sweep({"method.beta": {"grid": [1, -1]}}), "space.method.beta", "-1: Input should be greater than or equal to 0"),
        (sweep({"method.name": {"grid": ["dm", "magic"]}}), "space.method.name", '"magic": must be one of cafe, dance'),
        (sweep({"method.layers": {"grid": [[0], [9]]}}), "space.method.layers", "[9]: [9] must be increasing and below 3"),
        (sweep({"resources.workers": {"grid": [1, 11]}}), "space.resources.workers", "11: 11 workers for 10 classes"),
        (sweep({"dataset": {"grid": [{"path": "nowhere"}]}}), "space.dataset", "there is no 'nowhere'"),
        (sweep({"seed": {"grid": [1]}}, dataset={"path": "nowhere"}), "base.dataset.path", "there is no 'nowhere'"),
        (sweep({"seed": {"grid": [1]}}, method={"beta": -1}), "base.method.beta", "greater than or equal to 0"),
        (sweep({"seed": {"grid": [1]}}, method={"name": "magic"}), "base.method.name", "must be one of cafe"),
        (sweep({"seed": {"grid": [1]}}, network={"norm": "batch"}), "base.network.norm", "batch statistics"),
        (sweep({"seed": {"grid": [1]}}, method={"layers": [9]}), "base.method.layers", "with seed = 1: [9] must be increasing"),
        (sweep({"method.name": {"grid": ["dm"]}}, method={"beta": 1}), "base.method.beta", 'method.name = "dm": unknown field'),
        (sweep({"seed": {"grid": [1]}}, resources={"workers": 5}), "base.resources", "can hold at most 4 of them"),
        (sweep({"seed": {"grid": [1]}}, resources={"workers": 11}), "base.resources.workers", "11 workers for 10 classes"),
        (sweep({"resources.workers": {"grid": [1, 5]}}), "space.resources.workers", "with resources.workers = 5: 5 workers"),
        (sweep({"seed": {"grid": [1]}}, ipc=9999, network=WIDE), "base.resources", "with seed = 1: a worker would need"),
        (sweep({"ipc": {"grid": [1, 9999]}}, network=WIDE), "space", "with ipc = 9999: a worker would need"),
    ],
)  # fmt: skip
def test_refuses_impossible_sweep_with_field(api: Api, settings: Settings, spec: dict[str, Any], loc: str, message: str) -> None:
    errors = refused(api.post("/v1/jobs", json=spec))
    assert list(errors) == [loc]
    assert message in errors[loc]
    assert jobs_directory(settings) == []


def test_memory_limits_concurrent_trials(api: Api) -> None:
    wide = sweep({"seed": {"grid": [1, 2, 3, 4]}}, ipc=20, evaluation={"networks": [{"width": 256}]})
    wide["base"]["dataset"] = {"name": "digits", "image_size": 64}
    planned = api.post("/v1/jobs?dry_run=true", json=wide).json()
    assert 8 << 30 > planned["estimates"]["memory_bytes"] > (8 << 30) / 3
    a_trial = planned["estimates"]["memory_bytes"] + (210 << 20)  # and its driver
    assert planned["spec"]["max_concurrent"] == (8 << 30) // a_trial < 4


def test_cluster_limits_concurrent_trials_by_the_largest(api: Api) -> None:
    for workers, concurrent in ([1, 1, 1], 3), ([1, 2, 1], 2), ([1, 4, 1], 1):
        planned = api.post("/v1/jobs?dry_run=true", json=sweep({"resources.workers": {"grid": workers}})).json()
        assert planned["spec"]["max_concurrent"] == concurrent


# -- datasets


@pytest.mark.parametrize("place", ["judged", "tested on", "base", "grid", "choice of whole datasets"])
def test_dataset_in_use_is_not_deleted(api: Api, ray: FakeRay, settings: Settings, place: str) -> None:
    images = np.zeros((4, 8, 8), np.uint8)
    content = npz(images=images, labels=LABELS, test_images=images, test_labels=LABELS)
    own, other = (api.post("/v1/datasets", files={"file": ("a.npz", content)}).json()["id"] for _ in range(2))
    ten = digits_set()
    two = digits_set(images=ten.images[:2], labels=ten.labels[:2], class_names=["0", "1"], spec={})
    two.save(settings.roots.datasets / "two.safetensors")
    spec = {
        "judged": EVALUATE | {"synthetic": {"dataset": {"id": own}, "selection": "whole"}},
        "tested on": EVALUATE | {"synthetic": {"path": "two.safetensors"}, "dataset": {"id": own}},
        "base": sweep({"seed": {"grid": [0]}}, dataset={"id": own}),
        "grid": sweep({"dataset.id": {"grid": [other, own]}}, dataset={"id": other}),
        "choice of whole datasets": sweep({"dataset": {"choice": [{"id": own}, {"name": "digits"}]}}),
    }[place]
    job_id = running_job(api, ray, spec)
    refused(api.delete(f"/v1/datasets/{own}"), 409)
    api.post(f"/v1/jobs/{job_id}/cancel")
    api.await_status(job_id, "cancelled")
    assert api.delete(f"/v1/datasets/{own}").status_code == 204


def test_counts_nodes_that_autoscaler_may_add(settings: Settings, ray: FakeRay) -> None:
    wide = SPEC | {"resources": {"workers": 8}}
    autoscaled = {"autoscaled_nodes": 2, "autoscaled_node_cpus": 4.0, "autoscaled_node_memory_bytes": 8 << 30}
    with running(settings, ray) as api:
        assert "can hold at most 4 of them" in api.post("/v1/jobs", json=wide).text
    with running(settings.model_copy(update=autoscaled), ray) as api:
        assert api.post("/v1/jobs", json=wide).status_code == 201
        too_wide = wide | {"resources": {"workers": 4, "cpus_per_worker": 4}}
        assert "can hold at most 3 of them" in api.post("/v1/jobs", json=too_wide).text


def test_refuses_job_that_leaves_no_cpu_for_driver(settings: Settings, ray: FakeRay) -> None:
    with running(settings.model_copy(update={"driver_cpus": 0.25}), ray) as api:
        refused = api.post("/v1/jobs", json=SPEC | {"resources": {"workers": 4}})
        assert refused.status_code == 422
        assert "at most 3 of them in addition to the driver's 0.25 CPU" in refused.text
        assert api.post("/v1/jobs", json=SPEC | {"resources": {"workers": 3}}).status_code == 201
