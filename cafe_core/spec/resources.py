"""The resources that the workers of a job hold while it runs."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from cafe_core.spec.base import SpecModel, resolved_later


class ResourcesSpec(SpecModel):
    """What the workers of a job hold while it runs."""

    workers: Annotated[int, Field(ge=1, le=4096)] = 1
    """Class shards, one actor each. At most the number of classes."""
    gpus_per_worker: Annotated[float, Field(ge=0, le=1)] = resolved_later()
    """GPUs of each worker: 1, 0 for the CPU, or a fraction (of several workers only in an evaluation: condensing workers
    need a whole one each). Default: 1 where the cluster has GPUs, else 0."""
    cpus_per_worker: Annotated[int, Field(ge=1, le=256)] = 1
    """CPU cores of each worker, and its number of threads."""
