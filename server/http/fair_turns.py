"""Fair scheduling: choose what to start next when several owners share a limited number of slots."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Protocol, TypeVar


class Owned(Protocol):
    """A task with an owner."""

    @property
    def owner(self) -> str | None:
        """The id of an API key; None counts as one owner."""


Thing = TypeVar("Thing", bound=Owned)


class Turns:
    """Let owners take turns: next is the owner whose last turn is longest ago. Belongs to one event loop."""

    def __init__(self, at_once: int, per_owner: int) -> None:
        """Allow `at_once` tasks in total and `per_owner` per owner, even if no other owner waits."""
        self._at_once = at_once
        self._per_owner = per_owner
        self._running: Counter[str | None] = Counter()
        self._last_turn: dict[str | None, int] = {}
        self._turns = 0

    def room(self) -> int:
        """Return the number of free slots."""
        return self._at_once - self._running.total()

    def begin(self, waiting: Iterable[Thing]) -> list[Thing]:
        """Start and return the tasks of `waiting` whose turn it is. Tasks of one owner start in their order in `waiting`."""
        left, begun = list(waiting), []
        while self.room() > 0:
            allowed = [thing for thing in left if self._running[thing.owner] < self._per_owner]
            if not allowed:
                break
            thing = min(allowed, key=lambda thing: self._last_turn.get(thing.owner, 0))
            left.remove(thing)
            begun.append(thing)
            self._turns += 1
            self._last_turn[thing.owner] = self._turns
            self._running[thing.owner] += 1
        return begun

    def end(self, thing: Owned) -> None:
        """Free the slot of a task that has ended."""
        assert self._running[thing.owner] > 0
        self._running[thing.owner] -= 1
