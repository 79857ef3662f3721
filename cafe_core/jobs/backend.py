"""What a job asks for, and of whom: a :class:`Backend` is where the work runs.

Two implement it: :mod:`cafe_core.jobs.local` in one process, and `workers.backend` with Ray. No torch here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from cafe_core.evaluation.tasks import EvaluationSetup, EvaluationTask
from cafe_core.jobs.fence import AttemptFence
from cafe_core.jobs.jobdir import AttemptDir, JobDir, JobFile
from cafe_core.spec.condense import CondenseSpec
from cafe_core.spec.resources import ResourcesSpec
from cafe_core.spec.trials import Trial

Report = Callable[..., None]
"""report(type, **data), for the event log."""


@dataclass(frozen=True)
class Condensation:
    """What the workers of a condensation are told. Pickled to them."""

    spec: CondenseSpec
    """Resolved."""
    store: Path
    """The class store of the real images."""
    num_classes: int
    checkpoints: Path
    """The directory of checkpoints: where to go on from and to."""
    fence: AttemptFence
    """Asked before a checkpoint is written."""


TrialStatus = Literal["succeeded", "failed", "stopped"]


@dataclass(frozen=True)
class TrialOutcome:
    """How a sweep's trial ended. `stopped`: early, by the scheduler."""

    number: int
    status: TrialStatus
    metric: float | None
    """Mean accuracy in percent; None where it failed before there was one."""
    iterations: int | None
    """Iterations done."""
    seconds: float
    error: dict[str, Any] | None = None
    """code, message, retryable."""


class Backend(Protocol):
    """Where the work runs. Raises CafeError for what ends the job."""

    def condense(self, condensation: Condensation, until: int, report: Report) -> None:
        """Run the condensation to its checkpoint of iteration `until`."""

    def evaluate(
        self, tasks: Sequence[EvaluationTask], setup: EvaluationSetup, resources: ResourcesSpec, report: Report
    ) -> Iterator[tuple[EvaluationTask, float]]:
        """Each task with its accuracy in percent, as they finish, in any order."""

    def run_trials(self, trials: Sequence[Trial], finished: Mapping[int, TrialOutcome], report: Report) -> Iterator[TrialOutcome]:
        """The outcome of each of the sweep's trials that is not among the finished ones, as they end, in any order.

        A trial is a whole job in a directory of its own: see :func:`cafe_core.jobs.trial_job.run_trial`.
        """

    def close(self) -> None:
        """Let go of all that is held. Safe to call twice."""


class Attempt:
    """An attempt of a job, under way."""

    def __init__(
        self,
        job: JobFile,
        directory: JobDir,
        files: AttemptDir,
        make_backend: Callable[[], Backend],
        report: Report,
        fence: AttemptFence,
    ) -> None:
        self.job = job
        self.directory = directory
        self.files = files
        self.report = report
        self.fence = fence
        """Asked before anything is written that other attempts read, or that is published."""
        self._make_backend = make_backend
        self._backend: Backend | None = None

    @property
    def backend(self) -> Backend:
        """Made when it is first asked for: bad data is refused before anything is held."""
        if self._backend is None:
            self._backend = self._make_backend()
        return self._backend

    def close(self) -> None:
        """Let go of what the backend holds."""
        if self._backend is not None:
            self._backend.close()
