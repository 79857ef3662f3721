"""Whose turn it is, where several owners have things to be done and only so many are done at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Protocol, TypeVar


class Owned(Protocol):
    """Something to be done."""

    @property
    def owner(self) -> str | None:
        """An API key's id; all without one are one owner."""


Thing = TypeVar("Thing", bound=Owned)


class Turns:
    """Owners take turns: next is who has waited longest since their last one. Of one event loop."""

    def __init__(self, at_once: int, per_owner: int) -> None:
        """per_owner: how many of `at_once` one owner may have, also where nobody else wants any."""
        self._at_once = at_once
        self._per_owner = per_owner
        self._under_way: Counter[str | None] = Counter()
        self._last_turn: dict[str | None, int] = {}
        self._turns = 0

    def room(self) -> int:
        """How many may be begun now, whoever owns them."""
        return self._at_once - self._under_way.total()

    def begin(self, waiting: Iterable[Thing]) -> list[Thing]:
        """Those of `waiting` whose turn is now; of one owner, and of owners that have had none, the first comes first."""
        left, begun = list(waiting), []
        while self.room() > 0:
            allowed = [thing for thing in left if self._under_way[thing.owner] < self._per_owner]
            if not allowed:
                break
            thing = min(allowed, key=lambda thing: self._last_turn.get(thing.owner, 0))
            left.remove(thing)
            begun.append(thing)
            self._turns += 1
            self._last_turn[thing.owner] = self._turns
            self._under_way[thing.owner] += 1
        return begun

    def end(self, thing: Owned) -> None:
        """What has begun is done."""
        assert self._under_way[thing.owner] > 0
        self._under_way[thing.owner] -= 1
