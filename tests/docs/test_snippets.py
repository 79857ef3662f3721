"""Copy the programs that load and publish a set out of the documents, and run them on sets that a job makes."""

from __future__ import annotations

import re
import runpy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from cafe_core.data.roots import DataRoots
from cafe_core.jobs import local
from cafe_core.jobs.jobdir import JobDir
from cafe_core.synthetic_set.sources import read_set

ROOT = Path(__file__).parents[2]
README, TUTORIAL = ROOT / "README.md", ROOT / "docs" / "tutorial.md"


def _block(document: Path, language: str, containing: str) -> str:
    """Return the only code block of a language that contains a text."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```$", document.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    [block] = [block for block in blocks if containing in block]
    return str(block)


def _run(directory: Path, name: str, program: str) -> dict[str, Any]:
    """Save a program in the directory, as a reader does, and run it; return its globals."""
    (directory / name).write_text(program, encoding="utf-8")
    return runpy.run_path(str(directory / name))


def _condense(spec: dict[str, Any], to: Path) -> None:
    """Condense images below the current directory, and put the results where `cafe download` puts them."""
    here = Path.cwd()
    roots = DataRoots(datasets=here, uploads=here / "uploads", downloads=here / "downloads", cache=here / "cache")
    local.prepare(spec, here / "job", roots).run(lambda *_, **__: None)
    JobDir(here / "job").attempt(1).artifacts.rename(to)


def test_lines_of_the_readme_load_a_set_that_trains_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _condense({"kind": "condense", "dataset": {"name": "digits"}, "ipc": 5, "method": {"name": "random"}}, tmp_path / "digits")
    loaded = _run(tmp_path, "load.py", _block(README, "python", "load_set"))
    images, labels = loaded["images"], loaded["labels"]
    assert len(loaded["digits"]) == 50

    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    for _ in range(30):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(images), labels).backward()
        optimizer.step()
    assert (network(images).argmax(1) == labels).float().mean() > 0.9, "10 % by guessing"


def test_programs_of_the_tutorial_run_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    _run(tmp_path, "draw_shapes.py", _block(TUTORIAL, "python", "ImageDraw"))
    spec = yaml.safe_load(_block(TUTORIAL, "yaml", "kind: condense"))
    spec |= {"dataset": {"path": "shapes"}, "iterations": 1}
    spec["evaluation"] |= {"repeats": 1, "epochs": 1}
    _condense(spec, tmp_path / "shapes-condensed")

    _run(tmp_path, "train.py", _block(TUTORIAL, "python", "load_set"))
    printed = re.fullmatch(r"condensed images: +([\d.]+) %\nreal images: +([\d.]+) %\n", capsys.readouterr().out)
    assert printed is not None
    assert all(0 < float(accuracy) <= 100 for accuracy in printed.groups())


@pytest.mark.skipif(find_spec("pyarrow") is None, reason="pyarrow is not installed (extra `export`)")
def test_program_of_the_tutorial_publishes_a_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    evaluation = {"networks": [{"name": "mlp", "width": 4}], "repeats": 1, "epochs": 1}
    spec = {"kind": "condense", "dataset": {"name": "digits"}, "ipc": 1, "method": {"name": "random"}, "evaluation": evaluation}
    _condense(spec, tmp_path / "shapes-condensed")
    _run(tmp_path, "publish.py", _block(TUTORIAL, "python", "repository_files"))
    named = re.findall(r"^\| `([\w./]+)` \|", TUTORIAL.read_text().partition("## 7.")[2].partition("## ")[0], re.MULTILINE)
    published = tmp_path / "shapes-published"
    assert sorted(named) == sorted(str(file.relative_to(published)) for file in published.rglob("*") if file.is_file())
    assert "| `this set` | `mlp` |" in (published / "README.md").read_text()
    assert read_set(published).class_names == [str(k) for k in range(10)]
