"""What a cluster can give, as pure functions: whether a job's workers fit it, and the memory of each."""

from __future__ import annotations

import math
from dataclasses import replace

from cafe_core.spec.resources import ResourcesSpec
from workers.client import RayCluster, RayNode


def workers_on(node: RayNode, resources: ResourcesSpec) -> int:
    """How many of a job's workers an otherwise empty node holds.

    Ray packs fractions of a GPU into whole ones: with 0.4 of a GPU each, two share one.
    """
    by_cpu = math.floor(node.cpus / resources.cpus_per_worker)
    if not resources.gpus_per_worker:
        return by_cpu
    return min(by_cpu, math.floor(node.gpus) * math.floor(1 / resources.gpus_per_worker + 1e-9))


def with_autoscaled_nodes(cluster: RayCluster, autoscaled: list[RayNode]) -> RayCluster:
    """The cluster with as many of `autoscaled`, nodes of one size, as are not there yet. Smaller ones and the head are others."""
    if not autoscaled:
        return cluster
    size = autoscaled[0]
    there = sum(not node.is_head and node.cpus >= size.cpus and node.gpus >= size.gpus for node in cluster.nodes)
    return replace(cluster, nodes=cluster.nodes + autoscaled[there:])


def without_driver_cpus(cluster: RayCluster, resources: ResourcesSpec, driver_cpus: float) -> RayCluster:
    """The cluster without what a job's driver takes, on the node where it is most in the way of such workers.

    Ray chooses the driver's node before it knows of the workers: a job that fits only beside a well-placed driver may wait for
    ever. No node is left where none can hold the driver.
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
    """Why the cluster, otherwise empty, cannot hold a job's workers and driver, with the numbers; None where it can."""
    fitting = _held(without_driver_cpus(cluster, resources, driver_cpus), resources)
    if fitting >= resources.workers:
        return None
    each = f"{resources.cpus_per_worker} CPU"
    if resources.gpus_per_worker:
        each += f" and {resources.gpus_per_worker:g} GPU"
    return (
        f"{resources.workers} workers of {each} each, but the cluster ({len(cluster.nodes)} nodes, {cluster.cpus:g} CPUs, "
        f"{cluster.gpus:g} GPUs in all) can hold at most {fitting} of them"
        + (f" beside their driver's {driver_cpus:g} CPU" if driver_cpus else "")
    )


def jobs_held(resources: ResourcesSpec, cluster: RayCluster, worker_bytes: int = 0, driver_cpus: float = 0.0) -> int:
    """How many trials of such workers the cluster, otherwise empty, holds at the same time, beside the driver of their sweep.
    worker_bytes: of a node's memory, per worker on its CPUs; what is on a GPU has its part of that GPU's."""

    def room(node: RayNode) -> int:
        workers = workers_on(node, resources)
        on_cpus = not resources.gpus_per_worker
        return min(workers, node.memory_bytes // worker_bytes) if worker_bytes and on_cpus else workers

    return sum(map(room, without_driver_cpus(cluster, resources, driver_cpus).nodes)) // resources.workers


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
