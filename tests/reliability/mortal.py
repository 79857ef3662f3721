"""Run `cafe` and kill its process at a step of a submission: `python -m tests.reliability.mortal STEP serve …`.

The server has no code for this. A function of the server is wrapped to kill the process before, during or after a call.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import inspect
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn


def _any_call(*_arguments: Any, **_options: Any) -> bool:
    return True


@dataclass(frozen=True)
class Step:
    """When the process is killed: `before` a call, `after` it, or `during` it (a coroutine, shortly after its start)."""

    module: str
    name: str
    when: str
    matches: Callable[..., bool] = _any_call
    """Returns whether a call with these arguments counts."""


def _is_submission(_client: Any, method: str, path: str, **_options: Any) -> bool:
    return (method, path) == ("POST", "/api/jobs/")


STEPS = {
    "request received": Step("server.routes.jobs", "_create", "before"),
    "row written, not committed": Step("server.store.jobs", "create", "after"),
    "row committed": Step("server.routes.jobs", "_create", "after"),
    "start committed": Step("server.reconciler.job_record", "JobRecord._start", "after"),
    "job.json written": Step("server.files.job_json", "write_atomically", "after"),
    "submission not sent": Step("workers.client", "RayClient._request", "before", _is_submission),
    "submission in flight": Step("workers.client", "RayClient._request", "during", _is_submission),
    "submission answered": Step("workers.client", "RayClient.submit", "after"),
    "submission recorded": Step("server.reconciler.job_record", "JobRecord.mark_submitted", "after"),
    "first event written, not committed": Step("server.store.jobs", "take_events", "after"),
    "first event committed": Step(
        "server.reconciler.job_record", "JobRecord._take_events", "after", lambda self, seen: _has_events(self, seen)
    ),
}
"""The steps by name, in their order."""


def _has_events(record: Any, seen: Any) -> bool:
    path = record.attempt_dir(seen.attempt).events_file
    return bool(path.exists() and path.stat().st_size)


DURING_S = 0.05


def owner_of(step: Step) -> tuple[Any, str]:
    """Return the module or class that has the step's function, and its name there. Raises AttributeError if it is missing."""
    owner: Any = importlib.import_module(step.module)
    *path, name = step.name.split(".")
    for part in path:
        owner = getattr(owner, part)
    getattr(owner, name)
    return owner, name


def _kill_process() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


def arm(step: Step) -> None:
    """Wrap the step's function so that the process is killed at this step."""
    owner, name = owner_of(step)
    original = getattr(owner, name)

    @functools.wraps(original)
    async def async_wrapper(*arguments: Any, **options: Any) -> Any:
        if not step.matches(*arguments, **options):
            return await original(*arguments, **options)
        if step.when == "before":
            _kill_process()
        call = asyncio.create_task(original(*arguments, **options))
        if step.when == "during":
            await asyncio.sleep(DURING_S)
        else:
            await call
        _kill_process()

    @functools.wraps(original)
    def wrapper(*arguments: Any, **options: Any) -> Any:
        matches_call = step.matches(*arguments, **options)
        if matches_call and step.when == "before":
            _kill_process()
        result = original(*arguments, **options)
        if matches_call:
            _kill_process()
        return result

    setattr(owner, name, async_wrapper if inspect.iscoroutinefunction(original) else wrapper)


if __name__ == "__main__":
    arm(STEPS[sys.argv.pop(1)])
    from server.cli.main import main

    main()
