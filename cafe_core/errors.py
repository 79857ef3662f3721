"""Define the exceptions that end a job with an explanation for the user.

::

    CafeError                   base class: code, retryable; str() is written for the user
    ├── SpecError               a field of the spec is invalid; loc names the field
    ├── DatasetError            the images cannot be used; the message names the file or class
    ├── SyntheticSetError       a synthetic set's file is damaged or does not fit
    ├── SweepError              no trial of a sweep succeeded
    ├── NonFiniteLossError      the loss became NaN or infinite; the message names the iteration
    ├── GpuOutOfMemoryError     a GPU ran out of memory
    ├── CheckpointError         a checkpoint cannot be written, or belongs to another spec
    │   └── DiskFullError       the disk is full
    ├── WorkerLostError         workers died or hung more often than the job allows
    ├── StaleAttemptError       another attempt of the job has replaced this one
    └── MissingPackageError     an optional package is not installed; the message says how to install it
"""

from __future__ import annotations

from typing import Any

from cafe_core.text import printable


class CafeError(Exception):
    """Base class of all errors that end a job with an explanation. Picklable, because it crosses processes."""

    code = "internal"
    retryable = False

    def __init__(self, message: str) -> None:
        message = printable(message)  # it may quote names of files
        super().__init__(message)
        self.message = message

    def as_dict(self) -> dict[str, Any]:
        """Return the job's `error` field: code, message, retryable."""
        return {"code": self.code, "message": self.message, "retryable": self.retryable}


class SpecError(CafeError):
    """A field of the spec is invalid. `loc` is the field's path, e.g. `resources.workers`."""

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
    """No trial of a sweep succeeded. Retryable if at least one trial's error is."""

    code = "sweep"

    def __init__(self, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.retryable = retryable


class NonFiniteLossError(CafeError):
    """The loss became NaN or infinite; the last checkpoint is intact."""

    code = "non_finite_loss"


class GpuOutOfMemoryError(CafeError):
    """A GPU ran out of memory; the last checkpoint is intact. Retryable, because another program may have used the GPU."""

    code = "gpu_out_of_memory"
    retryable = True


class CheckpointError(CafeError):
    """A checkpoint cannot be written, or belongs to another spec."""

    code = "checkpoint"
    retryable = True


class DiskFullError(CheckpointError):
    """The disk is full; files written before are intact."""

    code = "disk_full"


class WorkerLostError(CafeError):
    """Workers died or hung more often than the job allows."""

    code = "worker_lost"
    retryable = True


class StaleAttemptError(CafeError):
    """Another attempt of the job has replaced this one, or the job was deleted. This attempt must not write any more."""

    code = "stale_attempt"


class MissingPackageError(CafeError):
    """An optional package is not installed; the message says how to install it."""

    code = "missing_package"
