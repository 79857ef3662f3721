"""Test that an extension learns the same images as a run of all classes, and keeps those of the other classes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cafe_core.algorithm.checkpoint import Checkpoint, Checkpoints
from cafe_core.algorithm.collectives import Comm
from cafe_core.algorithm.condense import condense
from cafe_core.algorithm.extension import Extension
from cafe_core.algorithm.method import ignore_events
from cafe_core.data.class_store import ClassStore
from cafe_core.spec.condense import CondenseSpec
from tests.cafe_core.gangs import run_gang
from tests.cafe_core.made_data import make_spec, make_store

K, IPC = 5, 2
LEARNED = [1, 3, 4]
METHODS = {
    "dance": {"name": "dance", "factor": 2, "pool_size": 1, "pool_epochs": 1, "pool_batch": 16},
    "dance, reference": {"name": "dance", "preset": "reference", "factor": 2, "pool_size": 1, "pool_epochs": 1},
    "ncfm": {"name": "ncfm", "factor": 2, "pool_size": 1, "pool_epochs": 1, "frequencies": 64},
    "dm": {"name": "dm", "augment": "dsa"},
}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ClassStore:
    return make_store(tmp_path_factory.mktemp("store") / "s", [20, 5, 20, 7, 9], channels=3)


def spec_of(store: ClassStore, method: str) -> CondenseSpec:
    return make_spec(store, ipc=IPC, iterations=3, checkpoint_every=1, method={"batch_real": 6} | METHODS[method])


def extension(learned: list[int]) -> Extension:
    """Return an extension with a normalisation that is not the store's."""
    kept = torch.randn(K * IPC, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    return Extension(learned, kept, [0.25, 0.5, 0.5], [0.25, 0.25, 0.5])


def run(spec: CondenseSpec, store: ClassStore, path: Path, of: Extension, world: int = 1, **fields: Any) -> Checkpoint:
    """Condense on a gang; return the last checkpoint."""
    checkpoints = Checkpoints(path)

    def work(comm: Comm) -> None:
        condense(
            spec, store, comm, torch.device("cpu"), checkpoints=checkpoints, report=ignore_events, extension=of, **fields
        )  # fmt: skip

    run_gang(world, work)
    last = checkpoints.latest(spec)
    assert last is not None
    return last


def by_class(rows: Tensor) -> Tensor:
    return torch.unflatten(rows, 0, (K, -1))


@pytest.mark.parametrize("method", METHODS)
def test_learned_classes_equal_those_of_a_run_of_all_classes_and_the_others_are_kept(
    store: ClassStore, tmp_path: Path, method: str
) -> None:
    spec, kept = spec_of(store, method), extension(LEARNED).kept
    whole = run(spec, store, tmp_path / "whole", extension(list(range(K))))
    for world in (1, 2, 3):
        grown = run(spec, store, tmp_path / f"{world}", extension(LEARNED), world)
        torch.testing.assert_close(by_class(grown.images)[LEARNED], by_class(whole.images)[LEARNED], rtol=0, atol=1e-9)
        torch.testing.assert_close(by_class(grown.momentum)[LEARNED], by_class(whole.momentum)[LEARNED], rtol=0, atol=1e-9)
        for k in (0, 2):
            assert torch.equal(by_class(grown.images)[k], by_class(kept)[k].double())
            assert not by_class(grown.momentum)[k].any()
        assert grown.per_class.keys() == whole.per_class.keys()
        for name, part in grown.per_class.items():
            torch.testing.assert_close(by_class(part)[LEARNED], by_class(whole.per_class[name])[LEARNED], rtol=0, atol=1e-9)


def test_an_interrupted_extension_resumes_to_the_same_bytes_on_another_number_of_workers(
    store: ClassStore, tmp_path: Path
) -> None:
    spec, of = spec_of(store, "ncfm"), extension(LEARNED)
    undisturbed = run(spec, store, tmp_path / "a", of, cache=tmp_path / "cache")
    run(spec, store, tmp_path / "b", of, until=2, cache=tmp_path / "cache")
    resumed = run(spec, store, tmp_path / "b", of, cache=tmp_path / "cache")
    assert torch.equal(resumed.images, undisturbed.images)
    run(spec, store, tmp_path / "c", of, until=1, cache=tmp_path / "cache")
    elsewhere = run(spec, store, tmp_path / "c", of, world=2, cache=tmp_path / "cache")
    torch.testing.assert_close(elsewhere.images, undisturbed.images, rtol=0, atol=1e-9)


def test_pool_of_another_normalisation_is_another_pool(store: ClassStore, tmp_path: Path) -> None:
    spec, of = spec_of(store, "dance"), extension(LEARNED)
    cache = tmp_path / "cache"
    for number, each in enumerate((of, replace(of, std=[0.5, 0.5, 0.5]), replace(of, learned=[0]))):
        run(spec, store, tmp_path / f"{number}", each, cache=cache)
    assert len(list(cache.glob("*/*.safetensors"))) == 2, "the pool does not depend on which classes are learned"
