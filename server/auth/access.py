"""Who asks, and whether they may: every request is looked at before its body is read or its route is found.

As soon as the database has an API key, every path but those in :data:`OPEN` needs one. While it has none, this is the
server of one person on one machine: it answers loopback only, not what a page in that person's browser sends it, and not
what a proxy says to pass on. A proxy that says nothing cannot be told from that person: docs/deployment.md warns of it.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import hmac
import ipaddress
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

from server.auth.keys import Scope, all_of, hash_of, limits_of, scopes_of
from server.auth.limits import Buckets, Limits
from server.auth.open_requests import OpenRequests
from server.errors import ApiError, ForbiddenError, UnauthorizedError, UnavailableError, problem_response, problems
from server.settings import Settings
from server.store.database import Database
from server.store.models import ApiKey

KEYS_FRESH_S = 0.5
"""How old what is known of the keys may be: a key is made, or revoked, for every server within so many seconds."""
OPEN = frozenset({"/healthz", "/readyz", "/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json"})
OPEN_BELOW = "/static-offline-docs/"
DASHBOARD = "/dashboard"
METRICS = "/metrics"
METRICS_SCOPE = "metrics"
"""What settings.metrics_token may do, and keys of scope admin."""
READING = frozenset({"GET", "HEAD", "OPTIONS"})
OF_PROXIES = frozenset({"forwarded", "via", "x-real-ip"})
OF_PROXIES_BELOW = "x-forwarded-"
"""Headers that proxies add, and a program of this machine that asks directly has no reason to send."""


@dataclass(frozen=True)
class Principal:
    """Who asks. `key_id` is None where there are no keys, and for Prometheus's token."""

    key_id: str | None
    scopes: frozenset[str]
    """Implied ones included."""
    limits: Limits | None = None
    """None: none."""

    @property
    def is_admin(self) -> bool:
        """Whether they see and do everything."""
        return Scope.ADMIN in self.scopes

    def sees(self, owner: str | None) -> bool:
        """Whether what belongs to `owner`, a key's id, is there for them."""
        return self.is_admin or (owner is not None and owner == self.key_id)


ANYBODY = Principal(None, frozenset({*Scope, METRICS_SCOPE}))
"""Whoever asks a server without keys."""


@dataclass(frozen=True)
class _Keys:
    """The table of keys as it was a moment ago."""

    any: bool = False
    by_hash: Mapping[str, Principal] = field(default_factory=dict)
    """Of those that are not revoked."""


class KeyRing:
    """The keys that are valid now, asked of the database at most every KEYS_FRESH_S."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._settings = settings
        self._keys = _Keys()
        self._read_at = float("-inf")
        self._reading = asyncio.Lock()

    async def required(self) -> bool:
        """Whether requests need a key. Raises UnavailableError when the database does not say."""
        await self._refresh()
        return self._keys.any

    async def find(self, key: str) -> Principal | None:
        """Whose key this is; None where it is unknown or revoked. Raises UnavailableError."""
        await self._refresh()
        return self._keys.by_hash.get(hash_of(key))

    async def still_holds(self, principal: Principal) -> bool:
        """Whether somebody let in earlier would be let in now: for answers that take long. Raises UnavailableError."""
        await self._refresh()
        if principal is ANYBODY:
            return not self._keys.any
        if principal.key_id is None:
            return True  # the metrics token is of this process
        return any(known.key_id == principal.key_id for known in self._keys.by_hash.values())

    async def _refresh(self) -> None:
        if time.monotonic() - self._read_at <= KEYS_FRESH_S:
            return
        async with self._reading:  # one query for all who wait
            asked_at = time.monotonic()
            if asked_at - self._read_at <= KEYS_FRESH_S:
                return
            try:
                self._keys = await asyncio.to_thread(self._read)
            except SQLAlchemyError as error:  # nobody is let in by what was true before
                raise UnavailableError("the database does not answer: keys cannot be checked") from error
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
    """ASGI middleware: finds out who asks, as `request.state.principal`, or refuses. `keys` are the app's services'."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._metrics_token = settings.metrics_token
        self._buckets = Buckets()
        self._open = OpenRequests()

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """ASGI."""
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
        path, method, headers = scope["path"], scope["method"], Headers(scope=scope)
        if path in ("/healthz", "/readyz"):  # they answer without the database, and say themselves when it is gone
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
        if method not in READING and Scope.WRITE not in principal.scopes:
            raise ForbiddenError(_too_little(Scope.WRITE))  # before a body is read that no route would take
        return principal

    async def _principal(self, keys: KeyRing, path: str, headers: Headers) -> Principal:
        on_dashboard = path == DASHBOARD or path.startswith(f"{DASHBOARD}/")
        challenge = 'Basic realm="Ray\'s dashboard: the password is an API key", charset="UTF-8"' if on_dashboard else "Bearer"
        key = credentials(headers.get("authorization", ""), basic=on_dashboard)
        if key is None:
            how = " or as the password of HTTP Basic" if on_dashboard else ""
            raise UnauthorizedError(f"an API key is needed, as `Authorization: Bearer cafe_…`{how}", challenge)
        if path == METRICS and _same(key, self._metrics_token):
            return Principal(None, frozenset({METRICS_SCOPE}))
        principal = await keys.find(key)
        if principal is None:
            raise UnauthorizedError("the API key is unknown or revoked", challenge)
        return principal


def max_upload_bytes(scope: AsgiScope, settings: Settings) -> int:
    """Of the file that whoever sends an admitted request may upload."""
    principal: Principal | None = scope["state"]["principal"]
    return settings.max_upload_bytes if principal is None or principal.limits is None else principal.limits.max_upload_bytes


def credentials(header: str, *, basic: bool = False) -> str | None:
    """The key in an Authorization header: `Bearer KEY`, or where `basic` is taken the password of `Basic`."""
    scheme, _, value = header.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip() or None
    if basic and scheme.lower() == "basic":
        try:
            return base64.b64decode(value.strip(), validate=True).decode().partition(":")[2] or None
        except (binascii.Error, UnicodeDecodeError):
            return None
    return None


def is_loopback(host: str) -> bool:
    """Whether a name or address, without its port, means this machine to itself."""
    name = host.strip("[]").lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):  # RFC 6761: never asked of the DNS
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def _host_of(header: str) -> str:
    """The Host header without its port."""
    return header.rpartition("]")[0] + "]" if header.startswith("[") else header.partition(":")[0]


def _check_local(scope: AsgiScope, headers: Headers) -> None:
    """Raises ForbiddenError unless a program of this machine, or a page that this server gave, asks."""
    client = scope.get("client")
    if client is not None and not is_loopback(client[0]):
        raise ForbiddenError("this server has no API keys yet, so it answers its own machine only: `cafe keys create` makes one")
    if through := next((name for name in headers if name in OF_PROXIES or name.startswith(OF_PROXIES_BELOW)), None):
        raise ForbiddenError(
            f"this server has no API keys yet, so it answers nobody who comes through a proxy (see the header {through}): "
            "`cafe keys create` makes one"
        )
    if not is_loopback(_host_of(headers.get("host", ""))):  # a name of somebody's that was made to mean 127.0.0.1 (DNS rebinding)
        raise ForbiddenError("this server has no API keys yet, so it answers to localhost only; the Host header has another name")
    if scope["method"] not in READING and _is_of_another_page(headers):
        raise ForbiddenError("a page of another origin may not change anything here")


def _is_of_another_page(headers: Headers) -> bool:
    """Whether a browser says so. It sends these headers of itself, and pages cannot change them; older ones send Origin only."""
    if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):  # another port of localhost is `same-site`
        return True
    origin = headers.get("origin")
    return origin is not None and origin.partition("://")[2].lower() != headers.get("host", "").lower()


def _same(given: str, token: SecretStr | None) -> bool:
    return token is not None and hmac.compare_digest(given.encode(), token.get_secret_value().encode())


def _too_little(scope: str) -> str:
    return f"the API key lacks the scope {scope}"


_bearer = HTTPBearer(
    scheme_name="api_key",
    description="An API key, as `cafe keys create` prints it. A server without keys needs none.",
    auto_error=False,
)


async def _principal(
    needed: SecurityScopes, request: Request, _: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)]
) -> Principal:
    principal: Principal | None = request.state.principal
    assert principal is not None, "an open path needs no principal"
    for scope in needed.scopes:
        if scope not in principal.scopes:
            raise ForbiddenError(_too_little(scope))
    return principal


#: What a route takes to need a scope, and to know who asks. /openapi.json names the scope.
Reader = Annotated[Principal, Security(_principal, scopes=[Scope.READ.value])]
Writer = Annotated[Principal, Security(_principal, scopes=[Scope.WRITE.value])]
Admin = Annotated[Principal, Security(_principal, scopes=[Scope.ADMIN.value])]
MetricsReader = Annotated[Principal, Security(_principal, scopes=[METRICS_SCOPE])]


def document(schema: dict[str, Any]) -> dict[str, Any]:
    """`schema`, an OpenAPI document, with the answers of this module at every operation that needs a key."""
    refusals = {str(status): answer for status, answer in problems(401, 403, 429).items()}
    for operations in schema["paths"].values():
        for operation in operations.values():
            if operation.get("security"):
                operation["responses"] = refusals | operation["responses"]
    return schema
