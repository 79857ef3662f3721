"""The cluster as last seen, so that a POST neither waits for Ray each time nor fails while Ray's head restarts."""

from __future__ import annotations

from dataclasses import replace

from server.errors import UnavailableError
from server.http.shared_answer import Shared
from server.ray.api import RayApi
from server.ray.capacity import with_autoscaled_nodes
from server.settings import Settings
from workers.client import RayCluster, RayError, RayNode

FRESH_S = 2.0


class ClusterView:
    """What `ray` says of its cluster, remembered."""

    def __init__(self, ray: RayApi, settings: Settings) -> None:
        self._to_come = _autoscaled(settings)
        self._seen = Shared(ray.cluster, FRESH_S)

    async def now(self) -> RayCluster:
        """The cluster, at most FRESH_S old. Raises RayError."""
        return await self._seen.get()

    async def capacity(self) -> RayCluster:
        """What jobs are held against: the cluster with the nodes that its autoscaler may add.

        As it was last seen when Ray does not answer. Raises UnavailableError when it was never seen.
        """
        try:
            cluster = await self.now()
        except RayError as error:
            if (seen := self._seen.last) is None:
                raise UnavailableError(f"the cluster's size is not known: {error}") from error
            return with_autoscaled_nodes(seen, self._to_come)
        if not cluster.nodes:
            raise UnavailableError("the cluster has no node yet; try again in some seconds")
        return with_autoscaled_nodes(cluster, self._to_come)


def _autoscaled(settings: Settings) -> list[RayNode]:
    """The worker nodes that Ray's autoscaler may make, those that it has made already included."""
    cpus, gpus, memory = settings.autoscaled_node_cpus, settings.autoscaled_node_gpus, settings.autoscaled_node_memory_bytes
    if cpus is None or memory is None:
        return []
    node = RayNode("", "", False, cpus, gpus, cpus, gpus, memory, settings.autoscaled_node_gpu_memory_bytes if gpus else None)
    return [replace(node, id=f"to come {number}") for number in range(settings.autoscaled_nodes)]
