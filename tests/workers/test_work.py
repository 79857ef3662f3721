"""Test what a worker passes to the condensation, without a cluster."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import cafe_core.algorithm.condense as condense_module
from cafe_core.algorithm.collectives import Comm
from cafe_core.algorithm.model import Budget
from cafe_core.spec.resources import ResourcesSpec
from tests.cafe_core.made_data import make_store
from workers.shard_worker import WorkerAssignment
from workers.work import CondenseShard


def test_worker_uses_the_share_of_its_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    budgets: list[Any] = []
    monkeypatch.setattr(Comm, "connect", lambda **_: Comm.single())
    monkeypatch.setattr(Budget, "of", lambda device, share: (device.type, share))
    monkeypatch.setattr(condense_module, "condense", lambda *_, budget, **__: budgets.append(budget))
    condensation: Any = SimpleNamespace(
        spec=SimpleNamespace(resources=ResourcesSpec(workers=2, gpus_per_worker=0.5)),
        store=make_store(tmp_path / "store", [4, 4]).path,
        checkpoints=tmp_path,
        fence=None,
        artifact_cache=tmp_path,
        base=None,
        learned=range(2),
    )
    assignment = WorkerAssignment(rank=0, world=1, address="127.0.0.1:1", host="127.0.0.1", device="cpu", threads=1)
    CondenseShard(condensation, until=1, timeout_s=1.0, memory_share=0.25)(assignment, lambda *_, **__: None)
    assert budgets == [("cpu", 0.125)]
