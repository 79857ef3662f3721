"""`cafe` that kills itself at a step of a submission: `python -m tests.reliability.mortal STEP serve …`.

Nothing of it is in the server: functions of the server are replaced by ones that call them and die before, after or amid.
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
    """Where the process dies: `before` a call, `after` it, or `amid` (a coroutine, a moment after it was begun)."""

    module: str
    name: str
    when: str
    of: Callable[..., bool] = _any_call
    """Which calls, by their arguments."""


def _posts_a_job(_client: Any, method: str, path: str, **_options: Any) -> bool:
    return (method, path) == ("POST", "/api/jobs/")


STEPS = {
    "request received": Step("server.routes.jobs", "_create", "before"),
    "row written, not committed": Step("server.store.jobs", "create", "after"),
    "row committed": Step("server.routes.jobs", "_create", "after"),
    "start committed": Step("server.reconciler.job_record", "JobRecord._start", "after"),
    "job.json written": Step("server.files.job_json", "write_atomically", "after"),
    "submission not sent": Step("workers.client", "RayClient._request", "before", _posts_a_job),
    "submission on its way": Step("workers.client", "RayClient._request", "amid", _posts_a_job),
    "submission answered": Step("workers.client", "RayClient.submit", "after"),
    "submission noted": Step("server.reconciler.job_record", "JobRecord.mark_submitted", "after"),
    "first event written, not committed": Step("server.store.jobs", "take_events", "after"),
    "first event taken": Step(
        "server.reconciler.job_record", "JobRecord._take_events", "after", lambda self, seen: _has_events(self, seen)
    ),
}
"""In their order, with the names by which they are asked for."""


def _has_events(record: Any, seen: Any) -> bool:
    path = record.attempt_dir(seen.attempt).events_file
    return bool(path.exists() and path.stat().st_size)


AMID_S = 0.05


def owner_of(step: Step) -> tuple[Any, str]:
    """The module or class that the step's function is looked up in, and its name there. Raises AttributeError if it is not."""
    owner: Any = importlib.import_module(step.module)
    *path, name = step.name.split(".")
    for part in path:
        owner = getattr(owner, part)
    getattr(owner, name)
    return owner, name


def _die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


def arm(step: Step) -> None:
    """From now on the process dies at this step."""
    owner, name = owner_of(step)
    original = getattr(owner, name)

    @functools.wraps(original)
    async def amid(*arguments: Any, **options: Any) -> Any:
        if not step.of(*arguments, **options):
            return await original(*arguments, **options)
        if step.when == "before":
            _die()
        call = asyncio.create_task(original(*arguments, **options))
        if step.when == "amid":
            await asyncio.sleep(AMID_S)
        else:
            await call
        _die()

    @functools.wraps(original)
    def around(*arguments: Any, **options: Any) -> Any:
        chosen = step.of(*arguments, **options)
        if chosen and step.when == "before":
            _die()
        result = original(*arguments, **options)
        if chosen:
            _die()
        return result

    setattr(owner, name, amid if inspect.iscoroutinefunction(original) else around)


if __name__ == "__main__":
    arm(STEPS[sys.argv.pop(1)])
    from server.cli.main import main

    main()
