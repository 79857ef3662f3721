"""Connections to public addresses only: what users have the server connect to must not lead into the network it stands in.

The name is resolved here, every address it has is checked, and the very address that was checked is connected to, so a name
that resolves to something else a moment later gains nothing. TLS and the Host header still go by the name.
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
        "168.63.129.16/32",  # Azure's host agent, which hands out a machine's configuration
        "161.26.0.0/16",  # IBM Cloud's services within its private network
        "166.8.0.0/14",  # likewise
        "192.0.0.0/24",  # protocols' own: 192.0.0.192 is Oracle's metadata, 192.0.0.9 the next NAT gateway's control
        "192.88.99.0/24",  # 6to4's relays
        "2001::/23",  # protocols' own: Teredo, 2001:1::1 the next NAT gateway's control
        "3fff::/20",  # documentation
    )
]
"""Public by their numbers, or to some versions of Python; they lead nowhere, or into the network that the server stands in."""


class PrivateAddressError(Exception):
    """A name leads to an address that is not public."""


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet, the IPv4 address within it included where there is one."""
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
    """httpcore's network, without the addresses that are not public."""

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
        """Raises PrivateAddressError, or one of httpcore's errors."""
        try:
            async with asyncio.timeout(timeout):
                addresses = await resolve(host, port)
        except TimeoutError as error:
            raise ConnectTimeout(f"{host} could not be resolved in time") from error
        except OSError as error:
            raise ConnectError(f"{host} could not be resolved: {error.strerror or error}") from error
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
    """The addresses of a name. Raises OSError.

    In a thread of its own: a name server that does not answer must hold up neither other threads' work nor the server's exit.
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
