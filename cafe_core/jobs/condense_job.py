"""Run a condense job: condense, validate at intervals if the spec requires it, then evaluate."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cafe_core.data.class_store import ClassStore
from cafe_core.errors import CheckpointError, DatasetError
from cafe_core.evaluation.report import evaluation_result
from cafe_core.evaluation.tasks import EvaluationSetup, HeldOut, all_tasks
from cafe_core.files import write_atomically
from cafe_core.jobs.backend import Attempt, Condensation
from cafe_core.jobs.extend import changed_classes, class_hashes, extended_dataset, kept_set
from cafe_core.jobs.job_data import check_unchanged, job_store
from cafe_core.jobs.jobdir import JobDir
from cafe_core.jobs.measure import TrainingProgress, measure
from cafe_core.spec.condense import CondenseSpec
from cafe_core.spec.dataset import CondensedDataset, DatasetInfo
from cafe_core.spec.evaluate import EvaluateSpec
from cafe_core.spec.evaluation import EvaluationSpec, ValidationSpec
from cafe_core.spec.extend import ExtendSpec
from cafe_core.spec.notes import job_notes
from cafe_core.synthetic_set.synthetic_set import SyntheticSet, from_checkpoint


def run(attempt: Attempt, spec: CondenseSpec) -> dict[str, Any]:
    """Write the synthetic set, evaluate it, and return the job's result. Raises CafeError."""
    started = time.monotonic()
    condensation = prepare(attempt, spec)
    notes = report_notes(attempt, spec, ClassStore.open(condensation.store).info)
    if condensation.learned:
        synthetic, validations = _condense(attempt, condensation)
    else:
        synthetic, validations = kept_set(condensation, attempt.job.roots.datasets), []
    condensed = time.monotonic()
    synthetic.save(attempt.files.synthetic_file, fence=attempt.fence)
    evaluation = None
    if spec.evaluation is not None:
        attempt.report("phase", phase="evaluating")
        evaluation = _evaluate(attempt, condensation, spec.evaluation)
    write_atomically(attempt.files.preview_file, synthetic.preview_png(), fence=attempt.fence)
    result: dict[str, Any] = {
        "iterations": spec.iterations,
        "images": len(synthetic.images),
        "precision": spec.precision,
        "evaluation": evaluation,
        "notes": notes,
    }
    if condensation.base is not None:
        learned = [synthetic.class_names[k] for k in condensation.learned]
        result["extended"] = {"condensed": learned, "kept": len(synthetic.class_names) - len(learned)}
    if spec.validation is not None:
        result |= {"best_iteration": synthetic.iteration, "validations": validations}
    seconds = {"condensing": round(condensed - started, 3), "total": round(time.monotonic() - started, 3)}
    return result | {"seconds": seconds}


def prepare(attempt: Attempt, spec: CondenseSpec) -> Condensation:
    """Build the class store of the real images, and check that the data has not changed. Raises DatasetError."""
    path = job_store(attempt.directory, spec.dataset, attempt.job.roots)
    store = ClassStore.open(path)
    hashes = class_hashes(store) if spec.method.can_be_extended else None
    dataset = CondensedDataset(**store.info.model_dump(), class_sha256=hashes)
    directory, artifacts = attempt.directory, attempt.job.roots.artifacts
    base: Path | None = None
    learned: Sequence[int] = range(dataset.num_classes)
    if isinstance(spec, ExtendSpec):
        base = directory.input_file
        made = SyntheticSet.load(base)
        learned, dataset = changed_classes(dataset, made), extended_dataset(dataset, made)
        if not learned and dataset.class_names == made.class_names:
            raise DatasetError(f"dataset: the base set is up to date: no class of {dataset.name} is new, changed or gone")
    check_unchanged(attempt, dataset)
    return Condensation(spec, path, learned, directory.checkpoints, attempt.fence, artifacts, base)


def report_notes(attempt: Attempt, spec: CondenseSpec | EvaluateSpec, dataset: DatasetInfo) -> list[dict[str, Any]]:
    """Report what the user should know about the job's images, and return it for the result."""
    notes = [note.model_dump() for note in job_notes(spec, dataset)]
    if notes:
        attempt.report("notes", notes=notes)
    return notes


def latest_synthetic_set(attempt: Attempt, spec: CondenseSpec) -> SyntheticSet | None:
    """Return the synthetic set of the newest checkpoint, or None before the first checkpoint."""
    directory = attempt.directory
    files = directory.checkpoint_files()
    if not files:
        return None
    info = CondensedDataset.model_validate_json(directory.dataset_file.read_bytes())
    return from_checkpoint(files[0], info, spec, attempt.job.roots.datasets)


def condensed_set(attempt: Attempt, condensation: Condensation, until: int) -> SyntheticSet:
    """Return the synthetic set after `until` iterations, or after more if a previous attempt got further."""
    spec = condensation.spec
    synthetic = latest_synthetic_set(attempt, spec)
    if synthetic is None or synthetic.iteration < until:
        attempt.backend.condense(condensation, until, attempt.report)
        synthetic = latest_synthetic_set(attempt, spec)
    if synthetic is None or synthetic.iteration < until:
        raise CheckpointError(f"the checkpoint of iteration {until} is missing from {condensation.checkpoints}")
    return synthetic


def _condense(attempt: Attempt, condensation: Condensation) -> tuple[SyntheticSet, list[dict[str, Any]]]:
    """Return the synthetic set of the last iteration, or with validations the best one, and all validations."""
    spec = condensation.spec
    if spec.validation is None:
        return condensed_set(attempt, condensation, spec.iterations), []
    validations = _read_validations(attempt.directory)
    _keep_best(attempt, validations)
    for until in [*range(spec.validation.every, spec.iterations, spec.validation.every), spec.iterations]:
        if any(validation["iteration"] == until for validation in validations):
            continue
        synthetic = condensed_set(attempt, condensation, until)
        synthetic.save(attempt.directory.validated_file, fence=attempt.fence)
        attempt.report("phase", phase="validating")
        accuracies = _validate(attempt, condensation, spec.validation)
        mean = statistics.fmean(accuracies)
        validations.append({"iteration": until, "mean": mean, "accuracies": accuracies})
        write_atomically(attempt.directory.validation_file, json.dumps(validations).encode(), fence=attempt.fence)
        _keep_best(attempt, validations)
        attempt.report("validated", iteration=until, total=spec.iterations, mean=mean, accuracies=accuracies)
    return SyntheticSet.load(attempt.directory.best_file), validations


def _keep_best(attempt: Attempt, validations: Sequence[Mapping[str, Any]]) -> None:
    """Copy the validated set to best_file if the last validation is the best so far. A tie keeps the older set.

    validated_file still holds that set even after a crash in this function, because the next attempt calls it before it
    validates another set. The validations are written before the set: in the other order, a repeated validation, which may come
    out slightly lower on a GPU, could keep the wrong set.
    """
    if validations and all(validations[-1]["mean"] > validation["mean"] for validation in validations[:-1]):
        SyntheticSet.load(attempt.directory.validated_file).save(attempt.directory.best_file, fence=attempt.fence)


def _read_validations(directory: JobDir) -> list[dict[str, Any]]:
    """Return the validations of this and previous attempts, in order."""
    found: list[dict[str, Any]] = json.loads(directory.validation_file.read_bytes()) if directory.validation_file.exists() else []
    return found


def _validate(attempt: Attempt, condensation: Condensation, validation: ValidationSpec) -> list[float]:
    """Train networks on the set in validated_file; return their accuracies in percent on the held-out training images."""
    spec = condensation.spec
    setup = EvaluationSetup(
        spec=validation.as_evaluation(),
        seed=spec.seed,
        store=condensation.store,
        synthetic=attempt.directory.validated_file,
        ipc=spec.ipc,
        held_out=HeldOut(spec.seed, validation.fraction),
        threads=spec.resources.cpus_per_worker,
    )
    tasks = all_tasks(setup.spec)
    progress = TrainingProgress(attempt.report, done=0, total=len(tasks))
    measured = {}
    for task, accuracy in attempt.backend.evaluate(tasks, setup, spec.resources, progress.report):
        progress.network_done(task)
        measured[task] = accuracy
    return [measured[task] for task in tasks]


def _evaluate(attempt: Attempt, condensation: Condensation, evaluation: EvaluationSpec) -> dict[str, Any]:
    """Evaluate the synthetic set in the attempt's artifacts."""
    spec = condensation.spec
    setup = EvaluationSetup(
        spec=evaluation,
        seed=spec.seed,
        store=condensation.store,
        synthetic=attempt.files.synthetic_file,
        ipc=spec.ipc,
        threads=spec.resources.cpus_per_worker,
    )
    accuracies = measure(attempt, all_tasks(evaluation), setup, spec.resources)
    return evaluation_result(evaluation, "synthetic", accuracies)
