"""/v1/datasets: list, upload, get and delete datasets."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, Path, Request, Response, UploadFile
from sqlalchemy import select
from starlette.concurrency import run_in_threadpool

from cafe_core.data.builtin import list_builtin
from cafe_core.spec.dataset import DatasetInfo
from server import schemas
from server.auth.access import Principal, Reader, Writer, max_upload_bytes
from server.auth.limits import check_storage_quota
from server.auth.visibility import find_dataset, listed_owner
from server.deps import Services, ServicesDep
from server.errors import ConflictError, problems
from server.files.uploads import description_now, discard_upload, stage_upload_removal, store_upload
from server.http.body_limit import FORM_BYTES
from server.store import models, serializers
from server.store.datasets_in_use import datasets_in_use

router = APIRouter(prefix="/v1", tags=["datasets"])

DatasetId = Annotated[
    str, Path(description="The `id` of a dataset: the name of a built-in one, or the id assigned to an upload.")
]


@router.get("/datasets", response_model=schemas.DatasetList)
def list_datasets(principal: Reader, services: ServicesDep) -> Response:
    """List datasets.

    Lists the built-in datasets, then those that the API key has uploaded, newest first. A key of
    scope admin sees all uploads.
    """
    query = select(models.Dataset).order_by(models.Dataset.number.desc())
    if (owner := listed_owner(principal)) is not None:
        query = query.where(models.Dataset.owner == owner)
    with services.database.read() as session:
        listed = [serializers.builtin_dataset(info).model_dump_json() for info in list_builtin()]
        # Serialized here, off the event loop.
        listed += [serializers.dataset(row).model_dump_json() for row in session.scalars(query)]
    return Response(serializers.dataset_list(listed), media_type="application/json")


@router.post(
    "/datasets",
    status_code=201,
    responses=problems(400, 413, 422),
    form_limits={"max_files": 1, "max_fields": 1, "max_part_size": FORM_BYTES},  # parts are held in memory or in an open file
)
async def upload(
    file: UploadFile,
    request: Request,
    principal: Writer,
    services: ServicesDep,
    name: Annotated[str | None, Form(max_length=128, description="A display name. Default: the name of the file.")] = None,
) -> schemas.Dataset:
    """Upload a dataset.

    The file is a `.zip` of an image folder (`CLASS/*.jpg`, or `train/CLASS/*.jpg` with an optional `test/` or `val/`) or an
    `.npz` with `images` (uint8 N×H×W[×C]), `labels`, and optionally `test_images` and `test_labels`; the names that MedMNIST and
    Keras use are read too. Pickles are never read.
    """
    await run_in_threadpool(_check_quota, services, principal, file.size or 0)
    max_bytes = max_upload_bytes(request.scope, services.settings)
    row = await services.upload_checks.run_fair(
        principal.key_id, store_upload, file, name, services.settings.roots, max_bytes=max_bytes
    )
    row.owner = principal.key_id
    try:
        await run_in_threadpool(_add, services, principal, row)
    except BaseException:
        discard_upload(services.settings.roots, row.id)
        raise
    return serializers.dataset(row)


def _check_quota(services: Services, principal: Principal, size: int) -> None:
    """Check the key's quota before the upload is validated and stored; `_add` checks again. Raises TooLargeError."""
    with services.database.read() as session:
        check_storage_quota(session, principal.key_id, services.settings, size)


def _add(services: Services, principal: Principal, row: models.Dataset) -> None:
    with services.database.write() as session:
        check_storage_quota(session, principal.key_id, services.settings, row.size)
        session.add(row)


@router.get("/datasets/{dataset_id}", responses=problems(404, 422))
def get_dataset(dataset_id: DatasetId, principal: Reader, services: ServicesDep) -> schemas.Dataset:
    """Get a dataset."""
    if (info := _builtin(dataset_id)) is not None:
        return serializers.builtin_dataset(info)
    with services.database.read() as session:
        row = find_dataset(session, principal, dataset_id)
    return serializers.dataset(row, description_now(row, services.settings.roots))


@router.delete("/datasets/{dataset_id}", status_code=204, responses=problems(404, 409, 422))
def delete_dataset(dataset_id: DatasetId, principal: Writer, services: ServicesDep) -> None:
    """Delete an uploaded dataset.

    Also deletes the copies of its images that were cached for jobs. Results of jobs stay.
    """
    if _builtin(dataset_id) is not None:
        raise ConflictError(f"{dataset_id} is built in; only uploaded datasets can be deleted")
    with stage_upload_removal(services.settings.roots, dataset_id) as set_aside, services.database.write() as session:
        row = find_dataset(session, principal, dataset_id, lock=True)
        if dataset_id in datasets_in_use(session):
            raise ConflictError(f"dataset {dataset_id} is in use by a job that has not ended; cancel the job first")
        session.delete(row)
        session.flush()
        set_aside()


def _builtin(dataset_id: str) -> DatasetInfo | None:
    return next((info for info in list_builtin() if info.name == dataset_id), None)
