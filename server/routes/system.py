"""/v1/cluster, /healthz and /readyz."""

from __future__ import annotations

from fastapi import APIRouter, Request

from server import schemas
from server.auth.access import Reader
from server.deps import ServicesDep
from server.errors import UnavailableError, problems

cluster_router = APIRouter(prefix="/v1", tags=["cluster"])
health_router = APIRouter(tags=["health"])


@cluster_router.get("/cluster", responses=problems(503))
async def get_cluster(_: Reader, request: Request, services: ServicesDep) -> schemas.Cluster:
    """Get the nodes, GPUs and CPUs of the cluster.

    Also returns Ray's version and the URL of its dashboard.
    """
    cluster = await services.cluster.now()
    return schemas.Cluster(
        ray_version=cluster.ray_version,
        dashboard_url=f"{request.base_url}dashboard/" if await services.keys.required() else services.ray.address,
        cpus=schemas.Capacity(total=cluster.cpus, free=sum(node.cpus_free for node in cluster.nodes)),
        gpus=schemas.Capacity(total=cluster.gpus, free=sum(node.gpus_free for node in cluster.nodes)),
        nodes=[
            schemas.Node(
                id=node.id,
                ip=node.ip,
                is_head=node.is_head,
                cpus=schemas.Capacity(total=node.cpus, free=node.cpus_free),
                gpus=schemas.Capacity(total=node.gpus, free=node.gpus_free),
                gpu_names=node.gpu_names,
                memory_bytes=node.memory_bytes,
            )
            for node in cluster.nodes
        ],
    )


@health_router.get("/healthz")
async def healthz() -> schemas.Health:
    """Check that the server process is alive.

    Does not check the database or Ray, so that their failure does not restart the server.
    """
    return schemas.Health()


@health_router.get("/readyz", responses=problems(503))
async def readyz(services: ServicesDep) -> schemas.Health:
    """Check that jobs can be accepted and run: the reconciler runs, and the database and Ray respond."""
    if services.leader.ended:
        raise UnavailableError("the reconciler has stopped; see the server's log and restart the server")
    if (obstacle := await services.readiness.obstacle()) is not None:
        raise UnavailableError(obstacle)
    return schemas.Health()
