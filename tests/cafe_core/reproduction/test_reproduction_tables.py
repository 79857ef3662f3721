"""Test the content of the tables: published figures equal those of the paper, and the specs of all jobs are accepted."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cafe_core.data import catalog
from cafe_core.data.roots import DataRoots
from cafe_core.jobs.submission import Accepted, Facts, accept, datasets_needed
from cafe_core.reproduction import published
from cafe_core.reproduction.experiment import Experiment
from cafe_core.reproduction.experiments import EXPERIMENTS
from cafe_core.reproduction.jobs import Job
from cafe_core.reproduction.scales import PAPER, SCALES, SMALL, SMOKE
from cafe_core.spec.dataset_facts import DatasetFacts
from cafe_core.spec.job import parse_job_spec

SHARED = Path(__file__).parents[4] / "shared"
"""The text and the figures of the paper. They are not part of this repository."""


def cell_jobs(experiment: Experiment, row: str, column: str = "accuracy") -> tuple[Job, ...]:
    """Return the jobs of a cell."""
    (jobs,) = [cell.jobs for cell in experiment.cells if (cell.row, cell.column) == (row, column)]
    return jobs


@pytest.mark.skipif(not (SHARED / "published.json").exists(), reason=f"no published.json under {SHARED}")
def test_published_figures_equal_their_source() -> None:
    source = json.loads((SHARED / "published.json").read_text())
    assert {key: published.figures()[key] for key in source} == source


@pytest.mark.skipif(not (SHARED / "cafe-paper.txt").exists(), reason=f"no cafe-paper.txt under {SHARED}")
def test_published_figures_appear_in_the_paper() -> None:
    text = (SHARED / "cafe-paper.txt").read_text()
    for sign, meaning in ((r"\pm", "±"), (r"\approx", "≈"), ("$", "")):
        text = text.replace(sign, meaning)
    text = re.sub(r"<[^>]*>", "", text)
    ours = published.figures()
    for dataset, rows in ours["table1_std"].items():
        for row, deviations in rows.items() if dataset != "source" else ():
            means = ours["published"][dataset][row]
            for mean, std in [(means, deviations)] if row == "Whole" else zip(means, deviations, strict=True):
                assert (mean is None) == (std is None)
                assert mean is None or f"{mean}±{std}" in text, (dataset, row)
    for row in range(4):
        for table in ("table3", "table4"):
            assert f"{ours[table]['LFA'][row]:.2f}/{ours[table]['LFA+DL'][row]:.2f}" in text
    for method, of_networks in ours["table6_std"].items():
        for network, std in of_networks.items() if method != "source" else ():
            mean = ours["cross_architecture_cifar10_ipc50"][method][network]
            assert re.search(rf"{mean}0?\s?±\s?{std}", text), (method, network)
    assert f"≈ {ours['table5_dc']['minutes']}" in text


def accept_spec(sent: dict[str, Any], roots: DataRoots) -> Accepted:
    spec = parse_job_spec(sent)
    describe = partial(catalog.describe, roots=roots)
    return accept(spec, Facts(DatasetFacts.gather(datasets_needed(spec, None), describe)))


@pytest.mark.parametrize("scale", SCALES)
def test_every_job_is_accepted(tmp_path: Path, scale: str) -> None:
    roots = DataRoots(datasets=tmp_path, uploads=tmp_path, downloads=tmp_path, cache=tmp_path)
    for make in EXPERIMENTS.values():
        experiment = make(SCALES[scale])
        assert experiment.jobs
        for job in experiment.jobs:
            accept_spec(job.spec, roots)
            assert re.fullmatch(r"[a-z0-9_-]{1,60}", job.name)
        places = [(cell.row, cell.column) for cell in experiment.cells]
        assert len(set(places)) == len(places)


def test_paper_scale_uses_the_settings_of_the_paper(tmp_path: Path) -> None:
    roots = DataRoots(datasets=tmp_path, uploads=tmp_path, downloads=tmp_path, cache=tmp_path)
    jobs = cell_jobs(EXPERIMENTS["table2"](PAPER), "DL + LFA + dynamic")
    assert [job.spec["seed"] for job in jobs] == [0, 1, 2, 3, 4]
    spec = accept_spec(jobs[0].spec, roots).spec.model_dump()
    method, evaluation = spec["method"], spec["evaluation"]
    assert (spec["dataset"]["name"], spec["ipc"], spec["iterations"]) == ("cifar10", 50, 2000)
    assert (method["batch_real"], method["lambda_1"], method["lambda_2"], method["gamma"]) == (256, 0.05, 0.05, 10)
    assert (method["beta"], method["layers"], method["image_milestones"]) == (1, [0, 1, 2, 3], [1200, 1400, 1800])
    assert (method["max_outer"], method["max_inner"], method["init"]) == (51, 11, "noise")
    assert (evaluation["repeats"], evaluation["epochs"], evaluation["networks"][0]["width"]) == (20, 300, 128)


def test_tables_share_equal_jobs() -> None:
    default = cell_jobs(EXPERIMENTS["table2"](PAPER), "DL + LFA + dynamic")
    assert cell_jobs(EXPERIMENTS["table4"](PAPER), "layers 1–4", "LFA + DL") == default
    assert cell_jobs(EXPERIMENTS["table5"](PAPER), "γ = 10") == default
    assert cell_jobs(EXPERIMENTS["table1"](PAPER), "CAFE", "CIFAR10, ipc 50") == default
    assert cell_jobs(EXPERIMENTS["figure3a"](PAPER), "λ1 = 0.05") == default
    assert cell_jobs(EXPERIMENTS["figure3c"](PAPER), "β = 1") == default
    assert cell_jobs(EXPERIMENTS["figure5"](PAPER), "CAFE") == default[:1]
    assert cell_jobs(EXPERIMENTS["table3"](PAPER), "layer 1", "LFA") == cell_jobs(EXPERIMENTS["table4"](PAPER), "layer 1", "LFA")
    others = {job for name in EXPERIMENTS for job in EXPERIMENTS[name](SMALL).jobs}
    assert not others & {job for name in EXPERIMENTS for job in EXPERIMENTS[name](SMOKE).jobs}


def test_rows_change_the_named_settings() -> None:
    table2 = EXPERIMENTS["table2"](SMOKE)
    default = cell_jobs(table2, "DL + LFA + dynamic")[0].spec["method"]

    def changed(experiment: Experiment, row: str, column: str = "accuracy") -> dict[str, object]:
        method = cell_jobs(experiment, row, column)[0].spec["method"]
        return {field: value for field, value in method.items() if default.get(field) != value}

    assert changed(table2, "DL") == {"bilevel": "fixed", "layers": [2], "layer_weights": [0.0]}
    assert changed(table2, "LFA + dynamic") == {"discrimination": False}
    assert changed(table2, "DL + LFA") == {"bilevel": "fixed"}
    table3 = EXPERIMENTS["table3"](SMOKE)
    assert changed(table3, "layer 1", "LFA") == {"discrimination": False, "layers": [3]}
    assert changed(table3, "layer 4", "LFA + DL") == {"layers": [0]}
    assert changed(EXPERIMENTS["table4"](SMOKE), "layers 1–3", "LFA + DL") == {"layers": [1, 2, 3]}
    assert changed(EXPERIMENTS["figure3c"](SMOKE), "β = 10") == {"beta": 10.0}
    long_loops = {"max_outer": 20, "max_inner": 20, "image_milestones": [6, 7, 9]}
    assert changed(EXPERIMENTS["figure3b"](SMOKE), "λ2 = 0.01") == {"lambda_2": 0.01} | long_loops
    assert changed(EXPERIMENTS["table5"](SMOKE), "γ = 15") == {"gamma": 15} | long_loops
    table1 = EXPERIMENTS["table1"](SMOKE)
    (siamese,) = cell_jobs(table1, "DSA", "ipc 10")
    assert (siamese.spec["method"]["name"], siamese.spec["method"]["augment"], siamese.spec["evaluation"]["augment"]) == (
        "dc",
        "dsa",
        "dsa",
    )
    assert cell_jobs(table1, "Whole", "ipc 1") == cell_jobs(table1, "Whole", "ipc 10")


def test_cells_show_published_values() -> None:
    shown = {(cell.row, cell.column): str(cell.published) for cell in EXPERIMENTS["table1"](PAPER).cells}
    assert shown["CAFE", "SVHN, ipc 1"] == "42.6 ± 3.3"
    assert shown["Whole", "CIFAR100, ipc 10"] == "56.17 ± 0.3"
    assert shown["DC", "CIFAR100, ipc 50"] == "None"  # the paper gives no number
    table5 = {(cell.row, cell.column): str(cell.published) for cell in EXPERIMENTS["table5"](SMOKE).cells}
    assert (table5["γ = 5", "minutes"], table5["DC", "minutes"]) == ("≈ 117", "≈ 460")
