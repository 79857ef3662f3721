"""Test that a job's precision decides how a GPU computes in float32, and that nothing remains set afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from cafe_core.algorithm.checkpoint import Checkpoints
from cafe_core.algorithm.collectives import Comm
from cafe_core.algorithm.condense import condense
from cafe_core.algorithm.precision import arithmetic
from cafe_core.evaluation import run
from cafe_core.evaluation.tasks import EvaluationSetup, EvaluationTask
from cafe_core.spec.base import Precision
from cafe_core.spec.evaluation import EvaluationSpec
from tests.cafe_core.made_data import make_spec, make_store

METHOD = {"batch_real": 4, "max_outer": 1}
IEEE = ("ieee", "ieee")
ALLOWED: dict[str, tuple[str, str]] = {
    "float64": IEEE,
    "float32": IEEE,
    "tf32": ("tf32", "ieee"),
    "bfloat16": IEEE,
}
"""For each precision, the settings of convolutions and of matrix products of float32 tensors on a GPU."""


def settings() -> tuple[str, str]:
    return torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision


def test_every_precision_is_listed() -> None:
    assert set(ALLOWED) == set(get_args(Precision))


@pytest.mark.parametrize("precision", get_args(Precision))
def test_condensation_computes_in_its_precision(precision: Precision, tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", [6, 6])
    spec = make_spec(store, iterations=2, precision=precision, method=METHOD)
    before, during = settings(), []

    def report(type: str, **_data: Any) -> None:
        if type == "iteration":
            during.append(settings())

    condense(spec, store, Comm.single(), torch.device("cpu"), checkpoints=Checkpoints(tmp_path), report=report)
    assert during == [ALLOWED[precision]] * 2
    assert settings() == before


def test_settings_are_restored_after_an_error() -> None:
    before = settings()
    with pytest.raises(ZeroDivisionError), arithmetic("float32"):
        raise ZeroDivisionError
    assert settings() == before


def test_evaluation_allows_tf32_only_while_it_computes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_store(tmp_path / "store", [6, 6])
    before, during, measure = settings(), [], run.accuracies

    def measured(*arguments: Any) -> list[float]:
        during.append(settings())
        return measure(*arguments)

    monkeypatch.setattr(run, "accuracies", measured)
    spec = EvaluationSpec.model_validate({"networks": [{"width": 4, "depth": 1}], "repeats": 2, "epochs": 1, "whole_epochs": 1})
    setup = EvaluationSetup(spec, 0, store.path, None, None)
    tasks = [EvaluationTask("whole", 0, "none", repeat) for repeat in range(2)]
    after = [settings() for _ in run.train_networks(tasks, setup, torch.device("cpu"))]
    assert during == [("tf32", "ieee")] * 2
    assert after == [before] * 2


def test_tf32_equals_float32_on_a_cpu(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", [6, 6])
    images = []
    for precision in ("float32", "tf32"):
        spec = make_spec(store, precision=precision, method=METHOD)
        checkpoints = Checkpoints(tmp_path / precision)
        made = condense(spec, store, Comm.single(), torch.device("cpu"), checkpoints=checkpoints, report=lambda *_, **__: None)
        images.append(made.images)
    assert torch.equal(*images)
