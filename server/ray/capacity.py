"""Compute whether a job's workers fit a cluster, and how much memory each has: pure functions."""

from __future__ import annotations

import math
from dataclasses import replace

from cafe_core.spec.resources import ResourcesSpec
from workers.client import RayCluster, RayNode


def workers_on(node: RayNode, resources: ResourcesSpec) -> int:
    """Return how many of a job's workers fit on an otherwise empty node.

    Ray packs fractions of a GPU into whole GPUs: two workers with 0.4 of a GPU each share one.
    """
    by_cpu = math.floor(node.cpus / resources.cpus_per_worker)
    if not resources.gpus_per_worker:
        return by_cpu
    return min(by_cpu, math.floor(node.gpus) * math.floor(1 / resources.gpus_per_worker + 1e-9))


def with_autoscaled_nodes(cluster: RayCluster, autoscaled: list[RayNode]) -> RayCluster:
    """Add the nodes of `autoscaled`, all of one size, that do not exist yet. The head and smaller nodes do not count."""
    if not autoscaled:
        return cluster
    size = autoscaled[0]
    there = sum(not node.is_head and node.cpus >= size.cpus and node.gpus >= size.gpus for node in cluster.nodes)
    return replace(cluster, nodes=cluster.nodes + autoscaled[there:])


def without_driver_cpus(cluster: RayCluster, resources: ResourcesSpec, driver_cpus: float) -> RayCluster:
    """Subtract the driver's CPUs from the node where that leaves room for the fewest of the job's workers.

    Ray places the driver before the workers are requested, so a job that fits only with a well-placed driver may wait forever.
    If no node can hold the driver, the result has no nodes.
    """
    if not driver_cpus:
        return cluster
    taken = [
        replace(cluster, nodes=[*cluster.nodes[:at], replace(node, cpus=node.cpus - driver_cpus), *cluster.nodes[at + 1 :]])
        for at, node in enumerate(cluster.nodes)
        if node.cpus >= driver_cpus
    ]
    return min(taken, key=lambda left: _held(left, resources), default=replace(cluster, nodes=[]))


def _held(cluster: RayCluster, resources: ResourcesSpec) -> int:
    return sum(workers_on(node, resources) for node in cluster.nodes)


def too_large(resources: ResourcesSpec, cluster: RayCluster, driver_cpus: float = 0.0) -> str | None:
    """Return why an otherwise empty cluster cannot hold a job's workers and driver, with the numbers; None if it can."""
    fitting = _held(without_driver_cpus(cluster, resources, driver_cpus), resources)
    if fitting >= resources.workers:
        return None
    each = f"{resources.cpus_per_worker} CPU"
    if resources.gpus_per_worker:
        each += f" and {resources.gpus_per_worker:g} GPU"
    return (
        f"{resources.workers} workers of {each} each, but the cluster ({len(cluster.nodes)} nodes, {cluster.cpus:g} CPUs, "
        f"{cluster.gpus:g} GPUs in all) can hold at most {fitting} of them"
        + (f" in addition to the driver's {driver_cpus:g} CPU" if driver_cpus else "")
    )


def jobs_held(resources: ResourcesSpec, cluster: RayCluster, worker_bytes: int = 0, driver_cpus: float = 0.0) -> int:
    """Return how many trials of a sweep fit on an otherwise empty cluster at the same time, in addition to the sweep's driver.

    worker_bytes: memory per worker on CPUs. Workers on GPUs use their share of the GPU's memory instead.
    """

    def room(node: RayNode) -> int:
        workers = workers_on(node, resources)
        on_cpus = not resources.gpus_per_worker
        return min(workers, node.memory_bytes // worker_bytes) if worker_bytes and on_cpus else workers

    return sum(map(room, without_driver_cpus(cluster, resources, driver_cpus).nodes)) // resources.workers


def memory_per_worker(resources: ResourcesSpec, cluster: RayCluster) -> int:
    """Return the memory in bytes that each worker of a job can use, on the nodes that can hold a worker.

    On GPUs, this is its share of the smallest GPU; on CPUs, the smallest node's memory divided by the job's workers there,
    assuming that workers are spread evenly over the nodes.
    """
    nodes = [node for node in cluster.nodes if workers_on(node, resources) > 0]
    if resources.gpus_per_worker:
        sizes = [node.gpu_memory_bytes for node in nodes if node.gpu_memory_bytes is not None]
        if sizes:
            return int(min(sizes) * resources.gpus_per_worker)
    sharing = min(math.ceil(resources.workers / len(nodes)), max(workers_on(node, resources) for node in nodes))
    return min(node.memory_bytes for node in nodes) // sharing
