"""Run the parts of the benchmark one after the other, and report each figure and failure immediately."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

from cafe_core.files import write_atomically
from tests.benchmarks.figures import Figure

Part = Callable[[], Iterable[Figure]]


def run(parts: Mapping[str, Part], machine: Mapping[str, object], output: Path) -> int:
    """Print one line per figure, write the output after each, and return the exit status: 1 if a part failed, else 0.

    A part that raises an exception is reported under `failures`; the figures it had already yielded, and those of the
    other parts, are kept. Its traceback goes to stderr.
    """
    figures: list[Figure] = []
    failures: list[dict[str, str]] = []

    def save() -> None:
        content = {"machine": machine, "figures": [asdict(figure) for figure in figures], "failures": failures}
        write_atomically(output, (json.dumps(content, indent=2) + "\n").encode())

    print(json.dumps(machine), flush=True)
    save()
    for name, part in parts.items():
        try:
            for figure in part():
                figures.append(figure)
                print(figure, flush=True)
                save()
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            failures.append({"part": name, "error": f"{type(error).__name__}: {error}"})
            print(f"FAILED {name}: {failures[-1]['error']}", flush=True)
            save()
    if failures:
        print(f"{len(failures)} of {len(parts)} parts failed: {', '.join(failure['part'] for failure in failures)}", flush=True)
    return 1 if failures else 0
