"""`python -m workers run --job-dir DIR --attempt N`: the entry point of a Ray Job. Exit codes: see `workers.driver`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cafe_core.jobs.jobdir import JobDir
from workers.heartbeat import beating
from workers.output import copied_to


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m workers", description="Runs jobs on the Ray cluster at RAY_ADDRESS.")
    run = parser.add_subparsers(dest="command", required=True).add_parser("run", help="run one attempt of a job")
    run.add_argument("--job-dir", type=Path, required=True, help="the job's directory, with its job.json")
    run.add_argument("--attempt", type=int, required=True, help="1, 2, …")
    parsed = parser.parse_args(arguments)
    job_dir = parsed.job_dir.resolve()
    attempt = JobDir(job_dir).attempt(parsed.attempt)
    # The first forks, so it comes before all that starts threads; on a cold network file system the import takes minutes.
    with copied_to(attempt.log_file, attempt.older_log_file), beating(JobDir(job_dir), parsed.attempt):
        from workers.driver import run_attempt

        return run_attempt(job_dir, parsed.attempt)


if __name__ == "__main__":
    sys.exit(main())
