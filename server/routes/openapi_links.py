"""Add links to the OpenAPI document: from responses that contain a job or dataset to the operations on it."""

from __future__ import annotations

from typing import Any

_METHODS = ("get", "head", "post", "delete")


def link(schema: dict[str, Any]) -> dict[str, Any]:
    """Add the links to `schema`, an OpenAPI document, and return it."""
    paths = schema["paths"]
    _link(paths, "/v1/jobs", "job_id", ("200", "201"))
    _link(paths, "/v1/datasets", "dataset_id", ("201",))
    return schema


def _link(paths: dict[str, Any], collection: str, parameter: str, statuses: tuple[str, ...]) -> None:
    links = {
        operation["operationId"]: {
            "operationId": operation["operationId"],
            "parameters": {parameter: "$response.body#/id"},
            "description": operation.get("summary", ""),
        }
        for path, item in paths.items()
        if f"{{{parameter}}}" in path
        for method, operation in item.items()
        if method in _METHODS
    }
    responses = paths[collection]["post"]["responses"]
    for status in statuses:
        if status in responses:
            responses[status]["links"] = links
