"""A job's way, from its spec to its artifacts: preparing → condensing → evaluating → publishing.

The same for a gang of Ray actors and for `cafe run` in one process: what differs is the :class:`Backend`.
No torch is imported here, so that a driver, which only coordinates, starts quickly.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from cafe_core.config import CondenseSpec, DatasetInfo, EvaluationSpec
from cafe_core.data import sources
from cafe_core.data.class_store import ClassStore
from cafe_core.errors import CheckpointError, DatasetError
from cafe_core.jobdir import AttemptDir, JobDir, JobFile, disk_full_named, write_atomically
from cafe_core.synthetic import SyntheticSet, from_checkpoint, versions

Report = Callable[..., None]
"""report(type, **data), for the event log."""

MEDIA_TYPES = {".safetensors": "application/octet-stream", ".png": "image/png", ".json": "application/json"}


@dataclass(frozen=True)
class EvaluationTask:
    """Train one fresh network on one set of images."""

    source: Literal["synthetic", "random"]
    """The synthetic set, or as many random real images."""
    network: int
    """Position in evaluation.networks."""
    repeat: int


class Backend(Protocol):
    """Where the work runs. Raises CafeError for what ends the job."""

    def condense(self, report: Report) -> None:
        """Run the condensation to its last checkpoint in the job's directory."""

    def evaluate(
        self, tasks: Sequence[EvaluationTask], synthetic: Path, report: Report
    ) -> Iterator[tuple[EvaluationTask, float]]:
        """Each task with its accuracy in percent, as they finish, in any order."""

    def close(self) -> None:
        """Let go of all that is held. Safe to call twice."""


def run_job(
    job: JobFile, directory: JobDir, attempt: int, make_backend: Callable[[DatasetInfo, Path], Backend], report: Report
) -> dict[str, Any]:
    """Run `job` as attempt number `attempt`, going on from what earlier attempts left in `directory`; returns the result.

    make_backend(info, store) is called once the data is known to be usable: nothing is held before that.
    Raises CafeError for everything a user can understand.
    """
    started = time.monotonic()
    artifacts = directory.attempt(attempt)
    artifacts.manifest_file.unlink(missing_ok=True)  # of an earlier run into the same directory: until the end there is no result
    report("phase", phase="preparing")
    store_path = sources.prepare(job.spec.dataset, job.roots)
    info = ClassStore.open(store_path).info
    _check_unchanged(directory, info)

    backend = make_backend(info, store_path)
    try:
        backend.condense(report)
        condensed = time.monotonic()
        synthetic = latest_synthetic_set(directory, job.spec)
        if synthetic is None or synthetic.iteration != job.spec.iterations:
            raise CheckpointError(f"the checkpoint of iteration {job.spec.iterations} is missing from {directory.checkpoints}")
        synthetic.save(artifacts.synthetic_file)
        evaluation = None
        if job.spec.evaluation is not None:
            report("phase", phase="evaluating")
            evaluation = _evaluate(job.spec.evaluation, backend, directory, artifacts.synthetic_file, report)
    finally:
        backend.close()

    report("phase", phase="publishing")
    result: dict[str, Any] = {
        "iterations": job.spec.iterations,
        "images": len(synthetic.images),
        "evaluation": evaluation,
        "seconds": {"condensing": round(condensed - started, 3), "total": round(time.monotonic() - started, 3)},
        "versions": versions(),
    }
    write_atomically(artifacts.preview_file, synthetic.preview_png())
    write_atomically(artifacts.result_file, json.dumps(result, indent=2).encode())
    write_manifest(artifacts)
    return result


def latest_synthetic_set(directory: JobDir, spec: CondenseSpec) -> SyntheticSet | None:
    """The synthetic set of the newest checkpoint, or None before the first."""
    files = directory.checkpoint_files()
    if not files:
        return None
    info = DatasetInfo.model_validate_json(directory.dataset_file.read_bytes())
    return from_checkpoint(files[0], info, spec)


def write_manifest(attempt: AttemptDir) -> None:
    """List the artifacts with size, hash and type. Written last: an attempt without it has no result."""
    entries = []
    for path in sorted(attempt.artifacts.iterdir()):
        if path == attempt.manifest_file or path.name.startswith("."):
            continue
        content = path.read_bytes()
        media_type = MEDIA_TYPES[path.suffix]
        entries.append(
            {"name": path.name, "size": len(content), "sha256": hashlib.sha256(content).hexdigest(), "media_type": media_type}
        )
    write_atomically(attempt.manifest_file, json.dumps({"artifacts": entries}, indent=2).encode())


def _check_unchanged(directory: JobDir, info: DatasetInfo) -> None:
    """Note what the data is in the first attempt; later ones must find the same. Raises DatasetError."""
    if directory.dataset_file.exists():
        if DatasetInfo.model_validate_json(directory.dataset_file.read_bytes()) != info:
            raise DatasetError(f"dataset: {info.name} has changed since the job's first attempt; submit a new job")
    else:
        write_atomically(directory.dataset_file, info.model_dump_json(indent=2).encode())


def _evaluate(spec: EvaluationSpec, backend: Backend, directory: JobDir, synthetic: Path, report: Report) -> dict[str, Any]:
    """Train every network of the evaluation that no earlier attempt has trained, and sum up."""
    sources_: list[Literal["synthetic", "random"]] = ["synthetic", *spec.baselines]
    tasks = [EvaluationTask(s, n, r) for r in range(spec.repeats) for s in sources_ for n in range(len(spec.networks))]
    evaluated_set = hashlib.sha256(synthetic.read_bytes()).hexdigest()
    accuracies = _earlier_accuracies(directory.evaluation_file, evaluated_set)
    started, earlier = time.monotonic(), len(accuracies)
    remaining = [task for task in tasks if task not in accuracies]
    with directory.evaluation_file.open("a", encoding="utf-8") as log:
        for task, accuracy in backend.evaluate(remaining, synthetic, report):
            accuracies[task] = accuracy
            with disk_full_named(directory.evaluation_file):
                log.write(json.dumps({"set": evaluated_set, "task": asdict(task), "accuracy": accuracy}) + "\n")
                log.flush()
            seconds_each = (time.monotonic() - started) / (len(accuracies) - earlier)
            report(
                "evaluated",
                source=task.source,
                network=spec.networks[task.network].name,
                repeat=task.repeat,
                accuracy=accuracy,
                done=len(accuracies),
                total=len(tasks),
                eta_s=round(seconds_each * (len(tasks) - len(accuracies)), 1),
            )
    summaries = {s: _summary(spec, s, accuracies) for s in sources_}
    return {"networks": summaries["synthetic"], "baselines": {s: {"networks": summaries[s]} for s in spec.baselines}}


def _earlier_accuracies(log: Path, evaluated_set: str) -> dict[EvaluationTask, float]:
    """What earlier attempts measured of this very set. A last line torn by a crash is no result, and is cut off."""
    content = log.read_bytes() if log.exists() else b""
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        write_atomically(log, whole)
    records = [json.loads(line) for line in whole.splitlines()]
    return {EvaluationTask(**r["task"]): r["accuracy"] for r in records if r["set"] == evaluated_set}


def _summary(spec: EvaluationSpec, source: str, accuracies: dict[EvaluationTask, float]) -> list[dict[str, Any]]:
    """Per network kind: mean, standard deviation (of the sample, 0 for one network), n and every accuracy, in percent."""
    rows = []
    for n, network in enumerate(spec.networks):
        values = [
            accuracies[task] for task in sorted(accuracies, key=lambda t: t.repeat) if task.source == source and task.network == n
        ]
        std = statistics.stdev(values) if len(values) > 1 else 0.0
        rows.append(
            {"name": network.name, "mean": statistics.fmean(values), "std": std, "n": len(values), "accuracies": values}
        )  # fmt: skip
    return rows
