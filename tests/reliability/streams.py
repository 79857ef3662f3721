"""Read event streams (text/event-stream), many at a time."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

import httpx


@dataclass
class Reader:
    """The events of a job that one reader has received."""

    ids: list[int] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    """Kept only on request, because 500 readers receive the same events."""
    connections: int = 0


async def read_stream(http: httpx.AsyncClient, job_id: str, reader: Reader, *, keep: bool = False, connect: int = 1) -> None:
    """Read a job's events to the end of the stream. Reconnect after the last event if it breaks, up to `connect` connections.

    Raises httpx.TransportError if the last of them breaks.
    """
    while True:
        reader.connections += 1
        try:
            await _read_once(http, job_id, reader, keep)
            return
        except httpx.TransportError:
            if reader.connections >= connect:
                raise
            await asyncio.sleep(0.1)


async def _read_once(http: httpx.AsyncClient, job_id: str, reader: Reader, keep: bool) -> None:
    headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": str(reader.ids[-1])} if reader.ids else {})
    async with http.stream("GET", f"/v1/jobs/{job_id}/events", headers=headers) as response:
        response.raise_for_status()
        fields: dict[str, str] = {}
        async for line in response.aiter_lines():
            if line.startswith(":"):
                continue
            if line:
                name, _, value = line.partition(":")
                fields[name] = value.removeprefix(" ")
            elif "data" in fields:
                reader.ids.append(int(fields["id"]))
                if keep:
                    reader.events.append(json.loads(fields["data"]))
                fields = {}


def client(base_url: str) -> httpx.AsyncClient:
    """Return a client for any number of concurrent streams."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    return httpx.AsyncClient(base_url=base_url, timeout=httpx.Timeout(60, read=120), limits=limits, trust_env=False)
