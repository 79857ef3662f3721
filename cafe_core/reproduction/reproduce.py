"""Reproduce a table or figure: run its jobs and write their results as they end.

::

    OUT/
        TABLE.md        our numbers next to the published ones, rewritten whenever a job ends
        TABLE.json      the same as JSON, with every accuracy
        TABLE.png       the picture, at the end
        jobs/NAME/      see :class:`cafe_core.reproduction.jobs.Workplace`; shared by all tables in OUT
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cafe_core.files import write_atomically
from cafe_core.reproduction.experiment import Experiment
from cafe_core.reproduction.illustrate import illustrate
from cafe_core.reproduction.jobs import Failed, JobReport, Outcome, Runner
from cafe_core.reproduction.markdown import Circumstances, markdown
from cafe_core.reproduction.readings import Reading, read

Ended = Callable[[Outcome, int], None]
"""ended(outcome, number of ended jobs)."""


class BusyError(Exception):
    """Another run uses the same directory."""


def reproduce(
    experiment: Experiment,
    runner: Runner,
    out: Path,
    circumstances: Circumstances,
    *,
    report: JobReport,
    ended: Ended,
) -> bool:
    """Run the unfinished jobs, write table and picture into `out`, and return whether every job succeeded.

    Raises BusyError, DiskFullError.
    """
    outcomes: dict[str, Outcome] = {}
    with _locked(out):
        _write(experiment, outcomes, out, circumstances)
        for outcome in runner.run(experiment.jobs, report):
            outcomes[outcome.name] = outcome
            ended(outcome, len(outcomes))
            _write(experiment, outcomes, out, circumstances)
        drawn = illustrate(experiment, outcomes, out)
        _write(experiment, outcomes, out, circumstances, drawn)
    return not any(isinstance(outcome, Failed) for outcome in outcomes.values())


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BusyError(f"another run uses {out}; wait for it or choose another directory") from error
        yield


def _write(
    experiment: Experiment, outcomes: dict[str, Outcome], out: Path, circumstances: Circumstances, drawn: Sequence[Path] = ()
) -> None:
    text = markdown(experiment, outcomes, circumstances, [path.name for path in drawn])
    write_atomically(out / f"{experiment.name}.md", text.encode())
    content = {
        "table": experiment.name,
        "scale": experiment.scale.name,
        **asdict(circumstances),
        "cells": _cells(experiment, outcomes),
    }
    write_atomically(out / f"{experiment.name}.json", (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def _cells(experiment: Experiment, outcomes: dict[str, Outcome]) -> list[dict[str, Any]]:
    cells = []
    for cell in experiment.cells:
        entry: dict[str, Any] = {"row": cell.row, "column": cell.column, "measure": cell.measure}
        reading = read(cell, outcomes)
        if isinstance(reading, Reading):
            entry |= {"mean": reading.mean, "std": reading.std, "n": reading.n, "values": list(reading.values)}
        else:
            entry |= {"no_number": reading.reason}
        published = None if cell.published is None else asdict(cell.published)
        cells.append(entry | {"published": published, "jobs": [job.name for job in cell.jobs]})
    return cells
