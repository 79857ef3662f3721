"""What the Ray cluster is made of, now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import ray
from ray._private.state import available_resources_per_node

from cafe_core.config import ResourcesSpec
from workers.policy import workers_that_fit


@dataclass(frozen=True)
class Node:
    """A machine that is alive. resources: all it has, whoever uses it."""

    id: str
    ip: str
    resources: Mapping[str, float]


def nodes() -> list[Node]:
    """The nodes that are alive."""
    listed = ray.nodes()  # type: ignore[no-untyped-call]
    return [Node(node["NodeID"], node["NodeManagerAddress"], node["Resources"]) for node in listed if node["Alive"]]


def bundle_of(resources: ResourcesSpec) -> dict[str, float]:
    """What one worker holds, as Ray counts it."""
    bundle = {"CPU": float(resources.cpus_per_worker)}
    return bundle | ({"GPU": resources.gpus_per_worker} if resources.gpus_per_worker else {})


def capacity(resources: ResourcesSpec) -> int:
    """Workers that the cluster holds when nothing else runs."""
    return workers_that_fit([node.resources for node in nodes()], bundle_of(resources))


def room(resources: ResourcesSpec) -> int:
    """Workers that the cluster has room for now."""
    # The public ray.available_resources() sums over the nodes, but a worker's bundle lies on one.
    return workers_that_fit(available_resources_per_node().values(), bundle_of(resources))  # type: ignore[no-untyped-call]
