"""Connect to public addresses only: URLs from users must not lead into the server's own network (SSRF).

The name is resolved here, all of its addresses are checked, and the connection goes to a checked address, so a name that
resolves to another address a moment later (DNS rebinding) is no risk. TLS and the Host header still use the name.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import threading
from collections.abc import Iterable
from typing import Any

from httpcore import AnyIOBackend, AsyncNetworkBackend, AsyncNetworkStream, ConnectError, ConnectTimeout

NAT64 = ipaddress.ip_network("64:ff9b::/96")
"""RFC 6052: the last 32 bits are an IPv4 address."""
ISATAP = frozenset({0x0000_5EFE, 0x0200_5EFE})
"""RFC 5214: after one of these, the last 32 bits of an address in any network are an IPv4 address."""
REFUSED = [
    ipaddress.ip_network(network)
    for network in (
        "168.63.129.16/32",  # Azure's host agent, which serves a machine's configuration
        "161.26.0.0/16",  # IBM Cloud's services within its private network
        "166.8.0.0/14",  # the same
        "192.0.0.0/24",  # protocol assignments: 192.0.0.192 is Oracle's metadata, 192.0.0.9 controls the next NAT gateway
        "192.88.99.0/24",  # 6to4 relays
        "2001::/23",  # protocol assignments: Teredo; 2001:1::1 controls the next NAT gateway
        "3fff::/20",  # documentation
    )
]
"""Networks that count as global, at least in some versions of Python, but are unused or belong to the server's own network."""


class PrivateAddressError(Exception):
    """A name resolves to an address that is not public."""


def is_public(address: str) -> bool:
    """Return whether an IP address, including an IPv4 address embedded in it, belongs to the public internet."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.scope_id is not None:
            return False
        last = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        within = ip.ipv4_mapped or ip.sixtofour or (last if ip in NAT64 else None)
        if within is not None:
            return is_public(str(within))
        if ip.is_site_local or ((int(ip) >> 32) & 0xFFFFFFFF in ISATAP and not is_public(str(last))):
            return False
    if ip.is_multicast or ip.is_reserved or ip.is_unspecified:
        return False
    return ip.is_global and not any(ip in network for network in REFUSED)


class PublicNetwork(AsyncNetworkBackend):
    """An httpcore network backend that refuses addresses that are not public."""

    def __init__(self, *, allow_private: bool) -> None:
        self._allow_private = allow_private
        self._network = AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> AsyncNetworkStream:
        """Connect to a host. Raises PrivateAddressError, or one of httpcore's errors."""
        try:
            async with asyncio.timeout(timeout):
                addresses = await resolve(host, port)
        except TimeoutError as error:
            raise ConnectTimeout(f"{host}: timeout while resolving the name") from error
        except OSError as error:
            raise ConnectError(f"{host} cannot be resolved: {error.strerror or error}") from error
        if not self._allow_private and not all(map(is_public, addresses)):
            raise PrivateAddressError(f"{host} has an address that is not public")
        failure: Exception = ConnectError(f"{host} has no address")
        for address in addresses:
            try:
                return await self._network.connect_tcp(address, port, timeout, local_address, socket_options)
            except (ConnectError, ConnectTimeout) as error:
                failure = error
        raise failure


async def resolve(host: str, port: int) -> list[str]:
    """Return the addresses of a name. Raises OSError.

    Resolving runs in its own daemon thread, so that a name server that does not answer delays neither other work nor the
    server's exit.
    """
    loop = asyncio.get_running_loop()
    found: asyncio.Future[list[str]] = loop.create_future()

    def settle(addresses: list[str], error: OSError | UnicodeError | None) -> None:
        if found.done():
            return
        if error is None:
            found.set_result(addresses)
        else:
            found.set_exception(error if isinstance(error, OSError) else OSError(str(error)))

    def ask() -> None:
        addresses: list[str] = []
        failure: OSError | UnicodeError | None = None
        try:
            answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            addresses = list(dict.fromkeys(str(address[0]) for *_, address in answers))
        except (OSError, UnicodeError) as error:
            failure = error
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, addresses, failure)

    threading.Thread(target=ask, name=f"resolve {host}", daemon=True).start()
    return await found
