"""Test that the benchmark keeps every figure it measured, even if one of its parts fails."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks import workers_and_memory
from tests.benchmarks.figures import Figure, machine
from tests.benchmarks.report import run

MACHINE = {"cpu": "made", "cores": 2}


def _good() -> list[Figure]:
    return [Figure("speed", 2.0, "×", "≥ 1"), Figure("time", 0.5, "s")]


def _fails() -> list[Figure]:
    raise ZeroDivisionError("float division by zero")


def _fails_half_way() -> Iterator[Figure]:
    yield Figure("before", 1.0, "s")
    raise RuntimeError("a worker died")


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def test_writes_every_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "bench-output.json"
    assert run({"good": _good}, MACHINE, output) == 0
    assert _read(output) == {
        "machine": MACHINE,
        "figures": [
            {"name": "speed", "value": 2.0, "unit": "×", "target": "≥ 1"},
            {"name": "time", "value": 0.5, "unit": "s", "target": None},
        ],
        "failures": [],
    }
    assert "target ≥ 1" in capsys.readouterr().out


def test_part_that_raises_is_reported_and_other_figures_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "bench-output.json"
    parts = {"broken": _fails, "half": _fails_half_way, "good": _good}
    assert run(parts, MACHINE, output) == 1
    content = _read(output)
    assert [figure["name"] for figure in content["figures"]] == ["before", "speed", "time"]
    assert content["failures"] == [
        {"part": "broken", "error": "ZeroDivisionError: float division by zero"},
        {"part": "half", "error": "RuntimeError: a worker died"},
    ]
    captured = capsys.readouterr()
    assert "FAILED broken: ZeroDivisionError" in captured.out
    assert "Traceback" not in captured.out
    assert "2 of 3 parts failed: broken, half" in captured.out


def test_output_is_written_after_each_figure(tmp_path: Path) -> None:
    output = tmp_path / "bench-output.json"

    def interrupted() -> Iterator[Figure]:
        yield from _good()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run({"interrupted": interrupted}, MACHINE, output)
    assert [figure["name"] for figure in _read(output)["figures"]] == ["speed", "time"]


def test_machine_is_described_in_json() -> None:
    assert {"cpu", "cores", "python", "torch"} <= json.loads(json.dumps(machine())).keys()


def test_outer_step_of_few_classes_has_a_peak(tmp_path: Path) -> None:
    assert workers_and_memory.peak_of_a_step(2, tmp_path, batch_real=2) > 0.1
