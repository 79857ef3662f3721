"""The `cafe` command: run a server, use its REST API, or run a job in this process.

Exit codes: 0 success, 1 the job failed, 2 wrong usage or a refused spec, 3 the server cannot be reached.
"""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import yaml

from cafe_core.errors import CafeError, SpecError
from server.cli.options import EXIT_FAILED, EXIT_REFUSED, EXIT_UNREACHABLE, data_options, load_settings
from server.cli.tables import trial_lines
from server.cli.watching import FAILED_STATUSES, Display
from server.client import Client, RefusedError, UnreachableError
from server.store.revisions import NewerDatabaseError

DEFAULT_URL = "http://127.0.0.1:8000"
_LAZY_COMMANDS = {"db": "server.cli.db", "keys": "server.cli.keys", "reproduce": "server.cli.reproduce"}
"""Modules of commands that are imported on demand, because they import slow modules that no other command needs."""


class _Group(click.Group):
    """Import commands on demand, and turn errors into messages and exit codes."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        return sorted([*super().list_commands(ctx), *_LAZY_COMMANDS])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command by name."""
        if cmd_name not in _LAZY_COMMANDS:
            return super().get_command(ctx, cmd_name)
        command: click.Command = import_module(_LAZY_COMMANDS[cmd_name]).command
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except RefusedError as error:
            _print_error(error.detail, error.errors)
            raise SystemExit(EXIT_REFUSED) from None
        except NewerDatabaseError as error:
            _print_error(str(error))
            raise SystemExit(EXIT_FAILED) from None
        except UnreachableError as error:
            _print_error(str(error))
            raise SystemExit(EXIT_UNREACHABLE) from None


def _print_error(detail: str, errors: list[dict[str, str]] | None = None) -> None:
    if not errors:
        click.echo(f"error: {detail}", err=True)
        return
    click.echo("error: the request was refused", err=True)
    for error in errors:
        click.echo(f"  {error['loc'] or '(spec)'}: {error['msg']}", err=True)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--url", envvar="CAFE_URL", show_envvar=True, default=DEFAULT_URL, show_default=True, help="URL of the server.")
@click.option("--api-key", envvar="CAFE_API_KEY", show_envvar=True, help="API key.")
@click.pass_context
def main(ctx: click.Context, url: str, api_key: str | None) -> None:
    """Condense datasets: run a server, submit jobs to it, or run a job in this process."""
    ctx.obj = Client(url, api_key)
    ctx.call_on_close(ctx.obj.close)


def _load_spec(path: Path) -> dict[str, Any]:
    """Load a spec from JSON or YAML. Raises click.UsageError if it is invalid, or contains values that JSON does not have."""
    kind, parse = ("JSON", json.loads) if path.suffix == ".json" else ("YAML", yaml.safe_load)
    try:
        spec = parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise click.UsageError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise click.UsageError(f"{path}: invalid {kind}: {error}") from error
    if not isinstance(spec, dict):
        raise click.UsageError(f"{path}: a spec must be a mapping of fields")
    for field, value in spec.items():
        try:
            json.dumps({field: value}, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:  # YAML has dates, .nan and self-references
            raise click.UsageError(f"{path}: {field}: {error}; use only values that JSON has") from error
    return spec


_SPEC = click.argument("spec", type=click.Path(exists=True, dir_okay=False, path_type=Path))


@main.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8000, show_default=True, help="Port to listen on; 0: any free port.")
@data_options
@click.option("--ray-address", help="URL of Ray's dashboard, http://HOST:8265. [default: start a local Ray]")
@click.option("--num-cpus", type=click.IntRange(min=1), help="CPUs of the local Ray. [default: all]")
@click.option("--max-restarts", type=click.IntRange(min=0), help="Maximum restarts of an attempt's workers. [default: 3]")
@click.option(
    "--collective-timeout",
    "collective_timeout_s",
    type=float,
    help="Seconds until a worker that does not respond is restarted. [default: 300]",
)
@click.option(
    "--share-port",
    is_flag=True,
    help="Share the port with other servers started with this flag, to replace a server without downtime.",
)
def serve(host: str, port: int, share_port: bool, **options: Any) -> None:
    """Run the API server. Without --ray-address, start a local Ray and stop it at exit."""
    from server.serve import run_server  # only this command needs FastAPI

    run_server(load_settings(connects_to_ray=True, **options), host, port, share_port=share_port)


@main.command()
@_SPEC
@click.option("--wait", is_flag=True, help="Follow the job until it ends.")
@click.option("--idempotency-key", help="Submitting again with the same key and spec returns the same job.")
@click.pass_obj
def submit(api: Client, spec: Path, wait: bool, idempotency_key: str | None) -> None:
    """Submit the job in SPEC (.json or .yaml) and print its id."""
    job = api.submit(_load_spec(spec), idempotency_key)
    click.echo(job["id"])
    if wait:
        _watch(api, job["id"], job["attempt"])


@main.command()
@click.argument("job_id", metavar="ID")
@click.pass_obj
def status(api: Client, job_id: str) -> None:
    """Print a job as JSON."""
    click.echo(json.dumps(api.job(job_id), indent=2))


@main.command()
@click.argument("job_id", metavar="ID")
@click.pass_obj
def watch(api: Client, job_id: str) -> None:
    """Follow a job until it ends."""
    _watch(api, job_id)


def _watch(api: Client, job_id: str, attempt: int | None = None) -> None:
    """Follow a job until it ends; exit with EXIT_FAILED unless it succeeds."""
    with Display() as display:
        for event in api.follow(job_id, attempt):
            display.show(event)
    job = api.with_retries(api.job, job_id)
    if job["result"] is not None:
        click.echo(json.dumps(job["result"], indent=2))
    if job["status"] in FAILED_STATUSES:
        raise SystemExit(EXIT_FAILED)


@main.command()
@click.argument("job_id", metavar="ID")
@click.pass_obj
def cancel(api: Client, job_id: str) -> None:
    """Cancel a job."""
    click.echo(api.post(f"/v1/jobs/{job_id}/cancel")["status"])


@main.command()
@click.argument("job_id", metavar="ID")
@click.pass_obj
def resume(api: Client, job_id: str) -> None:
    """Resume a failed or cancelled job from its last checkpoint, with the remaining networks and trials."""
    click.echo(api.post(f"/v1/jobs/{job_id}/resume")["status"])


@main.command("list")
@click.option("--status", help="Only jobs with this status.")
@click.option("--kind", type=click.Choice(["condense", "evaluate", "sweep", "extend"]), help="Only jobs of this kind.")
@click.option("--label", multiple=True, metavar="KEY=VALUE", help="Only jobs with this label; may be repeated.")
@click.option("--limit", type=click.IntRange(1, 500), default=50, show_default=True, help="Maximum number of jobs.")
@click.pass_obj
def list_(api: Client, status: str | None, kind: str | None, label: tuple[str, ...], limit: int) -> None:
    """List jobs, newest first."""
    for job in api.jobs(status, kind, label, limit):
        done = f"{job['progress']['done']}/{job['progress']['total']}"
        line = f"{job['id']}  {job['kind']:<8}  {job['status']:<10} {done:>15}  {job['created_at'][:19]}Z  {job['name'] or ''}"
        click.echo(line.rstrip())


@main.command()
@click.argument("job_id", metavar="ID")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
@click.pass_obj
def trials(api: Client, job_id: str, as_csv: bool) -> None:
    """Print a job's trials, also while it runs: the networks of an evaluation, or the trials of a sweep."""
    if as_csv:
        click.echo(api.trials_csv(job_id), nl=False)
        return
    for line in trial_lines(api.trials(job_id)):
        click.echo(line)


@main.command()
@click.argument("job_id", metavar="ID")
@click.option("--attempt", type=click.IntRange(min=1), help="Number of the attempt. [default: the current one]")
@click.option("--tail", type=click.IntRange(min=1), help="Print only this many lines from the end.")
@click.pass_obj
def logs(api: Client, job_id: str, attempt: int | None, tail: int | None) -> None:
    """Print the output of a job's driver and workers."""
    click.echo(api.logs(job_id, attempt, tail), nl=False)


@main.command()
@click.argument("job_id", metavar="ID")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Directory of the files. [default: ./ID]")
@click.pass_obj
def download(api: Client, job_id: str, out: Path | None) -> None:
    """Download a job's artifacts; before it has any, its latest synthetic set and preview."""
    for path in api.download(job_id, out or Path(job_id)):
        click.echo(str(path))


@main.command()
@_SPEC
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Directory of the job's files.")
@data_options
def run(spec: Path, out: Path, **options: Any) -> None:
    """Run the job in SPEC in this process, on one device, without Ray or a server."""
    sent = _load_spec(spec)
    settings = load_settings(connects_to_ray=False, **options)
    from cafe_core.jobs import local  # torch takes seconds to import: only this command needs it
    from server.errors import spec_refusal  # imports FastAPI

    try:
        job = local.prepare(sent, out, settings.roots.model_copy(update={"working_directory": Path.cwd()}))
    except (SpecError, ValueError) as error:
        refused = spec_refusal(error)
        raise RefusedError(422, refused.detail, [e.model_dump() for e in refused.errors or []]) from error
    with Display() as display:
        try:
            result = job.run(display.report)
        except CafeError as error:
            display.report("failed", error=error.as_dict())
            raise SystemExit(EXIT_FAILED) from error
    click.echo(json.dumps(result, indent=2))
