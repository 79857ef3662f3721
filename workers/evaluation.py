"""How an evaluation is cut into pieces for several workers."""

from __future__ import annotations

import math
from collections.abc import Sequence

from cafe_core.evaluation.tasks import EvaluationTask, chunks
from cafe_core.spec.resources import ResourcesSpec

ENSEMBLE = 20
"""Networks that a GPU is given at once; how many of them it trains at the same time is its memory's matter."""
CHUNKS_PER_WORKER = 16
"""On CPUs: the workers then end within a sixteenth of the time of each other, and a chunk is a few ms of Tune's time."""


def cut(tasks: Sequence[EvaluationTask], resources: ResourcesSpec) -> list[list[EvaluationTask]]:
    """`tasks` in chunks of equal networks, in the order in which to train them.

    On a GPU, which trains the networks of a chunk at the same time, chunks as large as leave every worker one; on CPUs, which
    train them one by one, small ones. The chunks follow each other as their first tasks do, but trainings on the whole dataset,
    which are by far the longest, come first and alone: what is long and begins last is what all others are waited for with.
    """
    place = {task: position for position, task in enumerate(tasks)}
    if resources.gpus_per_worker:
        pieces = chunks(tasks, max(1, min(ENSEMBLE, math.ceil(len(tasks) / resources.workers))))
    else:
        short = [task for task in tasks if task.source != "whole"]
        pieces = chunks(short, max(1, len(short) // (resources.workers * CHUNKS_PER_WORKER)))
        pieces += [[task] for task in tasks if task.source == "whole"]
    return sorted(pieces, key=lambda chunk: (chunk[0].source != "whole", place[chunk[0]]))
