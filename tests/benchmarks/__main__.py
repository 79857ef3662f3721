"""`make bench`: every figure on a line, and all of them in bench-output.json."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from tests.benchmarks import augmentations, ensemble, fan_out, outer_step, service, workers_and_memory
from tests.benchmarks.figures import Figure, machine

MEASUREMENTS: list[Callable[[], list[Figure]]] = [
    outer_step.measure,
    ensemble.measure,
    augmentations.measure,
    workers_and_memory.measure,
    fan_out.measure,
    service.measure,
]


def main() -> None:
    figures: list[Figure] = []
    print(json.dumps(machine()), flush=True)
    for measure in MEASUREMENTS:
        for figure in measure():
            figures.append(figure)
            print(figure, flush=True)
    output = {"machine": machine(), "figures": [asdict(figure) for figure in figures]}
    Path("bench-output.json").write_text(json.dumps(output, indent=2) + "\n")


if __name__ == "__main__":
    main()
