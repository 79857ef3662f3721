"""What a fault did to a job: a row of the kill matrix."""

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

from tests.reliability.ray_nodes import held
from tests.reliability.scene import Scene

ARTIFACTS = ["preview.png", "result.json", "synthetic.safetensors"]
PROGRESS = frozenset({"iteration", "evaluated"})
LEFT_WITHIN_S = 40.0
"""How long after a job's end what it held may take to be gone."""


@dataclass(frozen=True)
class Yield:
    """What a job came to."""

    synthetic: bytes
    """synthetic.safetensors."""
    networks: list[dict[str, Any]]
    """Accuracies."""


@dataclass(frozen=True)
class Row:
    """A fault and what came of it."""

    fault: str
    moment: str
    """The job's phase then."""
    outcome: str
    attempts: int
    restarts: int
    """Of gangs, and of evaluations' workers."""
    recovery_s: float | None
    """From the fault's beginning to the job's next progress; None: it made none."""
    repeated: int
    """Iterations that were computed again."""
    left_behind: tuple[str, ...]
    """Processes, placement groups and actors."""
    equal: bool
    """The synthetic set's bytes and the accuracies are those of an undisturbed run."""
    difference: float
    """The largest of a pixel from that of an undisturbed run (a standard deviation is 1); NaN without a result."""
    complete: bool
    """All artifacts are there, with the sizes and hashes of the manifest; no event is missing."""


def yield_of(scene: Scene) -> Yield:
    """Of a job that succeeded."""
    result = scene.job()["result"]
    return Yield(_artifact(scene, "synthetic.safetensors"), result["evaluation"]["networks"])


def _artifact(scene: Scene, name: str) -> bytes:
    return scene.server.api.get(f"/v1/jobs/{scene.job_id}/artifacts/{name}").raise_for_status().content


def measure(scene: Scene, fault: str, moment: str, undisturbed: Yield) -> Row:
    """The row of a scene whose job has ended."""
    job, events = scene.job(), scene.events()
    iterations = [event["data"]["iteration"] for event in events if event["type"] == "iteration"]
    succeeded = job["status"] == "succeeded"
    came_to = yield_of(scene) if succeeded else None
    return Row(
        fault=fault,
        moment=moment,
        outcome=job["status"] if succeeded else f"{job['status']} ({(job['error'] or {}).get('code')})",
        attempts=job["attempt"],
        restarts=sum(event["type"] == "restart" for event in events),
        recovery_s=_recovery_s(scene.fault_at, events),
        repeated=len(iterations) - len(set(iterations)),
        left_behind=tuple(_left_behind(scene)),
        equal=came_to == undisturbed,
        difference=math.nan if came_to is None else _difference(came_to, undisturbed),
        complete=succeeded and _is_complete(scene, job, events),
    )


def _difference(one: Yield, other: Yield) -> float:
    images = [load(each.synthetic)["images"] for each in (one, other)]
    return float(np.abs(images[0] - images[1]).max())


def _recovery_s(fault_at: str, events: list[dict[str, Any]]) -> float | None:
    """From the fault to the first progress; where restarts or new attempts followed it, to the first after the last of them."""
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
    """What the job holds still, after a moment for it to go."""
    deadline = time.monotonic() + LEFT_WITHIN_S
    while True:
        processes = [f"{process.pid} {process.name()}" for process in scene.processes()]
        left = processes + held(scene.ray.address, scene.ray.token)
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
    """As Markdown."""
    heads = ("fault", "while", "outcome", "attempts", "restarts", "recovered after", "iterations repeated", "left behind")
    lines = [f"| {' | '.join((*heads, 'same result', 'artifacts'))} |", f"|{'---|' * (len(heads) + 2)}"]
    for row in rows:
        recovery = "–" if row.recovery_s is None else f"{row.recovery_s:.1f} s"
        cells = (row.fault, row.moment, row.outcome, row.attempts, row.restarts, recovery, row.repeated)
        left = "; ".join(row.left_behind) or "nothing"
        judged = ("same bytes" if row.equal else f"within {row.difference:.0e}", "complete" if row.complete else "INCOMPLETE")
        lines.append(f"| {' | '.join(map(str, (*cells, left, *judged)))} |")
    return "\n".join(lines)
