"""`python -m workers run --job-dir DIR --attempt N`: the entry point of a Ray Job. Exit codes: see `workers.driver`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from workers.driver import run_attempt


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m workers", description="Runs jobs on the Ray cluster at RAY_ADDRESS.")
    run = parser.add_subparsers(dest="command", required=True).add_parser("run", help="run one attempt of a job")
    run.add_argument("--job-dir", type=Path, required=True, help="the job's directory, with its job.json")
    run.add_argument("--attempt", type=int, required=True, help="1, 2, …")
    parsed = parser.parse_args(arguments)
    return run_attempt(parsed.job_dir.resolve(), parsed.attempt)


if __name__ == "__main__":
    sys.exit(main())
