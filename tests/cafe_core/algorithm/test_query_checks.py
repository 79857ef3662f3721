"""Test that query checks which are made later, or never, do not change a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cafe_core.algorithm.bilevel import Check
from cafe_core.algorithm.checkpoint import Checkpoints
from cafe_core.algorithm.collectives import Comm
from cafe_core.algorithm.condense import condense
from cafe_core.algorithm.method import LearningMethod, ignore_events, make_method
from cafe_core.algorithm.model import Budget
from cafe_core.algorithm.network_steps import Queries, update_network
from cafe_core.algorithm.run_state import start
from cafe_core.algorithm.shard_context import ShardContext
from tests.cafe_core.gangs import run_gang
from tests.cafe_core.made_data import make_spec, make_store

CPU = torch.device("cpu")
CAFE: dict[str, Any] = {
    "batch_real": 8,
    "max_outer": 6,
    "max_inner": 6,
    "gamma": 4,
    "query_per_class": 6,
    "network_lr": 0.1,
    "lambda_1": 0.1,
    "lambda_2": 0.05,
}


def test_check_made_later_has_the_accuracy_of_its_time(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", [12] * 3)
    spec = make_spec(store, method=CAFE)
    context = ShardContext.of(spec, store, Comm.single(), CPU, Budget.of(CPU))
    method = make_method(context)
    assert isinstance(method, LearningMethod)
    _, shard = start(context, method, Checkpoints(tmp_path), ignore_events)
    method.renew_network(0)
    update_network(context, shard, 0, 0, 0)
    queries = Queries(context, method.loops, 0)
    later, now = queries.after_inner_epoch(0, 1), queries.after_inner_epoch(0, 1)
    assert later is not None
    assert now is not None
    assert not later.is_made
    before = now.accuracy()

    for epoch in range(1, 12):
        update_network(context, shard, 0, 0, epoch)
    weights = context.model.copy_weights()
    newest = queries.after_inner_epoch(0, 3)
    assert newest is not None
    latest = newest.accuracy()
    assert later.accuracy() == before
    assert queries.latest == latest  # not that of the older step, which was measured later
    assert queries.count == 3
    assert all(torch.equal(one, other) for one, other in zip(context.model.copy_weights(), weights, strict=True))
    assert Queries(context, method.loops, 0)._query(0, 1, None) != before  # the training has changed the answer


@pytest.mark.parametrize("world", [1, 3])
@pytest.mark.parametrize("carry", [False, True])
def test_omitted_checks_do_not_change_a_run(world: int, carry: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_store(tmp_path / "store", [12, 9, 10])
    spec = make_spec(store, method=CAFE | {"query_carry": carry}, iterations=3)

    def run(name: str) -> tuple[torch.Tensor, list[tuple[int, int]], int]:
        events: list[dict[str, Any]] = []

        def report(type: str, **data: Any) -> None:
            if type == "iteration":
                events.append(data)

        run_gang(world, lambda comm: condense(spec, store, comm, CPU, checkpoints=Checkpoints(tmp_path / name), report=report))
        checkpoint = Checkpoints(tmp_path / name).latest(spec)
        assert checkpoint is not None
        steps = [(event["outer_steps"], event["inner_epochs"]) for event in events]
        return checkpoint.images, steps, sum(event["real_images"] for event in events)

    images, steps, real_images = run("omitted")

    def all_at_once(queries: Queries, outer: int, inner: int, *, step: int) -> Check:  # noqa: ARG001
        check = Check(lambda: queries._query(outer, inner, None))
        check.accuracy()
        return check

    monkeypatch.setattr(Queries, "_check", all_at_once)
    all_images, all_steps, all_real_images = run("made at once")
    assert torch.equal(images, all_images)
    assert steps == all_steps
    assert any(inner < (outer - 1) * 6 for outer, inner in steps)  # some loops end by their rules
    per_step, per_check = 8 * 3, 6 * 3
    assert all_real_images == sum(outer * per_step + (outer + inner) * per_check for outer, inner in steps)
    assert real_images == all_real_images if carry else real_images < all_real_images
