"""Run `cafe reproduce` from end to end, as a user would, for Table 2 and Figure 5."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

import server.cli.reproduce
from cafe_core.reproduction.experiment import Experiment, TableName
from cafe_core.reproduction.experiments import EXPERIMENTS
from cafe_core.reproduction.scales import SCALES, Scale
from server.cli.main import main


def cafe_reproduce(table: str, out: Path) -> Result:
    """Run `cafe reproduce TABLE` into a directory that tables share."""
    arguments = ["reproduce", table, "--scale", "smoke", "--out", str(out), "--data-dir", str(out / "data")]
    return CliRunner().invoke(main, arguments, catch_exceptions=False)


def means(table: str, out: Path) -> dict[str, float]:
    """Return our mean accuracy of each row."""
    content = json.loads((out / f"{table}.json").read_text())
    return {cell["row"]: cell["mean"] for cell in content["cells"]}


def assert_drawn(path: Path) -> None:
    """Check that the picture is large enough to see and has many colours."""
    with Image.open(path) as image:
        assert min(image.size) > 200
        pixels = np.asarray(image)
    assert len(np.unique(pixels.reshape(-1, 4), axis=0)) > 20


@pytest.mark.timeout(600)  # two jobs and an embedding network, on a busy machine
def test_two_jobs_of_table2_and_figure5(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run both with only the two jobs that they share, shortened to seconds.

    This is one test because the figure reuses the table's jobs.
    """
    smoke = SCALES["smoke"]
    seconds = replace(
        smoke, iterations={"cafe": 2}, repeats=2, epochs=5, matching=smoke.matching | {"max_outer": 2, "max_inner": 2}
    )

    def shortened(table: TableName, *rows: str) -> Callable[[Scale], Experiment]:
        experiment = EXPERIMENTS[table](seconds)
        return lambda _: replace(experiment, cells=tuple(cell for cell in experiment.cells if cell.row in rows))

    shared = {"table2": shortened("table2", "DL + dynamic", "LFA + dynamic"), "figure5": shortened("figure5", "DL", "LFA")}
    monkeypatch.setattr(server.cli.reproduce, "EXPERIMENTS", shared)
    out = tmp_path / "out"
    table2 = cafe_reproduce("table2", out)
    assert table2.exit_code == 0, table2.stderr
    assert "[2/2] " in table2.stderr
    assert table2.stdout.strip() == (out / "table2.md").read_text().strip()
    assert means("table2", out).keys() == {"DL + dynamic", "LFA + dynamic"}
    assert_drawn(out / "table2.png")

    figure5 = cafe_reproduce("figure5", out)
    assert figure5.exit_code == 0, figure5.stderr
    assert figure5.stderr.count(", by an earlier run") == 2
    assert means("figure5", out).keys() == {"DL", "LFA"}
    assert_drawn(out / "figure5.png")


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_table2_and_figure5_at_scale_smoke(tmp_path: Path) -> None:
    """Run all jobs of both. This is one test because the figure reuses the table's jobs."""
    out = tmp_path / "out"
    table2 = cafe_reproduce("table2", out)
    assert table2.exit_code == 0, table2.stderr
    assert "[7/7] " in table2.stderr
    text = (out / "table2.md").read_text()
    assert table2.stdout.strip() == text.strip()
    assert "| components | ours | n | published |" in text
    assert "| 55.5 |" in text
    ours = means("table2", out)
    chance = 10.0
    assert min(ours.values()) > 3 * chance
    assert ours["DL + LFA + dynamic"] > ours["random real images, for comparison"]
    assert ours["LFA"] > ours["DL"]
    assert_drawn(out / "table2.png")

    figure5 = cafe_reproduce("figure5", out)
    assert figure5.exit_code == 0, figure5.stderr
    assert figure5.stderr.count(", by an earlier run") == 3  # DL, LFA and CAFE are Table 2's
    assert set(means("figure5", out)) == {"DC", "DL", "LFA", "CAFE"}
    assert_drawn(out / "figure5.png")
