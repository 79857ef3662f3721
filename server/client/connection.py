"""Send requests to the server, and say who failed if one fails.

::

    ClientError
    ├── UnreachableError        the server did not respond, or responded with a 5xx; or a proxy responded in its place
    └── RefusedError            the server responded with a 4xx: status, detail, errors [{loc, msg}]
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator, Iterator
from functools import cached_property
from typing import Any, NoReturn

import httpx

from server.client.proxies import Proxy, proxy_for

RETRY_FOR_S = 60.0
"""How long to retry while the server does not respond (it may be restarting) or responds with 429."""
TIMEOUT_S = 60.0
SHOWN_CHARACTERS = 200


class ClientError(Exception):
    """A failed request."""


class UnreachableError(ClientError):
    """The server did not respond, or responded with a 5xx; or a proxy responded in its place."""


class RefusedError(ClientError):
    """The server responded with a 4xx. `status` is 0 if no request was sent, because the URL, the key or a proxy is invalid."""

    def __init__(self, status: int, detail: str, errors: list[dict[str, str]] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.errors = errors


class _Access(httpx.Auth):
    """Send the API key with each request, and retry after a 429 as long as RETRY_FOR_S allows."""

    def __init__(self, api_key: str | None) -> None:
        self._api_key = api_key

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Send a request with the key; implements httpx.Auth."""
        if self._api_key:
            request.headers["Authorization"] = f"Bearer {self._api_key}"
        deadline = time.monotonic() + RETRY_FOR_S
        while (response := (yield request)).status_code == httpx.codes.TOO_MANY_REQUESTS:
            wait = response.headers.get("Retry-After", "")
            if not wait.isdigit() or time.monotonic() + int(wait) > deadline:
                return
            time.sleep(int(wait))


class Connection:
    """Connections to the server at `url`, opened with the first request. Methods raise ClientError."""

    def __init__(self, url: str, api_key: str | None) -> None:
        self._url = url
        self._api_key = (api_key or "").strip()

    @cached_property
    def _proxy(self) -> Proxy | None:
        try:
            return proxy_for(_checked(self._url))
        except ValueError as error:
            raise RefusedError(0, str(error)) from error

    @cached_property
    def _http(self) -> httpx.Client:
        """Create the HTTP client on first use: loading certificates is slow, and not every command of `cafe` needs a server."""
        url = _checked(self._url)
        if not (self._api_key.isascii() and self._api_key.isprintable()):
            raise RefusedError(0, "the API key holds characters that no key has; check --api-key or CAFE_API_KEY")
        proxy = self._proxy
        try:
            return httpx.Client(
                base_url=url,
                auth=_Access(self._api_key),
                timeout=TIMEOUT_S,
                proxy=proxy.url if proxy else None,
                trust_env=False,  # the proxy is chosen here
                verify=httpx.create_ssl_context() if "https" in (url.scheme, proxy and proxy.url.scheme) else False,
            )
        except ImportError as error:
            assert proxy is not None  # only a proxy needs another package
            raise RefusedError(0, f"{proxy} needs the package socksio: run `pip install socksio`; {proxy.advice}") from error
        except ValueError as error:
            raise RefusedError(0, f"{proxy} cannot be used: {error}") from error

    def close(self) -> None:
        """Close the connections."""
        if "_http" in vars(self):
            self._http.close()

    def json(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        """Send a request, and return the object in the response."""
        response = self.request(method, path, **options)
        try:
            answer = response.json()
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            self._not_the_service(response)
        return answer

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Send a request, and return the response."""
        with self._reached():
            response = self._http.request(method, path, **options)
        self.check(response)
        return response

    @contextlib.contextmanager
    def stream(self, method: str, path: str, **options: Any) -> Iterator[httpx.Response]:
        """Send a request, and yield the response before its body is read. Call :meth:`check` with it."""
        with self._reached(), self._http.stream(method, path, **options) as response:
            if response.is_error:
                response.read()
            yield response

    @contextlib.contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except httpx.TransportError as error:
            reason = str(error) or type(error).__name__
            if self._proxy is None:
                raise UnreachableError(
                    f"the server at {self._url} cannot be reached: {reason}; start it with `cafe serve`, or set --url or CAFE_URL"
                ) from error
            through = f"the server at {self._url} cannot be reached through {self._proxy}"
            raise UnreachableError(f"{through}: {reason}; {self._proxy.advice}") from error

    def check(self, response: httpx.Response) -> None:
        """Raise ClientError unless the server accepted the request."""
        if response.has_redirect_location:
            raise RefusedError(
                response.status_code,
                f"{self._url} redirects to {response.headers['Location']}; set --url or CAFE_URL to the address of the server",
            )
        if not response.is_error:
            return
        try:
            problem = response.json()
            detail, errors = problem["detail"], problem.get("errors")
        except (ValueError, KeyError, TypeError):
            self._not_the_service(response)
        if response.is_server_error:
            raise UnreachableError(f"the server at {self._url} responded with {response.status_code}: {detail}")
        raise RefusedError(response.status_code, detail, errors)

    def _not_the_service(self, response: httpx.Response) -> NoReturn:
        """Raise for a response that this service never gives."""
        text = " ".join(response.text.split())[:SHOWN_CHARACTERS]
        said = f"{response.status_code} {response.reason_phrase}" + (f": {text}" if text else "")
        if self._proxy is not None:
            raise UnreachableError(f"{self._proxy} answered instead of {self._url}: {said}; {self._proxy.advice}")
        detail = f"{self._url} is not a CAFE server, or a proxy in front of it answered: {said}; check --url or CAFE_URL"
        raise UnreachableError(detail) if response.is_server_error else RefusedError(response.status_code, detail)


def _checked(url: str) -> httpx.URL:
    """Return the URL of the server. Raises RefusedError for text that is not one."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise RefusedError(0, f"{url!r} is not a URL: {error}") from error
    if parsed.scheme not in ("http", "https") or not parsed.host or not 0 < (parsed.port or 1) <= 65535:
        raise RefusedError(0, f"{url!r} is not the URL of a server; write e.g. http://127.0.0.1:8000 (--url or CAFE_URL)")
    return parsed
