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


OwnedT = TypeVar("OwnedT", bound=Owned)


class Turns:
    """Let owners take turns: the next task is from the owner whose last turn was the longest ago. Belongs to one event loop."""

    def __init__(self, max_running: int, per_owner: int) -> None:
        """Allow `max_running` tasks in total and `per_owner` per owner, even if no other owner waits."""
        self._max_running = max_running
        self._per_owner = per_owner
        self._running: Counter[str | None] = Counter()
        self._last_turn: dict[str | None, int] = {}
        self._turns = 0

    def free_slots(self) -> int:
        """Return the number of free slots."""
        return self._max_running - self._running.total()

    def begin(self, waiting: Iterable[OwnedT]) -> list[OwnedT]:
        """Start and return the tasks of `waiting` whose turn it is. Tasks of one owner start in their order in `waiting`."""
        left, begun = list(waiting), []
        while self.free_slots() > 0:
            allowed = [task for task in left if self._running[task.owner] < self._per_owner]
            if not allowed:
                break
            task = min(allowed, key=lambda task: self._last_turn.get(task.owner, 0))
            left.remove(task)
            begun.append(task)
            self._turns += 1
            self._last_turn[task.owner] = self._turns
            self._running[task.owner] += 1
        return begun

    def end(self, task: Owned) -> None:
        """Free the slot of a task that has ended."""
        assert self._running[task.owner] > 0
        self._running[task.owner] -= 1
