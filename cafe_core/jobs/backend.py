"""Define the interface between a job and the place where its work runs, the :class:`Backend`.

Two modules implement it: :mod:`cafe_core.jobs.local` in this process, and `workers.backend` on Ray. This module does not
import torch.
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
"""`report(type, **data)` adds an event to the job's log."""


TRAINING = "training"
"""Type of the reports of :meth:`Backend.evaluate` with the `step` of a long training, a TrainingStep."""


@dataclass(frozen=True)
class Condensation:
    """Describe a condensation to its workers. Pickled."""

    spec: CondenseSpec
    """Resolved."""
    store: Path
    """The class store of the real images."""
    learned: Sequence[int]
    """The classes to learn: all, or for an extend job those that are new or changed. A worker learns at least one."""
    checkpoints: Path
    """The directory of checkpoints, to resume from and to write to."""
    fence: AttemptFence
    """Called before each checkpoint is written."""
    artifact_cache: Path
    """Where methods keep the artifacts that they make before their loops."""
    base: Path | None = None
    """The set that is extended."""


SMALLEST_MEMORY_SHARE = 1 / 8
"""The smallest share of the usual memory budget with which a condensation is repeated after a GPU ran out of memory."""
SMALLER_CHUNKS = "a GPU ran out of memory; chunks are half as large from now on"
"""The reason of such a restart."""

TrialStatus = Literal["succeeded", "failed", "stopped"]


@dataclass(frozen=True)
class TrialOutcome:
    """Record how a trial of a sweep ended. The status is `stopped` if the scheduler ended it early."""

    number: int
    status: TrialStatus
    metric: float | None
    """Mean accuracy in percent. None for a trial that ended without one."""
    iterations: int | None
    """Completed iterations. None if unknown."""
    seconds: float
    error: dict[str, Any] | None = None
    """The fields `code`, `message` and `retryable`."""


class Backend(Protocol):
    """Run the long phases of a job. Its methods raise CafeError for an error that ends the job."""

    def condense(self, condensation: Condensation, until: int, report: Report) -> None:
        """Run the condensation until its checkpoint of iteration `until` is written."""

    def evaluate(
        self, tasks: Sequence[EvaluationTask], setup: EvaluationSetup, resources: ResourcesSpec, report: Report
    ) -> Iterator[tuple[EvaluationTask, float]]:
        """Train one network per task. Yield each task with its accuracy in percent as it finishes, in any order.

        Reports every few seconds how far each long training is (TRAINING). These reports are not events of the job.
        """

    def run_trials(self, trials: Sequence[Trial], finished: Mapping[int, TrialOutcome], report: Report) -> Iterator[TrialOutcome]:
        """Run every trial whose number is not in `finished`. Yield each outcome as the trial ends, in any order.

        A trial is a whole job in its own directory: see :func:`cafe_core.jobs.trial_job.run_trial`.
        """

    def close(self) -> None:
        """Release all resources. Idempotent."""


class Attempt:
    """Hold the state that the phases of a running attempt share."""

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
        """Called before every write to a file that other attempts read or that is published."""
        self._make_backend = make_backend
        self._backend: Backend | None = None

    @property
    def backend(self) -> Backend:
        """Return the backend, created on first use, so that bad data is rejected before any resource is acquired."""
        if self._backend is None:
            self._backend = self._make_backend()
        return self._backend

    def close(self) -> None:
        """Close the backend, if there is one."""
        if self._backend is not None:
            self._backend.close()
