"""`cafe run` into a directory that holds a job's files: the same job goes on, another is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cafe_core.data.roots import DataRoots
from cafe_core.errors import SpecError
from cafe_core.jobs import local
from cafe_core.jobs.jobdir import JobDir
from tests.cafe_core.jobs.test_job_kinds import CONDENSE, EVALUATE, SWEEP, VALIDATION
from tests.cafe_core.jobs.test_local import save_images, silent


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
def test_the_results_of_another_job_do_not_pass_for_this_ones(
    tmp_path: Path, roots: DataRoots, first: dict[str, Any], then: dict[str, Any], differs: str
) -> None:
    judged = {"synthetic": {"dataset": {"path": "own.npz"}, "selection": "random", "ipc": 2}}
    first = first | judged if first is EVALUATE else first
    local.prepare(first, tmp_path / "out", roots).run(silent)
    with pytest.raises(SpecError, match=f"holds the files of a job that differs in {differs}; choose another directory"):
        local.prepare(first | then, tmp_path / "out", roots)
    local.prepare(first | {"name": "the same by another name"}, tmp_path / "out", roots)


def test_a_condensation_goes_on_to_more_iterations_and_is_evaluated_otherwise(tmp_path: Path, roots: DataRoots) -> None:
    local.prepare({**CONDENSE, "iterations": 2}, tmp_path / "out", roots).run(silent)
    evaluation = {"networks": [{"name": "lenet"}], "repeats": 3, "epochs": 2}
    iterations: list[int] = []

    def report(type: str, **data: Any) -> None:
        iterations.extend([data["iteration"]] if type == "iteration" else [])

    result = local.prepare({**CONDENSE, "evaluation": evaluation}, tmp_path / "out", roots).run(report)
    assert iterations == [3, 4]
    assert [(row["name"], row["n"]) for row in result["evaluation"]["networks"]] == [("lenet", 3)]


def test_a_job_file_that_cannot_be_read_is_not_written_over(tmp_path: Path, roots: DataRoots) -> None:
    file = JobDir(tmp_path).job_file
    file.write_text('{"job_id": "of a version to come"}')
    with pytest.raises(SpecError, match="cannot be read; choose another directory"):
        local.prepare(CONDENSE, tmp_path, roots)
    assert file.read_text() == '{"job_id": "of a version to come"}'
