"""`cafe reproduce` from end to end: Table 2 and Figure 5 at scale smoke."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from server.cli.main import main


def cafe_reproduce(table: str, out: Path) -> Result:
    """Run `cafe reproduce TABLE` in a directory that the tables share."""
    arguments = ["reproduce", table, "--scale", "smoke", "--out", str(out), "--data-dir", str(out / "data")]
    return CliRunner().invoke(main, arguments, catch_exceptions=False)


def means(table: str, out: Path) -> dict[str, float]:
    """Return our numbers by row."""
    content = json.loads((out / f"{table}.json").read_text())
    return {cell["row"]: cell["mean"] for cell in content["cells"]}


def assert_drawn(path: Path) -> None:
    """Check that a picture is large enough and has many colours."""
    image = Image.open(path)
    assert min(image.size) > 300
    assert len(np.unique(np.asarray(image).reshape(-1, 4), axis=0)) > 20


@pytest.mark.timeout(1200)
def test_table2_and_figure5(tmp_path: Path) -> None:
    """A single test, since the figure reuses the table's jobs."""
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
    assert ours["DL + LFA + dynamic"] > ours["random real images, to compare"]
    assert ours["LFA"] > ours["DL"]
    assert_drawn(out / "table2.png")

    figure5 = cafe_reproduce("figure5", out)
    assert figure5.exit_code == 0, figure5.stderr
    assert figure5.stderr.count(", by an earlier run") == 3  # DL, LFA and CAFE are Table 2's
    assert set(means("figure5", out)) == {"DC", "DL", "LFA", "CAFE"}
    assert_drawn(out / "figure5.png")
