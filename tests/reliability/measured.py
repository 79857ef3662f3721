"""Measure the effect of a fault on a job: a row of the kill matrix."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
from safetensors.numpy import load

from tests.reliability.ray_nodes import remaining_resources
from tests.reliability.scene import Scene

ARTIFACTS = ["preview.png", "result.json", "synthetic.safetensors"]
PROGRESS = frozenset({"iteration", "evaluated"})
LEFT_WITHIN_S = 40.0
"""How long after a job's end its processes and resources may still exist."""


@dataclass(frozen=True)
class JobResult:
    """The result of a job."""

    synthetic: bytes
    """synthetic.safetensors."""
    networks: list[dict[str, Any]]
    """Accuracies."""


@dataclass(frozen=True)
class Row:
    """A fault and its effect."""

    fault: str
    moment: str
    """The job's phase at that time."""
    outcome: str
    attempts: int
    restarts: int
    """Restarts of gangs and of evaluation workers."""
    recovery_s: float | None
    """From the start of the fault to the job's next progress; None if it made none."""
    repeated: int
    """Iterations that were computed again."""
    left_behind: tuple[str, ...]
    """Processes, placement groups and actors."""
    same_bytes: bool
    """True if the synthetic set has the same bytes and the same accuracies as that of an undisturbed run."""
    difference: float
    """The largest difference of a pixel from an undisturbed run, in standard deviations; NaN without a result."""
    complete: bool
    """True if every artifact has the size and hash in the manifest, and no event is missing."""


def result_of(scene: Scene) -> JobResult:
    """Return the result of a job that succeeded."""
    result = scene.job()["result"]
    return JobResult(_artifact(scene, "synthetic.safetensors"), result["evaluation"]["networks"])


def _artifact(scene: Scene, name: str) -> bytes:
    return scene.server.api.get(f"/v1/jobs/{scene.job_id}/artifacts/{name}").raise_for_status().content


def measure(scene: Scene, fault: str, moment: str, undisturbed: JobResult) -> Row:
    """Return the row of a job that has ended."""
    job, events = scene.job(), scene.events()
    iterations = [event["data"]["iteration"] for event in events if event["type"] == "iteration"]
    succeeded = job["status"] == "succeeded"
    found = result_of(scene) if succeeded else None
    return Row(
        fault=fault,
        moment=moment,
        outcome=job["status"] if succeeded else f"{job['status']} ({(job['error'] or {}).get('code')})",
        attempts=job["attempt"],
        restarts=sum(event["type"] == "restart" for event in events),
        recovery_s=_recovery_s(scene.fault_at, events),
        repeated=len(iterations) - len(set(iterations)),
        left_behind=tuple(_left_behind(scene)),
        same_bytes=found == undisturbed,
        difference=math.nan if found is None else _difference(found, undisturbed),
        complete=succeeded and _is_complete(scene, job, events),
    )


def _difference(one: JobResult, other: JobResult) -> float:
    images = [load(each.synthetic)["images"] for each in (one, other)]
    return float(np.abs(images[0] - images[1]).max())


def _recovery_s(fault_at: str, events: list[dict[str, Any]]) -> float | None:
    """Return the time from the fault to the first progress after it and after all restarts and new attempts that followed it."""
    after = [event for event in events if event["time"] >= fault_at]
    began = 0
    for index, event in enumerate(after[1:], 1):
        if event["type"] == "restart" or event["attempt"] != after[index - 1]["attempt"]:
            began = index
    progress = next((event["time"] for event in after[began:] if event["type"] in PROGRESS), None)
    if progress is None:
        return None
    return (datetime.fromisoformat(progress) - datetime.fromisoformat(fault_at)).total_seconds()


def _left_behind(scene: Scene) -> list[str]:
    """Return the processes and resources that the job still has. Waits up to LEFT_WITHIN_S until there are none."""
    deadline = time.monotonic() + LEFT_WITHIN_S
    while True:
        processes = [f"{process.pid} {process.name()}" for process in scene.processes()]
        left = processes + remaining_resources(scene.ray.address, scene.ray.token)
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.5)


def _is_complete(scene: Scene, job: dict[str, Any], events: list[dict[str, Any]]) -> bool:
    listed = scene.server.api.get(f"/v1/jobs/{scene.job_id}/artifacts").raise_for_status().json()["data"]
    described = {each["name"]: (each["size"], each["sha256"]) for each in listed}
    served = {name: _described(_artifact(scene, name)) for name in described}
    directory = scene.server.data_dir / "jobs" / scene.job_id / "attempts" / str(job["attempt"]) / "artifacts"
    manifest = json.loads((directory / "manifest.json").read_bytes())["artifacts"]
    written = {each["name"]: (each["size"], each["sha256"]) for each in manifest}
    numbered = [event["id"] for event in events] == list(range(1, len(events) + 1))
    return sorted(described) == ARTIFACTS and described == served == written and numbered


def _described(content: bytes) -> tuple[int, str]:
    return len(content), hashlib.sha256(content).hexdigest()


def table(rows: Iterable[Row]) -> str:
    """Return the rows as a Markdown table."""
    heads = ("fault", "during", "outcome", "attempts", "restarts", "recovery time", "iterations repeated", "left behind")
    lines = [f"| {' | '.join((*heads, 'result', 'artifacts'))} |", f"|{'---|' * (len(heads) + 2)}"]
    for row in rows:
        recovery = "–" if row.recovery_s is None else f"{row.recovery_s:.1f} s"
        cells = (row.fault, row.moment, row.outcome, row.attempts, row.restarts, recovery, row.repeated)
        left = "; ".join(row.left_behind) or "nothing"
        judged = (
            "same bytes" if row.same_bytes else f"within {row.difference:.0e}",
            "complete" if row.complete else "INCOMPLETE",
        )
        lines.append(f"| {' | '.join(map(str, (*cells, left, *judged)))} |")
    return "\n".join(lines)
