"""Test the local runner with real jobs in separate processes, which are interrupted, killed and resumed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from cafe_core.data.roots import DataRoots
from cafe_core.reproduction.experiment import Cell, Experiment
from cafe_core.reproduction.jobs import Failed, Finished, Job, Outcome, Workplace
from cafe_core.reproduction.local_runner import LocalRunner, visible_gpus
from cafe_core.reproduction.markdown import Circumstances
from cafe_core.reproduction.reproduce import BusyError, reproduce
from cafe_core.reproduction.scales import SMOKE

NETWORK = {"name": "convnet", "width": 4, "depth": 1}


def tiny(**fields: Any) -> Job:
    """Return a job that takes a few seconds."""
    spec = {
        "kind": "condense",
        "dataset": {"name": "digits"},
        "ipc": 1,
        "iterations": 6,
        "checkpoint_every": 1,
        "network": NETWORK,
        "method": {"name": "cafe", "batch_real": 4, "max_outer": 1},
        "evaluation": {"networks": [NETWORK], "repeats": 2, "epochs": 2},
        "resources": {"gpus_per_worker": 0},
        "seed": 0,
    }
    return Job(spec | fields)


def runner(out: Path, processes: int = 2) -> LocalRunner:
    """Return a runner whose data is in the directory of the test."""
    data = out.parent / "data"
    return LocalRunner(Workplace(out), DataRoots(datasets=data, uploads=data, downloads=data, cache=data / "cache"), processes)


def silent(_name: str, _how_far: str) -> None:
    pass


def outcomes_by_name(outcomes: list[Outcome]) -> dict[str, Outcome]:
    return {outcome.name: outcome for outcome in outcomes}


def iterations_done(out: Path, job: Job) -> list[int]:
    """Return the iterations that a job has done over all runs, in their order."""
    events = Workplace(out).directory(job.name).attempt(1).events_file.read_text().splitlines()
    return [event["iteration"] for event in map(json.loads, events) if event["type"] == "iteration"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Finished]:
    """Run the job `tiny()`. Return the directory of the results, and its outcome."""
    out = tmp_path_factory.mktemp("finished") / "out"
    (outcome,) = runner(out).run([tiny()], silent)
    assert isinstance(outcome, Finished)
    return out, outcome


def test_interrupted_run_is_resumed(tmp_path: Path) -> None:
    """The images are those of a run without interruption, beside which another job runs at the same time."""
    first, second = tiny(), tiny(iterations=150, evaluation=None)
    seen: list[str] = []

    def interrupt(_name: str, how_far: str) -> None:
        seen.append(how_far)
        if how_far == "iteration 20/150":
            raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        list(runner(out, processes=1).run([first, second], interrupt))
    assert "network 2/2" in " ".join(seen)
    done = len(iterations_done(out, second))
    assert 20 <= done < 150

    seen.clear()
    outcomes = outcomes_by_name(list(runner(out).run([first, second], lambda _name, how_far: seen.append(how_far))))
    earlier, resumed = outcomes[first.name], outcomes[second.name]
    assert isinstance(earlier, Finished)
    assert isinstance(resumed, Finished)
    assert (earlier.earlier, resumed.earlier) == (True, False)
    assert "iteration 1/150" not in seen
    assert "iteration 150/150" in seen
    repeated = len(iterations_done(out, second)) - 150
    assert 0 <= repeated <= 1  # at most the iteration after the last checkpoint

    times: dict[str, list[float]] = {}
    beside = tiny(seed=1, iterations=400, evaluation=None)  # so long that it still runs when the other starts
    at_once = runner(tmp_path / "undisturbed").run(
        [second, beside], lambda name, _: times.setdefault(name, []).append(time.monotonic())
    )
    both = outcomes_by_name(list(at_once))
    assert all(isinstance(outcome, Finished) for outcome in both.values()), both
    undisturbed = both[second.name]
    assert isinstance(undisturbed, Finished)
    one, other = times.values()
    assert max(one[0], other[0]) < min(one[-1], other[-1])  # two jobs in two processes overlap in time
    sets = [(outcome.artifacts / "synthetic.safetensors").read_bytes() for outcome in (resumed, undisturbed)]
    assert sets[0] == sets[1]


def test_finished_jobs_are_read_and_not_run_again(finished: tuple[Path, Finished]) -> None:
    out, made = finished
    assert made.condensing_s is not None
    assert made.condensing_s > 0
    events = Workplace(out).directory(made.name).attempt(1).events_file
    before = events.read_bytes()
    (read,) = runner(out).run([tiny()], silent)
    assert isinstance(read, Finished)
    assert (made.earlier, read.earlier) == (False, True)
    assert (read.result, read.condensing_s, read.networks()) == (made.result, made.condensing_s, made.networks())
    assert events.read_bytes() == before
    assert read.synthetic_set().images.shape == (10, 1, 8, 8)


def test_failed_jobs_do_not_affect_the_others(tmp_path: Path) -> None:
    refused = tiny(method={"name": "cafe", "layers": [7]})
    killed, well = tiny(iterations=100_000), tiny()
    out = tmp_path / "out"

    def kill(name: str, how_far: str) -> None:
        if name == killed.name and how_far == "iteration 3/100000":
            for process in runs._running:
                if killed.name in str(process.args):
                    os.kill(process.pid, signal.SIGKILL)

    runs = runner(out)
    outcomes = outcomes_by_name(list(runs.run([refused, killed, well], kill)))
    assert isinstance(outcomes[well.name], Finished)
    first, second = outcomes[refused.name], outcomes[killed.name]
    assert isinstance(first, Failed)
    assert "method.layers: [7] must be increasing and below 2" in first.reason
    assert isinstance(second, Failed)
    assert second.reason.startswith("its process ended with signal 9")


def test_job_process_ends_with_its_parent(tmp_path: Path) -> None:
    """When the runner is killed, its jobs must end, because the next run uses their directories."""
    job = tiny(iterations=100_000)
    order = tmp_path / "order.json"
    roots = {name: str(tmp_path) for name in ("datasets", "uploads", "downloads", "cache")}
    order.write_text(json.dumps({"spec": job.spec, "out": str(tmp_path / "job"), "roots": roots}))
    command = [sys.executable, "-m", "cafe_core.reproduction.job_process", str(order)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[3]) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert any(b'"iteration"' in line for line in process.stdout), "the job ended before its first iteration"
        process.stdin.close()
        process.stdout.read()  # until it ends
        assert process.wait(timeout=20) == 1


def test_visible_gpus_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for named, expected in (("", []), ("-1", []), ("0,3", ["0", "3"]), ("GPU-1234", ["GPU-1234"])):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
        assert visible_gpus() == expected


CIRCUMSTANCES = Circumstances("cafe reproduce table2", "now", "here")


def experiment(*rows: tuple[str, Job]) -> Experiment:
    """Return a table of one column."""
    cells = tuple(Cell(row, "accuracy", (job,)) for row, job in rows)
    return Experiment("table2", SMOKE, "made", "row", cells, "digits", "CIFAR10", notes=(), differences=())


def test_failed_cell_shows_the_reason_and_the_table_is_written(finished: tuple[Path, Finished], tmp_path: Path) -> None:
    shutil.copytree(finished[0], tmp_path / "out")
    table = experiment(("good", tiny()), ("bad", tiny(method={"name": "cafe", "layers": [7]})))
    counts: list[int] = []
    succeeded = reproduce(
        table,
        runner(tmp_path / "out"),
        tmp_path / "out",
        CIRCUMSTANCES,
        report=silent,
        ended=lambda _outcome, count: counts.append(count),
    )
    assert not succeeded
    assert counts == [1, 2]
    text = (tmp_path / "out" / "table2.md").read_text()
    assert "| bad | failed: method.layers: [7] must be" in text
    assert "![made](table2.png)" in text
    assert (tmp_path / "out" / "table2.png").stat().st_size > 1000
    cells = json.loads((tmp_path / "out" / "table2.json").read_text())["cells"]
    assert (cells[0]["n"], len(cells[0]["values"])) == (2, 2)
    assert cells[1]["no_number"].startswith("failed: ")


def test_table_is_written_and_another_run_is_refused_while_jobs_run(tmp_path: Path) -> None:
    out, table = tmp_path / "out", experiment(("one", tiny()))
    during: list[str] = []

    def look(_name: str, _how_far: str) -> None:
        during.append((out / "table2.md").read_text())
        with pytest.raises(BusyError, match="another run uses"):
            reproduce(table, runner(out), out, CIRCUMSTANCES, report=silent, ended=lambda *_: None)

    assert reproduce(table, runner(out), out, CIRCUMSTANCES, report=look, ended=lambda *_: None)
    assert "| one | not run yet |" in during[0]
