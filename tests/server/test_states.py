from __future__ import annotations

import itertools

import pytest

from server.states import ENDED, IN_RAY, RESUMABLE, IllegalTransitionError, Status, after_cancel, check_transition

LEGAL = {
    ("queued", "starting"), ("queued", "cancelled"), ("queued", "failed"),
    ("starting", "running"), ("starting", "succeeded"), ("starting", "failed"), ("starting", "cancelling"),
    ("starting", "queued"),
    ("running", "succeeded"), ("running", "failed"), ("running", "cancelling"), ("running", "queued"),
    ("cancelling", "cancelled"),
    ("failed", "queued"), ("cancelled", "queued"),
}  # fmt: skip


@pytest.mark.parametrize(("old", "new"), list(itertools.product(Status, Status)))
def test_only_the_legal_transitions_are_allowed(old: Status, new: Status) -> None:
    if (old.value, new.value) in LEGAL:
        check_transition(old, new)
    else:
        with pytest.raises(IllegalTransitionError, match=f"a {old} job cannot become {new}"):
            check_transition(old, new)


@pytest.mark.parametrize(
    ("status", "after"),
    [
        ("queued", "cancelled"),
        ("starting", "cancelling"),
        ("running", "cancelling"),
        ("cancelling", "cancelling"),
        ("succeeded", "succeeded"),
        ("failed", "failed"),
        ("cancelled", "cancelled"),
    ],
)
def test_cancel(status: str, after: str) -> None:
    assert after_cancel(Status(status)) is Status(after)


def test_every_state_is_queued_in_ray_or_ended() -> None:
    assert {Status.QUEUED} | IN_RAY | ENDED == set(Status)
    assert not IN_RAY & ENDED
    assert RESUMABLE < ENDED
