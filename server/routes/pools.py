"""/v1/pools: list and delete the pools of networks that jobs have trained on real images."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Path

from server import schemas
from server.auth.access import Admin
from server.deps import ServicesDep
from server.errors import NotFoundError, problems
from server.files.pools import Pool, pools, remove_pool

router = APIRouter(prefix="/v1", tags=["pools"])

PoolId = Annotated[str, Path(description="The `id` of a pool.", pattern=r"^pool_[0-9a-f]{24}$")]


@router.get("/pools")
def list_pools(_: Admin, services: ServicesDep) -> schemas.PoolList:
    """List the pools of networks, those changed last first.

    Jobs of the methods with a pool (dance, ncfm) train its networks on all real images of a dataset. Later jobs with the same
    dataset, network, precision and pool fields use the same networks.
    """
    return schemas.PoolList(data=[_shown(pool) for pool in pools(services.settings.roots)])


@router.delete("/pools/{pool_id}", status_code=204, responses=problems(404, 422))
def delete_pool(pool_id: PoolId, _: Admin, services: ServicesDep) -> None:
    """Delete a pool of networks.

    A job that uses it continues with the networks that it has loaded. Whatever needs them later trains them again: another job, a
    new attempt of this one, or its next interval between validations.
    """
    if not remove_pool(services.settings.roots, pool_id):
        raise NotFoundError(f"there is no pool {pool_id}")


def _shown(pool: Pool) -> schemas.Pool:
    return schemas.Pool(
        id=pool.id,
        dataset=pool.key["dataset_name"],
        network=pool.key["network"],
        precision=pool.key["precision"],
        recipe=pool.key["recipe"],
        networks=len(pool.numbers),
        bytes=pool.bytes,
        changed_at=datetime.fromtimestamp(pool.modified, UTC).isoformat().replace("+00:00", "Z"),
    )
