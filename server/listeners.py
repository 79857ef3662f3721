"""Bind the port of the server, before anything that takes long is started."""

from __future__ import annotations

import errno
import socket

import click

_ADVICE = {
    errno.EADDRINUSE: "another program listens there; choose another --port, or --port 0 for a free one",
    errno.EACCES: "ports below 1024 are for root; choose another --port",
    errno.EADDRNOTAVAIL: "this machine does not have the address; choose another --host",
}


class CannotListenError(click.ClickException):
    """The port cannot be bound."""

    exit_code = 2


def bound_sockets(host: str, port: int, *, share: bool) -> list[socket.socket]:
    """Return a socket for each address of `host`, bound but not listening: until uvicorn listens, connections are refused.

    share: allow other servers of the same user to listen on the port as well. Raises CannotListenError.
    """
    if not 0 <= port <= 65535:
        raise CannotListenError(f"cannot listen on port {port}: ports are 0 to 65535; choose another --port")
    found: list[socket.socket] = []
    try:
        addresses = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, address in dict.fromkeys(addresses):
            own_port = found[0].getsockname()[1] if found and port == 0 else port  # one free port for all addresses
            try:
                found.append(_bound(family, kind, protocol, (address[0], own_port, *address[2:]), share=share))
            except OSError as error:
                if not found or error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):  # `localhost` without IPv6
                    raise
    except OSError as error:
        for listener in found:
            listener.close()
        advice = _ADVICE.get(error.errno or 0, "check --host and --port")
        raise CannotListenError(f"cannot listen on {host}:{port}: {error.strerror}; {advice}") from error
    return found


def _bound(
    family: socket.AddressFamily, kind: socket.SocketKind, protocol: int, address: tuple[object, ...], *, share: bool
) -> socket.socket:
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if share:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    return listener
