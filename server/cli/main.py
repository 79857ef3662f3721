"""The `cafe` command: the server, clients of its REST API, and a job in this process.

Exit codes: 0 done, 1 the job failed, 2 wrong usage or a refused spec, 3 the server cannot be reached.
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
_ELSEWHERE = {"db": "server.cli.db", "keys": "server.cli.keys", "reproduce": "server.cli.reproduce"}
"""Commands in modules of their own, which load what no other command needs: each is imported when it is asked for."""


class _Group(click.Group):
    """Finds the commands, and turns errors into messages and exit codes."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """For the help."""
        return sorted([*super().list_commands(ctx), *_ELSEWHERE])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of this name."""
        if cmd_name not in _ELSEWHERE:
            return super().get_command(ctx, cmd_name)
        command: click.Command = import_module(_ELSEWHERE[cmd_name]).command
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except RefusedError as error:
            _complain(error.detail, error.errors)
            raise SystemExit(EXIT_REFUSED) from None
        except NewerDatabaseError as error:
            _complain(str(error))
            raise SystemExit(EXIT_FAILED) from None
        except UnreachableError as error:
            _complain(str(error))
            raise SystemExit(EXIT_UNREACHABLE) from None


def _complain(detail: str, errors: list[dict[str, str]] | None = None) -> None:
    if not errors:
        click.echo(f"error: {detail}", err=True)
        return
    click.echo("error: the request was refused", err=True)
    for error in errors:
        click.echo(f"  {error['loc'] or '(spec)'}: {error['msg']}", err=True)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--url", envvar="CAFE_URL", show_envvar=True, default=DEFAULT_URL, show_default=True, help="The server.")
@click.option("--api-key", envvar="CAFE_API_KEY", show_envvar=True, help="Sent as a Bearer token.")
@click.pass_context
def main(ctx: click.Context, url: str, api_key: str | None) -> None:
    """Condense datasets: run a server, submit jobs to one, or run a job right here."""
    ctx.obj = Client(url, api_key)
    ctx.call_on_close(ctx.obj.close)


def _load_spec(path: Path) -> dict[str, Any]:
    """A spec from JSON or YAML. Raises click.UsageError when it is neither, or holds what JSON cannot say."""
    kind, parse = ("JSON", json.loads) if path.suffix == ".json" else ("YAML", yaml.safe_load)
    try:
        spec = parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise click.UsageError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise click.UsageError(f"{path}: not {kind}: {error}") from error
    if not isinstance(spec, dict):
        raise click.UsageError(f"{path}: a spec is a mapping of fields")
    for field, value in spec.items():
        try:
            json.dumps({field: value}, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:  # YAML knows dates, .nan and references to itself
            raise click.UsageError(f"{path}: {field}: {error}; a spec holds what JSON can say") from error
    return spec


_SPEC = click.argument("spec", type=click.Path(exists=True, dir_okay=False, path_type=Path))


@main.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", default=8000, show_default=True, help="The port to listen on; 0: a free one.")
@data_options
@click.option("--ray-address", help="Ray's dashboard, http://HOST:8265. Without it a local Ray is started.")
@click.option("--num-cpus", type=click.IntRange(min=1), help="CPUs of the local Ray. [default: the machine's]")
@click.option("--max-restarts", type=click.IntRange(min=0), help="Restarts of an attempt's workers. [default: 3]")
@click.option("--collective-timeout", "collective_timeout_s", type=float, help="Seconds to wait for a worker. [default: 300]")
@click.option(
    "--share-port", is_flag=True, help="Listen beside servers started with this flag, too: to replace one without a gap."
)
def serve(host: str, port: int, share_port: bool, **options: Any) -> None:
    """Run the API. Without --ray-address it starts a local Ray, and stops it at exit."""
    from server.serve import run_server  # only this command needs FastAPI

    run_server(load_settings(connects_to_ray=True, **options), host, port, share_port=share_port)


@main.command()
@_SPEC
@click.option("--wait", is_flag=True, help="Watch the job until it ends.")
@click.option("--idempotency-key", help="Submitting again with the same key gives the same job.")
@click.pass_obj
def submit(api: Client, spec: Path, wait: bool, idempotency_key: str | None) -> None:
    """Submit the job in SPEC (.json or .yaml); prints its id."""
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
    """Exits with EXIT_FAILED unless the job succeeds."""
    with Display() as display:
        for event in api.follow(job_id, attempt):
            display.show(event)
    job = api.patiently(api.job, job_id)
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
    """Go on with a failed or cancelled job: from its last checkpoint, with what has not been evaluated, with the trials left."""
    click.echo(api.post(f"/v1/jobs/{job_id}/resume")["status"])


@main.command("list")
@click.option("--status", help="Only jobs in this state.")
@click.option("--kind", type=click.Choice(["condense", "evaluate", "sweep"]), help="Only jobs of this kind.")
@click.option("--label", multiple=True, metavar="KEY=VALUE", help="Only jobs with this label; may be repeated.")
@click.option("--limit", type=click.IntRange(1, 500), default=50, show_default=True)
@click.pass_obj
def list_(api: Client, status: str | None, kind: str | None, label: tuple[str, ...], limit: int) -> None:
    """List jobs, newest first."""
    for job in api.jobs(status, kind, label, limit):
        done = f"{job['progress']['done']}/{job['progress']['total']}"
        line = f"{job['id']}  {job['kind']:<8}  {job['status']:<10} {done:>15}  {job['created_at'][:19]}Z  {job['name'] or ''}"
        click.echo(line.rstrip())


@main.command()
@click.argument("job_id", metavar="ID")
@click.option("--csv", "as_csv", is_flag=True, help="As CSV.")
@click.pass_obj
def trials(api: Client, job_id: str, as_csv: bool) -> None:
    """Print a job's trials, also while it runs: the networks of an evaluation, the settings of a sweep."""
    if as_csv:
        click.echo(api.trials_csv(job_id), nl=False)
        return
    for line in trial_lines(api.trials(job_id)):
        click.echo(line)


@main.command()
@click.argument("job_id", metavar="ID")
@click.option("--attempt", type=click.IntRange(min=1), help="[default: the current one]")
@click.option("--tail", type=click.IntRange(min=1), help="The last so many lines only.")
@click.pass_obj
def logs(api: Client, job_id: str, attempt: int | None, tail: int | None) -> None:
    """Print what a job's driver and workers printed."""
    click.echo(api.logs(job_id, attempt, tail), nl=False)


@main.command()
@click.argument("job_id", metavar="ID")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Where to. [default: ./ID]")
@click.pass_obj
def download(api: Client, job_id: str, out: Path | None) -> None:
    """Download a job's artifacts; before it has any, the synthetic set that there is by now."""
    for path in api.download(job_id, out or Path(job_id)):
        click.echo(str(path))


@main.command()
@_SPEC
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Where the job's files go.")
@data_options
def run(spec: Path, out: Path, **options: Any) -> None:
    """Run the job in SPEC in this process, on one device, without Ray or a server."""
    sent = _load_spec(spec)
    settings = load_settings(connects_to_ray=False, **options)
    from cafe_core.jobs import local  # torch takes seconds to import: only this command needs it
    from server.errors import spec_refusal  # FastAPI comes with it

    try:
        job = local.prepare(sent, out, settings.roots)
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
