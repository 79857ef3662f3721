"""ASGI middleware for servers behind a path prefix of a reverse proxy: https://example.com/cafe/v1/jobs.

The prefix is the operator's. A header of the request sets it only if the operator says that a proxy in front sets or removes this
header: otherwise a client could put a prefix of its own into links that a cache keeps for others.
"""

from __future__ import annotations

import re

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

FORWARDED_PREFIX = "x-forwarded-prefix"
_PREFIX = re.compile(r"(?:/(?!\.{1,2}(?:/|\Z))[A-Za-z0-9._~-]+)*")


def normalized(prefix: str) -> str:
    """Return a prefix with a slash in front and none at the end: `/cafe`, or nothing. Raises ValueError."""
    path = prefix.strip("/")
    found = f"/{path}" if path else ""
    if not _PREFIX.fullmatch(found) or len(found) > 256:
        raise ValueError(f"{prefix!r} is not a path prefix; write, for example, /cafe")
    return found


def route_path(scope: Scope) -> str:
    """Return the path of a request without the prefix: `/v1/jobs`."""
    return str(scope["path"]).removeprefix(scope.get("root_path", ""))


class RootPath:
    """Set the `root_path` and the `path` of each request, whether the proxy removes the prefix from the path or keeps it.

    prefix: normalized. trust_forwarded: let X-Forwarded-Prefix take precedence over it.
    """

    def __init__(self, app: ASGIApp, prefix: str, *, trust_forwarded: bool) -> None:
        self._app = app
        self._prefix = prefix
        self._trust_forwarded = trust_forwarded

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle an ASGI connection."""
        if scope["type"] == "http" and (prefix := self._prefix_of(scope)):
            path = scope["path"]
            scope["root_path"] = prefix
            scope["path"] = path if f"{path}/".startswith(f"{prefix}/") else prefix + path
        await self._app(scope, receive, send)

    def _prefix_of(self, scope: Scope) -> str:
        forwarded = Headers(scope=scope).get(FORWARDED_PREFIX) if self._trust_forwarded else None
        if forwarded is None:
            return self._prefix
        try:
            return normalized(forwarded)
        except ValueError:
            return self._prefix
