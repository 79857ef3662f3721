"""Load a job's synthetic set, or its current state. Imports NumPy, so import this module only when needed, in a thread."""

from __future__ import annotations

from collections.abc import Sequence

from cafe_core.errors import SyntheticSetError
from cafe_core.jobs.jobdir import JobDir, JobFile
from cafe_core.jobs.trial_table import best_outcome, read_outcomes
from cafe_core.spec.condense import CondenseSpec
from cafe_core.spec.dataset import CondensedDataset
from cafe_core.spec.evaluate import EvaluateSpec
from cafe_core.spec.job import JobSpec
from cafe_core.synthetic_set.synthetic_set import SyntheticSet, from_checkpoint
from server.errors import NotFoundError
from server.files.job_files import result_of
from server.store.models import Artifact


def synthetic_set(directory: JobDir, rows: Sequence[Artifact], attempts: int, spec: JobSpec) -> SyntheticSet:
    """Return the set of the job's result, or else its current state; for an evaluate job, the set that it evaluates.

    rows: the job's artifacts. Raises NotFoundError if there is none yet, and SyntheticSetError for a damaged file.
    """
    result = result_of(directory, rows)
    if result is not None and result.find(result.attempt.synthetic_file.name) is not None:
        return SyntheticSet.load(result.attempt.synthetic_file)
    if isinstance(spec, CondenseSpec):
        return _latest_checkpoint(directory, spec)
    if isinstance(spec, EvaluateSpec):
        return _judged(directory, attempts, spec)
    return _best_so_far(directory)


def _latest_checkpoint(directory: JobDir, spec: CondenseSpec) -> SyntheticSet:
    """Return the set of the newest readable checkpoint."""
    damage: Exception | None = None
    # A running driver removes old checkpoints, so a listed one may be gone when it is opened; then there is a newer one.
    for _ in range(2):
        for path in directory.checkpoint_files():
            try:
                info = CondensedDataset.model_validate_json(directory.dataset_file.read_bytes())
                job = JobFile.model_validate_json(directory.job_file.read_bytes())
                return from_checkpoint(path, info, spec, job.roots.datasets)
            except (SyntheticSetError, FileNotFoundError) as error:
                damage = error
    if damage is not None:
        raise SyntheticSetError(f"no checkpoint of the job can be read: {damage}") from damage
    raise NotFoundError("the job has no synthetic set yet: it has written no checkpoint")


def _judged(directory: JobDir, attempts: int, spec: EvaluateSpec) -> SyntheticSet:
    if spec.synthetic.dataset is None:
        return SyntheticSet.load(directory.input_file)
    if spec.synthetic.selection in ("random", "whole"):
        raise NotFoundError(f"the job has no synthetic set: it evaluates real images ({spec.synthetic.selection})")
    chosen = [directory.attempt(number).synthetic_file for number in range(attempts, 0, -1)]
    for path in chosen:
        if path.exists():
            return SyntheticSet.load(path)
    raise NotFoundError(f"the job has no synthetic set yet: {spec.synthetic.selection} has not selected any images")


def _best_so_far(directory: JobDir) -> SyntheticSet:
    best = best_outcome(read_outcomes(directory.trials_file).values())
    if best is None:
        raise NotFoundError("the job has no synthetic set yet: none of its trials has finished")
    return SyntheticSet.load(directory.trial(best.number).attempt(1).synthetic_file)
