"""`python -m workers run --job-dir DIR --attempt N`: the entry point of a Ray Job. Exit codes: see `workers.driver`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cafe_core.jobs.jobdir import JobDir
from workers.heartbeat import sending_heartbeats
from workers.output import copying_output


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m workers", description="Run jobs on the Ray cluster at RAY_ADDRESS.")
    run = parser.add_subparsers(dest="command", required=True).add_parser("run", help="run one attempt of a job")
    run.add_argument("--job-dir", type=Path, required=True, help="the job's directory, which holds job.json")
    run.add_argument("--attempt", type=int, required=True, help="number of the attempt: 1, 2, …")
    parsed = parser.parse_args(arguments)
    job_dir = parsed.job_dir.resolve()
    attempt = JobDir(job_dir).attempt(parsed.attempt)
    # copying_output forks, so it must come before any thread starts. The import takes minutes on a cold network file system.
    with copying_output(attempt.log_file, attempt.older_log_file), sending_heartbeats(JobDir(job_dir), parsed.attempt):
        from workers.driver import run_attempt

        return run_attempt(job_dir, parsed.attempt)


if __name__ == "__main__":
    sys.exit(main())
