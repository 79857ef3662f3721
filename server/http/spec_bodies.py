"""Read the JSON of request bodies as strictly as spec files: with :mod:`cafe_core.spec.reading`."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from cafe_core.spec.json_text import SpecTextError
from cafe_core.spec.reading import read_spec


class _SpecRequest(Request):
    async def json(self) -> Any:
        """Return the spec in the body. Raises JSONDecodeError, which FastAPI turns into a validation error of the body."""
        try:
            return read_spec(await self.body(), "json")
        except SpecTextError as error:
            raise json.JSONDecodeError(str(error), "", 0) from error


class SpecRoute(APIRoute):
    """A route whose JSON body is a spec."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler, which gets a request that reads specs."""
        handle = super().get_route_handler()

        async def handle_spec(request: Request) -> Response:
            return await handle(_SpecRequest(request.scope, request.receive))

        return handle_spec
