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
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import Response
from pydantic import BaseModel, ConfigDict, ValidationError

from cafe_core.errors import SpecError
from cafe_core.spec.refusal import named_field, refused_field

PROBLEM = "application/problem+json"

SHOWN_ERRORS = 100
"""Of one request: whoever sends more can only have meant harm, or something else."""
SHOWN_CHARACTERS = 1000
"""Of a field's path, and of what is wrong with it: both may quote what was sent."""


class FieldError(BaseModel):
    """A field of the request, and why it was refused."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    loc: str
    """The field's path, e.g. `resources.workers`."""
    msg: str


class Problem(BaseModel):
    """An error (RFC 9457), as application/problem+json."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    errors: list[FieldError] | None = None
    """The refused fields (422)."""


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


def validation_refusal(errors: Sequence[Any], *, outer: int = 0) -> RefusedSpecError:
    """Pydantic's errors as an answer; `outer` leading parts of each location are left out (`body`, `query`, …)."""
    refused = [refused_field(error, outer=outer) for error in errors[:SHOWN_ERRORS]]
    return RefusedSpecError([FieldError(loc=loc, msg=msg) for loc, msg in refused], total=len(errors))


def _shown(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 1] + "…"


def spec_refusal(error: ValueError | SpecError) -> RefusedSpecError:
    """What validating a spec and `cafe_core.jobs.submission.accept` raise, as the answer."""
    match error:
        case ValidationError():
            return validation_refusal(error.errors())
        case SpecError():
            return RefusedSpecError.of(error.loc, error.message)
        case _:
            return RefusedSpecError.of(*named_field(str(error)))
