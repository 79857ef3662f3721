"""Turn every error of the app into a problem response, and document the format in OpenAPI."""

from __future__ import annotations

import logging
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import DataError, SQLAlchemyError
from starlette.exceptions import HTTPException

from server.errors import ApiError, Problem, UnavailableError, problem_response, validation_refusal
from server.http import request_id
from server.store.database import is_outage
from workers.client import RayError

log = logging.getLogger(__name__)


def install(app: FastAPI) -> None:
    """Make every error response of `app` a problem, including 404, 405, 422 and 500."""

    @app.exception_handler(ApiError)
    async def api_error(_request: Request, error: ApiError) -> Response:
        return problem_response(error.status, error.detail, errors=error.errors, headers=error.headers)

    @app.exception_handler(HTTPException)
    async def http_error(_request: Request, error: HTTPException) -> Response:
        return problem_response(error.status_code, str(error.detail), headers=error.headers)

    @app.exception_handler(RequestValidationError)
    async def validation_error(_request: Request, error: RequestValidationError) -> Response:
        refused = validation_refusal(error.errors(), outer=1)
        return problem_response(refused.status, refused.detail, errors=refused.errors)

    @app.exception_handler(RayError)
    async def ray_error(_request: Request, error: RayError) -> Response:
        unavailable = UnavailableError(str(error))
        return problem_response(unavailable.status, unavailable.detail, headers=unavailable.headers)

    @app.exception_handler(SQLAlchemyError)
    async def database_error(_request: Request, error: SQLAlchemyError) -> Response:
        if isinstance(error, DataError):  # e.g. PostgreSQL stores no NUL character
            return problem_response(422, "the request contains a text or number that cannot be stored, e.g. a NUL character")
        log.error("database error", exc_info=error)
        if not is_outage(error):
            return problem_response(500, "unexpected error; see the server's log")
        unavailable = UnavailableError("the database does not respond; the request may or may not have taken effect")
        return problem_response(unavailable.status, unavailable.detail, headers=unavailable.headers)

    @app.exception_handler(Exception)
    async def unexpected(_request: Request, error: Exception) -> Response:
        log.error("unexpected error", exc_info=error)
        return problem_response(500, "unexpected error; see the server's log", headers=request_id.header())


def document(schema: dict[str, Any]) -> dict[str, Any]:
    """Add Problem to the components of `schema`, an OpenAPI document, and return it."""
    problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    definitions = problem.pop("$defs")
    schema.setdefault("components", {}).setdefault("schemas", {}).update({"Problem": problem, **definitions})
    return schema
