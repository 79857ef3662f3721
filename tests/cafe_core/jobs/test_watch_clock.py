from __future__ import annotations

import time

import pytest

from cafe_core.jobs.watch_clock import GAP_S, WatchClock


def test_clock_counts_at_most_the_gap_between_two_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    clock = WatchClock()
    for _ in range(20):
        now += 0.5
        watched = clock.look()
    assert watched == 10.0
    now += 3600.0  # the process was frozen, and so was everything that it waits for
    assert clock.look() == 10.0 + GAP_S
    now += 0.5
    assert clock.look() == 10.0 + GAP_S + 0.5
