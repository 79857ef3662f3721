"""Define the resources that the workers of a job hold while it runs."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from cafe_core.spec.base import SpecModel, resolved_later

MAX_CPUS = 256
"""Limit on the CPU cores of a worker."""


class ResourcesSpec(SpecModel):
    """The resources of a job's workers."""

    workers: Annotated[int, Field(ge=1, le=4096)] = 1
    """Number of workers. In a condense job each holds one class shard, so at most the number of classes."""
    gpus_per_worker: Annotated[float, Field(ge=0, le=1)] = resolved_later()
    """GPUs per worker: 1, 0 to run on the CPU, or a fraction (several workers that condense need a whole GPU each). Default: 1 if
    the cluster has GPUs, else 0."""
    cpus_per_worker: Annotated[int, Field(ge=1, le=MAX_CPUS)] = 1
    """CPU cores of each worker, and its number of threads. `cafe run` uses all cores if it is left out."""
