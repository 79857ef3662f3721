"""Cache the cluster's state, so that a POST does not always query Ray, and does not fail while Ray's head restarts."""

from __future__ import annotations

from dataclasses import replace

from server.errors import UnavailableError
from server.http.shared_result import SharedResult
from server.ray.api import RayApi
from server.ray.capacity import with_autoscaled_nodes
from server.settings import Settings
from workers.client import RayCluster, RayError, RayNode

FRESH_S = 2.0


class ClusterView:
    """The cached state of a Ray cluster."""

    def __init__(self, ray: RayApi, settings: Settings) -> None:
        self._autoscaled_nodes = _autoscaled(settings)
        self._seen = SharedResult(ray.cluster, FRESH_S)

    async def now(self) -> RayCluster:
        """Return the cluster's state, at most FRESH_S old. Raises RayError."""
        return await self._seen.get()

    async def capacity(self) -> RayCluster:
        """Return the capacity that jobs are checked against: the cluster with the nodes that its autoscaler may add.

        If Ray does not answer, return the last known state. Raises UnavailableError if there is none.
        """
        try:
            cluster = await self.now()
        except RayError as error:
            if (seen := self._seen.last) is None:
                raise UnavailableError(f"the cluster's size is unknown: {error}") from error
            return with_autoscaled_nodes(seen, self._autoscaled_nodes)
        if not cluster.nodes:
            raise UnavailableError("the cluster has no nodes yet; try again in a few seconds")
        return with_autoscaled_nodes(cluster, self._autoscaled_nodes)


def _autoscaled(settings: Settings) -> list[RayNode]:
    """Return all worker nodes that Ray's autoscaler may create, including existing ones."""
    cpus, gpus, memory = settings.autoscaled_node_cpus, settings.autoscaled_node_gpus, settings.autoscaled_node_memory_bytes
    if cpus is None or memory is None:
        return []
    node = RayNode("", "", False, cpus, gpus, cpus, gpus, memory, settings.autoscaled_node_gpu_memory_bytes if gpus else None)
    return [replace(node, id=f"autoscaled {number}") for number in range(settings.autoscaled_nodes)]
