"""Test on an emulated GPU that no step mixes devices, and how often the host waits for the device and launches kernels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cafe_core.algorithm.artifact_cache import ArtifactCache
from cafe_core.algorithm.checkpoint import Checkpoints
from cafe_core.algorithm.collectives import Comm
from cafe_core.algorithm.condense import condense
from cafe_core.algorithm.method import LearningMethod, ignore_events, make_method
from cafe_core.algorithm.model import Budget
from cafe_core.algorithm.network_steps import Queries, update_network
from cafe_core.algorithm.run_state import start
from cafe_core.algorithm.shard_context import ShardContext
from cafe_core.algorithm.synthetic_shard import SyntheticShard
from cafe_core.methods.registry import METHODS
from cafe_core.spec.method import LearningMethodSpec
from tests.cafe_core.emulated_gpu import GPU, Counts, emulated_gpu
from tests.cafe_core.made_data import make_spec, make_store

RESIDENT = Budget(1 << 33, 1 << 33, 1 << 30)
READ = Budget(1 << 33, 1 << 33)  # real images are read from the memory map
POOL = {"pool_size": 1, "pool_epochs": 1, "pool_batch": 16, "batch_real": 8}
SMALL: dict[str, dict[str, Any]] = {"dance": POOL, "ncfm": POOL | {"frequencies": 8}}
"""Fields that make methods quick."""
CAFE: dict[str, Any] = {"batch_real": 8, "max_outer": 3, "max_inner": 3, "gamma": 2, "query_per_class": 6}


@dataclass
class Run:
    """A run of CAFE on the emulated GPU, before its first step."""

    method: LearningMethod
    shard: SyntheticShard
    counts: Counts

    def outer_step(self) -> Counts:
        self.counts.clear()
        self.method.update_images(self.shard, 0, 0)
        return self.counts

    def query(self) -> Counts:
        queries = Queries(self.method.context, self.method.loops, 0)
        self.counts.clear()
        assert queries.after_inner_epoch(0, 0) is not None
        return self.counts

    def inner_epoch(self) -> Counts:
        self.counts.clear()
        update_network(self.method.context, self.shard, 0, 0, 0)
        return self.counts


@contextmanager
def running(
    path: Path, *, classes: int = 10, budget: Budget = RESIDENT, fused_kernels: bool = True, **method: Any
) -> Iterator[Run]:
    store = make_store(path / "store", [12] * classes)
    spec = make_spec(store, precision="float32", network={"width": 6, "depth": 3}, method=CAFE | method)
    with emulated_gpu(fused_kernels=fused_kernels) as counts:
        made = make_method(ShardContext.of(spec, store, Comm.single(), GPU, budget))
        assert isinstance(made, LearningMethod)
        _, shard = start(made.context, made, Checkpoints(path), ignore_events)
        made.prepare(ArtifactCache(None, Comm.single(), GPU), ignore_events)
        made.renew_network(0)
        yield Run(made, shard, counts)


@pytest.mark.parametrize(
    ("budget", "transfers"), [(RESIDENT, []), (READ, ["algorithm/real_images.py"])], ids=["resident", "read"]
)
@pytest.mark.parametrize("augment", ["none", "dsa"])
def test_host_waits_once_per_outer_step_and_query_and_never_to_train(
    budget: Budget, transfers: list[str], augment: str, tmp_path: Path
) -> None:
    """Images that do not stay on the GPU cost one more wait for each chunk."""
    with running(tmp_path, budget=budget, augment=augment) as run:
        assert modules(run.outer_step().waits) == ["algorithm/method.py", *transfers]  # the loss
        assert modules(run.query().waits) == ["algorithm/inner_loop.py", *transfers]  # the hits
        assert run.inner_epoch().waits == {}


def modules(waits: Counter[str]) -> list[str]:
    """Return the module of each wait, sorted."""
    return sorted(line.partition(":")[0] for line in waits.elements())


# Launches of an outer step, a query and an inner epoch with three blocks of a ConvNet. Lower them when a step needs fewer.
@pytest.mark.parametrize(
    ("fused_kernels", "launches"), [(True, (65, 13, 28)), (False, (86, 19, 37))], ids=["fused kernels", "torch's operations"]
)
def test_launches_and_transfers_do_not_grow_with_the_number_of_classes(
    fused_kernels: bool, launches: tuple[int, int, int], tmp_path: Path
) -> None:
    numbers = []
    for classes in (3, 10):
        with running(tmp_path / str(classes), classes=classes, fused_kernels=fused_kernels) as run:
            steps = [run.outer_step, run.query, run.inner_epoch]
            numbers.append([(counts.launches, counts.transfers) for step in steps for counts in [step()]])
    assert numbers[0] == numbers[1]
    for step, found, most in zip(
        ("outer step", "query", "inner epoch"), numbers[0], zip(launches, (3, 2, 2), strict=True), strict=True
    ):
        assert found[0] <= most[0], step
        assert found[1] <= most[1], step


@pytest.mark.parametrize("name", sorted(METHODS))
def test_method_makes_the_same_images_on_a_gpu(name: str, tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", [12] * 3)
    learns = issubclass(METHODS[name].spec, LearningMethodSpec)
    fields = {"iterations": 2} if learns else {"iterations": 0}
    spec = make_spec(store, method={"name": name} | SMALL.get(name, {}), **fields)

    def images(device: torch.device, budget: Budget) -> Tensor:
        checkpoints = Checkpoints(tmp_path / device.type)
        return condense(
            spec, store, Comm.single(), device, checkpoints=checkpoints, report=ignore_events, budget=budget
        ).images.cpu()

    with emulated_gpu():
        on_gpu = images(GPU, RESIDENT)
    torch.testing.assert_close(on_gpu, images(torch.device("cpu"), READ), rtol=1e-9, atol=1e-9)
