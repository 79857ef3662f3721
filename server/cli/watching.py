"""Show a job's events to a person: on a terminal with a progress bar, elsewhere as plain lines."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from cafe_core.spec.overrides import setting

if TYPE_CHECKING:
    from rich.live import Live

FAILED_STATUSES = ("failed", "cancelled")
BAR_WIDTH = 24
PLAIN_EVERY_S = 5.0
"""Minimum time between plain lines about progress."""


class Display:
    """Write events to standard error, so that standard output holds results only. Use it as a context manager."""

    def __init__(self) -> None:
        self._is_terminal = bool(sys.stderr and sys.stderr.isatty()) and os.environ.get("TERM") != "dumb"
        self._bar: Live | None = None
        self._progress_shown = float("-inf")

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._end_bar()

    def report(self, type: str, **data: Any) -> None:
        """Show an event that a job in this process reports."""
        self.show({"type": type, "data": data})

    def show(self, event: dict[str, Any]) -> None:
        """Show an event as the API returns it."""
        line = describe(event["type"], event["data"])
        if line is None:
            return
        if event["type"] not in ("iteration", "epoch", "step", "evaluated", "trials"):
            self._end_bar()
            click.echo(line, err=True)
        elif self._is_terminal:
            self._update_bar(line, *_done_of(event["data"]))
        elif time.monotonic() - self._progress_shown >= PLAIN_EVERY_S or _is_last(event["data"]):
            self._progress_shown = time.monotonic()
            click.echo(line, err=True)

    def _update_bar(self, line: str, done: int, total: int) -> None:
        from rich.console import Console  # only a terminal needs rich
        from rich.live import Live
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        if self._bar is None:
            self._bar = Live(console=Console(stderr=True, force_terminal=True), auto_refresh=False)
            self._bar.start()
        width = min(BAR_WIDTH, self._bar.console.width // 4)
        text = Text(line.strip())
        text.truncate(self._bar.console.width - width - 1, overflow="ellipsis")
        row = Table.grid(padding=(0, 1, 0, 0), pad_edge=False)
        row.add_row(ProgressBar(total=max(total, 1), completed=done, width=width), text)
        self._bar.update(row, refresh=True)

    def _end_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def describe(type_: str, data: dict[str, Any]) -> str | None:
    """Return the line that describes an event; None for an event that is not shown."""
    match type_:
        case "status":
            error = data.get("error")
            return f"{data['status']}: {error['message']}" if error else str(data["status"])
        case "phase":
            return f"  {str(data['phase']).replace('_', ' ')}"
        case "notes":
            return "\n".join(f"  note: {note['message']}" for note in data["notes"])
        case "workers":
            devices = ", ".join(str(worker.get("device", "?")) for worker in data["workers"])
            return f"  {len(data['workers'])} workers: {devices}"
        case "restart":
            return f"  workers restarted ({data.get('restarts')}): {data.get('reason')}"
        case "iteration":
            loss = data.get("loss", data.get("feature_loss"))
            numbers = [f"loss {loss:.4g}"] if loss is not None else []
            if data.get("query_accuracy") is not None:
                numbers.append(f"query accuracy {data['query_accuracy']:.3f}")
            return _progress("iteration", data["iteration"], data["total"], numbers, data.get("eta_s"))
        case "epoch":
            numbers = [f"loss {data['loss']:.4g}", f"accuracy {data['accuracy']:.3f}"]
            return _progress("epoch", data["epoch"], data["total"], numbers, data.get("eta_s"))
        case "step":
            return _progress(data["of"], data["done"], data["total"], _step(data), data.get("eta_s"))
        case "evaluated":
            return _progress("network", data["done"], data["total"], [_trained(data)], data.get("eta_s"))
        case "validated":
            return f"  validated at iteration {data['iteration']}/{data['total']}: {data['mean']:.2f} %"
        case "trials":
            return _progress("trial", data["done"], data["total"], [], None)
        case "trial_started":
            return f"  trial {data['number']} starts: {setting(data['overrides'])}"
        case "trial_validated":
            return f"  trial {data['number']} at iteration {data['iteration']}/{data['total']}: {data['mean']:.2f} %"
        case "trial":
            metric = "" if data["metric"] is None else f": {data['metric']:.2f} %"
            outcome = f": {data['error']['message']}" if data["error"] else metric
            numbers = [f"trial {data['number']} {data['status']}{outcome}", setting(data["overrides"])]
            return _progress("done", data["done"], data["total"], numbers, None)
        case "failed":
            return f"failed: {data['error']['message']}"
        case _:
            return None


def _trained(data: dict[str, Any]) -> str:
    """Return e.g. `convnet 88.20 %`, or `convnet on random, dsa 70.10 %` if the set or the augmentation is not the default."""
    on = "" if data.get("source", "synthetic") == "synthetic" else f" on {data['source']}"
    augment = "" if data.get("augment", "none") == "none" else f", {data['augment']}"
    return f"{data['network']}{on}{augment} {data['accuracy']:.2f} %"


def _step(data: dict[str, Any]) -> list[str]:
    """Return e.g. `outer step 3/10`, `inner epoch 4/50`, `query accuracy 0.500`; `batch 4/100`; `epoch 20/300`."""
    if data["of"] == "epoch":
        return [f"batch {data['batch']}/{data['batches']}"]
    if data["of"] == "network":
        return [f"epoch {data['epoch']}/{data['epochs']}" + (f" of {data['networks']} networks" if data["networks"] > 1 else "")]
    numbers = [f"outer step {data['outer_step']}/{data['max_outer']}", f"inner epoch {data['inner_epoch']}/{data['max_inner']}"]
    if data["query_accuracy"] is not None:
        numbers.append(f"query accuracy {data['query_accuracy']:.3f}")
    return numbers


def _progress(what: str, done: int, total: int, numbers: list[str], eta_s: float | None) -> str:
    """Return e.g. `iteration 5/10  1 min 1 s left  loss 12.5`, the most important part first: a terminal may cut off the end."""
    eta = f"{duration(eta_s)} left" if eta_s is not None and done < total else ""
    return "  " + "  ".join(filter(None, [f"{what} {done}/{total}", eta, *numbers]))


def duration(seconds: float) -> str:
    """Return e.g. 42 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _done_of(data: dict[str, Any]) -> tuple[int, int]:
    """Return (done, total) of a progress event."""
    return next(data[name] for name in ("iteration", "epoch", "done") if name in data), data["total"]


def _is_last(data: dict[str, Any]) -> bool:
    done, total = _done_of(data)
    return done == total
