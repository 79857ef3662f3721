"""The `cafe` command: run a server, use its REST API, or run a job in this process.

Exit codes: 0 success, 1 the job failed, 2 wrong usage or a refused spec, 3 the server cannot be reached, 130 Ctrl-C.
"""

from __future__ import annotations

import errno
import io
import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from cafe_core.errors import CafeError, SpecError
from server.cli import jobs, resources
from server.cli.options import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_REFUSED,
    EXIT_UNREACHABLE,
    check_writable,
    data_options,
    explained_interrupt,
    load_settings,
)
from server.cli.spec_files import SPEC_ARGUMENT, load_spec
from server.cli.summary import summary_lines
from server.cli.watching import Display
from server.client import Client, RefusedError, UnreachableError
from server.store.revisions import NewerDatabaseError

DEFAULT_URL = "http://127.0.0.1:8000"
_LAZY_COMMANDS = {"db": "server.cli.db", "keys": "server.cli.keys", "reproduce": "server.cli.reproduce"}
"""Modules of commands that are imported on demand, because they import slow modules that no other command needs."""


_NEXT_STEPS = {
    errno.ENOSPC: "; free some space, or choose another directory",
    errno.EDQUOT: "; free some space, or choose another directory",
    errno.EFBIG: "; raise the limit of file sizes (ulimit -f)",
    errno.EMFILE: "; raise the limit of open files (ulimit -n)",
}


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
        except CafeError as error:  # for example a full disk before the job has started
            _print_error(error.message)
            raise SystemExit(EXIT_FAILED) from None
        except KeyboardInterrupt:
            click.echo("\ninterrupted", err=True)
            raise SystemExit(EXIT_INTERRUPTED) from None
        except BrokenPipeError:  # click ends quietly: the reader of the output has gone
            raise
        except OSError as error:  # the disk, a limit of the process, a file's permissions
            named = f"{error.filename}: " if error.filename else ""
            _print_error(f"{named}{error.strerror or error}{_NEXT_STEPS.get(error.errno or 0, '')}")
            raise SystemExit(EXIT_FAILED) from None


def _print_error(detail: str, errors: list[dict[str, str]] | None = None) -> None:
    """Print a refusal: one error on one line, several on a line each."""
    if not errors:
        click.echo(f"Error: {detail}", err=True)
        return
    lines = [f"{error['loc']}: {error['msg']}" if error["loc"] else error["msg"] for error in errors]
    click.echo(f"Error: {lines[0]}" if len(lines) == 1 else "\n  ".join(["Error: the request was refused", *lines]), err=True)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="cafe-service", prog_name="cafe")
@click.option("--url", envvar="CAFE_URL", show_envvar=True, default=DEFAULT_URL, show_default=True, help="URL of the server.")
@click.option("--api-key", envvar="CAFE_API_KEY", show_envvar=True, help="API key.")
@click.pass_context
def main(ctx: click.Context, url: str, api_key: str | None) -> None:
    """Condense datasets: run a server, submit jobs to it, or run a job in this process."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that the terminal's encoding does not have is no error
    ctx.obj = Client(url, api_key)
    ctx.call_on_close(ctx.obj.close)


@main.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=int, default=8000, show_default=True, help="Port to listen on; 0: any free port.")
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
@click.option("--root-path", metavar="PREFIX", help="Path prefix of a reverse proxy in front of the server, e.g. /cafe.")
@click.option(
    "--trust-forwarded-prefix",
    is_flag=True,
    default=None,
    help="Take the prefix from X-Forwarded-Prefix. Only if a proxy sets or removes this header in every request.",
)
@click.option(
    "--share-port",
    is_flag=True,
    help="Share the port with other servers started with this flag, to replace a server without downtime.",
)
def serve(host: str, port: int, share_port: bool, **options: Any) -> None:
    """Run the API server. Without --ray-address, start a local Ray and stop it at exit."""
    from server.serve import run_server  # only this command needs FastAPI

    settings = load_settings(connects_to_ray=True, **options)
    check_writable(settings.data_dir, "--data-dir")
    run_server(settings, host, port, share_port=share_port)


@main.command()
@SPEC_ARGUMENT
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Directory of the job's files.")
@data_options
def run(spec: Path, out: Path, **options: Any) -> None:
    """Run the job in SPEC in this process, on one device, without Ray or a server.

    The files of the result are written to the directory --out. The result is also printed to standard output as JSON, unless
    that is a terminal.
    """
    sent = load_spec(spec)
    settings = load_settings(connects_to_ray=False, **options)
    check_writable(out, "--out")
    check_writable(settings.data_dir, "--data-dir")
    from cafe_core.jobs import local  # torch takes seconds to import: only this command needs it
    from server.errors import spec_refusal  # imports FastAPI

    try:
        job = local.prepare(sent, out, settings.roots.model_copy(update={"working_directory": Path.cwd()}))
    except (SpecError, ValueError) as error:
        refused = spec_refusal(error)
        raise RefusedError(422, refused.detail, [e.model_dump() for e in refused.errors or []]) from error
    again = f"interrupted; run the same command again to continue from the last checkpoint in {out}"
    with explained_interrupt(again), Display() as display:
        try:
            result = job.run(display.report)
        except CafeError as error:
            display.report("failed", error=error.as_dict())
            raise SystemExit(EXIT_FAILED) from error
    for line in summary_lines(result, out):
        click.echo(line, err=True)
    if not sys.stdout.isatty():
        click.echo(json.dumps(result, indent=2))


for _command in (*jobs.COMMANDS, *resources.COMMANDS):
    main.add_command(_command)
