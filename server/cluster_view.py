"""The cluster as last seen, so that a POST neither waits for Ray each time nor fails while Ray's head restarts."""

from __future__ import annotations

import time

from server.errors import UnavailableError
from server.ray_api import RayApi
from workers.client import RayCluster, RayError

FRESH_S = 2.0


class ClusterView:
    """What `ray` says of its cluster, remembered."""

    def __init__(self, ray: RayApi) -> None:
        self._ray = ray
        self._seen: RayCluster | None = None
        self._seen_at = float("-inf")

    async def now(self) -> RayCluster:
        """The cluster, at most FRESH_S old. Raises RayError."""
        if self._seen is None or time.monotonic() - self._seen_at > FRESH_S:
            self._seen = await self._ray.cluster()
            self._seen_at = time.monotonic()
        return self._seen

    async def capacity(self) -> RayCluster:
        """The cluster, or how it was last seen when Ray does not answer. Raises UnavailableError when it was never seen."""
        try:
            cluster = await self.now()
        except RayError as error:
            if self._seen is None:
                raise UnavailableError(f"the cluster's size is not known: {error}") from error
            return self._seen
        if not cluster.nodes:
            raise UnavailableError("the cluster has no node yet; try again in some seconds")
        return cluster
