"""Test that a job reports what its user should know about the images, and keeps it in the result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cafe_core.data.roots import DataRoots
from cafe_core.jobs import local
from cafe_core.synthetic_set.synthetic_set import SyntheticSet
from tests.cafe_core.data.image_folders import picture

RANDOM = {"dataset": {"path": "data", "test_fraction": 0.4}, "ipc": 3, "method": {"name": "random"}}
HERDING = {"dataset": {"path": "data", "test_fraction": 0.4}, "ipc": 3, "selection": "herding"}
NETWORK = {"name": "mlp", "width": 4}
JUDGED = {"kind": "evaluate", "networks": [NETWORK], "repeats": 1, "epochs": 1}


@pytest.mark.parametrize(
    ("spec", "codes"),
    [
        (RANDOM, ["repeated", "split"]),
        (RANDOM | {"ipc": 1}, ["split"]),
        (RANDOM | {"method": {"name": "dm", "batch_real": 4}, "iterations": 0, "network": NETWORK}, ["split"]),
        (JUDGED | {"synthetic": HERDING}, ["repeated", "split"]),
        (JUDGED | {"synthetic": HERDING | {"selection": "random"}}, ["split"]),
    ],
    ids=["random", "random enough", "dm", "coreset", "random selection"],
)
def test_notes_are_reported_and_kept_in_the_result(tmp_path: Path, spec: dict[str, Any], codes: list[str]) -> None:
    for name, count in {"d0": 6, "d1": 6, "d2": 2}.items():
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(count):
            picture("L", (8, 8)).save(tmp_path / "data" / name / f"{i}.png")
    roots = DataRoots(datasets=tmp_path, uploads=tmp_path / "u", downloads=tmp_path / "d", cache=tmp_path / "c")
    events: list[tuple[str, dict[str, Any]]] = []
    job = local.prepare(spec, tmp_path / "out", roots)
    result = job.run(lambda type, **data: events.append((type, data)))
    assert sorted(note["code"] for note in result["notes"]) == codes
    assert [data["notes"] for type, data in events if type == "notes"] == [result["notes"]]
    if (synthetic := job.directory.attempt(1).synthetic_file).exists():
        assert [note["code"] for note in SyntheticSet.load(synthetic).dataset["notes"]] == ["split"]
    for note in result["notes"]:
        if note["code"] == "repeated":
            assert note["message"] == "ipc is 3, but 1 of 3 classes have fewer images, which are repeated: 'd2' has 1"
