"""`make demo`: run a job from end to end on a temporary server, as a user would.

Starts `cafe serve` with an embedded Ray on free ports, submits docs/examples/digits.yaml, shows the progress, downloads the
results into demo-output/, prints the accuracies side by side, and stops everything that it started.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import yaml

from server.cli.watching import Display, duration
from server.client import Client

ROOT = Path(__file__).parents[2]
SPEC = ROOT / "docs" / "examples" / "digits.yaml"
START_TIMEOUT_S = 120


@click.command()
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), default=ROOT / "demo-output", help="Directory of the results."
)
def main(out: Path) -> None:
    """Condense the built-in digits and compare the result with random real images."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stop everything on SIGTERM as well
    started = time.monotonic()
    with TemporaryDirectory(prefix="cafe-demo-") as data_dir, running_server(Path(data_dir)) as url:
        click.echo(f"API {url}/docs after {duration(time.monotonic() - started)}")
        api = Client(url)
        job = api.submit(yaml.safe_load(SPEC.read_text()))
        click.echo(f"POST {url}/v1/jobs ({SPEC.relative_to(ROOT)}) → {job['id']}")
        with Display() as display:
            for event in api.follow(job["id"]):
                display.show(event)
        job = api.job(job["id"])
        if job["status"] != "succeeded":
            click.echo(api.logs(job["id"], None, 50), err=True)
            raise SystemExit(f"the job ended as {job['status']}: {job['error']}")
        shutil.rmtree(out, ignore_errors=True)
        for path in api.download(job["id"], out):
            click.echo(f"downloaded {path}")
        api.close()
    _compare(job["result"]["evaluation"])
    click.echo(f"{duration(time.monotonic() - started)} in total. Look at {out / 'preview.png'}.")


@contextmanager
def running_server(data_dir: Path) -> Iterator[str]:
    """Run `cafe serve` in its own process; yields its URL."""
    data_dir.mkdir(parents=True, exist_ok=True)
    log_path = data_dir / "server.log"
    command = [str(Path(sys.executable).with_name("cafe")), "serve", "--port", "0", "--data-dir", str(data_dir)]
    with log_path.open("w") as log, subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT) as server:
        try:
            yield _url(server, log_path)
        finally:
            server.terminate()
            server.wait(timeout=60)


def _url(server: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        found = re.search(
            r"http://127\.0\.0\.1:\d+", "\n".join(line for line in log.read_text().splitlines() if "running on" in line)
        )
        if found:
            return found.group()
        if server.poll() is not None:
            break
        time.sleep(0.1)
    raise SystemExit(f"the server did not start:\n{log.read_text()}")


def _compare(evaluation: dict[str, Any]) -> None:
    """Print the accuracies side by side, and the margin of the synthetic set."""
    condensed, random = evaluation["networks"][0], evaluation["baselines"]["random"]["networks"][0]
    click.echo(f"\nTest accuracy (%) of {condensed['n']} fresh {condensed['name']}s trained on one image per class:")
    for name, row in (("condensed (CAFE)", condensed), ("random real images", random)):
        each = "  ".join(f"{accuracy:5.1f}" for accuracy in row["accuracies"])
        click.echo(f"  {name:<20} {row['mean']:5.1f} ± {row['std']:.1f}   {each}")
    click.echo(f"  {'margin':<20} {condensed['mean'] - random['mean']:+5.1f}\n")


if __name__ == "__main__":
    main()
