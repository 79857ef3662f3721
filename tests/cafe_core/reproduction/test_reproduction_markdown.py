"""Test how the outcomes of jobs become numbers, Markdown and pictures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cafe_core.reproduction import pictures
from cafe_core.reproduction.experiment import Cell, Curve, Experiment
from cafe_core.reproduction.illustrate import illustrate
from cafe_core.reproduction.jobs import Cost, Failed, Finished, Job, Outcome, Workplace
from cafe_core.reproduction.markdown import Circumstances, markdown
from cafe_core.reproduction.published import Published
from cafe_core.reproduction.readings import NoReading, Reading, read
from cafe_core.reproduction.scales import PAPER, SMOKE

CIRCUMSTANCES = Circumstances("cafe reproduce table2 --scale paper", "2026-11-22 12:00 UTC", "2 cores")


def job(number: int) -> Job:
    """Return one of many different jobs."""
    return Job({"kind": "condense", "dataset": {"name": "digits"}, "ipc": 1, "method": {"name": "cafe"}, "seed": number})


def finished(of: Job, *accuracies: float, minutes: float | None = None) -> Finished:
    """Return the outcome of a job with these accuracies."""
    row = {"name": "convnet", "accuracies": list(accuracies)}
    result = {"evaluation": {"networks": [row]}, "versions": {"torch": "2.14.1"}}
    return Finished(of.name, result, None if minutes is None else 60 * minutes, Path("nowhere"))


def make_experiment(**fields: object) -> Experiment:
    """Return an experiment of two columns: a cell of two jobs, a failed one, one that was not run, and minutes."""
    cells = (
        Cell("A", "accuracy", (job(0), job(1)), Published(50.92)),
        Cell("B", "accuracy", (job(2),), Published(42.6, 3.3)),
        Cell("C", "accuracy", (job(3),)),
        Cell("A", "minutes", (job(0), job(1)), Published(117, approximate=True), measure="minutes"),
    )
    given = {"name": "table2", "scale": SMOKE, "title": "Table 2: made", "row_title": "row", "cells": cells}
    said = {"ours": "digits", "paper": "CIFAR10", "notes": ("A note.",), "differences": ("this", "that")}
    return Experiment(**{**given, **said, **fields})  # type: ignore[arg-type]


OUTCOMES: dict[str, Outcome] = {
    outcome.name: outcome
    for outcome in (
        finished(job(0), 60.0, 70.0, minutes=1.0),
        finished(job(1), 80.0, minutes=2.0),
        Failed(job(2).name, "dataset mnist:\nnot | found"),
    )
}


def test_reading_pools_the_networks_of_all_jobs() -> None:
    accuracy, failed, absent, minutes = (read(cell, OUTCOMES) for cell in make_experiment().cells)
    assert isinstance(accuracy, Reading)
    assert (accuracy.mean, accuracy.std, accuracy.n) == (70.0, 10.0, 3)
    assert failed == NoReading("failed: dataset mnist:\nnot | found")
    assert absent == NoReading("not run yet")
    assert isinstance(minutes, Reading)
    assert minutes.values == (1.0, 2.0)


def test_markdown_of_an_experiment() -> None:
    assert markdown(make_experiment(scale=replace(PAPER, takes="days")), OUTCOMES, CIRCUMSTANCES, ["table2.png"]) == (
        """\
# Table 2: made

`cafe reproduce table2 --scale paper` (days), 2026-11-22 12:00 UTC, 2 cores; torch 2.14.1.
Ours: digits; mean ± standard deviation over n networks, test accuracy in %. Published: CIFAR10 (Wang et al., CAFE: Learning to \
Condense Dataset by Aligning Features, CVPR 2022).

**accuracy**

| row | ours | n | published |
|---|---|---|---|
| A | 70.0 ± 10.0 | 3 | 50.92 |
| B | failed: dataset mnist: not \\| found | | 42.6 ± 3.3 |
| C | not run yet | | – |

**minutes**

| row | ours | n | published |
|---|---|---|---|
| A | 1.50 ± 0.71 | 2 | ≈ 117 |

![Table 2: made](table2.png)

A note.

What differs from the paper:

- this
- that
"""
    )


def test_repeated_steps_are_counted_once(tmp_path: Path) -> None:
    events = [
        {"type": "phase", "data": {"phase": "condensing"}},
        {"type": "epoch", "data": {"epoch": 1, "seconds": 4.0, "real_images": 100}},
        *(
            {"type": "iteration", "data": {"iteration": i, "seconds": s, "real_images": 10}}
            for i, s in [(1, 5.0), (2, 7.0), (2, 1.0), (3, 2.5)]
        ),
    ]
    workplace = Workplace(tmp_path)
    found = workplace.finish("a", {}, events)
    assert (found.condensing_s, found.cost) == (8.5, Cost(12.5, 130))
    assert workplace.finished("a") == replace(found, earlier=True)
    without = workplace.finish("b", {}, events[:1])
    assert (without.condensing_s, without.cost) == (None, None)
    assert workplace.finished("b") == replace(without, earlier=True)


def test_images_of_a_pool_count_whether_or_not_it_was_cached(tmp_path: Path) -> None:
    pool = {"type": "pool", "data": {"networks": 2, "epochs": 3, "real_images": 600}}
    epochs = [{"type": "epoch", "data": {"epoch": i, "seconds": 4.0}} for i in range(1, 7)]
    iteration = {"type": "iteration", "data": {"iteration": 1, "seconds": 1.0, "real_images": 10}}
    trained = Workplace(tmp_path).finish("a", {}, [pool, *epochs, iteration])
    cached = Workplace(tmp_path).finish("b", {}, [pool, iteration])
    assert (trained.cost, cached.cost) == (Cost(25.0, 610), Cost(1.0, 610))


def test_picture_of_costs_has_a_panel_per_column_and_measure(tmp_path: Path) -> None:
    cost = Cost(12.5, 1300)
    outcomes = {name: replace(o, cost=cost) if isinstance(o, Finished) else o for name, o in OUTCOMES.items()}
    experiment = make_experiment(name="beyond")
    (path,) = illustrate(experiment, outcomes, tmp_path)
    with Image.open(path) as image:
        assert image.width > image.height > 300
        assert len(image.convert("RGB").getcolors(1 << 20)) > 50


def test_jobs_are_identified_by_their_spec() -> None:
    assert job(1) == job(1)
    assert job(1) != job(2)
    assert job(1).name.startswith("cafe-digits-ipc1-")


@pytest.mark.parametrize("paper", ["CIFAR10", "digits"])
def test_table_is_drawn(tmp_path: Path, paper: str) -> None:
    pictures.draw_table(make_experiment(paper=paper), OUTCOMES, tmp_path / "table2.png")
    assert_drawn(tmp_path / "table2.png")


@pytest.mark.parametrize("paper", ["CIFAR10", "digits"])
def test_curve_is_drawn(tmp_path: Path, paper: str) -> None:
    curve = Curve("β", (0.1, 1.0, 10.0), 1.0, logarithmic=True)
    pictures.draw_curve(
        make_experiment(cells=make_experiment().cells[:3], curve=curve, paper=paper), OUTCOMES, tmp_path / "curve.png"
    )
    assert_drawn(tmp_path / "curve.png")


@pytest.mark.parametrize("channels", [1, 3])
def test_grids_show_an_image_at_its_position(tmp_path: Path, channels: int) -> None:
    path = tmp_path / "grids.png"
    black = np.zeros((3, 2, channels, 8, 8), dtype=np.uint8)
    pictures.draw_grids("black", {"one": black, "other": black}, ["a", "b", "c"], path)
    one_white = black.copy()
    one_white[2, 0] = 255
    before = np.asarray(Image.open(path).convert("L"))
    pictures.draw_grids("black", {"one": black, "other": one_white}, ["a", "b", "c"], path)
    changed = np.argwhere(before != np.asarray(Image.open(path).convert("L")))
    height, width = before.shape
    assert changed[:, 1].min() > width / 2  # in the grid on the right
    assert changed[:, 0].min() > height / 2  # in its last row
    assert len(changed) > 1000


def test_scatter_plot_is_drawn(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    stars = {name: random.normal(size=(4, 2)) for name in ("DC", "DL", "LFA", "CAFE")}
    pictures.draw_scatter("t-SNE", random.normal(size=(30, 2)), stars, tmp_path / "scatter.png")
    assert_drawn(tmp_path / "scatter.png")


def assert_drawn(path: Path) -> None:
    """Check that the picture has a plausible size and many colours."""
    image = Image.open(path)
    assert min(image.size) > 300
    assert max(image.size) < 2500
    assert len(np.unique(np.asarray(image).reshape(-1, 4), axis=0)) > 20
