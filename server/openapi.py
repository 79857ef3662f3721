"""Print the OpenAPI document of the API as JSON: `python -m server.openapi > docs/openapi.json`."""

from __future__ import annotations

import json

from server.app import create_app
from server.settings import Settings
from workers.client import RayClient


def openapi_json() -> str:
    """Return the document that a server serves at /openapi.json, indented. Does not start a server or connect to Ray."""
    app = create_app(Settings(), RayClient("http://127.0.0.1:8265"))
    return json.dumps(app.openapi(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    print(openapi_json(), end="")
