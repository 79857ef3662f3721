"""What can go wrong, and what a user is told.

::

    CafeError                   code, retryable; str() is written for the user
    ├── SpecError               the spec asks for something impossible: names the field
    ├── DatasetError            the data cannot be used: names the file or class, says why
    ├── SyntheticSetError       a synthetic set's file is damaged or does not fit
    ├── SweepError              no trial of a sweep came to its end
    ├── NonFiniteLossError      the loss became NaN or infinite: names the iteration
    ├── CheckpointError         a checkpoint cannot be written, or belongs to another spec
    │   └── DiskFullError       … because the disk is full
    ├── WorkerLostError         a worker died or hung, more often than allowed
    └── StaleAttemptError       another attempt of the job has taken this one's place
"""

from __future__ import annotations

from typing import Any


class CafeError(Exception):
    """Base of all errors that end a job with an explanation. Pickles (it crosses processes)."""

    code = "internal"
    retryable = False

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def as_dict(self) -> dict[str, Any]:
        """The job's `error` field: code, message, retryable."""
        return {"code": self.code, "message": self.message, "retryable": self.retryable}


class SpecError(CafeError):
    """A field of the spec asks for something impossible. `loc` is the field's path, e.g. `resources.workers`."""

    code = "invalid_spec"

    def __init__(self, message: str, loc: str = "") -> None:
        super().__init__(message)
        self.loc = loc

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.message, self.loc)


class DatasetError(CafeError):
    """The images cannot be used; the message names the file or class."""

    code = "invalid_dataset"


class SyntheticSetError(CafeError):
    """A synthetic set's file is damaged or does not fit."""

    code = "invalid_synthetic_set"


class SweepError(CafeError):
    """No trial of a sweep came to its end. Retryable if that holds of one of them."""

    code = "sweep"

    def __init__(self, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.retryable = retryable


class NonFiniteLossError(CafeError):
    """The loss became NaN or infinite; the last checkpoint is intact."""

    code = "non_finite_loss"


class CheckpointError(CafeError):
    """A checkpoint could not be written or does not belong to this spec."""

    code = "checkpoint"
    retryable = True


class DiskFullError(CheckpointError):
    """The disk is full; what was written before is intact."""

    code = "disk_full"


class WorkerLostError(CafeError):
    """A worker died or hung, more often than the job allows."""

    code = "worker_lost"
    retryable = True


class StaleAttemptError(CafeError):
    """Another attempt of the job has taken this one's place, or the job was deleted: this one may write nothing any more."""

    code = "stale_attempt"
