"""Test `cafe run` into a directory with a job's files: the same job resumes, another is refused."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest

from cafe_core.data.roots import DataRoots
from cafe_core.errors import SpecError
from cafe_core.jobs import local
from cafe_core.jobs.jobdir import JobDir
from tests.cafe_core.jobs.test_job_kinds import CONDENSE, EVALUATE, SWEEP, VALIDATION
from tests.cafe_core.jobs.test_local import InterruptedJobError, save_images, silent


@pytest.fixture
def roots(tmp_path: Path) -> DataRoots:
    save_images(tmp_path / "datasets" / "own.npz", seed=0)
    return DataRoots(datasets=tmp_path / "datasets", uploads=tmp_path / "u", downloads=tmp_path / "d", cache=tmp_path / "c")


@pytest.mark.parametrize(
    ("first", "then", "differs"),
    [
        (EVALUATE, {"epochs": 3}, "epochs, whole_epochs"),
        (EVALUATE, {"networks": [{"name": "lenet"}], "seed": 1}, "networks, seed"),
        (SWEEP, {"space": {"seed": {"grid": [7]}}}, "space"),
        ({**CONDENSE, "validation": VALIDATION}, {"validation": {**VALIDATION, "epochs": 3}}, "validation"),
        ({**CONDENSE, "validation": VALIDATION}, {"evaluation": {**CONDENSE["evaluation"], "epochs": 3}}, "evaluation"),
        (CONDENSE, {"seed": 1}, "seed"),
    ],
)
def test_refuses_directory_of_another_job(
    tmp_path: Path, roots: DataRoots, first: dict[str, Any], then: dict[str, Any], differs: str
) -> None:
    judged = {"synthetic": {"dataset": {"path": "own.npz"}, "selection": "random", "ipc": 2}}
    first = first | judged if first is EVALUATE else first
    local.prepare(first, tmp_path / "out", roots).run(silent)
    with pytest.raises(SpecError, match=f"holds the files of a job that differs in {differs}; choose another directory"):
        local.prepare(first | then, tmp_path / "out", roots)
    local.prepare(first | {"name": "same job, other name"}, tmp_path / "out", roots)


def test_condensation_continues_to_more_iterations_with_another_evaluation(tmp_path: Path, roots: DataRoots) -> None:
    local.prepare({**CONDENSE, "iterations": 2}, tmp_path / "out", roots).run(silent)
    evaluation = {"networks": [{"name": "lenet"}], "repeats": 3, "epochs": 2}
    iterations: list[int] = []

    def report(type: str, **data: Any) -> None:
        iterations.extend([data["iteration"]] if type == "iteration" else [])

    result = local.prepare({**CONDENSE, "evaluation": evaluation}, tmp_path / "out", roots).run(report)
    assert iterations == [3, 4]
    assert [(row["name"], row["n"]) for row in result["evaluation"]["networks"]] == [("lenet", 3)]


@pytest.mark.parametrize("interrupted", [False, True])
def test_refuses_fewer_iterations_than_the_directory_has_reached(tmp_path: Path, roots: DataRoots, interrupted: bool) -> None:
    """Otherwise the images of iteration 3 would be reported as those of iteration 2."""

    def report(type: str, **data: Any) -> None:
        if interrupted and type == "checkpoint" and data["iteration"] == 3:
            raise InterruptedJobError

    three = {**CONDENSE, "iterations": 3, "checkpoint_every": 1}
    with contextlib.suppress(InterruptedJobError):
        local.prepare(three, tmp_path / "out", roots).run(report)
    with pytest.raises(SpecError, match="holds the images of iteration 3, later than 2; choose another directory") as refused:
        local.prepare(three | {"iterations": 2}, tmp_path / "out", roots)
    assert refused.value.loc == "iterations"
    local.prepare(three, tmp_path / "out", roots).run(silent)


def test_unreadable_job_file_is_not_overwritten(tmp_path: Path, roots: DataRoots) -> None:
    file = JobDir(tmp_path).job_file
    file.write_text('{"job_id": "of a future version"}')
    with pytest.raises(SpecError, match="cannot be read; choose another directory"):
        local.prepare(CONDENSE, tmp_path, roots)
    assert file.read_text() == '{"job_id": "of a future version"}'
