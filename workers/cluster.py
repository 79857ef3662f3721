"""Query the current state of the Ray cluster."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import ray
from ray._private.state import actors, available_resources_per_node
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

from cafe_core.spec.resources import ResourcesSpec
from workers.policy import workers_that_fit


@dataclass(frozen=True)
class Node:
    """A node that is alive. `resources` are its total resources, free or not."""

    id: str
    ip: str
    resources: Mapping[str, float]


def nodes() -> list[Node]:
    """Return the nodes that are alive."""
    listed = ray.nodes()  # type: ignore[no-untyped-call]
    return [Node(node["NodeID"], node["NodeManagerAddress"], node["Resources"]) for node in listed if node["Alive"]]


def bundle_of(resources: ResourcesSpec) -> dict[str, float]:
    """Return the Ray resources that one worker holds."""
    bundle = {"CPU": float(resources.cpus_per_worker)}
    return bundle | ({"GPU": resources.gpus_per_worker} if resources.gpus_per_worker else {})


def capacity(resources: ResourcesSpec) -> int:
    """Return how many workers fit the cluster when nothing else runs."""
    return workers_that_fit([node.resources for node in nodes()], bundle_of(resources))


def free_capacity(resources: ResourcesSpec) -> int:
    """Return how many workers fit into the resources that are free now."""
    # The public ray.available_resources() sums over all nodes, but a worker's bundle must fit on one node.
    return workers_that_fit(available_resources_per_node().values(), bundle_of(resources))  # type: ignore[no-untyped-call]


def starting_actors(class_name: str) -> dict[str, tuple[int, str]]:
    """Return this driver's actors of a class that have a process but are not ready yet: {actor ID: (pid, node ID)}."""
    job = ray.get_runtime_context().get_job_id()
    listed = actors(None, ray.JobID.from_hex(job), "PENDING_CREATION")
    return {
        id: (actor["Pid"], actor["Address"]["NodeID"])
        for id, actor in listed.items()
        if actor["Pid"] and actor["ActorClassName"] == class_name
    }


def remove_groups(prefix: str) -> None:
    """Remove the placement groups whose names start with `prefix`."""
    for id, group in placement_group_table().items():
        if group["name"].startswith(prefix) and group["state"] != "REMOVED":
            remove_placement_group(PlacementGroup(ray.PlacementGroupID.from_hex(id)))
