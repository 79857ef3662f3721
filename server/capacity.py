"""What a cluster can give, as pure functions: whether a job's workers fit it, and the memory of each."""

from __future__ import annotations

import math

from cafe_core.config import ResourcesSpec
from workers.client import RayCluster, RayNode


def workers_on(node: RayNode, resources: ResourcesSpec) -> int:
    """How many of a job's workers an otherwise empty node holds.

    Ray packs fractions of a GPU into whole ones: with 0.4 of a GPU each, two share one.
    """
    by_cpu = math.floor(node.cpus / resources.cpus_per_worker)
    if not resources.gpus_per_worker:
        return by_cpu
    return min(by_cpu, math.floor(node.gpus) * math.floor(1 / resources.gpus_per_worker + 1e-9))


def too_large(resources: ResourcesSpec, cluster: RayCluster) -> str | None:
    """Why the cluster, empty, cannot hold a job's workers, with the numbers; None where it can."""
    fitting = sum(workers_on(node, resources) for node in cluster.nodes)
    if fitting >= resources.workers:
        return None
    each = f"{resources.cpus_per_worker} CPU"
    if resources.gpus_per_worker:
        each += f" and {resources.gpus_per_worker:g} GPU"
    return (
        f"{resources.workers} workers of {each} each, but the cluster ({len(cluster.nodes)} nodes, {cluster.cpus:g} CPUs, "
        f"{cluster.gpus:g} GPUs in all) can hold at most {fitting} of them"
    )


def memory_per_worker(resources: ResourcesSpec, cluster: RayCluster) -> int:
    """Bytes each worker of a job may count on, on the cluster's nodes that can hold one.

    On GPUs, its part of the smallest GPU; on CPUs, the smallest node's memory shared by the job's workers there.
    Nodes are filled evenly, so that the share is the worst that an evenly placed job sees.
    """
    nodes = [node for node in cluster.nodes if workers_on(node, resources) > 0]
    if resources.gpus_per_worker:
        sizes = [node.gpu_memory_bytes for node in nodes if node.gpu_memory_bytes is not None]
        if sizes:
            return int(min(sizes) * resources.gpus_per_worker)
    sharing = min(math.ceil(resources.workers / len(nodes)), max(workers_on(node, resources) for node in nodes))
    return min(node.memory_bytes for node in nodes) // sharing
