"""Authentication and authorization of every request, before its body is read and its route is found.

As soon as the database has an API key, every path except those in :data:`OPEN` needs one. A server without keys is meant for one
person on one machine. It accepts requests from loopback only, and refuses changes that a browser sends for pages of other origins
and all requests that a proxy has forwarded. A proxy that adds no headers cannot be distinguished from a local program;
docs/deployment.md warns about this.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import hmac
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer, SecurityScopes
from pydantic import SecretStr
from sqlalchemy.exc import SQLAlchemyError
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as AsgiScope

from server.addresses import is_loopback
from server.auth.keys import Scope, all_of, hash_of, limits_of, scopes_of
from server.auth.limits import Buckets, Limits
from server.auth.open_requests import OpenRequests
from server.errors import ApiError, ForbiddenError, UnauthorizedError, UnavailableError, problem_response, problems
from server.http.root_path import route_path
from server.settings import Settings
from server.store.database import Database
from server.store.models import ApiKey

KEYS_FRESH_S = 0.5
"""Maximum age of the cached keys: every server sees a new or revoked key within this time."""
OPEN = frozenset({"/healthz", "/readyz", "/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json"})
OPEN_BELOW = "/static-offline-docs/"
DASHBOARD = "/dashboard"
METRICS = "/metrics"
METRICS_SCOPE = "metrics"
"""The scope of settings.metrics_token, which keys of scope admin have as well."""
READ_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
PROXY_HEADERS = frozenset({"forwarded", "via", "x-real-ip"})
PROXY_HEADER_PREFIX = "x-forwarded-"
"""Headers that proxies add and local programs have no reason to send."""


@dataclass(frozen=True)
class Principal:
    """The authenticated client. `key_id` is None if the server has no keys, and for the metrics token."""

    key_id: str | None
    scopes: frozenset[str]
    """Including implied scopes."""
    limits: Limits | None = None
    """None: unlimited."""

    @property
    def is_admin(self) -> bool:
        """Return whether the client may see and do everything."""
        return Scope.ADMIN in self.scopes

    def sees(self, owner: str | None) -> bool:
        """Return whether the client may see resources of `owner`, the id of a key."""
        return self.is_admin or (owner is not None and owner == self.key_id)


ANYBODY = Principal(None, frozenset({*Scope, METRICS_SCOPE}))
"""The client of a server without keys."""


@dataclass(frozen=True)
class _Keys:
    """A snapshot of the table of keys."""

    any: bool = False
    by_hash: Mapping[str, Principal] = field(default_factory=dict)
    """Keys that are not revoked."""


class KeyRing:
    """Cache the valid keys, and read them from the database at most every KEYS_FRESH_S."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._settings = settings
        self._keys = _Keys()
        self._read_at = float("-inf")
        self._reading = asyncio.Lock()

    async def required(self) -> bool:
        """Return whether requests need a key. Raises UnavailableError if the database does not respond."""
        await self._refresh()
        return self._keys.any

    async def find(self, key: str) -> Principal | None:
        """Return the principal of a key; None if the key is unknown or revoked. Raises UnavailableError."""
        await self._refresh()
        return self._keys.by_hash.get(hash_of(key))

    async def is_still_valid(self, principal: Principal) -> bool:
        """Return whether a principal is still valid, for responses that take long. Raises UnavailableError."""
        await self._refresh()
        if principal is ANYBODY:
            return not self._keys.any
        if principal.key_id is None:
            return True  # the metrics token does not change while the process runs
        return any(known.key_id == principal.key_id for known in self._keys.by_hash.values())

    async def _refresh(self) -> None:
        if time.monotonic() - self._read_at <= KEYS_FRESH_S:
            return
        async with self._reading:  # one query for all waiting requests
            asked_at = time.monotonic()
            if asked_at - self._read_at <= KEYS_FRESH_S:
                return
            try:
                self._keys = await asyncio.to_thread(self._read)
            except SQLAlchemyError as error:  # fail closed: never trust a stale key list
                raise UnavailableError("the database does not respond, so API keys cannot be checked") from error
            self._read_at = asked_at

    def _read(self) -> _Keys:
        with self._database.read() as session:
            rows = all_of(session)
        return _Keys(bool(rows), {row.hash: self._principal(row) for row in rows if row.revoked_at is None})

    def _principal(self, row: ApiKey) -> Principal:
        scopes: set[str] = set(scopes_of(row))
        if Scope.ADMIN in scopes:
            scopes.add(METRICS_SCOPE)
        return Principal(row.id, frozenset(scopes), Limits.of(limits_of(row), self._settings))


class Gate:
    """ASGI middleware that sets `request.state.principal`, or refuses the request."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._metrics_token = settings.metrics_token
        self._buckets = Buckets()
        self._open = OpenRequests()

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Handle an ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        with contextlib.ExitStack() as answering:
            try:
                principal = state["principal"] = await self._admit(scope)
                state["open_request"] = None
                if principal is not None and principal.key_id is not None:
                    state["open_request"] = answering.enter_context(self._open.track(principal.key_id))
            except ApiError as error:
                refusal = problem_response(error.status, error.detail, headers=error.headers)
                await refusal(scope, receive, send)
                return
            await self._app(scope, receive, send)

    async def _admit(self, scope: AsgiScope) -> Principal | None:
        path, method, headers = route_path(scope), scope["method"], Headers(scope=scope)
        if path in ("/healthz", "/readyz"):  # must work without the database
            return None
        keys: KeyRing = scope["app"].state.services.keys
        if not await keys.required():
            _check_local(scope, headers)
            return ANYBODY
        if path in OPEN or path.startswith(OPEN_BELOW):
            return None
        principal = await self._principal(keys, path, headers)
        if principal.limits is not None:
            self._buckets.take(principal.key_id, principal.limits.requests_per_minute)
        if method not in READ_METHODS and Scope.WRITE not in principal.scopes:
            raise ForbiddenError(_missing_scope(Scope.WRITE))  # before the body is read
        return principal

    async def _principal(self, keys: KeyRing, path: str, headers: Headers) -> Principal:
        on_dashboard = path == DASHBOARD or path.startswith(f"{DASHBOARD}/")
        challenge = 'Basic realm="Ray\'s dashboard: the password is an API key", charset="UTF-8"' if on_dashboard else "Bearer"
        key = credentials(headers.get("authorization", ""), basic=on_dashboard)
        if key is None:
            how = " or as the password of HTTP Basic" if on_dashboard else ""
            raise UnauthorizedError(f"API key required: send it as `Authorization: Bearer cafe_…`{how}", challenge)
        if path == METRICS and _same(key, self._metrics_token):
            return Principal(None, frozenset({METRICS_SCOPE}))
        principal = await keys.find(key)
        if principal is None:
            raise UnauthorizedError("the API key is unknown or revoked", challenge)
        return principal


def max_upload_bytes(scope: AsgiScope, settings: Settings) -> int:
    """Return the maximum size of an upload for an authenticated request."""
    principal: Principal | None = scope["state"]["principal"]
    return settings.max_upload_bytes if principal is None or principal.limits is None else principal.limits.max_upload_bytes


def credentials(header: str, *, basic: bool = False) -> str | None:
    """Return the key in an Authorization header: `Bearer KEY`, or with `basic` also the password of `Basic`."""
    scheme, _, value = header.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip() or None
    if basic and scheme.lower() == "basic":
        try:
            return base64.b64decode(value.strip(), validate=True).decode().partition(":")[2] or None
        except (binascii.Error, UnicodeDecodeError):
            return None
    return None


def _without_port(header: str) -> str:
    """Return the Host header without its port."""
    return header.rpartition("]")[0] + "]" if header.startswith("[") else header.partition(":")[0]


def _check_local(scope: AsgiScope, headers: Headers) -> None:
    """Raise ForbiddenError unless a local program or a page of this server sends the request."""
    client = scope.get("client")
    if client is not None and not is_loopback(client[0]):
        raise ForbiddenError("this server has no API keys and accepts local requests only; create a key with `cafe keys create`")
    if through := next((name for name in headers if name in PROXY_HEADERS or name.startswith(PROXY_HEADER_PREFIX)), None):
        raise ForbiddenError(
            f"this server has no API keys and accepts no requests through a proxy (header {through}); "
            "create a key with `cafe keys create`"
        )
    if not is_loopback(_without_port(headers.get("host", ""))):  # a foreign name that resolves to 127.0.0.1 (DNS rebinding)
        raise ForbiddenError(
            "this server has no API keys and accepts requests to localhost only; the Host header has another name"
        )
    if scope["method"] not in READ_METHODS and _is_cross_origin(headers):
        raise ForbiddenError("a page of another origin may not change anything on this server")


def _is_cross_origin(headers: Headers) -> bool:
    """Return whether a browser sends the request for a page of another origin. Pages cannot change these headers."""
    if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):  # another port of localhost is same-site
        return True
    origin = headers.get("origin")
    return origin is not None and origin.partition("://")[2].lower() != headers.get("host", "").lower()


def _same(given: str, token: SecretStr | None) -> bool:
    return token is not None and hmac.compare_digest(given.encode(), token.get_secret_value().encode())


def _missing_scope(scope: str) -> str:
    return f"the API key lacks the scope {scope}"


_bearer = HTTPBearer(
    scheme_name="api_key",
    description="An API key, as printed by `cafe keys create`. Not needed while the server has no keys.",
    auto_error=False,
)


async def _principal(
    needed: SecurityScopes, request: Request, _: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)]
) -> Principal:
    principal: Principal | None = request.state.principal
    assert principal is not None, "open paths have no principal"
    for scope in needed.scopes:
        if scope not in principal.scopes:
            raise ForbiddenError(_missing_scope(scope))
    return principal


#: Dependencies of routes: require a scope, which /openapi.json documents, and return the principal.
Reader = Annotated[Principal, Security(_principal, scopes=[Scope.READ.value])]
Writer = Annotated[Principal, Security(_principal, scopes=[Scope.WRITE.value])]
Admin = Annotated[Principal, Security(_principal, scopes=[Scope.ADMIN.value])]
MetricsReader = Annotated[Principal, Security(_principal, scopes=[METRICS_SCOPE])]


def document(schema: dict[str, Any]) -> dict[str, Any]:
    """Add the responses 401, 403 and 429 to every operation of `schema`, an OpenAPI document, that needs a key; return it."""
    refusals = {str(status): answer for status, answer in problems(401, 403, 429).items()}
    for operations in schema["paths"].values():
        for operation in operations.values():
            if operation.get("security"):
                operation["responses"] = refusals | operation["responses"]
    return schema
