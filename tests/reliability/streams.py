"""Readers of event streams (text/event-stream), many at a time."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

import httpx


@dataclass
class Reader:
    """What one reader of a job's events has got."""

    ids: list[int] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    """Kept only where asked for: five hundred readers get the same."""
    connections: int = 0


async def read_stream(http: httpx.AsyncClient, job_id: str, reader: Reader, *, keep: bool = False, connect: int = 1) -> None:
    """Read a job's events to the end of the stream. A broken one is opened again, after the last event, up to `connect` times.

    Raises httpx.TransportError when that was not enough.
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
    """For as many streams at once as one likes."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    return httpx.AsyncClient(base_url=base_url, timeout=httpx.Timeout(60, read=120), limits=limits, trust_env=False)
