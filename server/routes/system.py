"""/v1/cluster, and health beside /v1."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from server import database, schemas
from server.deps import Services, ServicesDep
from server.errors import UnavailableError, problems
from workers.client import RayError

cluster_router = APIRouter(tags=["cluster"])
health_router = APIRouter(tags=["health"])

READY_WITHIN_S = 5.0


@cluster_router.get("/cluster", responses=problems(503))
async def get_cluster(services: ServicesDep) -> schemas.Cluster:
    """Nodes, GPUs and CPUs, total and free; Ray's version; its dashboard."""
    cluster = await services.cluster.now()
    return schemas.Cluster(
        ray_version=cluster.ray_version,
        dashboard_url=services.ray.address,
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
    """Whether the server lives. It asks nothing else, so that an ailing Ray does not get the server killed."""
    return schemas.Health()


@health_router.get("/readyz", responses=problems(503))
async def readyz(services: ServicesDep) -> schemas.Health:
    """Whether jobs can be taken and run: they are looked after, and the database and Ray answer."""
    if services.reconciler.ended:
        raise UnavailableError("jobs are no longer looked after; the server's log says why: start it again")
    try:
        async with asyncio.timeout(READY_WITHIN_S):
            await asyncio.to_thread(_query, services)
            ready = await services.ray.ready()
    except SQLAlchemyError as error:
        raise UnavailableError(f"the database does not answer: {error}") from error
    except (RayError, TimeoutError) as error:
        raise UnavailableError(str(error) or f"no answer within {READY_WITHIN_S:g} s") from error
    if not ready:
        raise UnavailableError("the cluster has no node yet")
    return schemas.Health()


def _query(services: Services) -> None:
    with services.database.read() as session:
        session.scalar(select(database.Job.number).limit(1))  # of a table: SQLite answers SELECT 1 without its file
