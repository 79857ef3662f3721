"""`cafe reproduce TABLE`: reproduce a table or figure of the paper and compare it with the published numbers."""

from __future__ import annotations

import os
import platform
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import click

from cafe_core.errors import DiskFullError
from cafe_core.reproduction.experiment import Experiment, TableName
from cafe_core.reproduction.experiments import EXPERIMENTS
from cafe_core.reproduction.jobs import Failed, Outcome, Runner, Workplace
from cafe_core.reproduction.local_runner import LocalRunner
from cafe_core.reproduction.markdown import Circumstances
from cafe_core.reproduction.reproduce import BusyError, reproduce
from cafe_core.reproduction.scales import SCALES
from server.cli.options import EXIT_FAILED, data_options, explained_interrupt, load_settings
from server.cli.reproduce_runner import ServerRunner
from server.cli.watching import duration
from server.client import Client

_PLAIN_EVERY_S = 20.0
"""Minimum time between progress lines of a job."""


@click.command("reproduce")
@click.argument("table", type=click.Choice(get_args(TableName)))
@click.option("--scale", type=click.Choice(list(SCALES)), default="smoke", show_default=True, help="Amount of work.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Directory of tables, pictures and jobs. Tables in it share jobs. [default: ./reproduction/SCALE]",
)
@click.option("--server", "on_server", is_flag=True, help="Run the jobs on the server (--url) instead of on this machine.")
@click.option(
    "--processes",
    type=click.IntRange(min=1),
    help="Concurrent jobs on this machine. [default: one per GPU, or per core without GPUs]",
)
@data_options
@click.pass_obj
def command(
    api: Client,
    /,
    table: TableName,
    scale: str,
    out: Path | None,
    on_server: bool,
    processes: int | None,
    **options: Any,
) -> None:
    """Reproduce TABLE of the paper: run its jobs, compare their accuracies with the published ones, and plot them.

    Writes TABLE.md, TABLE.json and TABLE.png into the directory --out and prints the table. Repeat the command to continue an
    interrupted run.

    Scales: smoke takes minutes on two cores with the built-in digits; small takes about an hour with MNIST; paper uses the
    settings of the paper.
    """
    experiment = EXPERIMENTS[table](SCALES[scale])
    workplace = Workplace((out or Path("reproduction") / scale).absolute())
    runner: Runner
    if on_server:
        if processes or any(options.values()):
            raise click.UsageError(
                "--processes and the data directories apply to jobs on this machine only; drop them or --server"
            )
        runner = ServerRunner(api, workplace)
    else:
        runner = LocalRunner(workplace, load_settings(connects_to_ray=False, **options).roots, processes)
    circumstances = Circumstances(
        command=f"cafe reproduce {table} --scale {scale}" + (" --server" if on_server else ""),
        when=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        where="on a server" if on_server else _machine(),
    )
    progress = _Progress(experiment)
    again = f"interrupted; repeat the command to continue{', the submitted jobs go on' if on_server else ''}"
    try:
        with explained_interrupt(again):
            succeeded = reproduce(experiment, runner, workplace.out, circumstances, report=progress.report, ended=progress.ended)
    except BusyError as error:
        raise click.UsageError(str(error)) from error
    except DiskFullError as error:
        click.echo(f"Error: {error}", err=True)
        raise SystemExit(EXIT_FAILED) from error
    click.echo((workplace.out / f"{table}.md").read_text(encoding="utf-8"))
    click.echo(f"{progress.summary()}; see {workplace.out}", err=True)
    if not succeeded:
        raise SystemExit(EXIT_FAILED)


def _machine() -> str:
    return f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}"


class _Progress:
    """Print the outcome of each job, and the progress of running jobs, to standard error."""

    def __init__(self, experiment: Experiment) -> None:
        self._experiment = experiment
        self._total = len(experiment.jobs)
        self._started = time.monotonic()
        self._printed_at: dict[str, float] = {}
        self._lock = threading.Lock()

    def report(self, name: str, progress: str) -> None:
        """Print the progress of a job. Thread-safe."""
        with self._lock:
            now = time.monotonic()
            if now - self._printed_at.setdefault(name, now) < _PLAIN_EVERY_S:
                return
            self._printed_at[name] = now
            click.echo(f"  {self._experiment.label(name)}: {progress}", err=True)

    def ended(self, outcome: Outcome, count: int) -> None:
        """Print the outcome of the `count`th job that ended."""
        with self._lock:
            click.echo(f"[{count}/{self._total}] {self._experiment.label(outcome.name)}: {_outcome_text(outcome)}", err=True)

    def summary(self) -> str:
        """Return the number of jobs and the elapsed time."""
        return f"{self._total} jobs in {duration(time.monotonic() - self._started)}"


def _outcome_text(outcome: Outcome) -> str:
    if isinstance(outcome, Failed):
        return f"failed: {outcome.reason}"
    earlier = ", by an earlier run" if outcome.earlier else ""
    rows = outcome.networks()
    if not rows:
        return f"done{earlier}"
    return ", ".join(f"{row['name']} {row['mean']:.1f} ± {row['std']:.1f} %" for row in rows) + earlier
