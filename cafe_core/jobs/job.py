"""Run a job from its spec to its artifacts. Its phases depend on its kind::

    condense   preparing → condensing (→ validating → condensing …) → evaluating → publishing
    evaluate   preparing (→ condensing, of a coreset) → evaluating → publishing
    sweep      preparing → sweeping, each trial a condense job → publishing
    extend     preparing → condensing, of the classes that are new or changed → evaluating → publishing

Ray and `cafe run` share this code and differ only in the :class:`cafe_core.jobs.backend.Backend`. This module does not import
torch, so that a driver, which only coordinates, starts quickly.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import closing
from typing import Any

from cafe_core.files import Fence, unfenced, write_atomically
from cafe_core.jobs import condense_job, evaluate_job, sweep_job
from cafe_core.jobs.backend import Attempt, Backend, Report
from cafe_core.jobs.fence import AttemptFence
from cafe_core.jobs.jobdir import AttemptDir, JobDir, JobFile
from cafe_core.spec.condense import CondenseSpec
from cafe_core.spec.evaluate import EvaluateSpec
from cafe_core.synthetic_set.synthetic_set import versions

MEDIA_TYPES = {
    ".safetensors": "application/octet-stream",
    ".png": "image/png",
    ".json": "application/json",
    ".csv": "text/csv",
}


def run_job(
    job: JobFile,
    directory: JobDir,
    attempt: int,
    make_backend: Callable[[], Backend],
    report: Report,
    *,
    fence: AttemptFence | None = None,
) -> dict[str, Any]:
    """Run `job` as attempt number `attempt`, continue from the files of previous attempts, and return the result.

    fence: by default the attempt's own; for a trial, the sweep's.
    Raises StaleAttemptError once another attempt may write instead, and CafeError for every error that a user can understand.
    """
    fence = fence or AttemptFence.of(directory, attempt)
    fence()
    files = directory.attempt(attempt)
    files.manifest_file.unlink(missing_ok=True)  # of a previous run into this directory; a new one is written last
    report("phase", phase="preparing")
    with closing(Attempt(job, directory, files, make_backend, report, fence)) as running:
        result = _run(running)
    report("phase", phase="publishing")
    result |= {"versions": versions()}
    write_atomically(files.result_file, json.dumps(result, indent=2).encode(), fence=fence)
    write_manifest(files, fence)
    return result


def _run(attempt: Attempt) -> dict[str, Any]:
    spec = attempt.job.spec
    if isinstance(spec, CondenseSpec):
        return condense_job.run(attempt, spec)
    if isinstance(spec, EvaluateSpec):
        return evaluate_job.run(attempt, spec)
    return sweep_job.run(attempt, spec)


def write_manifest(attempt: AttemptDir, fence: Fence = unfenced) -> None:
    """Write manifest.json, which lists the artifacts with size, hash and type. Call it last: it completes the result."""
    entries = []
    for path in sorted(attempt.artifacts.iterdir()):
        if path == attempt.manifest_file or path.name.startswith("."):
            continue
        content = path.read_bytes()
        media_type = MEDIA_TYPES[path.suffix]
        entries.append(
            {"name": path.name, "size": len(content), "sha256": hashlib.sha256(content).hexdigest(), "media_type": media_type}
        )
    write_atomically(attempt.manifest_file, json.dumps({"artifacts": entries}, indent=2).encode(), fence=fence)
