"""Test a whole job in one process, and resuming it after an interruption in any phase."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cafe_core.data.roots import DataRoots
from cafe_core.errors import CafeError, DatasetError
from cafe_core.jobs import local
from cafe_core.jobs.backend import Report
from cafe_core.jobs.jobdir import JobDir
from cafe_core.spec.condense import CondenseSpec
from cafe_core.synthetic_set.synthetic_set import SyntheticSet

SPEC = {
    "kind": "condense",
    "dataset": {"path": "own.npz"},
    "ipc": 2,
    "iterations": 4,
    "method": {"batch_real": 4, "max_outer": 1},
    "network": {"width": 4, "depth": 1},
    "checkpoint_every": 1,
    "evaluation": {
        "networks": [{"name": "mlp", "width": 4}, {"name": "lenet"}],
        "repeats": 2,
        "epochs": 2,
        "baselines": ["random"],
    },
}


class InterruptedJobError(Exception):
    pass


@pytest.fixture
def roots(tmp_path: Path) -> DataRoots:
    """Create a dataset root with own.npz: three classes of grey 8×8 images."""
    save_images(tmp_path / "datasets" / "own.npz", seed=0)
    return DataRoots(datasets=tmp_path / "datasets", uploads=tmp_path / "u", downloads=tmp_path / "d", cache=tmp_path / "c")


def save_images(path: Path, seed: int) -> None:
    path.parent.mkdir(exist_ok=True)
    random = np.random.default_rng(seed)
    arrays = {"images": random.integers(0, 255, (15, 8, 8), dtype=np.uint8), "labels": np.arange(15) % 3}
    arrays |= {"test_images": arrays["images"][:6], "test_labels": arrays["labels"][:6]}
    np.savez(path, **arrays)


def silent(type: str, **data: Any) -> None:
    pass


def interrupt_at(event: str, count: int, seen: list[str]) -> Report:
    """Return a report function that adds the events' types to `seen`, and raises InterruptedJobError at the count-th `event`."""

    def report(type: str, **_: Any) -> None:
        seen.append(type)
        if seen.count(event) == count:
            raise InterruptedJobError

    return report


def test_files_and_events_of_a_job(tmp_path: Path, roots: DataRoots) -> None:
    events: list[str] = []
    result = local.prepare(SPEC, tmp_path / "out", roots).run(lambda type, **data: events.append(data.get("phase", type)))
    assert [e for e in events if e in ("preparing", "condensing", "evaluating", "publishing")] == [
        "preparing",
        "condensing",
        "evaluating",
        "publishing",
    ]
    assert (events.count("iteration"), events.count("evaluated")) == (4, 8)
    for rows in (result["evaluation"]["networks"], result["evaluation"]["baselines"]["random"]["networks"]):
        assert [(row["name"], row["n"], len(row["accuracies"])) for row in rows] == [("mlp", 2, 2), ("lenet", 2, 2)]
        assert all(0 <= accuracy <= 100 for row in rows for accuracy in row["accuracies"])

    artifacts = JobDir(tmp_path / "out").attempt(1)
    manifest = json.loads(artifacts.manifest_file.read_text())["artifacts"]
    assert [entry["name"] for entry in manifest] == ["preview.png", "result.json", "synthetic.safetensors"]
    for entry in manifest:
        content = (artifacts.artifacts / entry["name"]).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (entry["size"], entry["sha256"])
    synthetic = SyntheticSet.load(artifacts.synthetic_file)
    assert synthetic.images.shape == (6, 1, 8, 8)
    assert synthetic.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert synthetic.iteration == 4
    assert synthetic.spec["method"]["beta"] == 1.0  # resolved: it includes all defaults


def test_artifacts_carry_no_absolute_path(tmp_path: Path, roots: DataRoots) -> None:
    """An absolute path within the dataset root gives the same set as a relative one, whichever of them built the class store."""
    absolute = SPEC | {"dataset": {"path": str(roots.datasets / "own.npz")}}
    for name, spec in (("absolute", absolute), ("relative", SPEC)):
        local.prepare(spec, tmp_path / name, roots).run(silent)
    artifacts = JobDir(tmp_path / "absolute").attempt(1).artifacts
    for file in artifacts.iterdir():
        assert str(tmp_path).encode() not in file.read_bytes(), file.name
    made = SyntheticSet.load(artifacts / "synthetic.safetensors")
    assert (made.dataset["name"], made.spec["dataset"]["path"]) == ("own.npz", "own.npz")
    relative_file = JobDir(tmp_path / "relative").attempt(1).synthetic_file
    assert relative_file.read_bytes() == made.to_safetensors_bytes()


@pytest.mark.parametrize(
    ("sent", "threads"), [({}, 2), ({"resources": {"workers": 3}}, 2), ({"resources": {"cpus_per_worker": 1}}, 1)]
)
def test_uses_all_cores_unless_the_spec_says_how_many(
    sent: dict[str, Any], threads: int, tmp_path: Path, roots: DataRoots, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local.torch, "get_num_threads", lambda: 2)
    spec = local.prepare(SPEC | sent, tmp_path / "out", roots).job.spec
    assert isinstance(spec, CondenseSpec)
    assert (spec.resources.workers, spec.resources.cpus_per_worker) == (1, threads)


@pytest.mark.parametrize(
    ("event", "count"), [("iteration", 1), ("iteration", 3), ("checkpoint", 2), ("evaluated", 1), ("evaluated", 7)]
)
def test_interrupted_job_resumes(tmp_path: Path, roots: DataRoots, event: str, count: int) -> None:
    undisturbed = local.prepare(SPEC, tmp_path / "undisturbed", roots).run(silent)
    seen: list[str] = []
    with pytest.raises(InterruptedJobError):
        local.prepare(SPEC, tmp_path / "out", roots).run(interrupt_at(event, count, seen))
    before = seen.count("evaluated")
    with (tmp_path / "out" / "evaluation.jsonl").open("a") as log:
        log.write('{"set": "torn by a cra')  # as a killed process leaves it
    seen.clear()
    resumed = local.prepare(SPEC, tmp_path / "out", roots).run(lambda type, **_: seen.append(type))
    assert seen.count("evaluated") == 8 - before  # no network is trained twice
    assert resumed["evaluation"] == undisturbed["evaluation"]
    files = [JobDir(tmp_path / name).attempt(1).synthetic_file.read_bytes() for name in ("undisturbed", "out")]
    assert files[0] == files[1]


def test_refuses_resuming_on_changed_data(tmp_path: Path, roots: DataRoots) -> None:
    local.prepare(SPEC, tmp_path / "out", roots).run(silent)
    save_images(roots.datasets / "own.npz", seed=1)
    with pytest.raises(DatasetError, match="has changed since the job's first attempt"):
        local.prepare(SPEC, tmp_path / "out", roots).run(silent)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ipc": 0}, "ipc"),
        ({"dataset": {"path": "absent.npz"}}, "absent.npz"),
        ({"dataset": {"path": "../own.npz"}}, "dataset root"),
    ],
)
def test_refused_spec_leaves_no_files(tmp_path: Path, roots: DataRoots, fields: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, CafeError), match=message):
        local.prepare({**SPEC, **fields}, tmp_path / "out", roots).run(silent)
    assert not (tmp_path / "out").exists()
