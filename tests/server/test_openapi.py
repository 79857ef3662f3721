"""The committed OpenAPI document."""

from __future__ import annotations

from pathlib import Path

from server.openapi import openapi_json


def test_committed_openapi_document_is_current() -> None:
    committed = (Path(__file__).parents[2] / "docs" / "openapi.json").read_text(encoding="utf-8")
    assert committed == openapi_json(), "run: python -m server.openapi > docs/openapi.json"
