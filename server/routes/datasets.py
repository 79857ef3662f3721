"""/v1/datasets: the built-in ones, and uploading one's own."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, Path, UploadFile
from sqlalchemy import select
from starlette.concurrency import run_in_threadpool

from cafe_core.config import DatasetInfo
from cafe_core.data import catalog
from server import database, jobs, present, schemas
from server.deps import Services, ServicesDep
from server.errors import ConflictError, NotFoundError, problems
from server.uploads import discard_upload, removal_of_upload, store_upload

router = APIRouter(tags=["datasets"])

DatasetId = Annotated[str, Path(description="A dataset's `id`: a built-in name, or what an upload was given.")]


@router.get("/datasets")
def list_datasets(services: ServicesDep) -> schemas.DatasetList:
    """The built-in datasets, then the uploaded ones, newest first."""
    with services.database.read() as session:
        uploaded = list(session.scalars(select(database.Dataset).order_by(database.Dataset.number.desc())))
    builtin = [present.builtin_dataset(info) for info in catalog.list_builtin()]
    return schemas.DatasetList(data=builtin + [present.dataset(row) for row in uploaded])


@router.post("/datasets", status_code=201, responses=problems(400, 413, 422))
async def upload(
    file: UploadFile,
    services: ServicesDep,
    name: Annotated[str | None, Form(max_length=128, description="A name for people. Default: the file's.")] = None,
) -> schemas.Dataset:
    """Upload a `.zip` of an image folder (`train/CLASS/*.png`, optional `test/`) or an `.npz`.

    The `.npz` holds `images` uint8 N×H×W[×C], `labels`, and optionally `test_images`, `test_labels`. No pickles are read.
    """
    row = await run_in_threadpool(store_upload, file, name, services.settings)
    try:
        await run_in_threadpool(_add, services, row)
    except BaseException:
        discard_upload(services.settings.roots, row.id)
        raise
    return present.dataset(row)


def _add(services: Services, row: database.Dataset) -> None:
    with services.database.write() as session:
        session.add(row)


@router.get("/datasets/{dataset_id}", responses=problems(404, 422))
def get_dataset(dataset_id: DatasetId, services: ServicesDep) -> schemas.Dataset:
    """A dataset."""
    if (info := _builtin(dataset_id)) is not None:
        return present.builtin_dataset(info)
    with services.database.read() as session:
        row = session.scalar(select(database.Dataset).where(database.Dataset.id == dataset_id))
    if row is None:
        raise NotFoundError(f"there is no dataset {dataset_id!r}")
    return present.dataset(row)


@router.delete("/datasets/{dataset_id}", status_code=204, responses=problems(404, 409, 422))
def delete_dataset(dataset_id: DatasetId, services: ServicesDep) -> None:
    """Delete an uploaded dataset, and the copies of its images that jobs were given. Results made from it stay."""
    if _builtin(dataset_id) is not None:
        raise ConflictError(f"{dataset_id} is built in and cannot be deleted")
    with removal_of_upload(services.settings.roots, dataset_id) as set_aside, services.database.write() as session:
        row = session.scalar(select(database.Dataset).where(database.Dataset.id == dataset_id))
        if row is None:
            raise NotFoundError(f"there is no dataset {dataset_id!r}")
        if dataset_id in jobs.datasets_in_use(session):
            raise ConflictError(f"a job that has not ended uses {dataset_id}; cancel it first")
        session.delete(row)
        session.flush()
        set_aside()


def _builtin(dataset_id: str) -> DatasetInfo | None:
    return next((info for info in catalog.list_builtin() if info.name == dataset_id), None)
