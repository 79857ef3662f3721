"""Errors that the API responds with, as application/problem+json (RFC 9457).

::

    ApiError                    status, detail, errors, headers
    ├── UnauthorizedError       401: says how to send an API key
    ├── ForbiddenError          403
    ├── NotFoundError           404
    ├── NotAcceptableError      406
    ├── ConflictError           409: the job's state forbids it
    ├── TooLargeError           413
    ├── RangeError              416
    ├── RefusedSpecError        422: names the invalid fields
    ├── TooManyRequestsError    429: says when to retry
    └── UnavailableError        503: the database or Ray does not respond
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import Response
from pydantic import BaseModel, ConfigDict, ValidationError

from cafe_core.errors import SpecError
from cafe_core.spec.refusal import named_field, refused_field

PROBLEM = "application/problem+json"

SHOWN_ERRORS = 100
"""Maximum number of errors in one response."""
SHOWN_CHARACTERS = 1000
"""Maximum length of a field's path and of its message: both may quote the request."""


class FieldError(BaseModel):
    """A field of the request and why it is invalid."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    loc: str
    """The field's path, e.g. `resources.workers`."""
    msg: str
    """What is wrong, and what is allowed."""


class Problem(BaseModel):
    """An error (RFC 9457), as application/problem+json."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    errors: list[FieldError] | None = None
    """The invalid fields (status 422)."""


class ApiError(Exception):
    """Base class of the errors that the API responds with."""

    status = 500

    def __init__(self, detail: str, *, errors: list[FieldError] | None = None, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.errors = errors
        self.headers = headers


class UnauthorizedError(ApiError):
    """The API key is missing or invalid. `challenge`: the WWW-Authenticate header."""

    status = 401

    def __init__(self, detail: str, challenge: str) -> None:
        super().__init__(detail, headers={"WWW-Authenticate": challenge})


class ForbiddenError(ApiError):
    """The API key lacks a scope, or the request is not allowed without a key."""

    status = 403


class NotFoundError(ApiError):
    """The resource does not exist, or the API key may not see it."""

    status = 404


class NotAcceptableError(ApiError):
    """No media type of the response is acceptable to the client."""

    status = 406


class ConflictError(ApiError):
    """The state of the job or dataset does not allow the request."""

    status = 409


class RefusedSpecError(ApiError):
    """The request is invalid. `total`: the number of errors, if `errors` holds only the first ones."""

    status = 422

    def __init__(self, errors: list[FieldError], *, total: int | None = None) -> None:
        shown = [FieldError(loc=_shown(error.loc), msg=_shown(error.msg)) for error in errors]
        said = [f"{error.loc}: {error.msg}" if error.loc else error.msg for error in shown]
        if total is not None and total > len(shown):
            said.append(f"… {total} errors in all; the first {len(shown)} are shown")
        super().__init__("; ".join(said), errors=shown)

    @classmethod
    def of(cls, loc: str, msg: str) -> RefusedSpecError:
        """Return the error of a single field."""
        return cls([FieldError(loc=loc, msg=msg)])


class TooManyRequestsError(ApiError):
    """A limit of the API key is reached. `retry_after_s`: when to retry, in whole seconds."""

    status = 429

    def __init__(self, detail: str, retry_after_s: int) -> None:
        super().__init__(detail, headers={"Retry-After": str(retry_after_s)})


class TooLargeError(ApiError):
    """The request, or what it would store, has too many bytes."""

    status = 413


class RangeError(ApiError):
    """The requested range begins past the end of the file."""

    status = 416


class UnavailableError(ApiError):
    """A service that the request needs does not respond. The client may retry."""

    status = 503

    def __init__(self, detail: str) -> None:
        super().__init__(detail, headers={"Retry-After": "2"})


def problem_response(
    status: int, detail: str, *, errors: list[FieldError] | None = None, headers: Mapping[str, str] | None = None
) -> Response:
    """Return the response of an error. The JSON is ASCII: a detail may quote the request, lone surrogates included."""
    problem = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail}
    if errors is not None:
        problem["errors"] = [{"loc": error.loc, "msg": error.msg} for error in errors]
    return Response(json.dumps(problem), status, headers, media_type=PROBLEM)


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI `responses` of a route whose responses with these statuses are problems."""
    content = {PROBLEM: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {status: {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}


def validation_refusal(errors: Sequence[Any], *, outer: int = 0) -> RefusedSpecError:
    """Convert Pydantic's errors, without the first `outer` parts of each location (`body`, `query`, …)."""
    refused = [refused_field(error, outer=outer) for error in errors[:SHOWN_ERRORS]]
    return RefusedSpecError([FieldError(loc=loc, msg=msg) for loc, msg in refused], total=len(errors))


def _shown(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 1] + "…"


def spec_refusal(error: ValueError | SpecError) -> RefusedSpecError:
    """Convert an error that spec validation or `cafe_core.jobs.submission.accept` raised."""
    match error:
        case ValidationError():
            return validation_refusal(error.errors())
        case SpecError():
            return RefusedSpecError.of(error.loc, error.message)
        case _:
            return RefusedSpecError.of(*named_field(str(error)))
