"""Split an evaluation into chunks for several workers."""

from __future__ import annotations

import math
from collections.abc import Sequence

from cafe_core.evaluation.tasks import EvaluationTask, chunks
from cafe_core.spec.resources import ResourcesSpec

ENSEMBLE = 20
"""Maximum number of networks in a chunk for a GPU. How many of them are trained at the same time depends on the GPU's memory."""
CHUNKS_PER_WORKER = 16
"""Chunks per CPU worker: the workers then finish within a sixteenth of the total time of each other, and a chunk costs Tune only
a few milliseconds."""


def split_tasks(tasks: Sequence[EvaluationTask], resources: ResourcesSpec) -> list[list[EvaluationTask]]:
    """Split `tasks` into chunks, each of tasks that differ only in `repeat`, in the order in which to train them.

    A GPU trains the networks of a chunk at the same time, so chunks are as large as possible with at least one for each worker.
    CPUs train networks one by one, so chunks are small. Chunks are ordered by their first task, except that trainings on the
    whole dataset, which take by far the longest, come first, each in its own chunk: started last, they would delay the end.
    """
    place = {task: position for position, task in enumerate(tasks)}
    if resources.gpus_per_worker:
        pieces = chunks(tasks, max(1, min(ENSEMBLE, math.ceil(len(tasks) / resources.workers))))
    else:
        short = [task for task in tasks if task.source != "whole"]
        pieces = chunks(short, max(1, len(short) // (resources.workers * CHUNKS_PER_WORKER)))
        pieces += [[task] for task in tasks if task.source == "whole"]
    return sorted(pieces, key=lambda chunk: (chunk[0].source != "whole", place[chunk[0]]))
