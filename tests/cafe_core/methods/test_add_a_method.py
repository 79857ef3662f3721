"""Follow docs/add-a-method.md literally: install its package, run its job, and use its method."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "add-a-method.md"
FILE = re.compile(r"^`([\w./-]+)`:\n\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)

SHARDS = """
import sys
from pathlib import Path

import torch

from cafe_core.algorithm.checkpoint import Checkpoints
from cafe_core.algorithm.condense import condense
from cafe_core.algorithm.method import ignore_events
from tests.cafe_core.gangs import run_gang
from tests.cafe_core.made_data import make_spec, make_store

torch.set_num_threads(1)
directory = Path(sys.argv[1])
store = make_store(directory / "store", [12, 5, 9, 1])
for augment in ("none", "dsa"):
    spec = make_spec(store, method={"name": "moments", "augment": augment})
    images = {}
    for world in (1, 3):
        checkpoints = Checkpoints(directory / augment / str(world))
        run_gang(world, lambda comm: condense(
            spec, store, comm, torch.device("cpu"), checkpoints=checkpoints, report=ignore_events))
        images[world] = checkpoints.latest(spec).images
    first = Checkpoints(directory / augment / "0")
    run_gang(1, lambda comm: condense(
        spec, store, comm, torch.device("cpu"), checkpoints=first, report=ignore_events, until=0))
    assert (images[1] - first.latest(spec).images).abs().max() > 1e-3
    torch.testing.assert_close(images[3], images[1], rtol=0, atol=1e-9)
print("same images")
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the package of the page into a directory of its own, with the job's spec beside it. Return the directory."""
    directory = tmp_path_factory.mktemp("page")
    for name, content in FILE.findall(PAGE.read_text(encoding="utf-8")):
        path = directory / ("." if name.endswith(".yaml") else "cafe-moments") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-build-isolation", "--no-deps", "--disable-pip-version-check"]
    command = [*pip, "--target", str(directory / "site"), str(directory / "cafe-moments")]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    return directory


def run_python(installed: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(installed / "site"), str(ROOT)])
    command = [sys.executable, *arguments]
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=installed, env=environment, capture_output=True, text=True, timeout=240, check=False)


def test_images_do_not_depend_on_the_number_of_shards(installed: Path, tmp_path: Path) -> None:
    done = run_python(installed, "-c", SHARDS, str(tmp_path))
    assert done.stdout == "same images\n", done.stderr


def test_cafe_run_runs_the_method(installed: Path) -> None:
    cafe = "import sys; sys.argv[0] = 'cafe'; from server.cli.main import main; main()"
    done = run_python(installed, "-c", cafe, "run", "moments.yaml", "--out", "moments")
    assert done.returncode == 0, done.stderr
    result = json.loads(next((installed / "moments").rglob("result.json")).read_bytes())
    assert result["iterations"] == 20
    assert result["evaluation"]["networks"][0]["n"] == 2


def test_reference_and_estimate_include_the_method(installed: Path) -> None:
    code = """
import sys
from cafe_core.data.builtin import BUILTIN
from cafe_core.spec.condense import CondenseSpec
from cafe_core.spec.estimate import estimate
from cafe_core.spec.reference import markdown
from cafe_core.spec.resolution import resolve

spec = CondenseSpec.model_validate({"dataset": {"name": "digits"}, "ipc": 1, "method": {"name": "moments", "image_lr": 3.0}})
resolved = resolve(spec, BUILTIN["digits"])
assert (resolved.iterations, resolved.method.image_lr, resolved.method.alpha) == (500, 3.0, 1.0)
assert estimate(resolved, BUILTIN["digits"]).statistics_bytes > 0
assert "MomentsMethod" in markdown()
assert "torch" not in sys.modules
"""
    done = run_python(installed, "-c", code)
    assert done.returncode == 0, done.stderr
