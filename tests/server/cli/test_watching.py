"""The progress line of `cafe watch`, `submit --wait` and `run`."""

from __future__ import annotations

import io
import re

import pytest

from server.cli.watching import Display

ITERATION = {"iteration": 50, "total": 120, "loss": 0.123456, "query_accuracy": 0.5, "eta_s": 3700}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return what a job's events write to standard error."""
    monkeypatch.setattr("sys.stderr", stream)
    with Display() as display:
        display.report("phase", phase="condensing")
        for _ in range(3):
            display.report("iteration", **ITERATION)
        display.report("iteration", **ITERATION | {"iteration": 120})
        display.report("phase", phase="publishing")
    return stream.getvalue()


@pytest.mark.parametrize("columns", [40, 60, 80, 200])
def test_progress_line_fits_terminal(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown(Terminal(), monkeypatch))
    lines = [line for line in re.split(r"[\r\n]+", text) if line]
    assert [line.strip() for line in (lines[0], lines[-1])] == ["condensing", "publishing"]
    assert all("iteration" in line for line in lines[1:-1])
    assert max(map(len, lines)) <= columns
    if columns >= 60:
        assert "iteration 50/120  1 h 1 min left" in lines[1]


def test_progress_is_plain_lines_without_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(io.StringIO(), monkeypatch).splitlines() == [
        "  condensing",
        "  iteration 50/120  1 h 1 min left  loss 0.1235  query accuracy 0.500",
        "  iteration 120/120  loss 0.1235  query accuracy 0.500",
        "  publishing",
    ]
