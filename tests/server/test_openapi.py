"""The committed OpenAPI document."""

from __future__ import annotations

import json
import re
from pathlib import Path

from server.openapi import openapi_json

DOCS = Path(__file__).parents[2] / "docs"


def test_committed_openapi_document_is_current() -> None:
    committed = (DOCS / "openapi.json").read_text(encoding="utf-8")
    assert committed == openapi_json(), "run: python -m server.openapi > docs/openapi.json"


def test_types_of_events_are_those_in_the_documentation() -> None:
    described = json.loads(openapi_json())["components"]["schemas"]["Event"]["properties"]["type"]["description"]
    table = (
        (DOCS / "http-api.md")
        .read_text(encoding="utf-8")
        .partition("| event `type` | meaning |\n|---|---|\n")[2]
        .partition("\n\n")[0]
    )
    documented = [name for row in table.splitlines() for name in re.findall(r"`(\w+)`", row.split("|")[1])]
    assert sorted(re.findall(r"\w+", described.removeprefix("One of "))) == sorted(documented)
