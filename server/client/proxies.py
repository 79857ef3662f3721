"""Find the proxy for requests to a server in the environment (`http_proxy`, `https_proxy`, `all_proxy`, `no_proxy`)."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.request import getproxies, proxy_bypass

import httpx

from server.addresses import is_loopback


@dataclass(frozen=True)
class Proxy:
    """A proxy for requests to `host`. As text, it names the proxy without its password."""

    url: httpx.URL
    host: str

    def __str__(self) -> str:
        return f"the proxy {self.url.scheme}://{self.url.netloc.decode()} (named by the environment)"

    @property
    def advice(self) -> str:
        """Return how to do without the proxy."""
        return f"if the server needs no proxy, set NO_PROXY={self.host}"


def proxy_for(url: httpx.URL) -> Proxy | None:
    """Return the proxy that the environment names for `url`; None for loopback. Raises ValueError for text that is no URL."""
    proxies = getproxies()
    named = proxies.get(url.scheme) or proxies.get("all")
    if not named or is_loopback(url.host) or proxy_bypass(url.host):
        return None
    try:
        return Proxy(httpx.URL(named if "://" in named else f"http://{named}"), url.host)
    except httpx.InvalidURL as error:
        raise ValueError(f"the environment names a proxy that is not a URL: {error}") from error
