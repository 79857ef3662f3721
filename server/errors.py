"""Errors as the API tells them: application/problem+json (RFC 9457).

::

    ApiError                    status, detail, errors, headers
    ├── UnauthorizedError       401: says how to send a key
    ├── ForbiddenError          403
    ├── NotFoundError           404
    ├── NotAcceptableError      406
    ├── ConflictError           409: the job's state forbids it
    ├── TooLargeError           413
    ├── RangeError              416
    ├── RefusedSpecError        422: names the fields
    ├── TooManyRequestsError    429: says when to come again
    └── UnavailableError        503: Ray does not answer
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from sqlalchemy.exc import DataError, SQLAlchemyError
from starlette.exceptions import HTTPException

from cafe_core.errors import SpecError
from cafe_core.spec.refusal import named_field, refused_field
from server.http import request_id
from server.schemas import FieldError, Problem
from server.store.database import is_outage
from workers.client import RayError

log = logging.getLogger(__name__)

PROBLEM = "application/problem+json"

SHOWN_ERRORS = 100
"""Of one request: whoever sends more can only have meant harm, or something else."""
SHOWN_CHARACTERS = 1000
"""Of a field's path, and of what is wrong with it: both may quote what was sent."""


class ApiError(Exception):
    """An answer that is an error."""

    status = 500

    def __init__(self, detail: str, *, errors: list[FieldError] | None = None, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.errors = errors
        self.headers = headers


class UnauthorizedError(ApiError):
    """No key, or none that is valid. `challenge`: the WWW-Authenticate header."""

    status = 401

    def __init__(self, detail: str, challenge: str) -> None:
        super().__init__(detail, headers={"WWW-Authenticate": challenge})


class ForbiddenError(ApiError):
    """Who asks may not."""

    status = 403


class NotFoundError(ApiError):
    """There is no such thing."""

    status = 404


class NotAcceptableError(ApiError):
    """There is no representation that the client takes."""

    status = 406


class ConflictError(ApiError):
    """Not in the state that the job, or the dataset, is in."""

    status = 409


class RefusedSpecError(ApiError):
    """The request asks for something impossible. `total`: how many errors there are, where `errors` are only the first."""

    status = 422

    def __init__(self, errors: list[FieldError], *, total: int | None = None) -> None:
        shown = [FieldError(loc=_shown(error.loc), msg=_shown(error.msg)) for error in errors]
        said = [f"{error.loc}: {error.msg}" if error.loc else error.msg for error in shown]
        if total is not None and total > len(shown):
            said.append(f"… {total} errors in all, of which the first {len(shown)} are shown")
        super().__init__("; ".join(said), errors=shown)

    @classmethod
    def of(cls, loc: str, msg: str) -> RefusedSpecError:
        """With one field."""
        return cls([FieldError(loc=loc, msg=msg)])


class TooManyRequestsError(ApiError):
    """More than a key may ask for now. `retry_after_s`: when to ask again, in whole seconds."""

    status = 429

    def __init__(self, detail: str, retry_after_s: int) -> None:
        super().__init__(detail, headers={"Retry-After": str(retry_after_s)})


class TooLargeError(ApiError):
    """More bytes than the operator allows."""

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


def _refusal_of(errors: Sequence[Any], *, outer: int = 0) -> RefusedSpecError:
    """Pydantic's errors as an answer; `outer` leading parts of each location are left out (`body`, `query`, …)."""
    refused = [refused_field(error, outer=outer) for error in errors[:SHOWN_ERRORS]]
    return RefusedSpecError([FieldError(loc=loc, msg=msg) for loc, msg in refused], total=len(errors))


def _shown(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 1] + "…"


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
        refused = _refusal_of(error.errors(), outer=1)
        return problem_response(refused.status, refused.detail, errors=refused.errors)

    @app.exception_handler(RayError)
    async def ray_error(_request: Request, error: RayError) -> Response:
        unavailable = UnavailableError(str(error))
        return problem_response(unavailable.status, unavailable.detail, headers=unavailable.headers)

    @app.exception_handler(SQLAlchemyError)
    async def database_error(_request: Request, error: SQLAlchemyError) -> Response:
        if isinstance(error, DataError):  # PostgreSQL takes no NUL character; all else was checked before
            return problem_response(422, "the request holds a text or a number that cannot be stored, e.g. a NUL character")
        log.error("the database fails", exc_info=error)
        if not is_outage(error):
            return problem_response(500, "an unexpected error; the server's log has it")
        unavailable = UnavailableError("the database does not answer; what was asked may or may not have been done")
        return problem_response(unavailable.status, unavailable.detail, headers=unavailable.headers)

    @app.exception_handler(Exception)
    async def unexpected(_request: Request, error: Exception) -> Response:
        log.error("an unexpected error", exc_info=error)
        return problem_response(500, "an unexpected error; the server's log has it", headers=request_id.header())


def document(schema: dict[str, Any]) -> dict[str, Any]:
    """`schema`, an OpenAPI document, with Problem among its components."""
    problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    definitions = problem.pop("$defs")
    schema.setdefault("components", {}).setdefault("schemas", {}).update({"Problem": problem, **definitions})
    return schema


def spec_refusal(error: ValueError | SpecError) -> RefusedSpecError:
    """What validating a spec and `cafe_core.jobs.submission.accept` raise, as the answer."""
    match error:
        case ValidationError():
            return _refusal_of(error.errors())
        case SpecError():
            return RefusedSpecError.of(error.loc, error.message)
        case _:
            return RefusedSpecError.of(*named_field(str(error)))
