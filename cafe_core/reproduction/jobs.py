"""Define the jobs of a reproduction and their outcomes.

A job is identified by its spec, so that tables that need the same job share it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from cafe_core.files import write_atomically
from cafe_core.jobs.jobdir import JobDir
from cafe_core.synthetic_set.synthetic_set import SyntheticSet

JobReport = Callable[[str, str], None]
"""report(job's name, progress), callable from any thread."""


class Job:
    """A job spec as sent to a server. Jobs with equal specs are equal."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.spec = spec

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Job) and other.name == self.name

    def __hash__(self) -> int:
        return hash(self.name)

    @cached_property
    def name(self) -> str:
        """Return the name of the job and its directory: a description and a hash of the spec."""
        digest = hashlib.sha256(json.dumps(self.spec, sort_keys=True).encode()).hexdigest()[:10]
        return f"{self._about()}-{digest}"

    def _about(self) -> str:
        if self.spec["kind"] == "evaluate":
            judged = self.spec["synthetic"]
            return f"{judged['selection']}-{judged['dataset']['name']}"
        return f"{self.spec['method']['name']}-{self.spec['dataset']['name']}-ipc{self.spec['ipc']}"


@dataclass(frozen=True)
class Cost:
    """The compute spent on a synthetic set over all attempts. A step that was repeated after an interruption counts once."""

    seconds: float
    """Seconds of all iterations, and of training networks on real images, unless an earlier job had trained them."""
    real_images: int
    """Real images that passed through a network, including those of that training, even if another job did it."""


@dataclass(frozen=True)
class Finished:
    """A job that succeeded."""

    name: str
    result: dict[str, Any]
    """Its `result.json`."""
    condensing_s: float | None
    """Seconds of its iterations over all attempts; None for a job without iterations."""
    artifacts: Path
    """The directory of its artifacts."""
    cost: Cost | None = None
    """The compute spent on its set. None for a job without a set, and for a job that an earlier version finished."""
    earlier: bool = False
    """Whether an earlier run finished it."""

    def networks(self) -> list[dict[str, Any]]:
        """Return the rows of its evaluation (name, mean, std, n, accuracies in percent); empty without an evaluation."""
        evaluation = self.result.get("evaluation", self.result) or {}  # an evaluate job's result is its evaluation
        rows: list[dict[str, Any]] = evaluation.get("networks", [])
        return rows

    def synthetic_set(self) -> SyntheticSet:
        """Load the job's synthetic set. Raises SyntheticSetError."""
        return SyntheticSet.load(self.artifacts / "synthetic.safetensors")


@dataclass(frozen=True)
class Failed:
    """A job that failed."""

    name: str
    reason: str


Outcome = Finished | Failed


class Runner(Protocol):
    """Run jobs, on this machine (:class:`cafe_core.reproduction.local_runner.LocalRunner`) or on a server."""

    def run(self, jobs: Sequence[Job], report: JobReport) -> Iterator[Outcome]:
        """Yield the outcome of each job as it ends, in any order. Jobs that an earlier run finished are not run again."""


@dataclass(frozen=True)
class Workplace:
    """The directories of a reproduction's jobs::

    OUT/jobs/NAME/
        finished.json      written last: without it, the job is run or resumed
        …                  job files: see :mod:`cafe_core.jobs.jobdir`
    """

    out: Path

    def directory(self, name: str) -> JobDir:
        """Return the directory of a job."""
        return JobDir(self.out / "jobs" / name)

    def artifacts(self, name: str) -> Path:
        """Return the directory of a job's artifacts."""
        return self.directory(name).attempt(1).artifacts

    def finished(self, name: str) -> Finished | None:
        """Return the outcome of a job that an earlier run finished, or None."""
        note = self._note(name)
        if not note.exists():
            return None
        content = json.loads(note.read_bytes())
        cost = Cost(**found) if (found := content.pop("cost", None)) is not None else None
        return Finished(**content, name=name, artifacts=self.artifacts(name), cost=cost, earlier=True)

    def finish(self, name: str, result: dict[str, Any], events: Iterable[dict[str, Any]]) -> Finished:
        """Record that a job is finished. events: `{"type", "data"}`, of all attempts. Raises DiskFullError."""
        steps = _steps(events)
        condensing_s, cost = condensing_seconds(steps), cost_of(steps)
        content = {"result": result, "condensing_s": condensing_s, "cost": None if cost is None else asdict(cost)}
        write_atomically(self._note(name), json.dumps(content, indent=2).encode())
        return Finished(name, result, condensing_s, self.artifacts(name), cost)

    def _note(self, name: str) -> Path:
        return self.directory(name).path / "finished.json"


Steps = dict[tuple[str, int], dict[str, Any]]
"""The data of the events `pool`, `epoch` and `iteration` by type and number; the last one of each."""


def _steps(events: Iterable[dict[str, Any]]) -> Steps:
    numbers = {"pool": None, "epoch": "epoch", "iteration": "iteration"}
    return {
        (event["type"], event["data"][number] if (number := numbers[event["type"]]) is not None else 0): event["data"]
        for event in events
        if event["type"] in numbers
    }


def condensing_seconds(steps: Steps) -> float | None:
    """Return the seconds of all iterations over all attempts; None without iterations."""
    seconds = [data["seconds"] for (type_, _), data in steps.items() if type_ == "iteration"]
    return round(sum(seconds), 3) if seconds else None


def cost_of(steps: Steps) -> Cost | None:
    """Return what making the set took; None without steps.

    The event `pool` states the images of the training of the whole pool, so the epochs of that training are not counted again.
    """
    if not steps:
        return None
    counted = {type_ for type_, _ in steps if not (type_ == "epoch" and ("pool", 0) in steps)}
    images = sum(int(data.get("real_images", 0)) for (type_, _), data in steps.items() if type_ in counted)
    return Cost(round(sum(float(data.get("seconds", 0)) for data in steps.values()), 3), images)
