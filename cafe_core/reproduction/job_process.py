"""Run one job in its own process: `python -m cafe_core.reproduction.job_process ORDER`, started by the local runner.

ORDER is a JSON file, {"spec", "out", "roots"}. The process exits when standard input is closed, which means that the runner
has exited. Standard output has one JSON event per line, {"type", "data"}; the last is `finished` or `failed`.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import traceback
from contextlib import closing
from pathlib import Path
from typing import IO, Any

from cafe_core.data.roots import DataRoots
from cafe_core.errors import CafeError
from cafe_core.jobs import local
from cafe_core.jobs.jobdir import EventLog


def main() -> None:
    """Run the job of the order file."""
    threading.Thread(target=_exit_with_runner, args=(sys.stdin,), daemon=True).start()
    order = json.loads(Path(sys.argv[1]).read_bytes())
    try:
        job = local.prepare(order["spec"], Path(order["out"]), DataRoots.model_validate(order["roots"]))
        with closing(EventLog(job.directory.attempt(1).events_file)) as log:

            def report(type: str, **data: Any) -> None:
                log(type, **data)
                _print_event(type, data)

            result = job.run(report)
    except (CafeError, ValueError) as error:
        traceback.print_exc()
        _print_event("failed", {"reason": str(error)})
        raise SystemExit(1) from error
    _print_event("finished", {"result": result})


def _print_event(type: str, data: dict[str, Any]) -> None:
    print(json.dumps({"type": type, "data": data}), flush=True)


def _exit_with_runner(stdin: IO[str]) -> None:
    """Exit when the runner exits, because an orphaned job would write into a directory that the next run uses."""
    stdin.read()
    os._exit(1)


if __name__ == "__main__":
    main()
