"""/v1/jobs/{id}/artifacts, synthetic and preview.png: download the results of a job."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Path, Query, Request, Response

from cafe_core.errors import SyntheticSetError
from cafe_core.spec.job import parse_job_spec
from cafe_core.synthetic_set.synthetic_set import SyntheticSet
from server import schemas
from server.auth.access import Principal, Reader
from server.auth.visibility import find_job
from server.deps import JobId, Root, Services, ServicesDep
from server.errors import NotFoundError, RefusedSpecError, UnavailableError, problems
from server.files.job_files import Result, result_of
from server.files.synthetic_sets import synthetic_set
from server.http.conditional import Body
from server.store import jobs

router = APIRouter(prefix="/v1", tags=["results"])

Format = Literal["safetensors", "npz", "zip"]
Form = Literal["stored", "decoded"]
MAX_DECODED_BYTES = 1 << 30
"""Limit on the decoded images of a download."""
_FORM = "For a set with `decode` metadata: the stored images, or the training images that they decode to."

ArtifactName = Annotated[str, Path(description="A `name` from the manifest.", examples=["synthetic.safetensors"])]
#: Declared for OpenAPI only; Body reads them from the request.
IfNoneMatch = Annotated[str | None, Header(description="An ETag: respond with 304 if it still matches.")]
Range = Annotated[str | None, Header(description="A single byte range, e.g. `bytes=0-1023`.")]
IfRange = Annotated[str | None, Header(description="An ETag: ignore Range unless it still matches.")]


def _bytes(*media_types: str, errors: tuple[int, ...]) -> dict[str, Any]:
    content = {media_type: {"schema": {"type": "string", "format": "binary"}} for media_type in media_types}
    responses: dict[int | str, dict[str, Any]] = {
        200: {"content": content, "description": "The whole content"},
        206: {"content": content, "description": "The requested range"},
        304: {"description": "Not Modified: the ETag in If-None-Match still matches"},
        **problems(*errors),
    }
    return {"response_class": Response, "responses": responses}


@router.get("/jobs/{job_id}/artifacts", responses=problems(404, 422))
def list_artifacts(job_id: JobId, principal: Reader, services: ServicesDep, root: Root) -> schemas.ArtifactList:
    """List the artifacts of a job.

    The list is empty until the job has a result.
    """
    result = _result(services, principal, job_id)
    here = f"{root}/v1/jobs/{job_id}/artifacts"
    listed = [
        schemas.Artifact(name=a.name, size=a.size, sha256=a.sha256, media_type=a.media_type, href=f"{here}/{a.name}")
        for a in (result.artifacts if result is not None else [])
    ]
    return schemas.ArtifactList(data=listed)


_ARTIFACT = _bytes("application/octet-stream", "image/png", "application/json", "text/csv", errors=(404, 416, 422))


@router.head("/jobs/{job_id}/artifacts/{name}", operation_id="head_artifact", **_ARTIFACT)
@router.get("/jobs/{job_id}/artifacts/{name}", operation_id="get_artifact", **_ARTIFACT)
def get_artifact(
    job_id: JobId,
    name: ArtifactName,
    request: Request,
    principal: Reader,
    services: ServicesDep,
    if_none_match: IfNoneMatch = None,  # noqa: ARG001
    range: Range = None,  # noqa: ARG001
    if_range: IfRange = None,  # noqa: ARG001
) -> Response:
    """Download an artifact.

    The ETag is the SHA-256 of the content, so that Range and If-Range continue an interrupted download safely.
    """
    result = _result(services, principal, job_id)
    found = result.find(name) if result is not None else None
    if found is None:
        raise NotFoundError(f"job {job_id} has no artifact {name!r}" + ("" if result is not None else "; it has no result yet"))
    entry, path = found
    body = Body(path, size=entry.size, sha256=entry.sha256, media_type=entry.media_type, filename=entry.name)
    return body.response(request)


_CONVERTERS: dict[Format, tuple[str, Callable[[SyntheticSet], bytes]]] = {
    "safetensors": ("application/octet-stream", lambda made: made.to_safetensors_bytes()),
    "npz": ("application/octet-stream", lambda made: made.to_npz_bytes()),
    "zip": ("application/zip", lambda made: made.to_zip_bytes()),
}

_SYNTHETIC = _bytes("application/octet-stream", "application/zip", errors=(404, 416, 422, 503))


@router.head("/jobs/{job_id}/synthetic", operation_id="head_synthetic", **_SYNTHETIC)
@router.get("/jobs/{job_id}/synthetic", operation_id="get_synthetic", **_SYNTHETIC)
async def get_synthetic(
    job_id: JobId,
    request: Request,
    principal: Reader,
    services: ServicesDep,
    format: Annotated[Format, Query(description="Format of the set; `zip` is an image folder of PNGs.")] = "safetensors",
    images: Annotated[Form | None, Query(description=f"{_FORM} Default: `decoded` for `zip`, otherwise `stored`.")] = None,
) -> Response:
    """Download the synthetic set of a job.

    Before the job has a result, this is the set of the latest checkpoint for a condensation, the set of the best trial so far
    for a sweep, and the set under evaluation for an evaluation.
    """
    media_type, convert = _CONVERTERS[format]
    decoded = (images or ("decoded" if format == "zip" else "stored")) == "decoded"

    def made() -> Body:
        found = _synthetic_set(services, principal, job_id)
        content = convert(_decoded(found) if decoded else found)
        return Body.of(content, media_type=media_type, filename=f"{job_id}.{format}")

    return (await services.heavy.run_fair(principal.key_id, made)).response(request)


_PREVIEW = _bytes("image/png", errors=(404, 416, 422, 503))


@router.head("/jobs/{job_id}/preview.png", operation_id="head_preview", **_PREVIEW)
@router.get("/jobs/{job_id}/preview.png", operation_id="get_preview", **_PREVIEW)
async def get_preview(
    job_id: JobId,
    request: Request,
    principal: Reader,
    services: ServicesDep,
    images: Annotated[Form, Query(description=_FORM)] = "stored",
) -> Response:
    """Download the synthetic set as a grid of images, one row per class."""

    def made() -> Body:
        found = _synthetic_set(services, principal, job_id)
        content = (_decoded(found) if images == "decoded" else found).preview_png()
        return Body.of(content, media_type="image/png", filename=f"{job_id}.png")

    return (await services.heavy.run_fair(principal.key_id, made)).response(request)


def _decoded(found: SyntheticSet) -> SyntheticSet:
    """Return the training images of a set. Raises RefusedSpecError if they exceed the limit: they are decoded in memory."""
    count = found.training_images_per_class * len(found.class_names)
    if (size := count * found.images[0].nbytes) > MAX_DECODED_BYTES:
        raise RefusedSpecError.of(
            "images",
            f"the decoded images of the set take {size} bytes; the limit is {MAX_DECODED_BYTES}. Download the stored images "
            "(images=stored) and decode them by their `decode` metadata",
        )
    return found.decoded()


def _result(services: Services, principal: Principal, job_id: str) -> Result | None:
    with services.database.read() as session:
        rows = jobs.artifacts(session, find_job(session, principal, job_id))
    return result_of(services.settings.job_dir(job_id), rows)


def _synthetic_set(services: Services, principal: Principal, job_id: str) -> SyntheticSet:
    with services.database.read() as session:
        job = find_job(session, principal, job_id)
        rows = jobs.artifacts(session, job)
    try:
        return synthetic_set(services.settings.job_dir(job_id), rows, job.attempt, parse_job_spec(job.spec))
    except SyntheticSetError as error:
        raise UnavailableError(str(error)) from error
