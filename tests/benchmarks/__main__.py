"""Run the benchmarks: `make bench` prints one line per figure and writes all figures to bench-output.json."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.benchmarks import augmentations, ensemble, fan_out, outer_step, service, workers_and_memory
from tests.benchmarks.figures import machine
from tests.benchmarks.report import run

PARTS = {
    "outer step": outer_step.measure,
    "ensemble": ensemble.measure,
    "augmentations": augmentations.measure,
    "workers and memory": workers_and_memory.measure,
    "fan-out": fan_out.measure,
    "service": service.measure,
}

if __name__ == "__main__":
    sys.exit(run(PARTS, machine(), Path("bench-output.json")))
