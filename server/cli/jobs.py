"""The commands of `cafe` that submit, follow and manage jobs on a server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from server.cli.options import EXIT_FAILED, JSON_OPTION, check_writable, explained_interrupt
from server.cli.spec_files import SPEC_ARGUMENT, load_spec
from server.cli.tables import job_lines, print_rows, trial_lines
from server.cli.watching import FAILED_STATUSES, Display
from server.client import Client


@click.command()
@SPEC_ARGUMENT
@click.option("--wait", is_flag=True, help="Follow the job until it ends.")
@click.option("--dry-run", is_flag=True, help="Print the resolved spec and its estimates as JSON; submit nothing.")
@click.option("--idempotency-key", help="Submitting again with the same key and spec returns the same job.")
@JSON_OPTION
@click.pass_obj
def submit(api: Client, spec: Path, wait: bool, dry_run: bool, idempotency_key: str | None, as_json: bool) -> None:
    """Submit the job in SPEC (.json or .yaml; - is standard input) and print its id."""
    if dry_run:
        click.echo(json.dumps(api.dry_run(load_spec(spec)), indent=2))
        return
    sent = load_spec(spec)
    with explained_interrupt("interrupted; the job may have been submitted: `cafe list` shows it"):
        job = api.submit(sent, idempotency_key)
    _print_job(job, "id", as_json=as_json)
    if wait:
        _watch(api, job["id"], job["attempt"])


@click.command()
@click.argument("job_id", metavar="ID")
@click.pass_obj
def status(api: Client, job_id: str) -> None:
    """Print a job as JSON."""
    click.echo(json.dumps(api.job(job_id), indent=2))


@click.command()
@click.argument("job_id", metavar="ID")
@click.pass_obj
def watch(api: Client, job_id: str) -> None:
    """Follow a job until it ends."""
    _watch(api, job_id)


def _watch(api: Client, job_id: str, attempt: int | None = None) -> None:
    """Follow a job until it ends; exit with EXIT_FAILED unless it succeeds."""
    with explained_interrupt(f"{job_id} goes on; `cafe watch {job_id}` follows it again, `cafe cancel {job_id}` stops it"):
        with Display() as display:
            for event in api.follow(job_id, attempt):
                display.show(event)
        job = api.with_retries(api.job, job_id)
    if job["result"] is not None:
        click.echo(json.dumps(job["result"], indent=2))
    if job["status"] in FAILED_STATUSES:
        raise SystemExit(EXIT_FAILED)


@click.command()
@click.argument("job_id", metavar="ID")
@JSON_OPTION
@click.pass_obj
def cancel(api: Client, job_id: str, as_json: bool) -> None:
    """Cancel a job and print its status."""
    _print_job(api.cancel(job_id), "status", as_json=as_json)


@click.command()
@click.argument("job_id", metavar="ID")
@JSON_OPTION
@click.pass_obj
def resume(api: Client, job_id: str, as_json: bool) -> None:
    """Resume a failed or cancelled job from its last checkpoint, with the remaining networks and trials."""
    _print_job(api.resume(job_id), "status", as_json=as_json)


def _print_job(job: dict[str, Any], field: str, *, as_json: bool) -> None:
    """Print one field of a job, or the job as JSON."""
    click.echo(json.dumps(job, indent=2) if as_json else job[field])


@click.command("list")
@click.option("--status", help="Only jobs with this status.")
@click.option("--kind", type=click.Choice(["condense", "evaluate", "sweep", "extend"]), help="Only jobs of this kind.")
@click.option("--label", multiple=True, metavar="KEY=VALUE", help="Only jobs with this label; may be repeated.")
@click.option("--limit", type=click.IntRange(1, 500), default=50, show_default=True, help="Maximum number of jobs.")
@JSON_OPTION
@click.pass_obj
def list_(api: Client, status: str | None, kind: str | None, label: tuple[str, ...], limit: int, as_json: bool) -> None:
    """List jobs, newest first."""
    print_rows(api.jobs(status, kind, label, limit), job_lines, as_json=as_json)


@click.command()
@click.argument("job_id", metavar="ID")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
@JSON_OPTION
@click.pass_obj
def trials(api: Client, job_id: str, as_csv: bool, as_json: bool) -> None:
    """Print a job's trials, also while it runs: the networks of an evaluation, or the trials of a sweep."""
    if as_csv:
        click.echo(api.trials_csv(job_id), nl=False)
        return
    print_rows(api.trials(job_id), trial_lines, as_json=as_json)


@click.command()
@click.argument("job_id", metavar="ID")
@click.option("--attempt", type=click.IntRange(min=1), help="Number of the attempt. [default: the current one]")
@click.option("--tail", type=click.IntRange(min=1), help="Print only this many lines from the end.")
@click.pass_obj
def logs(api: Client, job_id: str, attempt: int | None, tail: int | None) -> None:
    """Print the output of a job's driver and workers."""
    click.echo(api.logs(job_id, attempt, tail), nl=False)


@click.command()
@click.argument("job_id", metavar="ID")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Directory of the files. [default: ./ID]")
@JSON_OPTION
@click.pass_obj
def download(api: Client, job_id: str, out: Path | None, as_json: bool) -> None:
    """Download a job's artifacts; before it has any, its latest synthetic set and preview. Print the path of each file."""
    directory = out or Path(job_id)
    check_writable(directory, "--out")
    paths: list[str] = []
    for path in api.download(job_id, directory):
        paths.append(str(path))
        if not as_json:
            click.echo(str(path))
    if as_json:
        click.echo(json.dumps(paths, indent=2))


COMMANDS = (submit, status, watch, cancel, resume, list_, trials, logs, download)
