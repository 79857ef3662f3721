"""One job in a process of its own: `python -m cafe_core.reproduction.job_process ORDER`, started by the local runner.

ORDER: a file of JSON, {"spec", "out", "roots"}. Standard input: its end means that whoever started this is gone, and ends this.
Standard output: events as lines of JSON, {"type", "data"}, the last of them `finished` or `failed`.
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
    """Run the job that the order names."""
    threading.Thread(target=_end_with, args=(sys.stdin,), daemon=True).start()
    order = json.loads(Path(sys.argv[1]).read_bytes())
    try:
        job = local.prepare(order["spec"], Path(order["out"]), DataRoots.model_validate(order["roots"]))
        with closing(EventLog(job.directory.attempt(1).events_file)) as log:

            def report(type: str, **data: Any) -> None:
                log(type, **data)
                _say(type, data)

            result = job.run(report)
    except (CafeError, ValueError) as error:
        traceback.print_exc()
        _say("failed", {"reason": str(error)})
        raise SystemExit(1) from error
    _say("finished", {"result": result})


def _say(type: str, data: dict[str, Any]) -> None:
    print(json.dumps({"type": type, "data": data}), flush=True)


def _end_with(stdin: IO[str]) -> None:
    """A job left behind by its runner would write into a directory that the next run takes up."""
    stdin.read()
    os._exit(1)


if __name__ == "__main__":
    main()
