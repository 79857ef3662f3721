"""Shows a job's events to a person: one line that changes on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from typing import Any

import click

from cafe_core.spec.overrides import setting

FAILED_STATUSES = ("failed", "cancelled")
BAR_WIDTH = 24
PLAIN_EVERY_S = 5.0
"""Between plain lines about progress."""


class Display:
    """Writes to standard error, so that results on standard output stay clean. A context manager: it ends its line."""

    def __init__(self, *, tty: bool) -> None:
        self._tty = tty
        self._line_open = False
        self._progress_shown = float("-inf")

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._end_line()

    def report(self, type: str, **data: Any) -> None:
        """An event as it is reported within this process."""
        self.show({"type": type, "data": data})

    def show(self, event: dict[str, Any]) -> None:
        """An event as the API gives it."""
        line = describe(event["type"], event["data"])
        if line is None:
            return
        if event["type"] not in ("iteration", "epoch", "evaluated", "trials"):
            self._end_line()
            click.echo(line, err=True)
        elif self._tty:
            click.echo(f"\r\x1b[2K{line}", err=True, nl=False)
            self._line_open = True
        elif time.monotonic() - self._progress_shown >= PLAIN_EVERY_S or _is_last(event["data"]):
            self._progress_shown = time.monotonic()
            click.echo(line, err=True)

    def _end_line(self) -> None:
        if self._line_open:
            click.echo(err=True)
            self._line_open = False


def describe(type_: str, data: dict[str, Any]) -> str | None:
    """An event in words; None for those that say nothing to a person."""
    match type_:
        case "status":
            error = data.get("error")
            return f"{data['status']}: {error['message']}" if error else str(data["status"])
        case "phase":
            return f"  {str(data['phase']).replace('_', ' ')}"
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
            came_to = f": {data['error']['message']}" if data["error"] else metric
            numbers = [f"trial {data['number']} {data['status']}{came_to}", setting(data["overrides"])]
            return _progress("done", data["done"], data["total"], numbers, None)
        case "failed":
            return f"failed: {data['error']['message']}"
        case _:
            return None


def _trained(data: dict[str, Any]) -> str:
    """E.g. `convnet 88.20 %`, `convnet on random, dsa 70.10 %`: what is not usual is said."""
    on = "" if data.get("source", "synthetic") == "synthetic" else f" on {data['source']}"
    augment = "" if data.get("augment", "none") == "none" else f", {data['augment']}"
    return f"{data['network']}{on}{augment} {data['accuracy']:.2f} %"


def _progress(what: str, done: int, total: int, numbers: list[str], eta_s: float | None) -> str:
    filled = BAR_WIDTH * done // max(total, 1)
    bar = "█" * filled + "·" * (BAR_WIDTH - filled)
    eta = [f"{duration(eta_s)} left"] if eta_s is not None and done < total else []
    return "  ".join([f"  {bar} {what} {done}/{total}", *filter(None, numbers), *eta])


def duration(seconds: float) -> str:
    """E.g. 42 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _is_last(data: dict[str, Any]) -> bool:
    return data.get("total") in (data.get("iteration"), data.get("epoch"), data.get("done"))
