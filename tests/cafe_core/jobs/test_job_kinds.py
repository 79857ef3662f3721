"""Test condensations, evaluations and sweeps in one process, with and without interruptions."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cafe_core.algorithm.held_out import split
from cafe_core.data import sources
from cafe_core.data.class_store import ClassStore
from cafe_core.data.roots import DataRoots
from cafe_core.errors import DatasetError, DiskFullError, SpecError, SweepError
from cafe_core.evaluation.training import network_seed
from cafe_core.files import write_atomically
from cafe_core.jobs import condense_job, local
from cafe_core.jobs.jobdir import JobDir
from cafe_core.spec.dataset import DatasetSpec
from cafe_core.synthetic_set import synthetic_set
from cafe_core.synthetic_set.synthetic_set import SyntheticSet
from tests.cafe_core.jobs.test_local import InterruptedJobError, save_images, silent

CONDENSE: dict[str, Any] = {
    "dataset": {"path": "own.npz"},
    "ipc": 2,
    "iterations": 4,
    "method": {"batch_real": 4, "max_outer": 1},
    "network": {"width": 4, "depth": 1},
    "evaluation": {"networks": [{"name": "mlp", "width": 4}], "repeats": 2, "epochs": 2},
}
VALIDATION = {"every": 1, "network": {"name": "mlp", "width": 4}, "repeats": 2, "epochs": 2, "fraction": 0.4}
EVALUATE: dict[str, Any] = {
    "kind": "evaluate",
    "networks": [{"name": "mlp", "width": 4}, {"name": "lenet"}],
    "repeats": 2,
    "epochs": 2,
}
SWEEP: dict[str, Any] = {
    "kind": "sweep",
    "base": {**CONDENSE, "iterations": 2},
    "space": {"method.beta": {"grid": [0.5, 2.0]}, "seed": {"grid": [0, 1]}},
}


@pytest.fixture
def roots(tmp_path: Path) -> DataRoots:
    save_images(tmp_path / "datasets" / "own.npz", seed=0)
    return DataRoots(datasets=tmp_path / "datasets", uploads=tmp_path / "u", downloads=tmp_path / "d", cache=tmp_path / "c")


def interrupt_at(event: str, count: int, seen: list[str]) -> Callable[..., None]:
    def report(type: str, **_: Any) -> None:
        seen.append(type)
        if seen.count(event) == count:
            raise InterruptedJobError

    return report


# -- validation


def test_best_validated_set_is_the_result(tmp_path: Path, roots: DataRoots) -> None:
    spec = {**CONDENSE, "validation": VALIDATION}
    phases: list[str] = []
    result = local.prepare(spec, tmp_path / "out", roots).run(lambda type, **data: phases.append(data.get("phase", type)))
    assert [v["iteration"] for v in result["validations"]] == [1, 2, 3, 4]
    assert all(len(v["accuracies"]) == 2 and v["mean"] == pytest.approx(np.mean(v["accuracies"])) for v in result["validations"])
    best = max(result["validations"], key=lambda v: v["mean"])  # the first of equal ones
    assert result["best_iteration"] == best["iteration"]
    assert phases.count("validating") == phases.count("validated") == 4

    files = JobDir(tmp_path / "out").attempt(1)
    kept = SyntheticSet.load(files.synthetic_file)
    assert kept.iteration == best["iteration"]
    shorter = {**spec, "iterations": best["iteration"], "validation": {**VALIDATION, "every": 100}}
    local.prepare(shorter, tmp_path / "shorter", roots).run(silent)
    assert np.array_equal(SyntheticSet.load(JobDir(tmp_path / "shorter").attempt(1).synthetic_file).images, kept.images)


def test_held_out_images_are_not_condensed(tmp_path: Path, roots: DataRoots) -> None:
    """Changing a held-out image does not change the result; changing another image does."""
    spec = {**CONDENSE, "validation": {**VALIDATION, "every": 100}, "method": {"batch_real": 100, "max_outer": 1}}
    local.prepare(spec, tmp_path / "before", roots).run(silent)
    before = SyntheticSet.load(JobDir(tmp_path / "before").best_file).images
    with np.load(roots.datasets / "own.npz") as loaded:
        arrays = dict(loaded)
    store = ClassStore.open(sources.prepare(DatasetSpec(path="own.npz"), roots))
    kept, held = (part.tolist() for part in split(0, 1, store.info.class_counts[1], 0.4))
    in_class = np.flatnonzero(arrays["labels"] == 1)
    mean_std = store.info.mean + store.info.std
    for name, position, same in (("held", held[0], True), ("kept", kept[0], False)):
        images = arrays["images"].copy()
        # Mirror the image, so that the dataset's mean and std do not change.
        images[in_class[position]] = images[in_class[position], ::-1]
        np.savez(roots.datasets / "own.npz", **{**arrays, "images": images})
        local.prepare(spec, tmp_path / name, roots).run(silent)
        info = ClassStore.open(sources.prepare(DatasetSpec(path="own.npz"), roots)).info
        assert info.mean + info.std == pytest.approx(mean_std)
        after = SyntheticSet.load(JobDir(tmp_path / name).best_file).images
        assert np.allclose(after, before, atol=1e-5) == same


@pytest.mark.parametrize(("event", "count"), [("iteration", 2), ("validated", 2), ("evaluated", 1), ("phase", 4)])
def test_interrupted_job_with_validations_resumes(tmp_path: Path, roots: DataRoots, event: str, count: int) -> None:
    spec = {**CONDENSE, "validation": VALIDATION}
    undisturbed = local.prepare(spec, tmp_path / "undisturbed", roots).run(silent)
    seen: list[str] = []
    with pytest.raises(InterruptedJobError):
        local.prepare(spec, tmp_path / "out", roots).run(interrupt_at(event, count, seen))
    validated = seen.count("validated")
    seen.clear()
    resumed = local.prepare(spec, tmp_path / "out", roots).run(lambda type, **_: seen.append(type))
    assert seen.count("validated") == 4 - validated
    for key in ("validations", "best_iteration", "evaluation"):
        assert resumed[key] == undisturbed[key]
    files = [JobDir(tmp_path / name).attempt(1).synthetic_file.read_bytes() for name in ("undisturbed", "out")]
    assert files[0] == files[1]


def test_repeated_validation_with_a_lower_result_keeps_the_best_set(
    tmp_path: Path, roots: DataRoots, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU a repeated validation may differ. After a crash at any point, the kept set is the best one of the log."""
    spec = {**CONDENSE, "iterations": 2, "validation": VALIDATION}
    means = iter([50.0, 60.0, 40.0])
    monkeypatch.setattr(condense_job, "_validate", lambda *_: [next(means)])

    def crash(path: Path, content: bytes, **options: Any) -> None:
        if path == crash_at:
            raise InterruptedJobError
        write_atomically(path, content, **options)

    for module in (condense_job, synthetic_set):
        monkeypatch.setattr(module, "write_atomically", crash)
    for crash_at in (JobDir(tmp_path / "out").validation_file, JobDir(tmp_path / "out").best_file, None):
        if crash_at is None:
            result = local.prepare(spec, tmp_path / "out", roots).run(silent)
        else:
            with pytest.raises(InterruptedJobError):
                local.prepare(spec, tmp_path / "out", roots).run(silent)
    assert [validation["mean"] for validation in result["validations"]] == [60.0, 40.0]
    assert result["best_iteration"] == 1


def test_validation_and_evaluation_train_different_networks() -> None:
    seeds = {network_seed(3, 0, repeat, validation=validation) for repeat in range(20) for validation in (False, True)}
    assert len(seeds) == 40


# -- evaluate


def test_evaluate_job_gives_the_accuracies_of_the_condense_job(tmp_path: Path, roots: DataRoots) -> None:
    made = {**CONDENSE, "seed": 3, "evaluation": {key: EVALUATE[key] for key in ("networks", "repeats", "epochs")}}
    expected = local.prepare(made, tmp_path / "made", roots).run(silent)["evaluation"]
    set_file = JobDir(tmp_path / "made").attempt(1).synthetic_file
    (roots.datasets / "set.safetensors").write_bytes(set_file.read_bytes())
    spec = {**EVALUATE, "synthetic": {"path": "set.safetensors"}, "seed": 3}
    result = local.prepare(spec, tmp_path / "out", roots).run(silent)
    assert result["networks"] == expected["networks"]

    files = JobDir(tmp_path / "out").attempt(1)
    rows = list(csv.DictReader((files.artifacts / "accuracies.csv").read_text().splitlines()))
    assert [(row["source"], row["network"], row["repeat"]) for row in rows] == [
        ("synthetic", "mlp", "0"),
        ("synthetic", "lenet", "0"),
        ("synthetic", "mlp", "1"),
        ("synthetic", "lenet", "1"),
    ]
    assert [float(rows[0]["accuracy"]), float(rows[2]["accuracy"])] == result["networks"][0]["accuracies"]
    names = [entry["name"] for entry in json.loads(files.manifest_file.read_text())["artifacts"]]
    assert names == ["accuracies.csv", "evaluation.json", "result.json"]


def test_real_images_are_evaluated_like_a_synthetic_set(tmp_path: Path, roots: DataRoots) -> None:
    def evaluate(name: str, **synthetic: Any) -> dict[str, Any]:
        spec = {
            **EVALUATE,
            "networks": [{"name": "mlp", "width": 32}],
            "epochs": 150,
            "synthetic": {"dataset": {"path": "own.npz"}, **synthetic},
        }
        return local.prepare(spec, tmp_path / name, roots).run(silent)

    whole = evaluate("whole", selection="whole")
    random = evaluate("random", selection="random", ipc=2)
    assert whole["networks"][0]["mean"] > random["networks"][0]["mean"]  # the test images are among the training images
    herding = evaluate("herding", selection="herding", ipc=2)
    assert herding["networks"][0]["n"] == 2
    chosen = SyntheticSet.load(JobDir(tmp_path / "herding").attempt(1).synthetic_file)
    with np.load(roots.datasets / "own.npz") as arrays:
        real = {(image.tobytes(), int(label)) for image, label in zip(arrays["images"], arrays["labels"], strict=True)}
    pixels = [image.tobytes() for image in chosen.pixels()]
    assert len(set(pixels)) == 6
    assert {(image, int(label)) for image, label in zip(pixels, chosen.labels, strict=True)} <= real


def test_interrupted_evaluation_trains_no_network_twice(tmp_path: Path, roots: DataRoots) -> None:
    spec = {**EVALUATE, "baselines": ["random"], "synthetic": {"dataset": {"path": "own.npz"}, "selection": "k_center", "ipc": 2}}
    undisturbed = local.prepare(spec, tmp_path / "undisturbed", roots).run(silent)
    seen: list[str] = []
    with pytest.raises(InterruptedJobError):
        local.prepare(spec, tmp_path / "out", roots).run(interrupt_at("evaluated", 3, seen))
    seen.clear()
    resumed = local.prepare(spec, tmp_path / "out", roots).run(lambda type, **_: seen.append(type))
    assert seen.count("evaluated") == 8 - 3
    assert seen.count("checkpoint") == 0
    assert (resumed["networks"], resumed["baselines"]) == (undisturbed["networks"], undisturbed["baselines"])


# -- sweep


def test_sweep_publishes_the_best_trials_set(tmp_path: Path, roots: DataRoots) -> None:
    result = local.prepare(SWEEP, tmp_path / "out", roots).run(silent)
    directory = JobDir(tmp_path / "out")
    files = directory.attempt(1)
    rows = json.loads((files.artifacts / "trials.json").read_text())
    assert [row["overrides"] for row in rows] == [{"method.beta": b, "seed": s} for b in (0.5, 2.0) for s in (0, 1)]
    assert all(row["status"] == "succeeded" and 0 <= row["metric"] <= 100 for row in rows)
    best = max(rows, key=lambda row: row["metric"])
    assert result["best"]["trial"] == best["trial"]
    assert result["best"]["result"]["evaluation"]["networks"][0]["mean"] == best["metric"]
    assert result["trials"] == {"succeeded": 4, "stopped": 0, "failed": 0, "total": 4}
    assert files.synthetic_file.read_bytes() == directory.trial(best["trial"]).attempt(1).synthetic_file.read_bytes()
    table = list(csv.DictReader((files.artifacts / "trials.csv").read_text().splitlines()))
    assert [(row["method.beta"], row["seed"]) for row in table] == [("0.5", "0"), ("0.5", "1"), ("2.0", "0"), ("2.0", "1")]

    alone = {**SWEEP["base"], "method": {**CONDENSE["method"], "beta": 2.0}, "seed": 1}
    local.prepare(alone, tmp_path / "alone", roots).run(silent)
    images = [SyntheticSet.load(d.attempt(1).synthetic_file).images for d in (JobDir(tmp_path / "alone"), directory.trial(3))]
    assert np.array_equal(*images)


def test_failed_trial_does_not_fail_the_others(tmp_path: Path, roots: DataRoots) -> None:
    spec = {**SWEEP, "space": {"method.image_lr": {"grid": [1e30, 0.1]}}}
    result = local.prepare(spec, tmp_path / "out", roots).run(silent)
    rows = json.loads((JobDir(tmp_path / "out").attempt(1).artifacts / "trials.json").read_text())
    assert [row["status"] for row in rows] == ["failed", "succeeded"]
    assert rows[0]["error"]["code"] == "non_finite_loss"
    assert result["best"]["trial"] == 1
    spec["space"] = {"method.image_lr": {"grid": [1e30]}}
    with pytest.raises(SweepError, match="no trial succeeded: 1 of 1 failed: the loss became"):
        local.prepare(spec, tmp_path / "all", roots).run(silent)


@pytest.mark.parametrize(("event", "count"), [("trial", 1), ("trial", 3), ("trial_started", 2)])
def test_interrupted_sweep_repeats_no_finished_trial(tmp_path: Path, roots: DataRoots, event: str, count: int) -> None:
    undisturbed = local.prepare(SWEEP, tmp_path / "undisturbed", roots).run(silent)
    seen: list[str] = []
    with pytest.raises(InterruptedJobError):
        local.prepare(SWEEP, tmp_path / "out", roots).run(interrupt_at(event, count, seen))
    ended = seen.count("trial")
    seen.clear()
    resumed = local.prepare(SWEEP, tmp_path / "out", roots).run(lambda type, **_: seen.append(type))
    assert seen.count("trial_started") == seen.count("trial") == 4 - ended
    assert resumed["best"]["trial"] == undisturbed["best"]["trial"]
    assert resumed["best"]["metric"] == undisturbed["best"]["metric"]


def test_resumed_sweep_repeats_trials_with_retryable_errors(
    tmp_path: Path, roots: DataRoots, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = {**SWEEP, "space": {"method.image_lr": {"grid": [1e30, 0.1, 0.2]}}}

    def raise_disk_full(*_: Any, **__: Any) -> None:
        raise DiskFullError("the disk is full")

    with monkeypatch.context() as broken:
        broken.setattr(condense_job, "condensed_set", raise_disk_full)
        with pytest.raises(SweepError, match="3 of 3 failed: the disk is full") as failed:
            local.prepare(spec, tmp_path / "out", roots).run(silent)
    assert failed.value.as_dict()["retryable"]
    result = local.prepare(spec, tmp_path / "out", roots).run(silent)
    assert result["trials"] == {"succeeded": 2, "stopped": 0, "failed": 1, "total": 3}
    started: list[bool] = []
    local.prepare(spec, tmp_path / "out", roots).run(lambda type, **_: started.append(type == "trial_started"))
    assert not any(started)  # neither the succeeded trials nor the one that would fail again


def test_refuses_resuming_a_sweep_on_changed_data(tmp_path: Path, roots: DataRoots) -> None:
    with pytest.raises(InterruptedJobError):
        local.prepare(SWEEP, tmp_path / "out", roots).run(interrupt_at("trial", 1, []))
    save_images(roots.datasets / "own.npz", seed=1)
    with pytest.raises(DatasetError, match="has changed since the job's first attempt"):
        local.prepare(SWEEP, tmp_path / "out", roots).run(silent)


def test_sweep_result_names_the_metric(tmp_path: Path, roots: DataRoots) -> None:
    spec = {**SWEEP, "space": {"validation": {"grid": [VALIDATION]}}}
    result = local.prepare(spec, tmp_path / "out", roots).run(silent)
    assert result["metric"] == "validation"
    assert result["best"]["metric"] == max(v["mean"] for v in result["best"]["result"]["validations"])


def test_asha_needs_a_server(tmp_path: Path, roots: DataRoots) -> None:
    with pytest.raises(SpecError, match="submit the sweep to a server"):
        local.prepare({**SWEEP, "scheduler": "asha"}, tmp_path / "out", roots)


def test_set_of_another_job_needs_a_server(tmp_path: Path, roots: DataRoots) -> None:
    with pytest.raises(SpecError, match="a job of a server"):
        local.prepare({**EVALUATE, "synthetic": {"job_id": "job_x"}}, tmp_path / "out", roots)
