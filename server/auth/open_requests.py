"""How many requests of one API key are being answered at a time, each of which keeps a connection.

Those that last by design, event streams and long polls, are counted apart from the plain ones: a key that has as many streams
open as it may can still ask. Together they are at most half of the connections that a server takes
(:mod:`server.http.connections`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from fastapi import Request

from server.errors import TooManyRequestsError

MAX_PLAIN = 500
"""Of one key. As many as MAX_LASTING, for each of those is a plain one until its route has looked at it."""
MAX_LASTING = 500
"""Event streams and long polls of one key."""
RETRY_AFTER_S = 5


class _Bounded:
    """How many there are of each key. Of one event loop."""

    def __init__(self, at_most: int, what: str) -> None:
        self._at_most = at_most
        self._what = what
        self._counts: Counter[str] = Counter()

    def add(self, key_id: str) -> None:
        """Raises TooManyRequestsError."""
        if self._counts[key_id] >= self._at_most:
            raise TooManyRequestsError(
                f"{self._at_most} {self._what} of this key are open, which is as many as may be", RETRY_AFTER_S
            )
        self._counts[key_id] += 1

    def remove(self, key_id: str) -> None:
        """One that was added."""
        self._counts[key_id] -= 1
        if not self._counts[key_id]:
            del self._counts[key_id]


class OpenRequest:
    """A request that is being answered: a plain one until it is said that it lasts."""

    def __init__(self, key_id: str, plain: _Bounded, lasting: _Bounded) -> None:
        """Raises TooManyRequestsError."""
        self._key_id = key_id
        self._lasting = lasting
        self._counted_in = plain
        plain.add(key_id)

    def lasts(self) -> None:
        """Count it with the others that last. Raises TooManyRequestsError."""
        self._lasting.add(self._key_id)
        self._counted_in.remove(self._key_id)
        self._counted_in = self._lasting

    def close(self) -> None:
        """It has been answered."""
        self._counted_in.remove(self._key_id)


class OpenRequests:
    """All of this server."""

    def __init__(self) -> None:
        self._plain = _Bounded(MAX_PLAIN, "requests")
        self._lasting = _Bounded(MAX_LASTING, "event streams and long polls")

    @contextmanager
    def one_more(self, key_id: str) -> Iterator[OpenRequest]:
        """Around a request. Raises TooManyRequestsError."""
        request = OpenRequest(key_id, self._plain, self._lasting)
        try:
            yield request
        finally:
            request.close()


def will_last(request: Request) -> None:
    """Called once by a route whose answer lasts, before that begins. Raises TooManyRequestsError."""
    counted: OpenRequest | None = request.state.open_request
    if counted is not None:  # who asks has a key
        counted.lasts()
