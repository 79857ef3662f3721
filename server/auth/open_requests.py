"""Limit the number of open requests per API key, so that no key uses up a server's connections and memory.

Event streams and long polls are counted separately from plain requests: a key that has reached the limit of streams can still
send plain requests.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from fastapi import Request

from server.errors import TooManyRequestsError

MAX_PLAIN = 500
"""Maximum number of plain requests per key, at least MAX_LONG_LIVED: each stream is a plain request until its route marks it."""
MAX_LONG_LIVED = 500
"""Maximum number of event streams and long polls per key."""
RETRY_AFTER_S = 5


class OpenRequests:
    """Count the open requests of each key. Belongs to one event loop."""

    def __init__(self) -> None:
        self._plain: Counter[str] = Counter()
        self._long_lived: Counter[str] = Counter()

    @contextmanager
    def track(self, key_id: str) -> Iterator[OpenRequest]:
        """Count a request while the block runs. Raises TooManyRequestsError."""
        _add(self._plain, key_id, MAX_PLAIN, "open requests")
        request = OpenRequest(self, key_id)
        try:
            yield request
        finally:
            _remove(self._long_lived if request.is_long_lived else self._plain, key_id)

    def move_to_long_lived(self, request: OpenRequest) -> None:
        """Count a request as an event stream or long poll from now on. Raises TooManyRequestsError."""
        _add(self._long_lived, request.key_id, MAX_LONG_LIVED, "open event streams and long polls")
        _remove(self._plain, request.key_id)
        request.is_long_lived = True


@dataclass
class OpenRequest:
    """A request that is being answered."""

    all: OpenRequests
    key_id: str
    is_long_lived: bool = False


def mark_long_lived(request: Request) -> None:
    """Count `request` as an event stream or long poll. A route calls it once, before it answers.

    Raises TooManyRequestsError.
    """
    tracked: OpenRequest | None = request.state.open_request
    if tracked is not None:  # None: the server has no API keys
        tracked.all.move_to_long_lived(tracked)


def _add(counts: Counter[str], key_id: str, limit: int, what: str) -> None:
    if counts[key_id] >= limit:
        raise TooManyRequestsError(f"limit reached: {limit} {what} per API key; close one and retry", RETRY_AFTER_S)
    counts[key_id] += 1


def _remove(counts: Counter[str], key_id: str) -> None:
    counts[key_id] -= 1
    if not counts[key_id]:
        del counts[key_id]
