from __future__ import annotations

from typing import Any

import pytest

from server.reconciler.policy import Act, Facts, decide
from server.states import Status
from workers.client import RayJob, RayJobState

PENDING, RUNNING = RayJob(RayJobState.PENDING, ""), RayJob(RayJobState.RUNNING, "")
STOPPED, SUCCEEDED = RayJob(RayJobState.STOPPED, ""), RayJob(RayJobState.SUCCEEDED, "", 0)
KILLED = RayJob(RayJobState.FAILED, "Job entrypoint command failed with exit code -9", -9)
LOST_NODE = RayJob(RayJobState.FAILED, "The node died.\nmore")
FINISHED: dict[str, Any] = {"type": "finished", "result": {}}
DISK_FULL: dict[str, Any] = {"type": "failed", "error": {"code": "disk_full", "message": "no space", "retryable": True}}
CANCELLED: dict[str, Any] = {"type": "cancelled"}


def facts(status: str, ray: RayJob | None, **more: Any) -> Facts:
    return Facts(**({"status": Status(status), "submitted": True, "ray": ray, "max_retries": 3} | more))


@pytest.mark.parametrize(
    ("known", "act", "status", "code"),
    [
        (facts("starting", None, submitted=False), Act.SUBMIT, None, None),
        (facts("starting", PENDING, submitted=False), Act.WAIT, None, None),  # adopted after a crash of the server
        (facts("starting", PENDING), Act.WAIT, None, None),
        (facts("running", RUNNING), Act.WAIT, None, None),
        (
            facts("running", RUNNING, terminal_event=FINISHED, has_result=True),
            Act.WAIT,
            None,
            None,
        ),  # it is releasing its workers
        (facts("running", SUCCEEDED, terminal_event=FINISHED, has_result=True), Act.END, "succeeded", None),
        (facts("starting", SUCCEEDED, terminal_event=FINISHED, has_result=True), Act.END, "succeeded", None),
        (facts("running", KILLED, has_result=True), Act.END, "succeeded", None),  # killed after its manifest
        (facts("running", None, has_result=True), Act.END, "succeeded", None),
        (facts("running", KILLED, terminal_event=DISK_FULL), Act.END, "failed", "disk_full"),
        (facts("running", KILLED), Act.RETRY, "queued", "driver_died"),
        (facts("starting", LOST_NODE), Act.RETRY, "queued", "driver_died"),
        (facts("running", KILLED, retries=2), Act.RETRY, "queued", "driver_died"),
        (facts("running", KILLED, retries=3), Act.END, "failed", "driver_died"),
        (facts("running", KILLED, max_retries=0), Act.END, "failed", "driver_died"),
        (facts("running", KILLED, terminal_event=CANCELLED), Act.RETRY, "queued", "driver_died"),  # its machine shut down
        (facts("running", SUCCEEDED, terminal_event=FINISHED), Act.END, "failed", "result_lost"),
        (facts("running", None, terminal_event=FINISHED), Act.END, "failed", "result_lost"),
        (facts("running", STOPPED), Act.END, "failed", "stopped"),
        (facts("running", STOPPED, terminal_event=CANCELLED), Act.END, "failed", "stopped"),
        (facts("running", STOPPED, retries=1), Act.END, "failed", "stopped"),
        (facts("running", RUNNING, silent=True), Act.GIVE_UP, None, None),
        (facts("starting", RUNNING, silent=True), Act.GIVE_UP, None, None),
        (facts("running", RUNNING, given_up=True), Act.STOP, None, None),
        (facts("running", RUNNING, silent=True, given_up=True), Act.STOP, None, None),
        (facts("running", RUNNING, given_up=True, stop_asked=True), Act.WAIT, None, None),
        (facts("running", STOPPED, given_up=True), Act.RETRY, "queued", "driver_silent"),  # by this server or its predecessor
        (facts("running", STOPPED, given_up=True, terminal_event=CANCELLED), Act.RETRY, "queued", "driver_silent"),  # it woke up
        (facts("running", STOPPED, given_up=True, retries=3), Act.END, "failed", "driver_silent"),
        (facts("running", STOPPED, given_up=True, has_result=True), Act.END, "succeeded", None),
        (facts("running", STOPPED, given_up=True, terminal_event=DISK_FULL), Act.END, "failed", "disk_full"),
        (facts("running", KILLED, given_up=True), Act.RETRY, "queued", "driver_silent"),
        (facts("running", None, given_up=True), Act.RETRY, "queued", "driver_silent"),
        (facts("running", KILLED, silent=True), Act.RETRY, "queued", "driver_died"),
        (facts("running", RUNNING, terminal_event=FINISHED, lingers=True), Act.STOP, None, None),
        (facts("running", RUNNING, terminal_event=FINISHED, lingers=True, stop_asked=True), Act.WAIT, None, None),
        (
            facts("running", RUNNING, terminal_event=FINISHED, lingers=True, ignores_stop=True, has_result=True),
            Act.END,
            "succeeded",
            None,
        ),
        (facts("running", RUNNING, terminal_event=DISK_FULL, lingers=True, ignores_stop=True), Act.END, "failed", "disk_full"),
        (
            facts("running", RUNNING, terminal_event=CANCELLED, lingers=True, ignores_stop=True),
            Act.RETRY,
            "queued",
            "driver_silent",
        ),
        (facts("running", RUNNING, given_up=True, ignores_stop=True), Act.RETRY, "queued", "driver_silent"),
        (facts("running", RUNNING, given_up=True, ignores_stop=True, retries=3), Act.END, "failed", "driver_silent"),
        (facts("cancelling", RUNNING, silent=True), Act.STOP, None, None),
        (facts("cancelling", RUNNING, stop_asked=True, ignores_stop=True), Act.END, "cancelled", None),
        (facts("running", None), Act.RETRY, "queued", "ray_lost"),
        (facts("starting", None), Act.RETRY, "queued", "ray_lost"),
        (facts("running", None, terminal_event=CANCELLED), Act.RETRY, "queued", "ray_lost"),
        (facts("running", None, retries=3), Act.END, "failed", "ray_lost"),
        (facts("running", None, terminal_event=DISK_FULL), Act.END, "failed", "disk_full"),
        (facts("cancelling", RUNNING), Act.STOP, None, None),
        (facts("cancelling", PENDING, submitted=False), Act.STOP, None, None),
        (facts("cancelling", RUNNING, stop_asked=True), Act.WAIT, None, None),
        (facts("cancelling", STOPPED, stop_asked=True), Act.END, "cancelled", None),
        (facts("cancelling", SUCCEEDED, has_result=True), Act.END, "cancelled", None),
        (facts("cancelling", None, submitted=False), Act.END, "cancelled", None),
        (facts("cancelling", None), Act.END, "cancelled", None),
        (facts("cancelling", KILLED), Act.END, "cancelled", None),
    ],
)
def test_decide(known: Facts, act: Act, status: str | None, code: str | None) -> None:
    decision = decide(known)
    assert decision.act is act
    assert decision.status == status
    assert (decision.error or {}).get("code") == code


def test_unexplained_loss_includes_what_ray_knows() -> None:
    killed, lost = (decide(facts("running", ray, retries=3)).error for ray in (KILLED, LOST_NODE))
    assert killed is not None
    assert lost is not None
    assert killed["retryable"] is True
    assert "exit code -9" in killed["message"]
    assert "3 attempts before it" in killed["message"]
    assert "The node died." in lost["message"]
    assert "more" not in lost["message"].partition("its logs")[0]
