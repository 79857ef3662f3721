"""Errors as the API tells them: application/problem+json (RFC 9457).

::

    ApiError                    status, detail, errors, headers
    ├── NotFoundError           404
    ├── ConflictError           409: the job's state forbids it
    ├── RefusedSpecError        422: names the fields
    └── UnavailableError        503: Ray does not answer
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from cafe_core.config import DatasetSpec, JobSpec
from cafe_core.errors import DatasetError, SpecError
from server.schemas import FieldError, Problem
from workers.client import RayError

log = logging.getLogger(__name__)

PROBLEM = "application/problem+json"
_NAMES_A_FIELD = re.compile(rf"((?:{'|'.join(JobSpec.model_fields)})(?:\.[a-z0-9_]+)*): ")
_NAMES_A_DATASET_FIELD = re.compile(rf"(dataset\.(?:{'|'.join(DatasetSpec.model_fields)})): ")


class ApiError(Exception):
    """An answer that is an error."""

    status = 500

    def __init__(self, detail: str, *, errors: list[FieldError] | None = None, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.errors = errors
        self.headers = headers


class NotFoundError(ApiError):
    """There is no such thing."""

    status = 404


class ConflictError(ApiError):
    """Not in the state that the job, or the dataset, is in."""

    status = 409


class RefusedSpecError(ApiError):
    """The request asks for something impossible."""

    status = 422

    def __init__(self, errors: list[FieldError]) -> None:
        super().__init__("; ".join(f"{error.loc}: {error.msg}" if error.loc else error.msg for error in errors), errors=errors)

    @classmethod
    def of(cls, loc: str, msg: str) -> RefusedSpecError:
        """With one field."""
        return cls([FieldError(loc=loc, msg=msg)])


class TooLargeError(ApiError):
    """The body is larger than the operator allows."""

    status = 413


class RangeError(ApiError):
    """The range lies outside the file."""

    status = 416


class UnavailableError(ApiError):
    """Something that the answer needs is not there now."""

    status = 503

    def __init__(self, detail: str) -> None:
        super().__init__(detail, headers={"Retry-After": "2"})


def problem_response(
    status: int, detail: str, *, errors: list[FieldError] | None = None, headers: Mapping[str, str] | None = None
) -> Response:
    """The answer for an error. Only ASCII on the wire: a detail may quote what a user sent, lone surrogates included."""
    problem = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail}
    if errors is not None:
        problem["errors"] = [{"loc": error.loc, "msg": error.msg} for error in errors]
    return Response(json.dumps(problem), status, headers, media_type=PROBLEM)


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For a route's `responses`: these statuses answer with a Problem."""
    content = {PROBLEM: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {status: {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}


def field_errors(errors: Sequence[Any], *, outer: int = 0) -> list[FieldError]:
    """Pydantic's errors; `outer` leading parts of each location are left out (`body`, `query`, …)."""
    found = []
    for error in errors:
        loc = ".".join(str(part) for part in error["loc"][outer:])
        msg = "unknown field" if error["type"] == "extra_forbidden" else str(error["msg"]).removeprefix("Value error, ")
        found.append(_field_error(msg, loc, _NAMES_A_FIELD) if error["type"] == "value_error" else FieldError(loc=loc, msg=msg))
    return found


def _field_error(message: str, loc: str, names_a_field: re.Pattern[str]) -> FieldError:
    """`message` may itself start with a field's path, which then stands instead of `loc`: `network.norm: …`."""
    if named := names_a_field.match(message):
        return FieldError(loc=named[1], msg=message[named.end() :])
    return FieldError(loc=loc, msg=message)


def install(app: FastAPI) -> None:
    """Make every error of `app` a problem, 404, 405, 422 and 500 included."""

    @app.exception_handler(ApiError)
    async def api_error(_request: Request, error: ApiError) -> Response:
        return problem_response(error.status, error.detail, errors=error.errors, headers=error.headers)

    @app.exception_handler(HTTPException)
    async def http_error(_request: Request, error: HTTPException) -> Response:
        return problem_response(error.status_code, str(error.detail), headers=error.headers)

    @app.exception_handler(RequestValidationError)
    async def validation_error(_request: Request, error: RequestValidationError) -> Response:
        refused = RefusedSpecError(field_errors(error.errors(), outer=1))
        return problem_response(refused.status, refused.detail, errors=refused.errors)

    @app.exception_handler(RayError)
    async def ray_error(_request: Request, error: RayError) -> Response:
        unavailable = UnavailableError(str(error))
        return problem_response(unavailable.status, unavailable.detail, headers=unavailable.headers)

    @app.exception_handler(Exception)
    async def unexpected(_request: Request, error: Exception) -> Response:
        log.error("an unexpected error", exc_info=error)
        return problem_response(500, "an unexpected error; the server's log has it")


def document(schema: dict[str, Any]) -> dict[str, Any]:
    """`schema`, an OpenAPI document, with Problem among its components."""
    problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    definitions = problem.pop("$defs")
    schema.setdefault("components", {}).setdefault("schemas", {}).update({"Problem": problem, **definitions})
    return schema


def spec_refusal(error: ValueError | SpecError | DatasetError) -> RefusedSpecError:
    """What `resolve` and `describe` raise, as the answer.

    The message of `resolve`'s ValueError starts with the field's path. That of a DatasetError mostly starts with a path
    of the user's, which may look like one, so that of a dataset's own fields only is taken for a field.
    """
    match error:
        case ValidationError():
            return RefusedSpecError(field_errors(error.errors()))
        case SpecError():
            return RefusedSpecError.of(error.loc, error.message)
        case DatasetError():
            return RefusedSpecError([_field_error(error.message, "dataset", _NAMES_A_DATASET_FIELD)])
        case _:
            return RefusedSpecError([_field_error(str(error), "", _NAMES_A_FIELD)])
