"""Run an evaluate job: train fresh networks on a synthetic set or on selected real images, and test them."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from cafe_core.data.class_store import ClassStore
from cafe_core.evaluation.report import evaluation_result
from cafe_core.evaluation.tasks import EvaluationSetup, all_tasks
from cafe_core.files import write_atomically
from cafe_core.jobs.backend import Attempt, Condensation
from cafe_core.jobs.condense_job import condensed_set, report_notes
from cafe_core.jobs.job_data import check_unchanged, job_store
from cafe_core.jobs.measure import measure
from cafe_core.jobs.trial_table import network_row, networks_csv
from cafe_core.spec.evaluate import EvaluateSpec
from cafe_core.spec.evaluation_sources import Source, judged_source
from cafe_core.spec.resolution import selection_spec
from cafe_core.synthetic_set.synthetic_set import SyntheticSet


def run(attempt: Attempt, spec: EvaluateSpec) -> dict[str, Any]:
    """Train and test every network, and return the job's result. Raises CafeError."""
    started = time.monotonic()
    assert spec.dataset is not None
    store = job_store(attempt.directory, spec.dataset, attempt.job.roots)
    info = ClassStore.open(store).info
    check_unchanged(attempt, info)
    notes = report_notes(attempt, spec, info)
    source, synthetic, ipc = _training_images(attempt, spec, store)

    attempt.report("phase", phase="evaluating")
    setup = EvaluationSetup(
        spec=spec,
        seed=spec.seed,
        store=store,
        synthetic=synthetic,
        ipc=ipc,
        threads=spec.resources.cpus_per_worker,
    )
    accuracies = measure(attempt, all_tasks(spec, source), setup, spec.resources)
    rows = [network_row(spec.networks, task, accuracy) for task, accuracy in accuracies.items()]
    write_atomically(attempt.files.artifacts / "accuracies.csv", "".join(networks_csv(rows)).encode(), fence=attempt.fence)
    result = evaluation_result(spec, source, accuracies) | {"notes": notes}
    result |= {"seconds": {"total": round(time.monotonic() - started, 3)}}
    write_atomically(attempt.files.artifacts / "evaluation.json", json.dumps(result, indent=2).encode(), fence=attempt.fence)
    return result


def _training_images(attempt: Attempt, spec: EvaluateSpec, store: Path) -> tuple[Source, Path | None, int | None]:
    """Return the source of the training images, the file of a synthetic set, and its images per class."""
    judged = spec.synthetic
    if judged.dataset is None:
        return "synthetic", attempt.directory.input_file, SyntheticSet.load(attempt.directory.input_file).ipc
    source = judged_source(spec)
    if source != "synthetic":
        return source, None, judged.ipc
    return "synthetic", _select(attempt, spec, store), judged.ipc


def _select(attempt: Attempt, spec: EvaluateSpec, store: Path) -> Path:
    """Run a coreset method; return the file with the real images that it selects."""
    info = ClassStore.open(store).info
    chosen = selection_spec(spec, info)
    artifacts = attempt.job.roots.artifacts
    condensation = Condensation(chosen, store, range(info.num_classes), attempt.directory.checkpoints, attempt.fence, artifacts)
    synthetic = condensed_set(attempt, condensation, 0)
    synthetic.save(attempt.files.synthetic_file, fence=attempt.fence)
    write_atomically(attempt.files.preview_file, synthetic.preview_png(), fence=attempt.fence)
    return attempt.files.synthetic_file
