"""A job's synthetic set, or what there is of it by now. Numpy comes with it: who needs a set imports this then, in a thread."""

from __future__ import annotations

from collections.abc import Sequence

from cafe_core.errors import SyntheticSetError
from cafe_core.jobs.jobdir import JobDir
from cafe_core.jobs.trial_table import best_outcome, read_outcomes
from cafe_core.spec.condense import CondenseSpec
from cafe_core.spec.dataset import DatasetInfo
from cafe_core.spec.evaluate import EvaluateSpec
from cafe_core.spec.job import JobSpec
from cafe_core.synthetic_set.synthetic_set import SyntheticSet, from_checkpoint
from server.errors import NotFoundError
from server.files.job_files import result_of
from server.store.models import Artifact


def synthetic_set(directory: JobDir, rows: Sequence[Artifact], attempts: int, spec: JobSpec) -> SyntheticSet:
    """The set of the job's result, or else what there is of it by now; of an evaluate job: the set that it judges.

    rows: the job's artifacts. Raises NotFoundError, which says why there is none, or SyntheticSetError where a file that should
    be one is not.
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
    """What the newest readable checkpoint yields."""
    damage: Exception | None = None
    # A running driver removes old checkpoints: one that is listed may be gone when it is opened, with a newer one there.
    for _ in range(2):
        for path in directory.checkpoint_files():
            try:
                info = DatasetInfo.model_validate_json(directory.dataset_file.read_bytes())
                return from_checkpoint(path, info, spec)
            except (SyntheticSetError, FileNotFoundError) as error:
                damage = error
    if damage is not None:
        raise SyntheticSetError(f"no checkpoint of the job can be read: {damage}") from damage
    raise NotFoundError("the job has no synthetic set yet: it has written no checkpoint")


def _judged(directory: JobDir, attempts: int, spec: EvaluateSpec) -> SyntheticSet:
    if spec.synthetic.dataset is None:
        return SyntheticSet.load(directory.input_file)
    if spec.synthetic.selection in ("random", "whole"):
        raise NotFoundError(f"the job has no synthetic set: it judges real images ({spec.synthetic.selection})")
    chosen = [directory.attempt(number).synthetic_file for number in range(attempts, 0, -1)]
    for path in chosen:
        if path.exists():
            return SyntheticSet.load(path)
    raise NotFoundError(f"the job has no synthetic set yet: {spec.synthetic.selection} has not chosen its images")


def _best_so_far(directory: JobDir) -> SyntheticSet:
    best = best_outcome(read_outcomes(directory.trials_file).values())
    if best is None:
        raise NotFoundError("the job has no synthetic set yet: none of its trials has come to its end")
    return SyntheticSet.load(directory.trial(best.number).attempt(1).synthetic_file)
