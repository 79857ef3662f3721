"""Test that a job keeps its real images when a later version of the readers reads the same files differently."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cafe_core.data.class_store import ClassStore, build_from_arrays
from cafe_core.data.roots import DataRoots
from cafe_core.data.store_path import first_reader_store_path
from cafe_core.errors import DatasetError
from cafe_core.jobs import local
from cafe_core.jobs.job_data import job_store
from cafe_core.jobs.jobdir import JobDir
from cafe_core.spec.dataset import CondensedDataset, DatasetSpec
from cafe_core.synthetic_set.synthetic_set import SyntheticSet

CLASSES = 11
SPEC = {
    "kind": "condense",
    "dataset": {"path": "numbers"},
    "ipc": 1,
    "iterations": 1,
    "method": {"batch_real": 2, "max_outer": 1},
    "network": {"width": 4, "depth": 1},
    "evaluation": None,
}


def silent(type: str, **data: object) -> None:
    pass


@pytest.fixture
def roots(tmp_path: Path) -> DataRoots:
    """Create a folder whose classes are numbers: the first readers ordered them as texts, 0, 1, 10, 2."""
    random = np.random.default_rng(0)
    for k in range(CLASSES):
        (tmp_path / "datasets" / "numbers" / str(k)).mkdir(parents=True)
        for i in range(2):
            pixels = random.integers(0, 255, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "datasets" / "numbers" / str(k) / f"{i}.png")
    return DataRoots(datasets=tmp_path / "datasets", uploads=tmp_path / "u", downloads=tmp_path / "d", cache=tmp_path / "c")


@pytest.fixture
def old(tmp_path: Path, roots: DataRoots) -> JobDir:
    """Create the directory of a job, and the class store, as the first readers made them."""
    local.prepare(SPEC, tmp_path / "out", roots).run(silent)
    directory = JobDir(tmp_path / "out")
    names = sorted(map(str, range(CLASSES)))
    images = [np.asarray(Image.open(file)) for name in names for file in sorted((roots.datasets / "numbers" / name).iterdir())]
    store = build_from_arrays(
        first_reader_store_path(DatasetSpec(path="numbers"), roots),
        images=np.stack(images)[:, None],
        labels=np.repeat(np.arange(CLASSES), 2),
        name="numbers",
        class_names=names,
    )
    dataset = CondensedDataset(**store.info.model_dump())
    directory.dataset_file.write_text(dataset.model_dump_json(exclude={"notes"}))
    directory.reader_version_file.unlink()
    for file in directory.checkpoint_files():
        file.unlink()
    return directory


def test_job_of_an_earlier_reader_keeps_its_store(tmp_path: Path, roots: DataRoots, old: JobDir) -> None:
    local.prepare(SPEC, old.path, roots).run(silent)
    made = SyntheticSet.load(old.attempt(1).synthetic_file)
    assert made.class_names == sorted(map(str, range(CLASSES)))
    new = tmp_path / "new"
    local.prepare(SPEC, new, roots).run(silent)
    assert SyntheticSet.load(JobDir(new).attempt(1).synthetic_file).class_names == list(map(str, range(CLASSES)))


def test_message_without_the_earlier_store(roots: DataRoots, old: JobDir) -> None:
    store = ClassStore.open(first_reader_store_path(DatasetSpec(path="numbers"), roots)).path
    store.rename(store.with_name("gone"))
    with pytest.raises(DatasetError, match="numbers is read differently by this version"):
        local.prepare(SPEC, old.path, roots).run(silent)


def test_message_for_data_that_has_changed(tmp_path: Path, roots: DataRoots) -> None:
    local.prepare(SPEC, tmp_path / "out", roots).run(silent)
    Image.new("L", (8, 8), 7).save(roots.datasets / "numbers" / "3" / "9.png")
    with pytest.raises(DatasetError, match="numbers has changed since the job's first attempt"):
        local.prepare(SPEC, tmp_path / "out", roots).run(silent)


def test_trials_read_as_their_sweep_began(tmp_path: Path, roots: DataRoots, old: JobDir) -> None:
    sweep = JobDir(tmp_path / "sweep")
    sweep.path.mkdir()
    sweep.dataset_file.write_bytes(old.dataset_file.read_bytes())
    dataset = DatasetSpec(path="numbers")
    old_store = first_reader_store_path(dataset, roots)
    assert job_store(sweep.trial(3), dataset, roots) == old_store
    sweep.reader_version_file.write_text(json.dumps(2))
    assert job_store(sweep.trial(3), dataset, roots) != old_store
