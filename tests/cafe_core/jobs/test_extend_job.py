"""Test extending a finished set: which classes are condensed, which keep their bytes, and what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cafe_core.data.roots import DataRoots
from cafe_core.errors import CafeError, DatasetError
from cafe_core.jobs import local
from cafe_core.jobs.jobdir import JobDir
from cafe_core.synthetic_set.synthetic_set import SyntheticSet
from tests.cafe_core.jobs.test_local import InterruptedJobError, interrupt_at, silent

BASE = {
    "dataset": {"path": "three"},
    "ipc": 2,
    "iterations": 3,
    "seed": 4,
    "method": {"name": "dance", "factor": 2, "pool_size": 1, "pool_epochs": 1, "batch_real": 4},
    "network": {"width": 4, "depth": 1},
    "checkpoint_every": 1,
}
EXTEND = {"kind": "extend", "base": {"path": "base.safetensors"}, "dataset": {"path": "five"}, "checkpoint_every": 1}


def save_images(path: Path, seeds: Mapping[str, int], side: int = 8) -> None:
    """Make `path` an image folder: for each class 8 grey training images, which depend on its seed, and a test image."""
    shutil.rmtree(path, ignore_errors=True)
    for name, seed in seeds.items():
        for number, pixels in enumerate(np.random.default_rng(seed).integers(0, 255, (9, side, side), dtype=np.uint8)):
            file = path / ("train" if number < 8 else "test") / name / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(file)


@pytest.fixture
def roots(tmp_path: Path) -> DataRoots:
    """Create datasets of three and of five classes. Of the latter, `b` has other images, and `aa` and `d` are new."""
    datasets = tmp_path / "datasets"
    save_images(datasets / "three", {"a": 1, "b": 2, "c": 3})
    save_images(datasets / "five", {"a": 1, "aa": 9, "b": 8, "c": 3, "d": 7})
    return DataRoots(datasets=datasets, uploads=tmp_path / "u", downloads=tmp_path / "d", cache=tmp_path / "c")


def make_base(roots: DataRoots, path: Path, **fields: Any) -> SyntheticSet:
    """Condense the three classes, and put the set where a spec can name it."""
    local.prepare(BASE | fields, path, roots).run(silent)
    made = SyntheticSet.load(JobDir(path).attempt(1).synthetic_file)
    made.save(roots.datasets / "base.safetensors")
    return made


def images_of(made: SyntheticSet, name: str) -> bytes:
    k = made.class_names.index(name)
    return made.images[k * made.ipc : (k + 1) * made.ipc].tobytes()


def test_only_new_and_changed_classes_are_condensed(tmp_path: Path, roots: DataRoots) -> None:
    base = make_base(roots, tmp_path / "base")
    assert base.class_sha256 is not None
    assert len(set(base.class_sha256)) == 3
    events: list[tuple[str, dict[str, Any]]] = []
    spec = EXTEND | {"evaluation": {"networks": [{"name": "mlp", "width": 4}], "repeats": 1, "epochs": 2}}
    result = local.prepare(spec, tmp_path / "out", roots).run(lambda type, **data: events.append((type, data)))
    assert result["extended"] == {"condensed": ["aa", "b", "d"], "kept": 2}
    assert result["images"] == 10
    assert 0 <= result["evaluation"]["networks"][0]["mean"] <= 100
    steps = [data for type, data in events if type == "iteration"]
    assert [step["real_images"] for step in steps] == [3 * 4] * 3, "4 images of each of three classes"

    made = SyntheticSet.load(JobDir(tmp_path / "out").attempt(1).synthetic_file)
    assert made.class_names == ["a", "aa", "b", "c", "d"]
    for name in ("a", "c"):
        assert images_of(made, name) == images_of(base, name)
    assert images_of(made, "b") != images_of(base, "b")
    assert (made.mean == base.mean).all()
    assert (made.std == base.std).all()
    assert (made.decode, made.iteration, made.spec["kind"]) == (base.decode, 3, "extend")
    assert (made.spec["ipc"], made.spec["seed"], made.spec["method"]) == (2, 4, base.spec["method"])


def test_an_extended_set_can_be_extended_and_drops_classes_that_are_gone(tmp_path: Path, roots: DataRoots) -> None:
    make_base(roots, tmp_path / "base")
    local.prepare(EXTEND, tmp_path / "five", roots).run(silent)
    five = SyntheticSet.load(JobDir(tmp_path / "five").attempt(1).synthetic_file)
    five.save(roots.datasets / "five.safetensors")
    save_images(roots.datasets / "four", {"b": 8, "c": 3, "d": 7, "e": 6})
    spec = EXTEND | {"base": {"path": "five.safetensors"}, "dataset": {"path": "four"}}
    result = local.prepare(spec, tmp_path / "four", roots).run(silent)
    assert result["extended"] == {"condensed": ["e"], "kept": 3}
    four = SyntheticSet.load(JobDir(tmp_path / "four").attempt(1).synthetic_file)
    for name in ("b", "c", "d"):
        assert images_of(four, name) == images_of(five, name)


@pytest.mark.parametrize(("event", "count"), [("epoch", 1), ("checkpoint", 2)])
def test_interrupted_extension_resumes_to_the_same_bytes(tmp_path: Path, roots: DataRoots, event: str, count: int) -> None:
    make_base(roots, tmp_path / "base")
    local.prepare(EXTEND, tmp_path / "undisturbed", roots).run(silent)
    for artifact in roots.artifacts.glob("*/*"):
        artifact.unlink()  # so that the pool is trained again
    with pytest.raises(InterruptedJobError):
        local.prepare(EXTEND, tmp_path / "out", roots).run(interrupt_at(event, count, []))
    local.prepare(EXTEND, tmp_path / "out", roots).run(silent)
    files = [JobDir(tmp_path / name).attempt(1).synthetic_file.read_bytes() for name in ("undisturbed", "out")]
    assert files[0] == files[1]


def test_data_that_changes_between_attempts_is_refused(tmp_path: Path, roots: DataRoots) -> None:
    make_base(roots, tmp_path / "base")
    local.prepare(EXTEND, tmp_path / "out", roots).run(silent)
    save_images(roots.datasets / "five", {"a": 1, "aa": 9, "b": 8, "c": 3, "d": 5})
    with pytest.raises(DatasetError, match="has changed since the job's first attempt"):
        local.prepare(EXTEND, tmp_path / "out", roots).run(silent)


def test_nothing_to_condense_is_an_error(tmp_path: Path, roots: DataRoots) -> None:
    make_base(roots, tmp_path / "base")
    with pytest.raises(DatasetError, match="the base set is up to date: no class of three is new, changed or gone"):
        local.prepare(EXTEND | {"dataset": {"path": "three"}}, tmp_path / "out", roots).run(silent)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"method": {"name": "dance", "factor": 1}},
            "method.factor: an extended set keeps the value of its base, 2; leave method out",
        ),
        ({"method": "best"}, "method.name: an extended set keeps the value of its base, 'dance'"),
        ({"network": {"width": 5}}, "network.width: an extended set keeps the value of its base, 4; leave network out"),
        ({"ipc": 3}, "ipc: an extended set keeps the value of its base, 2; leave ipc out"),
        ({"seed": 0}, "seed: an extended set keeps the value of its base, 4"),
        ({"method": {"name": "dm"}}, "method.name: an extended set keeps"),
        ({"validation": {"every": 1}}, "leave validation out"),
        ({"base": {"path": "absent.safetensors"}}, "there is no 'absent.safetensors'"),
        ({"base": {"job_id": "job_1"}}, "job_1 is a job of a server"),
        ({"base": {}}, "give exactly one of job_id and path"),
        ({"dataset": {"path": "large"}}, r"the set has images of 1×8×8 .*, large has 1×9×9; set dataset.image_size"),
    ],
)
def test_unusable_specs_are_refused(tmp_path: Path, roots: DataRoots, fields: dict[str, Any], message: str) -> None:
    make_base(roots, tmp_path / "base", iterations=0)
    save_images(roots.datasets / "large", {"a": 1, "b": 2}, side=9)
    with pytest.raises((ValueError, CafeError), match=message):
        local.prepare(EXTEND | fields, tmp_path / "out", roots)
    assert not (tmp_path / "out").exists()


def test_fields_of_the_base_may_be_repeated(tmp_path: Path, roots: DataRoots) -> None:
    make_base(roots, tmp_path / "base")
    repeated = {field: BASE[field] for field in ("ipc", "seed", "method", "network")}
    short = local.prepare(EXTEND, tmp_path / "short", roots).job.spec
    assert local.prepare(EXTEND | repeated, tmp_path / "long", roots).job.spec == short


def test_classes_that_are_gone_are_left_out_without_condensing_anything(tmp_path: Path, roots: DataRoots) -> None:
    base = make_base(roots, tmp_path / "base")
    save_images(roots.datasets / "two", {"a": 1, "c": 3})
    spec = EXTEND | {
        "base": {"path": str(roots.datasets / "base.safetensors")},
        "dataset": {"path": str(roots.datasets / "two")},
        "evaluation": {"networks": [{"name": "mlp", "width": 4}], "repeats": 1, "epochs": 1},
    }
    result = local.prepare(spec, tmp_path / "out", roots).run(silent)
    assert result["extended"] == {"condensed": [], "kept": 2}
    made = SyntheticSet.load(JobDir(tmp_path / "out").attempt(1).synthetic_file)
    assert made.class_names == ["a", "c"]
    assert (made.spec["base"]["path"], made.spec["dataset"]["path"], made.dataset["name"]) == ("base.safetensors", "two", "two")
    for name in made.class_names:
        assert images_of(made, name) == images_of(base, name)


def test_base_must_not_change_between_runs_but_its_file_may_be_gone(tmp_path: Path, roots: DataRoots) -> None:
    made = make_base(roots, tmp_path / "base")
    first = local.prepare(EXTEND, tmp_path / "out", roots).run(silent)
    file = roots.datasets / "base.safetensors"
    replace(made, images=made.images + np.float32(1)).save(file)
    with pytest.raises(CafeError, match="holds the files of a job that extends another set"):
        local.prepare(EXTEND, tmp_path / "out", roots)
    file.unlink()
    assert local.prepare(EXTEND, tmp_path / "out", roots).run(silent)["extended"] == first["extended"]


def test_evaluation_normalises_the_test_images_as_the_set(tmp_path: Path, roots: DataRoots) -> None:
    """Classes of constant images, dark in the base and bright afterwards, which only the right normalisation tells apart."""
    levels = {"a": 20, "b": 120, "c": 220}
    for path, names in (("dark", "ab"), ("all", "abc")):
        for name in names:
            for split in ("train", "test"):
                folder = roots.datasets / path / split / name
                folder.mkdir(parents=True)
                for number in range(4):
                    pixels = np.random.default_rng(number).integers(-9, 9, (8, 8)) + levels[name]
                    Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    method = {"name": "dm", "init": "real", "batch_real": 4}
    make_base(roots, tmp_path / "base", dataset={"path": "dark"}, method=method)
    judging = {"networks": [{"name": "mlp", "width": 16}], "repeats": 2, "epochs": 300}
    spec = EXTEND | {"dataset": {"path": "all"}, "evaluation": judging}
    result = local.prepare(spec, tmp_path / "out", roots).run(silent)
    assert result["extended"]["condensed"] == ["c"]
    assert result["evaluation"]["networks"][0]["mean"] == 100


@pytest.mark.parametrize("method", [{"name": "cafe"}, {"name": "dc"}, {"name": "herding", "network_epochs": 1}])
def test_sets_whose_classes_depend_on_each_other_are_refused(tmp_path: Path, roots: DataRoots, method: dict[str, Any]) -> None:
    made = make_base(roots, tmp_path / "base", iterations=0, method=method)
    assert made.class_sha256 is None
    with pytest.raises(ValueError, match=f"a set made by {method['name']} cannot be extended"):
        local.prepare(EXTEND, tmp_path / "out", roots)


SOFT = np.full((6, 3), 1 / 3, np.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda made: replace(made, class_sha256=None), "does not hold the hashes of its real images"),
        (lambda made: made.decoded(), "does not hold the images as its job stored them"),
        (lambda made: replace(made, decode=None), "does not hold the images as its job stored them"),
        (lambda made: replace(made, labels=SOFT), "has soft labels"),
        (lambda made: replace(made, iteration=2), "the set is of iteration 2 of 3; wait until its job has finished"),
        (lambda made: replace(made, spec={}), "the set does not say how it was made"),
    ],
    ids=["earlier version", "decoded", "decode removed", "soft labels", "unfinished", "unknown"],
)
def test_unusable_sets_are_refused(
    tmp_path: Path, roots: DataRoots, change: Callable[[SyntheticSet], SyntheticSet], message: str
) -> None:
    made = make_base(roots, tmp_path / "base")
    change(made).save(roots.datasets / "base.safetensors")
    with pytest.raises((ValueError, CafeError), match=message):
        local.prepare(EXTEND, tmp_path / "out", roots)
