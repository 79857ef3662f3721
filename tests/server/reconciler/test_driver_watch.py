from __future__ import annotations

import time
from pathlib import Path

import pytest

from cafe_core.jobs.jobdir import AttemptDir
from cafe_core.jobs.watch_clock import GAP_S
from server.reconciler.driver_watch import EXIT_GRACE_S, STOP_EVERY_S, STOPS_WITHIN_S, DriverState, DriverWatch


class Clock:
    """Replaces time.monotonic."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(time, "monotonic", made)
    return made


@pytest.fixture
def attempt(tmp_path: Path) -> AttemptDir:
    return AttemptDir(tmp_path)


def observe_for(
    watch: DriverWatch, clock: Clock, attempt: AttemptDir, seconds: int, *, has_terminal_event: bool = False
) -> DriverState:
    """Observe once per second and return the last state."""
    for _ in range(seconds):
        clock.now += 1.0
        watched = watch.observe(attempt, has_terminal_event=has_terminal_event)
    return watched


def test_driver_is_silent_while_its_heartbeat_does_not_change(clock: Clock, attempt: AttemptDir) -> None:
    watch = DriverWatch()
    attempt.heartbeat_file.write_bytes(b"1")
    assert observe_for(watch, clock, attempt, 1).silent_s == 0
    assert observe_for(watch, clock, attempt, 300).silent_s == 300
    attempt.heartbeat_file.write_bytes(b"2")
    assert observe_for(watch, clock, attempt, 1).silent_s == 0
    assert observe_for(watch, clock, attempt, 5).silent_s == 5


def test_driver_without_heartbeat_is_never_silent(clock: Clock, attempt: AttemptDir) -> None:
    watch = DriverWatch()
    assert observe_for(watch, clock, attempt, 1000).silent_s == 0  # the driver has not written one
    attempt.heartbeat_file.touch()
    assert observe_for(watch, clock, attempt, 1000).silent_s == 0  # its disk is full
    attempt.heartbeat_file.write_bytes(b"1")
    assert observe_for(watch, clock, attempt, 11).silent_s == 10
    attempt.heartbeat_file.unlink()
    assert observe_for(watch, clock, attempt, 1).silent_s == 0


def test_time_without_observations_does_not_count(clock: Clock, attempt: AttemptDir) -> None:
    watch = DriverWatch()
    attempt.heartbeat_file.write_bytes(b"1")
    observe_for(watch, clock, attempt, 1)
    clock.now += 3600.0  # the server was frozen, with or without the driver's machine
    assert watch.observe(attempt, has_terminal_event=False).silent_s == GAP_S


def test_driver_lingers_after_the_grace_period(clock: Clock, attempt: AttemptDir) -> None:
    watch = DriverWatch()
    assert not observe_for(watch, clock, attempt, 100).lingers
    assert not observe_for(watch, clock, attempt, int(EXIT_GRACE_S), has_terminal_event=True).lingers
    assert observe_for(watch, clock, attempt, 2, has_terminal_event=True).lingers


def test_stop_is_ignored_after_the_deadline_of_the_first_request(clock: Clock, attempt: AttemptDir) -> None:
    watch = DriverWatch()
    assert not observe_for(watch, clock, attempt, 100).ignores_stop
    watch.stop_received()
    assert watch.observe(attempt, has_terminal_event=False).stop_asked
    seen = [observe_for(watch, clock, attempt, int(STOP_EVERY_S)) for _ in range(int(STOPS_WITHIN_S / STOP_EVERY_S))]
    assert not any(each.ignores_stop or each.stop_asked for each in seen)
    watch.stop_received()
    last = observe_for(watch, clock, attempt, 1)
    assert last.ignores_stop
    assert last.stop_asked
