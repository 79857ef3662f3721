"""Test that a stale attempt changes no more files, whichever event it had reached."""

from __future__ import annotations

import json
import pickle
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cafe_core.data.roots import DataRoots
from cafe_core.errors import StaleAttemptError
from cafe_core.files import LineLog, read_lines, write_atomically
from cafe_core.jobs import local
from cafe_core.jobs.fence import AttemptFence
from cafe_core.jobs.jobdir import JobDir
from tests.cafe_core.jobs.test_local import SPEC, roots  # noqa: F401 - a fixture

VALIDATED = SPEC | {"validation": {"every": 2, "fraction": 0.4, "repeats": 1, "epochs": 1}}
EVALUATE = {
    "kind": "evaluate",
    "synthetic": {"dataset": SPEC["dataset"], "selection": "herding", "ipc": 1},
    "networks": [{"name": "mlp", "width": 4}],
    "repeats": 3,
    "epochs": 1,
}
SWEEP = {"kind": "sweep", "base": SPEC, "space": {"seed": {"grid": [0, 1]}}}


def files_of(directory: JobDir) -> dict[Path, bytes]:
    """Return all files except the event logs, which belong to an attempt."""
    found = [path for path in directory.path.rglob("*") if path.is_file() and path.name != "events.jsonl"]
    return {path: path.read_bytes() for path in found}


def supersede_attempt(directory: JobDir) -> None:
    job = json.loads(directory.job_file.read_bytes())
    write_atomically(directory.job_file, json.dumps(job | {"attempt": 2}).encode())


@pytest.mark.parametrize(
    ("spec", "moment"),
    [
        (SPEC, {"type": "phase", "phase": "preparing"}),
        (SPEC, {"type": "phase", "phase": "condensing"}),
        (SPEC, {"type": "iteration", "iteration": 2}),
        (SPEC, {"type": "phase", "phase": "evaluating"}),
        (SPEC, {"type": "evaluated", "done": 2}),
        (SPEC, {"type": "phase", "phase": "publishing"}),
        (VALIDATED, {"type": "phase", "phase": "validating"}),
        (VALIDATED, {"type": "validated"}),
        (EVALUATE, {"type": "phase", "phase": "evaluating"}),
        (EVALUATE, {"type": "evaluated", "done": 2}),
        (SWEEP, {"type": "phase", "phase": "sweeping"}),
        (SWEEP, {"type": "trial_started", "number": 0}),
        (SWEEP, {"type": "trial", "number": 0}),
    ],
)
def test_stale_attempt_changes_no_file(
    spec: dict[str, Any],
    moment: dict[str, Any],
    tmp_path: Path,
    roots: DataRoots,  # noqa: F811
) -> None:
    directory = JobDir(tmp_path / "out")
    left: dict[Path, bytes] = {}

    def report(type: str, **data: Any) -> None:
        if not left and moment.items() <= {"type": type, **data}.items():
            supersede_attempt(directory)
            left.update(files_of(directory))

    job = local.prepare(spec, directory.path, roots)
    with pytest.raises(StaleAttemptError, match="names attempt 2"):
        job.run(report)
    assert left
    assert files_of(directory) == left


def test_fence_does_not_recreate_a_deleted_job(tmp_path: Path) -> None:
    fence = AttemptFence.of(JobDir(tmp_path / "job"), 1)
    with pytest.raises(StaleAttemptError, match="deleted"):
        write_atomically(tmp_path / "job" / "checkpoints" / "file", b"", fence=fence)
    assert not (tmp_path / "job").exists()


def test_pickled_fence_lets_only_its_attempt_write(tmp_path: Path) -> None:
    directory = JobDir(tmp_path)
    write_atomically(directory.job_file, b'{"job_id": "before there were fences"}')
    fence = pickle.loads(pickle.dumps(AttemptFence.of(directory, 1)))
    write_atomically(tmp_path / "file", b"1", fence=fence)
    with closing(LineLog(tmp_path / "log", fence=fence)) as log:
        log.append({"a": 1})
        supersede_attempt(directory)
        with pytest.raises(StaleAttemptError):
            log.append({"a": 2})
    with (tmp_path / "log").open("ab") as half:
        half.write(b'{"a"')  # the next attempt is writing this line
    with pytest.raises(StaleAttemptError):
        LineLog(tmp_path / "log", fence=fence)
    assert (tmp_path / "log").read_bytes().endswith(b'{"a"')
    assert read_lines(tmp_path / "log") == [{"a": 1}]


def test_fence_is_checked_right_before_the_rename(tmp_path: Path) -> None:
    directory = JobDir(tmp_path)
    write_atomically(directory.job_file, b'{"attempt": 1}')
    seen = []

    def fence() -> None:
        AttemptFence.of(directory, 1)()
        seen.append([path.name for path in tmp_path.iterdir()])
        supersede_attempt(directory)

    with pytest.raises(StaleAttemptError):
        write_atomically(tmp_path / "file", b"2", fence=fence)
    assert seen == [["job.json"]]
    assert [path.name for path in tmp_path.iterdir()] == ["job.json"]
