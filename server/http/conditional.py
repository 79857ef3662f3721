"""Send bytes with strong ETags, conditional requests and ranges (RFC 9110).

Starlette's FileResponse does not fit: it sends files only, and synthetic sets are converted in memory; it ignores If-None-Match;
and its 416 and 400 responses are not problem+json.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from fastapi import Request, Response
from fastapi.responses import StreamingResponse

from server.errors import RangeError

CHUNK_BYTES = 1 << 18


def matches(header: str | None, etag: str) -> bool:
    """Return whether an If-None-Match header matches `etag` by weak comparison (RFC 9110 §13.1.2)."""
    if header is None:
        return False
    candidates = [candidate.strip().removeprefix("W/") for candidate in header.split(",")]
    return "*" in candidates or etag in candidates


def not_modified(etag: str) -> Response:
    """Return a 304 response."""
    return Response(status_code=304, headers={"ETag": etag})


def byte_range(header: str | None, size: int) -> tuple[int, int] | None:
    """Return (start, end) of the requested range, with end exclusive; None to send everything.

    Other units, malformed headers and several ranges are ignored, as RFC 9110 §14.2 allows.
    Raises RangeError if the range begins past the end.
    """
    if header is None or not header.startswith("bytes="):
        return None
    first, dash, last = header.removeprefix("bytes=").strip().partition("-")
    numbers = [number for number in (first, last) if number]
    if not dash or not numbers or not all(n.isascii() and n.isdigit() and len(n) <= 18 for n in numbers):
        return None
    if first and last and int(last) < int(first):
        return None
    if first:
        start, end = int(first), min(int(last) + 1, size) if last else size
    else:
        start, end = max(0, size - int(last)), size
    if start >= end:
        raise RangeError(
            f"the range begins past the end: the file has {size} bytes",
            headers={"Content-Range": f"bytes */{size}", "Accept-Ranges": "bytes"},
        )
    return start, end


class Body:
    """Content to be sent, in memory or in a file, with its SHA-256."""

    def __init__(self, source: bytes | Path, *, size: int, sha256: str, media_type: str, filename: str) -> None:
        self._source = source
        self._size = size
        self._etag = f'"{sha256}"'
        self._media_type = media_type
        self._filename = filename

    @classmethod
    def of(cls, content: bytes, *, media_type: str, filename: str) -> Body:
        """Return a body of bytes in memory."""
        sha256 = hashlib.sha256(content).hexdigest()
        return cls(content, size=len(content), sha256=sha256, media_type=media_type, filename=filename)

    def response(self, request: Request) -> Response:
        """Return the response to a GET or HEAD: 200, 206 or 304. Raises RangeError (416)."""
        if matches(request.headers.get("if-none-match"), self._etag):
            return not_modified(self._etag)
        headers = {
            "ETag": self._etag,
            "Accept-Ranges": "bytes",
            "Cache-Control": "no-cache",
            "Content-Disposition": f'attachment; filename="{self._filename}"',
        }
        part = self._part(request)
        start, end = part or (0, self._size)
        headers["Content-Length"] = str(end - start)
        if part is not None:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{self._size}"
        status = 200 if part is None else 206
        if request.method == "HEAD":
            return Response(status_code=status, headers=headers, media_type=self._media_type)
        return StreamingResponse(self._chunks(start, end), status, headers, media_type=self._media_type)

    def _part(self, request: Request) -> tuple[int, int] | None:
        """Return the range to send. Ignores Range unless the method is GET and If-Range, if any, matches."""
        if request.method != "GET" or request.headers.get("if-range", self._etag) != self._etag:
            return None
        return byte_range(request.headers.get("range"), self._size)

    def _chunks(self, start: int, end: int) -> Iterator[bytes]:
        if isinstance(self._source, bytes):
            yield self._source[start:end]
            return
        with self._source.open("rb") as file:
            file.seek(start)
            while start < end and (chunk := file.read(min(CHUNK_BYTES, end - start))):
                start += len(chunk)
                yield chunk
