from __future__ import annotations

import asyncio
from typing import Any

import httpcore
import pytest

import server.store.deliveries
import server.webhooks.public_addresses
import server.webhooks.sender
from server.webhooks.public_addresses import PrivateAddressError, PublicNetwork, is_public
from tests.server.webhooks.receiver import receiving


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1::1", True),
        ("127.0.0.1", False),
        ("10.0.0.1", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("240.0.0.1", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("::", False),
        ("fe80::1", False),
        ("fe80::1%eth0", False),
        ("fc00::1", False),
        ("fec0::1", False),
        ("ff02::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:8.8.8.8", True),
        ("::127.0.0.1", False),
        ("64:ff9b::7f00:1", False),
        ("64:ff9b::808:808", True),
        ("64:ff9b:1::808:808", False),
        ("2002:7f00:1::", False),
        ("2002:a00:1::", False),
        ("2001:0:7f00:1::", False),
        ("2001:db8::1", False),
        ("168.63.129.15", True),
        ("168.63.129.16", False),  # Azure's host agent
        ("::ffff:168.63.129.16", False),
        ("64:ff9b::a83f:8110", False),
        ("2002:a83f:8110::1", False),
        ("2002:808:808::1", True),
        ("100.100.100.200", False),  # Alibaba's metadata
        ("192.0.0.192", False),  # Oracle's
        ("fd00:ec2::254", False),  # Amazon's
        ("fd20:ce::254", False),  # Google's
        ("169.254.170.2", False),  # Amazon's containers'
        ("64:ff9b::a9fe:a9fe", False),
        ("2002:a9fe:a9fe::", False),
        ("::ffff:169.254.169.254", False),
        ("::ffff:0:169.254.169.254", False),  # IPv4-translated
        ("::169.254.169.254", False),  # IPv4-compatible
        ("2001:0:808:808::5601:5601", False),  # Teredo
        ("2600:1f00::5efe:a9fe:a9fe", False),  # ISATAP
        ("2600:1f00::200:5efe:a00:1", False),
        ("2600:1f00::5efe:808:808", True),
        ("64:ff9b::808:808%1", False),
        ("161.26.0.10", False),  # IBM's private services
        ("166.9.0.1", False),
        ("166.12.0.1", True),
        ("192.0.0.9", False),  # the next NAT gateway
        ("2001:1::1", False),
        ("192.88.99.1", False),
        ("198.18.0.1", False),
        ("3fff::1", False),
        ("5f00::1", False),
        ("2001:200::1", True),
    ],
)
def test_public_addresses(address: str, public: bool) -> None:
    assert is_public(address) is public


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0x7f.1", "2130706433", "[::1]", "[::ffff:127.0.0.1]"])
def test_refuses_loopback_addresses(host: str) -> None:
    async def post(port: int) -> None:
        network = PublicNetwork(allow_private=False)
        async with httpcore.AsyncConnectionPool(network_backend=network) as http:
            await http.request("POST", f"http://{host}:{port}/", headers=[("host", "h")])

    with receiving() as receiver:
        with pytest.raises(PrivateAddressError):
            asyncio.run(post(int(receiver.url.rstrip("/").rpartition(":")[2])))
        assert receiver.received == []


def test_connects_to_the_checked_address_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A single private address is refused, and a name is resolved once."""
    answers = [["93.184.216.34", "10.0.0.1"], ["203.0.113.1"]]
    connected: list[str] = []

    async def resolved(host: str, port: int) -> list[str]:  # noqa: ARG001
        return answers.pop(0)

    class Network(httpcore.AsyncNetworkBackend):
        async def connect_tcp(self, host: str, *_: Any, **__: Any) -> httpcore.AsyncNetworkStream:
            connected.append(host)
            raise httpcore.ConnectError("not connected in tests")

    monkeypatch.setattr(server.webhooks.public_addresses, "resolve", resolved)
    monkeypatch.setattr(server.webhooks.public_addresses, "is_public", lambda address: not address.startswith("10."))
    network = PublicNetwork(allow_private=False)
    network._network = Network()
    with pytest.raises(PrivateAddressError):
        asyncio.run(network.connect_tcp("rebinding.example", 443))
    with pytest.raises(httpcore.ConnectError):
        asyncio.run(network.connect_tcp("rebinding.example", 443))
    assert connected == ["203.0.113.1"]
    assert answers == []
